// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/mesh"
)

// TestOutside has nodes say where they see node 1, and whether they reach it.
func TestOutside(t *testing.T) {
	ports := func(s ...string) (all []netip.AddrPort) {
		for _, a := range s {
			all = append(all, netip.MustParseAddrPort(a))
		}
		return all
	}
	const home, other, public, six = "203.0.113.99:20011", "203.0.113.99:31234", "198.51.100.77:51820", "[2001:db8::77]:51820"
	tests := map[string]struct {
		own     []string
		seen    map[byte][]netip.AddrPort
		reached map[string]bool
		four    Outside
		six     *Outside // nil for an address family that the host does not have
	}{
		"nobody has seen it": {
			own:  []string{"192.168.1.5", "fe80::5", "fd00::5"},
			four: Outside{Own: true},
		},
		"public": {
			own:     []string{"198.51.100.77", "2001:db8::77"},
			seen:    map[byte][]netip.AddrPort{2: ports(public, six), 3: ports(public)},
			reached: map[string]bool{public: true},
			four:    Outside{Seen: ports(public), Nodes: 2, Own: true, Tried: true, Reached: true},
			six:     &Outside{Seen: ports(six), Nodes: 1, Own: true},
		},
		"same port": {
			own:     []string{"192.168.1.5"},
			seen:    map[byte][]netip.AddrPort{2: ports(home), 3: ports(home), 4: ports("192.168.1.5:51820")},
			reached: map[string]bool{home: false},
			four:    Outside{Seen: ports(home), Nodes: 2, Tried: true},
		},
		"another port, which most see": {
			own:  []string{"192.168.1.5"},
			seen: map[byte][]netip.AddrPort{2: ports(home), 3: ports(other), 4: ports(other)},
			four: Outside{Seen: ports(other, home), Nodes: 3},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, in := relayMesh(3)
			in.Facts.Addresses, in.Paths.Seen, in.View.Reaches = nil, make(map[mesh.ID][]netip.AddrPort), nil
			for _, a := range tt.own {
				in.Facts.Addresses = append(in.Facts.Addresses, netip.MustParseAddr(a))
			}
			for n, seen := range tt.seen {
				in.Paths.Seen[mesh.ID{n}] = seen
			}
			for at, reached := range tt.reached {
				in.View.Reaches = append(in.View.Reaches, mesh.Reach{Author: mesh.ID{3}, Tried: []mesh.Tried{
					{Subject: in.Self.ID(), Addr: netip.MustParseAddrPort(at), Reached: reached},
					{Subject: mesh.ID{9}, Addr: netip.MustParseAddrPort(at), Reached: !reached},
				}})
			}
			four, ok := in.Outside(true)
			if diff := cmp.Diff(tt.four, four, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); !ok || diff != "" {
				t.Errorf("IPv4: got %t (-want +got):\n%s", ok, diff)
			}
			six, ok := in.Outside(false)
			if ok != (tt.six != nil) {
				t.Fatalf("IPv6: got %t", ok)
			}
			if ok {
				if diff := cmp.Diff(*tt.six, six, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
					t.Errorf("IPv6 (-want +got):\n%s", diff)
				}
			}
		})
	}
}
