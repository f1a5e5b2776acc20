// SPDX-License-Identifier: Apache-2.0

//go:build kernel

package e2e

import (
	"testing"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/test/lab"
)

// TestForeignWireGuard starts meshd on a host that has a foreign WireGuard device of the
// same name. The device stays as it is, key included, until its owner deletes it.
func TestForeignWireGuard(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 1)
	n := m.nodes[0]
	m.must(n.WriteFile("/run/foreign.key", "GAnx1V7aTd3p1A2T1Ch1kCPZtLLXkQ5CqqOfsaHKPGw=\n", 0o600))
	m.commands(n, []string{
		"ip link add meshd0 type wireguard",
		"wg set meshd0 private-key /run/foreign.key listen-port 51999",
		"ip link set meshd0 up",
	})
	look := func() string {
		return m.run(n, "wg", "show", device, "dump") + m.run(n, "ip", "link", "show", device)
	}
	before := look()
	if found := m.check(n); len(found) != 1 || found[0].What != "links" {
		t.Errorf("errors that check finds: got %+v, want one of links", found)
	}
	m.start(n)
	m.await(settleLimit, "aware of the device", func(s control.Status) bool { return says(s, device, "not meshd's", "wireguard.interface") }, n)
	m.must(n.Stop())
	m.run(n, binary, "down")
	if after := look(); after != before {
		t.Errorf("the device after a daemon's run: got %s, want %s", after, before)
	}
	m.start(n)
	m.commands(n, []string{"ip link delete meshd0"})
	m.await(settleLimit, "well", well, n)
}
