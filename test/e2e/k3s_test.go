// SPDX-License-Identifier: Apache-2.0

//go:build !kernel

package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/daemon"
	"github.com/meshd/meshd/internal/k3s"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/test/lab"
)

// TestK3sConfiguration checks the file that meshd writes for k3s: when a foreign file is
// in its place, when it is deleted, when the role changes, and after meshd down.
func TestK3sConfiguration(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 1)
	n := m.nodes[0]
	has := func(lines ...string) {
		t.Helper()
		m.eventually(settleLimit, func() error {
			text, err := os.ReadFile(n.Path(k3s.DropIn))
			for _, line := range lines {
				if err == nil && !strings.Contains(string(text), line+"\n") {
					err = fmt.Errorf("no %q in %s", line, text)
				}
			}
			return err
		})
	}
	m.must(n.WriteFile(k3s.DropIn, "node-ip: 192.0.2.1\n", 0o600))
	m.must(n.Configure(lab.Config(n.Name, nil, "k3s: {write-config: true, role: server}"), m.secret))
	m.must(n.Start())
	foreign := func(s control.Status) bool {
		return slices.ContainsFunc(s.Problems, func(p mesh.Problem) bool { return p.Kind == daemon.ProblemK3s })
	}
	m.await(settleLimit, "ready, with the problem that the file is not meshd's", func(s control.Status) bool { return s.Node.Ready && foreign(s) }, n)
	m.run(n, "rm", k3s.DropIn)
	s := m.await(settleLimit, "without the problem", func(s control.Status) bool { return !foreign(s) }, n)[0]
	overlay := s.Node.Overlay[0].String()
	has(fmt.Sprintf("node-ip: %q", overlay), `flannel-backend: "none"`)

	m.run(n, "rm", k3s.DropIn)
	has(fmt.Sprintf("advertise-address: %q", overlay))
	m.rewrite(n, "k3s: {write-config: true, role: server, etcd: wan}")
	has(`etcd-arg+: ["heartbeat-interval=250", "election-timeout=4750"]`)
	m.rewrite(n, "k3s: {write-config: true, role: agent}")
	m.eventually(settleLimit, func() error {
		text, err := os.ReadFile(n.Path(k3s.DropIn))
		if err == nil && strings.Contains(string(text), "flannel") {
			err = fmt.Errorf("an agent has %s", text)
		}
		return err
	})
	m.must(n.Stop())
	if removed := m.down(n); !slices.Contains(removed, "delete "+k3s.DropIn) {
		t.Errorf("down removed %q, want %s among it", removed, k3s.DropIn)
	}
	if _, err := os.Stat(n.Path(k3s.DropIn)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after down: got %v, want the file gone", err)
	}
}
