// SPDX-License-Identifier: Apache-2.0

//go:build !kernel

package e2e

import (
	"context"
	"fmt"
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

// stays waits until a condition has held on all nodes for settleTime without a break. What was begun before
// may still break it: a node that was suspected before there were tunnels is taken for dead for a moment.
func (m *testbed) stays(limit time.Duration, what string, ok func(control.Status) bool, nodes ...*lab.Node) {
	m.t.Helper()
	since := time.Now()
	m.eventually(limit, func() error {
		for _, n := range nodes {
			if s, err := n.Status(m.ctx); err == nil && !ok(s) {
				since = time.Now()
				return fmt.Errorf("%s is not %s: %+v", n.Name, what, s)
			}
		}
		if length := time.Since(since); length < settleTime {
			return fmt.Errorf("all nodes are %s for %v, want %v", what, length, settleTime)
		}
		return nil
	})
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
