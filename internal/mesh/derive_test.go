// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/meshd/meshd/internal/mesh"
)

var compareTopologies = cmp.Options{
	comparePrefixes,
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmpopts.EquateEmpty(),
}

func TestDeriveTwoNodes(t *testing.T) {
	in := clusterOf(2)
	in.Cluster = cluster(true)
	in.Records[1].MTU = 1370
	got := mesh.Derive(in)
	want := mesh.Topology{
		Addresses: []netip.Addr{netip.MustParseAddr("10.4.0.1")},
		PodCIDRs:  prefixes("10.42.0.0/24"),
		Peers: []mesh.Peer{{
			ID: in.Records[1].ID(), Name: "n1", Key: in.Records[1].Key,
			Endpoints:  []netip.AddrPort{netip.MustParseAddrPort("198.51.0.2:51820")},
			AllowedIPs: prefixes("10.4.0.2/32", "10.42.1.0/24", "172.16.1.5/32"),
			MTU:        1370,
		}},
		Seat:    mesh.None,
		Routes:  []mesh.Route{{ID: in.Records[1].ID(), Kind: mesh.RouteTunnel}},
		Inside:  prefixes("10.4.0.0/16", "10.42.0.0/16", "172.16.1.5/32"),
		Guarded: prefixes("10.4.0.0/16", "10.42.0.0/16"),

		PodsAndClients: prefixes("10.4.128.0/17", "10.42.0.0/16"),
		PodRanges:      []mesh.PodRange{{Range: netip.MustParsePrefix("10.42.0.0/16"), Bits: 24}},
		Hosts:          prefixes("10.4.0.0/17", "172.16.0.5/32", "172.16.1.5/32", "198.51.0.1/32", "198.51.0.2/32"),
	}
	if diff := cmp.Diff(want, got, compareTopologies); diff != "" {
		t.Errorf("topology (-want +got):\n%s", diff)
	}
}

// change modifies the records of n0 (self), n1 and n2.
func TestDeriveCases(t *testing.T) {
	tests := []struct {
		name      string
		change    func(in *mesh.Input, n0, n1, n2 *mesh.Record)
		endpoints string // of n1
		allowed   string // of n1
		problem   string // part of the only one, "" for none
	}{
		{
			name:      "nothing special",
			change:    func(*mesh.Input, *mesh.Record, *mesh.Record, *mesh.Record) {},
			endpoints: "[198.51.0.2:51820]",
			allowed:   "[10.4.0.2/32 10.42.1.0/24 172.16.1.5/32]",
		},
		{
			name: "same location: the LAN address, with the listen port, first",
			change: func(_ *mesh.Input, n0, n1, _ *mesh.Record) {
				n0.Location, n1.Location = "aws", "aws"
				n1.ListenPort = 4500
			},
			endpoints: "[172.16.1.5:4500 198.51.0.2:51820]",
			allowed:   "[10.4.0.2/32 10.42.1.0/24]",
		},
		{
			name: "same location, not met: the LAN address last",
			change: func(_ *mesh.Input, n0, n1, _ *mesh.Record) {
				n0.Location, n1.Location = "aws", "aws"
				n0.Segment, n1.Segment = n0.ID(), n1.ID()
			},
			endpoints: "[198.51.0.2:51820 172.16.1.5:51820]",
			allowed:   "[10.4.0.2/32 10.42.1.0/24]",
		},
		{
			name: "same location, not met: no LAN address that is routed to another location",
			change: func(_ *mesh.Input, n0, n1, n2 *mesh.Record) {
				n0.Location, n1.Location = "aws", "aws"
				n0.Segment, n1.Segment = n0.ID(), n1.ID()
				n2.AllowedLocationIPs = prefixes("172.16.1.0/24")
			},
			endpoints: "[198.51.0.2:51820]",
			allowed:   "[10.4.0.2/32 10.42.1.0/24]",
		},
		{
			name: "other location",
			change: func(_ *mesh.Input, n0, n1, _ *mesh.Record) {
				n0.Location, n1.Location = "aws", "gcp"
			},
			endpoints: "[198.51.0.2:51820]",
			allowed:   "[10.4.0.2/32 10.42.1.0/24 172.16.1.5/32]",
		},
		{
			name: "endpoint by name, with a port of its own",
			change: func(in *mesh.Input, _, n1, _ *mesh.Record) {
				n1.Endpoints = []mesh.Endpoint{{Host: "b.example.com", Port: 443}, {Host: "unknown.example.com", Port: 443}}
				in.Resolved = map[string][]netip.Addr{"b.example.com": {netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("2001:db8::9")}}
			},
			endpoints: "[203.0.113.9:443 [2001:db8::9]:443]",
			allowed:   "[10.4.0.2/32 10.42.1.0/24 172.16.1.5/32]",
		},
		{
			name: "endpoint of a family that this host does not have",
			change: func(in *mesh.Input, _, n1, _ *mesh.Record) {
				n1.Endpoints = append([]mesh.Endpoint{{Host: "2001:db8::9", Port: 1}}, n1.Endpoints...)
				in.Underlay = []netip.Addr{netip.MustParseAddr("172.16.0.5")}
			},
			endpoints: "[198.51.0.2:51820]",
			allowed:   "[10.4.0.2/32 10.42.1.0/24 172.16.1.5/32]",
		},
		{
			name: "no endpoint: it sends the first packet",
			change: func(_ *mesh.Input, _, n1, _ *mesh.Record) {
				n1.Endpoints = nil
			},
			endpoints: "[]",
			allowed:   "[10.4.0.2/32 10.42.1.0/24 172.16.1.5/32]",
		},
		{
			name: "an endpoint inside the mesh is ignored",
			change: func(_ *mesh.Input, _, n1, _ *mesh.Record) {
				n1.Endpoints = []mesh.Endpoint{{Host: "10.42.7.7", Port: 51820}}
			},
			endpoints: "[]",
			allowed:   "[10.4.0.2/32 10.42.1.0/24 172.16.1.5/32]",
		},
		{
			name: "an internal IP that is the endpoint is not routed",
			change: func(_ *mesh.Input, _, n1, _ *mesh.Record) {
				n1.Endpoints = []mesh.Endpoint{{Host: "172.16.1.5", Port: 51820}}
			},
			endpoints: "[172.16.1.5:51820]",
			allowed:   "[10.4.0.2/32 10.42.1.0/24]",
		},
		{
			name: "networks behind it",
			change: func(_ *mesh.Input, _, n1, _ *mesh.Record) {
				n1.AllowedLocationIPs = prefixes("192.168.7.0/24")
			},
			endpoints: "[198.51.0.2:51820]",
			allowed:   "[10.4.0.2/32 10.42.1.0/24 172.16.1.5/32 192.168.7.0/24]",
		},
		{
			name: "a network that holds an endpoint",
			change: func(_ *mesh.Input, _, n1, _ *mesh.Record) {
				n1.AllowedLocationIPs = prefixes("198.51.0.0/24")
			},
			endpoints: "[198.51.0.2:51820]",
			allowed:   "[10.4.0.2/32 10.42.1.0/24 172.16.1.5/32]",
			problem:   "a tunnel can't run through itself",
		},
		{
			name: "two locations with one internal IP",
			change: func(_ *mesh.Input, _, n1, n2 *mesh.Record) {
				n2.InternalIPs = n1.InternalIPs
				n2.AllowedLocationIPs = nil
			},
			endpoints: "[198.51.0.2:51820]",
			allowed:   "[10.4.0.2/32 10.42.1.0/24]",
			problem:   "node n2 has it, too",
		},
		{
			name: "internal IP out of our own network",
			change: func(_ *mesh.Input, _, n1, _ *mesh.Record) {
				n1.InternalIPs = prefixes("172.16.0.77/24")
			},
			endpoints: "[198.51.0.2:51820]",
			allowed:   "[10.4.0.2/32 10.42.1.0/24]",
			problem:   "own network 172.16.0.0/24",
		},
		{
			name: "internal IP out of the pod range",
			change: func(_ *mesh.Input, _, n1, _ *mesh.Record) {
				n1.InternalIPs = prefixes("10.42.9.9/24")
			},
			endpoints: "[198.51.0.2:51820]",
			allowed:   "[10.4.0.2/32 10.42.1.0/24]",
			problem:   "overlaps the cluster's range 10.42.0.0/16",
		},
		{
			name: "a network out of the pod range",
			change: func(_ *mesh.Input, _, n1, _ *mesh.Record) {
				n1.AllowedLocationIPs = prefixes("10.42.1.0/25")
			},
			endpoints: "[198.51.0.2:51820]",
			allowed:   "[10.4.0.2/32 10.42.1.0/24 172.16.1.5/32]",
			problem:   "overlaps the cluster's range 10.42.0.0/16",
		},
		{
			name: "one network, served twice in one location: the stronger claim",
			change: func(_ *mesh.Input, _, n1, n2 *mesh.Record) {
				n1.Location, n2.Location = "gcp", "gcp"
				n1.AllowedLocationIPs, n2.AllowedLocationIPs = prefixes("192.168.7.0/24"), prefixes("192.168.7.0/24")
			},
			endpoints: "[198.51.0.2:51820]",
			allowed:   "[10.4.0.2/32 10.42.1.0/24 172.16.1.5/32 192.168.7.0/24]",
		},
		{
			name: "slot of another",
			change: func(_ *mesh.Input, _, n1, n2 *mesh.Record) {
				n1.Claim.Slot = n2.Claim.Slot
				n1.Claim.Time = n2.Claim.Time + 1
			},
			endpoints: "[198.51.0.2:51820]",
			allowed:   "[172.16.1.5/32]",
			problem:   "n2 has the stronger claim",
		},
		{
			name: "slot beyond the ranges",
			change: func(in *mesh.Input, _, n1, _ *mesh.Record) {
				n1.Claim.Slot = in.Cluster.Slots()
			},
			endpoints: "[198.51.0.2:51820]",
			allowed:   "[172.16.1.5/32]",
			problem:   "claims slot 256",
		},
		{
			name: "our own slot, claimed earlier: our traffic to it is ours",
			change: func(_ *mesh.Input, n0, n1, _ *mesh.Record) {
				n1.Claim = mesh.Claim{Slot: n0.Claim.Slot, Time: n0.Claim.Time - 1}
			},
			endpoints: "[198.51.0.2:51820]",
			allowed:   "[172.16.1.5/32]",
		},
		{
			name: "name of another",
			change: func(_ *mesh.Input, _, n1, n2 *mesh.Record) {
				n1.Name = n2.Name
			},
			endpoints: "[198.51.0.2:51820]",
			allowed:   "[10.4.0.2/32 10.42.1.0/24 172.16.1.5/32]",
			problem:   "two nodes are named n2",
		},
		{
			name: "without a slot",
			change: func(_ *mesh.Input, _, n1, _ *mesh.Record) {
				n1.Claim = none
			},
			endpoints: "[198.51.0.2:51820]",
			allowed:   "[172.16.1.5/32]",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := clusterOf(3)
			in.Cluster = cluster(true)
			n1 := in.Records[1].ID()
			tt.change(&in, &in.Records[0], &in.Records[1], &in.Records[2])
			top := mesh.Derive(in)
			i := slices.IndexFunc(top.Peers, func(p mesh.Peer) bool { return p.ID == n1 })
			if i < 0 {
				t.Fatalf("no peer n1 in %+v", top)
			}
			if got := fmt.Sprint(top.Peers[i].Endpoints); got != tt.endpoints {
				t.Errorf("endpoints: got %s, want %s", got, tt.endpoints)
			}
			if got := fmt.Sprint(top.Peers[i].AllowedIPs); got != tt.allowed {
				t.Errorf("allowed IPs: got %s, want %s", got, tt.allowed)
			}
			if text := fmt.Sprint(top.Problems); (len(top.Problems) > 0) != (tt.problem != "") || !strings.Contains(text, tt.problem) {
				t.Errorf("problems: got %s, want %q", text, tt.problem)
			}
		})
	}
}

func TestDeriveSameKeyTwice(t *testing.T) {
	in := clusterOf(3)
	in.Records[2].Key = in.Records[1].Key
	top := mesh.Derive(in)
	if len(top.Peers) != 1 || top.Peers[0].Name != "n1" {
		t.Errorf("peers: got %+v, want the stronger claim n1 alone", top.Peers)
	}
	if len(top.Problems) != 1 || top.Problems[0].Kind != mesh.ProblemKey || top.Problems[0].Node != "n2" {
		t.Errorf("problems: got %v, want one %s on n2", top.Problems, mesh.ProblemKey)
	}
}

func TestDeriveWithoutOwnRecord(t *testing.T) {
	in := clusterOf(2)
	in.Records = in.Records[1:]
	want := mesh.Topology{
		Seat: mesh.None, Guarded: prefixes("10.4.0.0/14", "10.128.0.0/9", "fd04::/64", "fd42::/48"),
		PodsAndClients: prefixes("10.6.0.0/15", "10.128.0.0/9", "fd04::8000:0:0:0/65", "fd42::/48"),
		PodRanges: []mesh.PodRange{
			{Range: netip.MustParsePrefix("10.128.0.0/9"), Bits: 24}, {Range: netip.MustParsePrefix("fd42::/48"), Bits: 64},
		},
		Hosts: prefixes("10.4.0.0/15", "172.16.1.5/32", "198.51.0.2/32", "fd04::/65"),
	}
	if diff := cmp.Diff(want, mesh.Derive(in), compareTopologies); diff != "" {
		t.Errorf("topology (-want +got):\n%s", diff)
	}
}

func TestOwnEndpoints(t *testing.T) {
	own := func(s ...string) (as []netip.Addr) {
		for _, a := range s {
			as = append(as, netip.MustParseAddr(a))
		}
		return as
	}
	seen := func(s ...string) (as []netip.AddrPort) {
		for _, a := range s {
			as = append(as, netip.MustParseAddrPort(a))
		}
		return as
	}
	observed := func(s ...string) (es []mesh.Endpoint) {
		for _, a := range s {
			es = append(es, mesh.Endpoint{Host: a, Port: 51820, Source: mesh.EndpointObserved})
		}
		return es
	}
	home := own("192.168.1.5")
	const forwarded, other, mapped, direct = "203.0.113.5:51820", "203.0.113.6:51820", "203.0.113.5:40001", "192.168.1.5:51820"
	const noEndpoint, private, public = "[]", "[{192.168.1.5 51820 observed}]", "[{203.0.113.5 51820 observed}]"
	configured := mesh.Endpoint{Host: "a.example.com", Port: 443, Source: mesh.EndpointConfigured}
	tests := []struct {
		name string
		in   mesh.EndpointInput
		want string
		nat  bool
	}{
		{"nothing known", mesh.EndpointInput{Own: home}, noEndpoint, false},
		{"public address", mesh.EndpointInput{Own: own("192.168.1.5", "203.0.113.5")}, "[{203.0.113.5 51820 own}]", false},
		{"its port is kept, as behind a 1:1 NAT", mesh.EndpointInput{Own: home, Seen: seen(forwarded)}, public, true},
		{"the same, and nobody says so now", mesh.EndpointInput{Own: home, Last: observed("203.0.113.5"), LastNAT: true}, public, true},
		{"the same, and only a neighbor is left", mesh.EndpointInput{Own: home, Seen: seen(direct), Last: observed("203.0.113.5"), LastNAT: true}, public, true},
		{"its port is changed", mesh.EndpointInput{Own: home, Seen: seen(mapped, mapped)}, noEndpoint, true},
		{"neighbors are many", mesh.EndpointInput{Own: home, Seen: seen(direct, direct, mapped)}, noEndpoint, true},
		{"private underlay", mesh.EndpointInput{Own: home, Seen: seen(direct, direct)}, private, false},
		{"an office sees what the internet does not", mesh.EndpointInput{Own: home, Seen: seen(direct, forwarded, forwarded)}, public, true},
		{"IPv6 without NAT", mesh.EndpointInput{Own: own("192.168.1.5", "2001:db8::5"), Seen: seen("[2001:db8::5]:51820", mapped)}, "[{2001:db8::5 51820 own}]", true},
		{"both families mapped", mesh.EndpointInput{Own: home, Seen: seen(forwarded, "[2001:db8::5]:51820")}, "[{203.0.113.5 51820 observed} {2001:db8::5 51820 observed}]", true},
		{"where most peers see it", mesh.EndpointInput{Own: home, Seen: seen(other, forwarded, forwarded)}, public, true},
		{"a tie changes nothing", mesh.EndpointInput{Own: home, Seen: seen(other, forwarded), Last: observed("203.0.113.6"), LastNAT: true}, "[{203.0.113.6 51820 observed}]", true},
		{"seen through the mesh", mesh.EndpointInput{Own: home, Seen: seen("10.4.0.9:51820")}, noEndpoint, false},
		{"seen at addresses that no host can have", mesh.EndpointInput{Own: home, Seen: seen("224.0.0.1:51820", "0.1.2.3:51820", "169.254.169.254:51820", "127.0.0.1:51820")}, noEndpoint, false},
		{"its router maps another port, and strangers get in", mesh.EndpointInput{Own: home, Seen: seen(mapped), Mapped: seen(mapped)}, "[{203.0.113.5 40001 observed}]", true},
		{"its router maps another port, and keeps its own towards peers", mesh.EndpointInput{Own: home, Seen: seen(forwarded, mapped), Mapped: seen(mapped)}, "[{203.0.113.5 40001 observed}]", true},
		{"its router maps a port, and nobody has got in", mesh.EndpointInput{Own: home, Seen: seen("203.0.113.5:20001"), Mapped: seen(mapped)}, noEndpoint, true},
		{
			"another port was mapped once",
			mesh.EndpointInput{Own: home, Last: []mesh.Endpoint{{Host: "203.0.113.5", Port: 40001, Source: mesh.EndpointObserved}}, LastNAT: true},
			noEndpoint, true,
		},
		{"configured", mesh.EndpointInput{Own: own("198.51.100.1"), Configured: configured, Seen: seen(forwarded)}, "[{a.example.com 443 configured}]", true},
		{"carrier's NAT is not public", mesh.EndpointInput{Own: own("100.64.9.9", "fd00::1")}, noEndpoint, false},
		{"seven addresses", mesh.EndpointInput{Own: own("198.51.100.1", "198.51.100.2", "198.51.100.3", "198.51.100.4", "198.51.100.5", "198.51.100.6", "198.51.100.7"), Seen: seen(forwarded)}, "[{198.51.100.1 51820 own} {198.51.100.2 51820 own} {198.51.100.3 51820 own} {203.0.113.5 51820 observed}]", true},
		{"one peer lies to a node without NAT", mesh.EndpointInput{Own: own("198.51.100.1"), Seen: seen("198.51.100.1:51820", forwarded)}, "[{198.51.100.1 51820 own}]", false},
		{"one peer denies the NAT", mesh.EndpointInput{Own: home, Seen: seen(forwarded, forwarded, direct), LastNAT: true}, public, true},
		{"behind NAT with its neighbors, who don't notice", mesh.EndpointInput{Own: home, Seen: seen(direct), LastNAT: true}, noEndpoint, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.in.Cluster, tt.in.ListenPort = cluster(true), 51820
			got, nat := mesh.OwnEndpoints(tt.in)
			if fmt.Sprint(got) != tt.want && (len(got) > 0 || tt.want != noEndpoint) {
				t.Errorf("endpoints: got %v, want %s", got, tt.want)
			}
			if nat != tt.nat {
				t.Errorf("nat: got %v, want %v", nat, tt.nat)
			}
		})
	}
}

// TestHostileHosts has a record claim addresses of others: those of pods, clients and
// Services are not counted as a host's.
func TestHostileHosts(t *testing.T) {
	in := clusterOf(2)
	in.Cluster = cluster(true)
	in.Records[1].InternalIPs = prefixes("10.42.7.7/24", "10.43.0.10/16", "10.4.128.1/16", "172.16.9.9/24")
	in.Records[1].Endpoints = []mesh.Endpoint{{Host: "10.42.7.8", Port: 51820}, {Host: "198.51.0.9", Port: 51820}}
	got := mesh.Derive(in).Hosts
	want := prefixes("10.4.0.0/17", "172.16.0.5/32", "172.16.9.9/32", "198.51.0.1/32", "198.51.0.9/32")
	if diff := cmp.Diff(want, got, compareTopologies); diff != "" {
		t.Errorf("hosts (-want +got):\n%s", diff)
	}
}
