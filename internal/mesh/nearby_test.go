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
				return q.Kind == mesh.ProblemAddress && q.Node == liar.Name && strings.Contains(q.Text, p.String()) && strings.Contains(q.Text, tt.because)
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
