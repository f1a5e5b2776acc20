// SPDX-License-Identifier: Apache-2.0

//go:build !kernel

package e2e

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/meshd/meshd/test/lab"
)

// TestClientsExhausted runs a mesh with addresses for two clients only.
func TestClientsExhausted(t *testing.T) {
	t.Parallel()
	v := newVillage(t, func(m *testbed) []*lab.Host {
		h, err := m.lab.Host(m.ctx, "only", lab.NAT)
		m.must(err)
		return []*lab.Host{h}
	})
	n := v.nodes[0]
	v.configure(n, "  endpoint: "+n.Public().String()+":51820", "cluster: {overlay: [10.4.0.0/29]}")
	v.live()
	for _, name := range []string{"one", "two"} {
		v.addClient(n, name)
	}
	v.knows(2, n)
	out, err := n.Meshd(v.ctx, "client", "add", "three")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 4 || !strings.Contains(err.Error(), "all 2 addresses for clients are taken") || out != "" {
		t.Errorf("a third client: got %q, %v, want a refusal", out, err)
	}
	v.run(n, binary, "client", "remove", "one")
	v.addClient(n, "three")
	v.must(n.Kill()) // what was printed must not be forgotten
	v.start(n)
	v.knows(2, n)
	if list := v.run(n, binary, "client", "list"); strings.Contains(list, "one") || !strings.Contains(list, "three") {
		t.Errorf("clients after a restart: got %s", list)
	}
}
