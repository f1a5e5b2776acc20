// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg/filter"
	"github.com/meshd/meshd/internal/netcfg/netcfgtest"
)

// carrierLAN returns what a node wants whose LAN is in the range of carrier-grade NAT. It
// has a neighbor there, and a peer elsewhere behind the same kind of NAT.
func carrierLAN(encapsulated bool) State {
	top := netcfgtest.IPv4(netcfgtest.Peer(2, "far", "10.4.0.2/32", "10.42.1.0/24"))
	top.Peers[0].Endpoints = []netip.AddrPort{netip.MustParseAddrPort("203.0.113.9:40001"), netip.MustParseAddrPort("100.64.9.9:51820")}
	neighbor := netip.MustParseAddr("100.64.1.7")
	top.Neighbors = []mesh.Neighbor{{
		ID: mesh.ID{3}, Name: "near", InternalIP: neighbor, Encapsulated: encapsulated,
		Overlay: []netip.Addr{netip.MustParseAddr("10.4.0.3")}, Prefixes: netcfgtest.Prefixes("10.42.2.0/24"), MTU: 1420,
	}}
	if !encapsulated {
		top.Neighbors[0].NextHops = []netip.Addr{neighbor}
	}
	s := settings()
	s.LANs = []LAN{{Link: "eth1", Address: netip.MustParsePrefix("100.64.1.1/24"), MTU: 1500}}
	s.Uplinks = []Uplink{{Link: "eth0", Source: netip.MustParsePrefix("192.0.2.1/24")}}
	return Desired(top, s)
}

// TestFirewallOfRealAddresses has filters that drop packets of some nodes only.
func TestFirewallOfRealAddresses(t *testing.T) {
	for _, tt := range []struct {
		name  string
		rules string // of iptables
		want  string // in the text of the problem; "" for no problem
	}{
		{
			"a VPN that takes a range for its own", "-N ts-input\n-A INPUT -j ts-input\n-A ts-input -s 100.64.0.0/10 ! -i tailscale0 -j DROP",
			"INPUT of iptables-nft drops packets to UDP port 7946, to TCP port 7946, to UDP port 7947, of replies to this host" +
				" (the rule \"saddr 100.64.0.0/10 iifname != tailscale0 drop\" of the chain ts-input drops those from 100.64.1.7 to 100.64.1.1 on eth1)",
		},
		{
			"the VXLAN port on that link", "-A INPUT -i eth1 -p udp -m udp --dport 7947 -j DROP",
			"to UDP port 7947 (the rule \"iifname eth1 meta l4proto udp th dport 7947 drop\" of the chain INPUT drops those from 100.64.1.7 to 100.64.1.1 on eth1)",
		},
		{"one peer", "-A INPUT -s 203.0.113.0/24 -j DROP", "to UDP port 51820, to UDP port 7946, to TCP port 7946, of replies to this host (the rule"},
		{"the source port of one peer", "-A INPUT -p udp --sport 40001 -j DROP", "to UDP port 51820 (the rule \"meta l4proto udp th sport 40001 drop\""},
		{"the source port of gossip", "-A INPUT -p udp --sport 7946 -j DROP", "to UDP port 7946, of replies to this host"},
		{
			"pods of one neighbor", "-A FORWARD -s 10.42.2.0/24 -j DROP",
			"FORWARD of iptables-nft drops packets from the mesh (the rule \"saddr 10.42.2.0/24 drop\" of the chain FORWARD drops those from 10.42.2.255 to 10.42.0.255 on meshd0-vx)",
		},
		{"pods of one peer", "-A FORWARD -d 10.42.1.0/24 -j DROP", "to the mesh (the rule \"daddr 10.42.1.0/24 drop\" of the chain FORWARD drops those from 10.42.0.255 to 10.42.1.255 on kube-bridge)"},
		{"one node", "-A INPUT -s 10.4.0.2/32 -j DROP", "from the mesh to this host"},
		{"a range that no node's packets come from", "-A INPUT -i eth0 -s 100.64.0.0/10 -j DROP\n-A INPUT -i eth0 -s 10.0.0.0/8 -j DROP\n-A INPUT -i eth0 -s 192.168.0.0/16 -j DROP", ""},
		{"a port that no node uses", "-A INPUT -p udp --sport 1:1023 -j DROP", ""},
		{"the VXLAN port on another link", "-A INPUT -i eth0 -p udp -m udp --dport 7947 -j DROP", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table := xt("-P INPUT ACCEPT\n-P FORWARD ACCEPT\n" + tt.rules)
			table.Program = "" // so that it is a problem
			var got []string
			for _, p := range Problems(State{Filters: []filter.Table{table}}, carrierLAN(true)) {
				got = append(got, p.Text)
			}
			if tt.want == "" && got != nil || tt.want != "" && !strings.Contains(strings.Join(got, "\n"), tt.want) {
				t.Errorf("problems: got %q, want %q", got, tt.want)
			}
			table.Program = "iptables-nft"
			after := follow(t, table, diffAccepts([]filter.Table{table}, carrierLAN(true).Accepts, true))
			if again := diffAccepts([]filter.Table{after}, carrierLAN(true).Accepts, true); again != nil {
				t.Errorf("changes after the changes: got %q, want none", changeLines(again))
			}
		})
	}
}

// TestFirewallOfPlainNeighbors has a filter that drops what a neighbor's pods send over the
// LAN.
func TestFirewallOfPlainNeighbors(t *testing.T) {
	table := xt("-P FORWARD ACCEPT\n-A FORWARD -i eth1 -s 10.0.0.0/8 -j DROP")
	want := []string{"-I FORWARD 1 -s 10.4.0.0/16", "-I FORWARD 2 -s 10.42.0.0/16"}
	if diff := cmp.Diff(want, changeLines(diffAccepts([]filter.Table{table}, carrierLAN(false).Accepts, true))); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
}

// TestFirewallOfManyNodes checks that it costs little to evaluate a firewall with the
// addresses of many nodes.
func TestFirewallOfManyNodes(t *testing.T) {
	var peers []mesh.Peer
	for i := range 200 {
		p := netcfgtest.Peer(byte(i+2), fmt.Sprint(i), fmt.Sprintf("10.4.1.%d/32", i), fmt.Sprintf("10.42.%d.0/24", i+1))
		p.Endpoints = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), uint16(40000+i))}
		peers = append(peers, p)
	}
	s := settings()
	s.Uplinks = []Uplink{{Link: "eth0", Source: netip.MustParsePrefix("192.0.2.1/24")}}
	table := xt("-P INPUT DROP\n-P FORWARD DROP\n-A INPUT -s 203.0.113.128/25 -j DROP")
	blocking := BlockingChains([]filter.Table{table}, Desired(netcfgtest.IPv4(peers...), s).Accepts)
	if len(blocking) != 2 {
		t.Fatalf("got %d chains, want 2", len(blocking))
	}
	for _, b := range blocking {
		for _, a := range b.Accepts {
			if len(a.Packets) > 6 {
				t.Errorf("%s: %d packets are evaluated, want at most 6", a.What, len(a.Packets))
			}
		}
	}
}
