// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/meshd/meshd/internal/mesh"
)

// TestHostileNetworksNearAHost checks that what a host needs without the mesh is never
// routed into it, whichever node announces it, and that a problem names both. On other
// hosts it is routed.
func TestHostileNetworksNearAHost(t *testing.T) {
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	nearby := mesh.Nearby{
		Attached: []mesh.AttachedNetwork{
			{Prefix: prefix("192.168.1.0/24"), Link: "eth0"},
			{Prefix: prefix("172.31.1.1/32"), Link: "eth0"},
			{Prefix: prefix("198.18.0.0/24"), Link: "docker0", Containers: true},
		},
		Routers:   []netip.Addr{addr("172.31.1.1"), addr("198.51.100.1")},
		Resolvers: []netip.Addr{addr("9.9.9.9"), addr("192.168.1.1")},
	}
	tests := []struct {
		network, because string // "" if it is routed
	}{
		{"192.168.1.1/32", "attached by eth0"},
		{"192.168.1.128/25", "attached by eth0"},
		{"192.168.0.0/16", "attached by eth0"},
		{"192.168.2.0/24", ""},
		{"172.31.1.1/32", "attached by eth0"},
		{"172.31.0.0/16", ""},
		{"198.18.0.2/32", "attached by docker0"},
		{"198.18.0.0/16", ""},
		{"198.51.100.0/24", "router 198.51.100.1"},
		{"9.9.9.9/32", "resolver 9.9.9.9"},
		{"9.0.0.0/8", "resolver 9.9.9.9"},
		{"8.8.8.8/32", ""},
	}
	for _, tt := range tests {
		t.Run(tt.network, func(t *testing.T) {
			p := prefix(tt.network)
			host, liar := record(0), record(1)
			liar.AllowedLocationIPs = []netip.Prefix{p}
			if p.IsSingleIP() {
				liar.AllowedLocationIPs, liar.InternalIPs = nil, []netip.Prefix{p}
			}
			in := mesh.Input{Cluster: cluster(false), Self: host.ID(), Records: []mesh.Record{host, liar}, Nearby: nearby}
			got := mesh.Derive(in)
			routed := len(got.Peers) == 1 && slices.Contains(got.Peers[0].AllowedIPs, p)
			if routed != (tt.because == "") {
				t.Errorf("got routed %v: %v", routed, got.Peers)
			}
			named := slices.ContainsFunc(got.Problems, func(q mesh.Problem) bool {
				return (q.Kind == mesh.ProblemAddress || q.Kind == mesh.ProblemNote && p.Addr().IsPrivate()) && q.Node == liar.Name && strings.Contains(q.Text, p.String()) && strings.Contains(q.Text, tt.because)
			})
			if tt.because != "" && !named {
				t.Errorf("no problem reports it: %v", got.Problems)
			}
			in.Nearby = mesh.Nearby{}
			if elsewhere := mesh.Derive(in); len(elsewhere.Peers) != 1 || !slices.Contains(elsewhere.Peers[0].AllowedIPs, p) {
				t.Errorf("a host far from it does not route it: %v", fmt.Sprint(elsewhere.Problems))
			}
		})
	}
}

// TestNestedNetworks checks what a host that serves a network does with a part of it that another node
// serves: more specific wins, but nobody from elsewhere takes over what the host is attached to.
func TestNestedNetworks(t *testing.T) {
	prefix := netip.MustParsePrefix
	wide, inner := prefix("172.30.0.0/16"), prefix("172.30.5.9/32")
	tests := map[string]struct {
		way       mesh.AttachedNetwork
		router    netip.Addr
		elsewhere bool
		routed    bool
	}{
		"attached":            {way: mesh.AttachedNetwork{Prefix: wide, Link: "eth1", LAN: true}, routed: true},
		"a part attached":     {way: mesh.AttachedNetwork{Prefix: prefix("172.30.5.0/24"), Link: "eth1", LAN: true}, routed: true},
		"attached, elsewhere": {way: mesh.AttachedNetwork{Prefix: wide, Link: "eth1", LAN: true}, elsewhere: true},
		"routed":              {way: mesh.AttachedNetwork{Prefix: wide, Link: "eth1", Routed: true}, routed: true},
		"routed, elsewhere":   {way: mesh.AttachedNetwork{Prefix: wide, Link: "eth1", Routed: true}, elsewhere: true, routed: true},
		"the same":            {way: mesh.AttachedNetwork{Prefix: inner, Link: "eth1", Routed: true}},
		"its router":          {way: mesh.AttachedNetwork{Prefix: wide, Link: "eth1", LAN: true}, router: inner.Addr()},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			host, other := record(0), record(1)
			host.Location, other.Location = "a", "a"
			if tt.elsewhere {
				other.Location = "b"
			}
			host.AllowedLocationIPs, other.AllowedLocationIPs = []netip.Prefix{wide}, []netip.Prefix{inner}
			in := mesh.Input{Cluster: cluster(false), Self: host.ID(), Records: []mesh.Record{host, other}}
			in.Nearby.Attached = []mesh.AttachedNetwork{tt.way}
			if tt.router.IsValid() {
				in.Nearby.Routers = []netip.Addr{tt.router}
			}
			got := mesh.Derive(in)
			if routed := slices.Contains(got.Peers[0].AllowedIPs, inner); routed != tt.routed {
				t.Errorf("on the host that serves %v, %v is routed to the other node: got %v, want %v", wide, inner, routed, tt.routed)
			}
			if named := strings.Contains(fmt.Sprint(got.Problems), inner.String()); named != (tt.elsewhere && !tt.routed) {
				t.Errorf("problems: got %v", got.Problems)
			}

			in.Self, in.Nearby = other.ID(), mesh.Nearby{Attached: []mesh.AttachedNetwork{{Prefix: inner, Link: "eth1", Routed: true}}}
			got = mesh.Derive(in)
			if !slices.Contains(got.Peers[0].AllowedIPs, wide) {
				t.Errorf("on the other node %v is not routed: %v", wide, got.Problems)
			}
			for _, p := range got.Inside {
				if p.Contains(inner.Addr()) {
					t.Errorf("on the other node %v, which it serves itself, is inside of the mesh: %v", inner, p)
				}
			}
		})
	}
}

// TestOwnWaysWithinNetworks checks that a host's containers stay outside of the mesh if another node serves
// a network around them.
func TestOwnWaysWithinNetworks(t *testing.T) {
	prefix := netip.MustParsePrefix
	host, wide, third := record(0), record(1), record(2)
	wide.AllowedLocationIPs = []netip.Prefix{prefix("198.18.0.0/15")}
	third.AllowedLocationIPs = []netip.Prefix{prefix("198.19.9.0/24")}
	got := mesh.Derive(mesh.Input{
		Cluster: cluster(false), Self: host.ID(), Records: []mesh.Record{host, wide, third},
		Nearby: mesh.Nearby{Attached: []mesh.AttachedNetwork{{Prefix: prefix("198.19.0.0/25"), Link: "docker0", Containers: true}}},
	})
	for addr, want := range map[string]bool{"198.18.0.1": true, "198.19.0.5": false, "198.19.0.200": true, "198.19.9.1": true, "198.19.255.255": true} {
		inside := slices.ContainsFunc(got.Inside, func(p netip.Prefix) bool { return p.Contains(netip.MustParseAddr(addr)) })
		if inside != want {
			t.Errorf("%s inside: got %v, want %v (%v)", addr, inside, want, got.Inside)
		}
	}
}
