// SPDX-License-Identifier: Apache-2.0

//go:build kernel

package e2e

import (
	"errors"
	"testing"
	"time"

	"github.com/meshd/meshd/test/lab"
)

// TestClocksSetBack sets back the clocks of both ends of a tunnel, whose sessions end
// soon after. Each WireGuard has seen later handshake timestamps than the other one sends
// now, and refuses them until meshd removes the peers and adds them again.
func TestClocksSetBack(t *testing.T) { // not parallel: all hosts of the machine have one clock
	m := settledMesh(t, lab.NAT, 2)
	for _, n := range m.nodes {
		m.connected(pingLimit, m.nodes...)
		m.dropSessions(n) // so each has begun a handshake once
	}
	m.connected(pingLimit, m.nodes...)
	setClock(t, -time.Hour)
	t.Cleanup(func() { setClock(t, time.Hour) })
	for _, n := range m.nodes {
		m.dropSessions(n)
	}
	// A handshake counts as fresh for three minutes.
	m.connected(settleLimit, m.nodes...)
}

// dropSessions sets a node's device down; meshd sets it up again. The kernel then
// keeps the peers but not their sessions.
func (m *testbed) dropSessions(n *lab.Node) {
	m.run(n, "ip", "link", "set", device, "down")
}

// setClock moves the machine's clock, or skips the test where that is not allowed.
func setClock(t *testing.T, by time.Duration) {
	t.Helper()
	switch err := lab.MoveClock(by); {
	case errors.Is(err, lab.ErrClock):
		t.Skip(err)
	case err != nil:
		t.Fatal(err)
	}
}
