// SPDX-License-Identifier: Apache-2.0

//go:build kernel

package e2e

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/test/lab"
)

// TestClocksSetBack sets back the clock of both ends of a tunnel, whose sessions
// end soon after. Each end's WireGuard has seen later handshakes than the other one
// sends now, and refuses them until meshd has the two forget each other.
func TestClocksSetBack(t *testing.T) { // not parallel: all hosts of the machine have one clock
	m := settledMesh(t, lab.NAT, 2)
	m.connected(pingLimit, m.nodes...)
	setClock(t, -time.Hour)
	t.Cleanup(func() { setClock(t, time.Hour) })
	for _, n := range m.nodes {
		// The kernel drops the sessions of a device that goes down.
		m.run(n, "ip", "link", "set", device, "down")
	}
	m.connected(settleLimit, m.nodes...)
}

// setClock moves the machine's clock.
func setClock(t *testing.T, by time.Duration) {
	t.Helper()
	now := unix.NsecToTimespec(time.Now().Add(by).UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &now); err != nil {
		t.Fatal(err)
	}
}
