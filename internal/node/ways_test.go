// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// TestWays follows a node whose host loses its way to a network that a2 names, too.
func TestWays(t *testing.T) {
	network := netip.MustParsePrefix("10.77.0.0/16")
	records := location()
	records[1].AllowedLocationIPs = []netip.Prefix{network}
	start := time.Unix(1_800_000_000, 0)
	in := Input{Self: Identity{Public: records[0].Identity}, View: mesh.View{Records: records}}
	in.Config = Config{Location: "a", Bridge: "kube-bridge", AllowedLocationIPs: []netip.Prefix{network}}
	in.View.Alive = map[mesh.ID]bool{records[1].ID(): true}
	way := func(p string, down bool) mesh.AttachedNetwork {
		return mesh.AttachedNetwork{Prefix: netip.MustParsePrefix(p), Link: "eth1", Down: down}
	}
	var w ways
	step := func(what string, at, wait time.Duration, lost bool, ways ...mesh.AttachedNetwork) {
		t.Helper()
		in.Now, in.Facts.Nearby.Attached = start.Add(at), ways
		got := w.look(in)
		if got != wait || (len(w.lost) > 0) != lost {
			t.Errorf("%s: got lost %v, look again in %v, want lost %t, %v", what, w.lost, got, lost, wait)
		}
		if problems := w.problems(in.Config); len(problems) != len(w.lost) {
			t.Errorf("%s: got problems %v", what, problems)
		}
	}
	step("it is reached by a default route", 0, 0, false)
	step("attached", 0, 0, false, way("10.77.0.0/16", false))
	step("the link is down", 0, 10*time.Second, true, way("10.77.0.0/16", true))
	step("it is up again", 4*time.Second, 6*time.Second, true, way("10.77.0.0/16", false))
	step("for long enough", 10*time.Second, 0, false, way("10.77.0.0/16", false))
	step("the address is gone", time.Minute, 20*time.Second, true, way("192.168.9.0/24", false))
	step("two routes to parts, one of them down", 2*time.Minute, 0, false, way("10.77.1.0/24", false), way("10.77.2.0/24", true))
	delete(in.View.Alive, records[1].ID())
	step("lost, and the other one does not live", 3*time.Minute, 0, false)
	in.View.Alive[records[1].ID()] = true
	step("lost, and the other one lives again", 4*time.Minute, 40*time.Second, true)
	records[1].AllowedLocationIPs = nil
	step("nobody else names it", 5*time.Minute, 0, false)
	records[1].AllowedLocationIPs = []netip.Prefix{network}
	records[1].Location = "b"
	step("a node elsewhere names it", 6*time.Minute, 0, false)
	w = ways{}
	records[1].Location = "a"
	step("the link is down at the start", 20*time.Minute, 10*time.Second, true, way("10.77.0.0/16", true))
}
