// SPDX-License-Identifier: Apache-2.0

package host

import (
	"os"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/netcfg/netcfgtest"
)

// TestJoinsAndLeavesLeaveNothing has a thousand nodes come and go, with -short a
// hundred. What the host has at the end is what it had at first, and no file is open
// that was not.
func TestJoinsAndLeavesLeaveNothing(t *testing.T) {
	if !namespaced(t) {
		return
	}
	s := settings()
	s.Implementation, s.Bridge = netcfg.Auto, "" // whatever this kernel has
	with := netcfg.Desired(netcfgtest.IPv4(netcfgtest.Peer(2, "a", "10.4.0.2/32", "10.42.1.0/24")), s)
	without := netcfg.Desired(netcfgtest.IPv4(), s)
	with.Accepts, without.Accepts = nil, nil // no other firewall stands in the way here
	with.OwnPorts, without.OwnPorts = nil, nil
	h := newKernel(t)
	round := func() {
		mustReconcile(t, h, with)
		mustReconcile(t, h, without)
	}
	round()
	files := openFiles(t)
	rounds := 1000
	if testing.Short() {
		rounds = 100
	}
	for range rounds {
		round()
	}
	checkState(t, h, without)
	// WireGuard in this process closes its end of the last request's connection when it
	// gets round to it.
	deadline := time.Now().Add(time.Minute)
	for openFiles(t) > files && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if got := openFiles(t); got > files {
		t.Errorf("%d files are open, %d were after the first node had left", got, files)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
