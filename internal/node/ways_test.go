// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

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

// TestWaysByLink follows a node with a link to another cluster, to which a2, of another location, has one, too.
func TestWaysByLink(t *testing.T) {
	network := netip.MustParsePrefix("10.52.0.0/16")
	records := location()
	other := &records[1]
	other.Location, other.AllowedLocationIPs = "b", []netip.Prefix{network}
	other.Linked = []mesh.LinkedNetwork{{Network: network, Cluster: "west"}}
	start := time.Unix(1_800_000_000, 0)
	in := Input{Self: Identity{Public: records[0].Identity}, View: mesh.View{Records: records}}
	in.Config = Config{Location: "a", Links: []Link{{Cluster: "west", Networks: []netip.Prefix{network}}}}
	in.View.Alive = map[mesh.ID]bool{other.ID(): true}
	// That a route leads there says nothing: it is there with the link's device.
	in.Facts.Nearby.Attached = []mesh.AttachedNetwork{{Prefix: network, Link: "west"}}
	var w ways
	step := func(what string, at, wait time.Duration, heard, lost bool) {
		t.Helper()
		in.Now, in.Config.Links[0].Heard = start.Add(at), heard
		if got := w.look(in); got != wait || (len(w.lost) > 0) != lost {
			t.Errorf("%s: got lost %v, look again in %v, want lost %t, %v", what, w.lost, got, lost, wait)
		}
		if problems := w.problems(in.Config); len(problems) > 0 {
			t.Errorf("%s: got problems %v, want none: the link's own say it", what, problems)
		}
	}
	step("not heard yet", 0, 10*time.Second, false, true)
	step("heard", 10*time.Second, 0, true, false)
	step("silent", time.Minute, 20*time.Second, false, true)
	delete(in.View.Alive, other.ID())
	step("silent, and the other node does not live", 2*time.Minute, 0, false, false)
	in.View.Alive[other.ID()] = true
	step("silent, and the other node lives again", 3*time.Minute, 40*time.Second, false, true)
	other.Linked[0].Cluster = "east"
	step("silent, and the other node's network is another one", 5*time.Minute, 0, false, false)
	other.Linked, other.Location = nil, "a"
	step("silent, and the other node names it without a link", 6*time.Minute, 0, false, false)
	other.AllowedLocationIPs = nil
	step("silent, and nobody else names it", 9*time.Minute, 0, false, false)
}

// TestNetworksOfLinks: what the file and the links name comes once, and the file goes first.
func TestNetworksOfLinks(t *testing.T) {
	p := func(list ...string) (out []netip.Prefix) {
		for _, s := range list {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	c := config()
	c.AllowedLocationIPs = p("192.168.9.0/24", "10.53.0.0/16")
	c.Links = []Link{{Cluster: "west", Networks: p("10.52.0.0/16", "10.53.0.0/16")}, {Cluster: "east", Networks: p("10.62.0.0/16", "10.52.0.0/16")}}
	want := mesh.Record{
		AllowedLocationIPs: p("192.168.9.0/24", "10.53.0.0/16", "10.52.0.0/16", "10.62.0.0/16"),
		Linked:             []mesh.LinkedNetwork{{Network: p("10.52.0.0/16")[0], Cluster: "west"}, {Network: p("10.62.0.0/16")[0], Cluster: "east"}},
	}
	r := nextRecord(c, surroundings{}, mesh.Record{Linked: []mesh.LinkedNetwork{{Network: p("10.99.0.0/16")[0], Cluster: "gone"}}})
	if diff := cmp.Diff(want, mesh.Record{AllowedLocationIPs: r.AllowedLocationIPs, Linked: r.Linked}, compareNet); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
	c.Links = nil
	if r := nextRecord(c, surroundings{}, r); len(r.Linked) > 0 || len(r.AllowedLocationIPs) != 2 || len(c.AllowedLocationIPs) != 2 {
		t.Errorf("without links: got %v, %v", r.AllowedLocationIPs, r.Linked)
	}
}
