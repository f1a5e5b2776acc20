// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"pgregory.net/rapid"

	"github.com/meshd/meshd/internal/netcfg/netcfgtest"
)

// The neighbors of the random walks: 10.4.0.2 and 10.4.0.3, with their IPv6 addresses,
// each at one of two internal IPs.
var (
	walkNeighbors = []NeighborEntry{
		{netip.MustParseAddr("10.4.0.2"), MAC{2, 2}},
		{netip.MustParseAddr("10.4.0.3"), MAC{2, 3}},
		{netip.MustParseAddr("fd00:4::2"), MAC{2, 2}},
		{netip.MustParseAddr("fd00:4::3"), MAC{2, 3}},
	}
	walkInternalIPs = netcfgtest.Addrs("192.168.10.2", "192.168.10.3")
)

// drawVXLAN adds the device for traffic to neighbors, or not.
func drawVXLAN(t *rapid.T, s *State, observed bool) {
	draw := func(name string, n int) int { return rapid.IntRange(0, n-1).Draw(t, name) }
	if draw("VXLAN", 3) == 0 {
		return
	}
	s.VXLAN = &VXLAN{
		Name: "meshd0-vx", ID: VXLANID, Port: VXLANPort, Local: walkInternalIPs[draw("local", 2)],
		MAC: MAC{2, 1}, MTU: 1400 + draw("VXLAN MTU", 2), Up: !observed || draw("VXLAN up", 2) == 0,
		Learning: observed && draw("learning", 4) == 0,
	}
	if v := draw("VXLAN sysctl", 3); v > 0 {
		s.Sysctls = append(s.Sysctls, Sysctl{"net.ipv4.conf.meshd0-vx.rp_filter", fmt.Sprint(v)})
		slices.SortFunc(s.Sysctls, func(a, b Sysctl) int { return strings.Compare(a.Key, b.Key) })
	}
	for _, n := range walkNeighbors {
		if draw("neighbor", 3) > 0 {
			if observed && draw("MAC", 4) == 0 {
				n.MAC[5]++
			}
			s.Neighbors = append(s.Neighbors, n)
		}
	}
	for _, mac := range []MAC{{2, 2}, {2, 3}} {
		first := draw("place", 3)
		for i, at := range walkInternalIPs {
			if i == first || observed && draw("second place", 4) == 0 {
				s.Forwarding = append(s.Forwarding, FDBEntry{mac, at})
			}
		}
	}
}

// drawVia points a route to a neighbor. It reports whether the route is required then:
// the route to a neighbor's own address is on its link.
func drawVia(t *rapid.T, s *State, r *Route) bool {
	if i := slices.IndexFunc(s.Neighbors, func(n NeighborEntry) bool { return n.Addr == r.Destination.Addr() }); i >= 0 {
		r.Link = s.VXLAN.Name
		return true
	}
	n := rapid.SampledFrom(append([]NeighborEntry{{}}, s.Neighbors...)).Draw(t, "via")
	if n.Addr.IsValid() && n.Addr.Is4() == r.Destination.Addr().Is4() {
		r.Link, r.Via, r.OnLink = s.VXLAN.Name, n.Addr, true
	}
	return false
}

func (k *kernel) applyVXLAN(c VXLANChange) {
	if c.Replace {
		k.deleteVXLAN()
	}
	if c.Create {
		if k.VXLAN != nil {
			k.t.Fatalf("create %s: it exists", c.VXLAN.Name)
		}
		made := c.VXLAN
		made.Up = false
		k.VXLAN = &made
	}
	v := *k.VXLAN
	if c.SetMTU {
		v.MTU = c.VXLAN.MTU
	}
	if c.SetUp {
		v.Up = c.VXLAN.Up
	}
	k.VXLAN = &v
}

// deleteVXLAN deletes the VXLAN device with everything on it.
func (k *kernel) deleteVXLAN() {
	k.VXLAN, k.Forwarding, k.Neighbors = nil, nil, nil
	k.Routes = slices.DeleteFunc(slices.Clone(k.Routes), func(r Route) bool { return r.Link == "meshd0-vx" })
	k.Sysctls = slices.DeleteFunc(slices.Clone(k.Sysctls), func(s Sysctl) bool { return strings.Contains(s.Key, ".meshd0-vx.") })
}

// addEntries does what the kernel does: a MAC that has an entry gets the new destination
// instead of the old one.
func (k *kernel) addEntries(p Plan) {
	if k.VXLAN == nil && len(p.Forwarding)+len(p.Neighbors) > 0 {
		k.t.Fatal("entries without a device")
	}
	for _, e := range p.Forwarding {
		fdb := slices.Clone(k.Forwarding)
		if i := slices.IndexFunc(fdb, func(o FDBEntry) bool { return o.MAC == e.MAC }); i >= 0 {
			fdb[i] = e
		} else {
			fdb = append(fdb, e)
		}
		slices.SortFunc(fdb, FDBEntry.Compare)
		k.Forwarding = fdb
	}
	for _, e := range p.Neighbors {
		rest := slices.DeleteFunc(slices.Clone(k.Neighbors), func(o NeighborEntry) bool { return o.Addr == e.Addr })
		k.Neighbors = append(rest, e)
		slices.SortFunc(k.Neighbors, NeighborEntry.Compare)
	}
}

func (k *kernel) deleteEntries(p Plan) {
	k.Forwarding = slices.DeleteFunc(slices.Clone(k.Forwarding), func(e FDBEntry) bool { return slices.Contains(p.StaleForwarding, e) })
	k.Neighbors = slices.DeleteFunc(slices.Clone(k.Neighbors), func(e NeighborEntry) bool { return slices.Contains(p.StaleNeighbors, e) })
	if p.StaleVXLAN != "" {
		k.deleteVXLAN()
	}
}

// checkNextHop fails where IPv6 refuses a route: if another link leads to the next hop.
func (k *kernel) checkNextHop(r Route) {
	if !r.Via.Is6() || !r.OnLink {
		return
	}
	best := Route{Link: r.Link}
	for _, o := range k.Routes {
		if o.Destination.Contains(r.Via) && o.Destination.Bits() > best.Destination.Bits() {
			best = o
		}
	}
	if best.Link != r.Link {
		k.t.Fatalf("add %s: its next hop is behind %s", r, best)
	}
}

// checkVXLAN compares the host's VXLAN device and its entries with the desired ones.
func checkVXLAN(t *rapid.T, got, desired State, o Options) {
	if o.Prune {
		checkSame(t, "VXLAN is there", got.VXLAN != nil, desired.VXLAN != nil)
	}
	if desired.VXLAN == nil {
		return
	}
	checkSame(t, "VXLAN", got.VXLAN.String(), desired.VXLAN.String())
	if missed := missing(got.Forwarding, desired.Forwarding); len(missed) > 0 {
		t.Fatalf("forwarding entries %v are missing", missed)
	}
	if missed := missing(got.Neighbors, desired.Neighbors); len(missed) > 0 {
		t.Fatalf("neighbor entries %v are missing", missed)
	}
	if o.Prune {
		checkSame(t, "forwarding entries", fmt.Sprint(got.Forwarding), fmt.Sprint(desired.Forwarding))
		checkSame(t, "neighbor entries", fmt.Sprint(got.Neighbors), fmt.Sprint(desired.Neighbors))
	}
}

// routesStay returns a check that a destination which had a route and will have one never
// lacks it.
func routesStay(t *rapid.T, k *kernel, before, desired State, plan Plan) func() {
	kept := make(map[netip.Prefix]bool)
	for _, r := range before.Routes {
		kept[r.Destination] = slices.ContainsFunc(desired.Routes, func(d Route) bool { return d.Destination == r.Destination })
	}
	if plan.Device != nil && plan.Device.Create || plan.VXLAN != nil && plan.VXLAN.Create {
		kept = nil // the kernel deleted routes together with the device
	}
	return func() {
		there := make(map[netip.Prefix]bool)
		for _, r := range k.Routes {
			there[r.Destination] = true
		}
		for dst, want := range kept {
			if want && !there[dst] {
				t.Fatalf("there is no route to %s at one moment", dst)
			}
		}
	}
}
