// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

// atHome is a host behind a home's router, which may be asked for mappings.
func atHome() Input {
	in := Input{Config: config(), Facts: netcfg.Facts{
		Addresses: addrs("192.168.1.7", "fd07::7"),
		Uplinks: []netcfg.Uplink{
			{Link: "eth0", Source: netip.MustParsePrefix("192.168.1.7/24"), Gateway: netip.MustParseAddr("192.168.1.1")},
			{Link: "eth0", Source: netip.MustParsePrefix("fd07::7/64"), Gateway: netip.MustParseAddr("fe80::1")},
		},
	}}
	in.Config.PortMapping, in.Config.GossipPort = true, 7946
	in.View.Alive = everybody()
	return in
}

// mapped has the router map a port.
func (in *Input) withMapping(port uint16, external string) {
	in.Paths.Mapped = append(in.Paths.Mapped, PortMapping{port, netip.MustParseAddrPort(external)})
}

// reachedAt has another node say that it has reached this one as a stranger.
func (in *Input) reachedAt(addr string) {
	in.View.Reaches = append(in.View.Reaches, mesh.Reach{Author: mesh.ID{9}, Tried: []mesh.Tried{
		{Subject: in.Self.ID(), Addr: netip.MustParseAddrPort(addr), Reached: true},
	}})
}

func TestWantedMappings(t *testing.T) {
	at := MappingTarget{Gateway: netip.MustParseAddr("192.168.1.1"), Source: netip.MustParseAddr("192.168.1.7"), Ports: []uint16{51820}}
	nowhere := MappingTarget{Ports: []uint16{51820}}
	relay := at
	relay.Ports = []uint16{51820, 7946}
	for _, tt := range []struct {
		name   string
		change func(*Input)
		want   MappingTarget
	}{
		{"at home", func(*Input) {}, at},
		{"turned off", func(in *Input) { in.Config.PortMapping = false }, MappingTarget{}},
		{"an endpoint is configured", func(in *Input) { in.Config.Endpoint = mesh.Endpoint{Host: "home.example.com", Port: 51820} }, MappingTarget{}},
		{"a public address", func(in *Input) { in.Facts.Addresses = addrs("192.168.1.7", "203.0.113.1") }, MappingTarget{}},
		{"a public address that is not permanent", func(in *Input) { in.Facts.Uplinks[0].Source = netip.MustParsePrefix("203.0.113.1/24") }, MappingTarget{}},
		{"a public address of IPv6", func(in *Input) { in.Facts.Addresses = addrs("192.168.1.7", "2001:db8::1") }, at},
		{"behind a carrier's NAT", func(in *Input) { in.Facts.Addresses = addrs("100.64.0.7") }, at},
		{"no link", func(in *Input) { in.Facts = netcfg.Facts{} }, nowhere},
		{"a link without a router", func(in *Input) { in.Facts.Uplinks[0].Gateway = netip.Addr{} }, nowhere},
		{"a router of IPv6 for IPv4", func(in *Input) { in.Facts.Uplinks[0].Gateway = netip.MustParseAddr("fe80::1") }, nowhere},
		{"a preferred relay", func(in *Input) { in.Config.Relay = mesh.RelayPrefer }, relay},
	} {
		in := atHome()
		tt.change(&in)
		if diff := cmp.Diff(tt.want, in.WantedMappings(), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestMappedCandidates(t *testing.T) {
	const at = "198.51.100.7:40001"
	for _, tt := range []struct {
		name   string
		change func(*Input)
		want   []mesh.PathCandidate
	}{
		{"nobody has tried it", func(in *Input) { in.withMapping(51820, at) }, []mesh.PathCandidate{candidate(mesh.CandidateMapped, at, false)}},
		{
			"a stranger has got in", func(in *Input) {
				in.withMapping(51820, at)
				in.reachedAt(at)
			}, []mesh.PathCandidate{candidate(mesh.CandidateMapped, at, true)},
		},
		{
			"peers see the node elsewhere", func(in *Input) {
				in.withMapping(51820, at)
				in.Paths.Seen = map[mesh.ID][]netip.AddrPort{{1}: {netip.MustParseAddrPort("198.51.100.7:20001")}}
			}, []mesh.PathCandidate{candidate(mesh.CandidateMapped, at, false), candidate(mesh.CandidateSeen, "198.51.100.7:20001", false)},
		},
		{"another port", func(in *Input) { in.withMapping(7946, "198.51.100.7:7946") }, nil},
		{"double NAT, RFC 1918", func(in *Input) { in.withMapping(51820, "192.168.0.2:51820") }, nil},
		{"double NAT, shared", func(in *Input) { in.withMapping(51820, "100.64.3.4:51820") }, nil},
		{"reserved", func(in *Input) { in.withMapping(51820, "198.18.3.4:51820") }, nil},
		{"an address of the host itself", func(in *Input) { in.withMapping(51820, "192.168.1.7:51820") }, nil},
	} {
		in := atHome()
		tt.change(&in)
		m := Memory{}
		if diff := cmp.Diff(tt.want, m.OwnCandidates(in), cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// TestMappedNodeIsTriedThere: what others see of a node behind a router that changes ports says
// nothing of whether they get in, so its mapping is tried.
func TestMappedNodeIsTriedThere(t *testing.T) {
	_, in, peer := meshOfTwo()
	in.View.Records[1].ListenPort = 51820
	in.View.Records[1].Endpoints = []mesh.Endpoint{{Host: "198.51.100.7", Port: 51820, Source: mesh.EndpointObserved}}
	mapped := netip.MustParseAddrPort("198.51.100.7:40001")
	in.View.Paths = []mesh.PathRecord{{Author: peer.ID(), Candidates: []mesh.PathCandidate{
		candidate(mesh.CandidateSeen, "198.51.100.7:20001", false), candidate(mesh.CandidateMapped, mapped.String(), false),
	}}}
	if got := in.endpointsToTry(peer.ID()); len(got) != 1 || got[0] != mapped {
		t.Errorf("got %v, want %v", got, mapped)
	}
}

// TestMappedNodesShareLAN: two nodes at one home try each other's private addresses.
func TestMappedNodesShareLAN(t *testing.T) {
	w := pathFilter{seen: []netip.AddrPort{netip.MustParseAddrPort("198.51.100.7:51820")}}
	if !w.behindSameNAT(mesh.PathRecord{Candidates: []mesh.PathCandidate{candidate(mesh.CandidateMapped, "198.51.100.7:51820", true)}}) {
		t.Error("a node whose router has this node's public address is not behind the same NAT")
	}
}

// TestRelayAtHome: who is open only by a mapping forwards nothing for others unless it is to be
// preferred, and others reach its relay's port.
func TestRelayAtHome(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Input)
		want   bool
	}{
		{"by default", func(*Input) {}, false},
		{"preferred", func(in *Input) { in.Config.Relay = mesh.RelayPrefer }, true},
		{"never", func(in *Input) { in.Config.Relay = mesh.RelayNever }, false},
		{"preferred, at another port than others expect", func(in *Input) {
			in.Config.Relay, in.Paths.Mapped[1].External = mesh.RelayPrefer, netip.MustParseAddrPort("198.51.100.7:40002")
		}, false},
		{"preferred, and nobody has got in", func(in *Input) { in.Config.Relay, in.View.Reaches = mesh.RelayPrefer, nil }, false},
		{"open elsewhere, too", func(in *Input) {
			in.Paths.Seen = map[mesh.ID][]netip.AddrPort{{1}: {netip.MustParseAddrPort("198.51.100.7:20001")}}
			in.reachedAt("198.51.100.7:20001")
		}, true},
	} {
		in := atHome()
		in.Config.Relay = mesh.RelayAuto
		in.withMapping(51820, "198.51.100.7:51820")
		in.withMapping(7946, "198.51.100.7:7946")
		in.reachedAt("198.51.100.7:51820")
		tt.change(&in)
		m := Memory{}
		if got := m.RelayService(in).Serves; got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}
