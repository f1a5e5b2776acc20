// SPDX-License-Identifier: Apache-2.0

package host

import (
	"os"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/netcfg/netcfgtest"
)

// TestJoinsAndLeavesLeaveNothing adds and removes a thousand nodes, or a hundred with
// -short. At the end the host has the same configuration as at the beginning, and no
// additional open file.
func TestJoinsAndLeavesLeaveNothing(t *testing.T) {
	if !namespaced(t) {
		return
	}
	s := settings()
	s.Implementation, s.Bridge = netcfg.Auto, "" // whichever this kernel supports
	with := netcfg.Desired(netcfgtest.IPv4(netcfgtest.Peer(2, "a", "10.4.0.2/32", "10.42.1.0/24")), s)
	without := netcfg.Desired(netcfgtest.IPv4(), s)
	with.Accepts, without.Accepts = nil, nil // there is no other firewall here
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
	// Userspace WireGuard closes its end of the last request's connection some time
	// later.
	deadline := time.Now().Add(time.Minute)
	for openFiles(t) > files && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if got := openFiles(t); got > files {
		t.Errorf("got %d open files, want %d as after the first node had left", got, files)
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
