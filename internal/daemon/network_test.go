// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/node"
)

// TestNetworkOf makes what meshd netcheck shows of a node at home, with three relays of which one is
// down, and a narrow path.
func TestNetworkOf(t *testing.T) {
	id := func(n byte) mesh.ID { return mesh.ID{n} }
	direct := func(rtt time.Duration, mtu int) control.Path {
		return control.Path{Kind: control.PathDirect, Proved: true, RTT: control.Milliseconds(rtt), MTU: mtu}
	}
	var (
		s    control.Status
		last turn
	)
	s.Node.Name = "home-1"
	s.Device = control.Device{ListenPort: 51820, MTU: 1420}
	s.Peers = []control.Peer{
		{ID: id(2), Name: "down", Path: direct(time.Millisecond, 0)},
		{ID: id(3), Name: "far", Alive: true, RTT: control.Milliseconds(time.Second), Path: direct(80*time.Millisecond, 1420)},
		{ID: id(4), Name: "home-2", Alive: true, Path: direct(time.Millisecond, 1300)}, // its own MTU is that
		{ID: id(5), Name: "near", Alive: true, RTT: control.Milliseconds(30 * time.Millisecond), Path: control.Path{Kind: control.PathRelayed, Proved: true, RTT: control.Milliseconds(time.Second), MTU: 1312}},
		{ID: id(6), Name: "new", Alive: true},
	}
	for n := byte(2); n <= 6; n++ {
		relay := mesh.RelayAuto
		if n == 4 {
			relay = mesh.RelayNever
		}
		last.in.View.Paths = append(last.in.View.Paths, mesh.PathRecord{Author: id(n), Relay: relay})
		mtu := 1420
		if n == 4 {
			mtu = 1300
		}
		last.wanted.Topology.Peers = append(last.wanted.Topology.Peers, mesh.Peer{ID: id(n), MTU: mtu})
	}
	seen := netip.MustParseAddrPort("203.0.113.9:20011")
	last.in.Facts.Addresses = []netip.Addr{netip.MustParseAddr("192.168.1.5")}
	last.in.Paths.Seen = map[mesh.ID][]netip.AddrPort{id(3): {seen}, id(5): {seen}}
	want := control.Network{
		Node: "home-1", Port: 51820, MTU: 1420, Alive: 4, UDP: control.Yes,
		Families: []control.Family{{Name: "IPv4", Seen: []netip.AddrPort{seen}, NAT: control.NATSamePort, Reached: control.Unknown}},

		Narrow: []control.NarrowPath{{Node: "near", MTU: 1312}},
		Relays: []control.NearbyRelay{{Name: "near", RTT: control.Milliseconds(30 * time.Millisecond)}, {Name: "far", RTT: control.Milliseconds(80 * time.Millisecond)}, {Name: "new"}},
	}
	same := cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
	if diff := cmp.Diff(want, networkOf(s, last), same); diff != "" {
		t.Errorf("network (-want +got):\n%s", diff)
	}
	if !slices.ContainsFunc(want.Families, hasSteadyMapping) {
		t.Error("hairpinning is not tried")
	}
	s.Problems = []mesh.Problem{{Kind: node.ProblemUDP}}
	if got := networkOf(s, last).UDP; got != control.No {
		t.Errorf("with the problem that UDP is blocked: got %s, want %s", got, control.No)
	}
}

func TestNATOf(t *testing.T) {
	one, other := netip.MustParseAddrPort("203.0.113.9:1"), netip.MustParseAddrPort("203.0.113.9:2")
	for want, o := range map[control.NAT]node.Outside{
		control.NATUnknown:  {Own: true},
		control.NATNone:     {Own: true, Seen: []netip.AddrPort{one}, Nodes: 1},
		control.NATOneNode:  {Seen: []netip.AddrPort{one}, Nodes: 1},
		control.NATSamePort: {Seen: []netip.AddrPort{one}, Nodes: 2},
		control.NATPorts:    {Seen: []netip.AddrPort{one, other}, Nodes: 2},
	} {
		if got := natOf(o); got != want {
			t.Errorf("%+v: got %s, want %s", o, got, want)
		}
	}
}
