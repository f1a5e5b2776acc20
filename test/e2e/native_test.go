// SPDX-License-Identifier: Apache-2.0

//go:build !kernel

package e2e

import (
	"context"
	"sync"
	"time"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/test/lab"
)

// underlays are those on which most tests run.
var underlays = []lab.Underlay{lab.NAT, lab.Routed}

// probes has no settings: the daemon's defaults.
var probes []string

// settleTime is how long a condition must hold to count as stable: longer than any
// round of gossip.
const settleTime = 30 * time.Second

// never polls the status of nodes until the function that it returns is called. The test
// fails as soon as the condition holds for one of them.
func (m *testbed) never(what string, bad func(control.Status) bool, nodes ...*lab.Node) (stop func()) {
	m.t.Helper()
	ctx, cancel := context.WithCancel(m.ctx)
	var watching sync.WaitGroup
	for _, n := range nodes {
		watching.Go(func() {
			for ctx.Err() == nil {
				if s, err := n.Status(ctx); err == nil && bad(s) {
					m.t.Errorf("%s has had %s for a moment: %+v", n.Name, what, s)
					return
				}
				select {
				case <-time.After(100 * time.Millisecond):
				case <-ctx.Done():
				}
			}
		})
	}
	stop = func() {
		cancel()
		watching.Wait()
	}
	m.t.Cleanup(stop)
	return stop
}

// rewrite replaces a node's configuration, keeps the join list of newMesh, and reloads
// its daemon.
func (m *testbed) rewrite(n *lab.Node, more ...string) {
	m.t.Helper()
	var join []string
	if n != m.nodes[0] {
		join = append(join, m.nodes[0].Public().String())
	}
	m.must(n.Configure(lab.Config(n.Name, join, more...), m.secret))
	m.must(n.Reload())
}
