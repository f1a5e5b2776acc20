// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/control"
)

// TestPrintNetwork prints what meshd netcheck finds out behind different routers.
func TestPrintNetwork(t *testing.T) {
	at := func(addrs ...string) (all []netip.AddrPort) {
		for _, a := range addrs {
			all = append(all, netip.MustParseAddrPort(a))
		}
		return all
	}
	base := control.Network{
		Node: "home-1", Port: 51820, Alive: 4, UDP: control.Yes, Hairpin: control.Unknown, MTU: 1420,
		Relays: []control.NearbyRelay{{Name: "aws-1", RTT: control.Milliseconds(19 * time.Millisecond)}, {Name: "gcp-1", RTT: control.Milliseconds(38 * time.Millisecond)}, {Name: "far"}},
	}
	with := func(change func(*control.Network)) control.Network {
		n := base
		change(&n)
		return n
	}
	for name, n := range map[string]control.Network{
		"open": with(func(n *control.Network) {
			n.Families = []control.Family{
				{Name: "IPv4", Seen: at("198.51.100.1:51820"), NAT: control.NATNone, Reached: control.Yes},
				{Name: "IPv6", NAT: control.NATUnknown, Reached: control.Unknown},
			}
		}),
		"same-port": with(func(n *control.Network) {
			n.Hairpin = control.No
			n.Families = []control.Family{{Name: "IPv4", Seen: at("203.0.113.9:20011"), NAT: control.NATSamePort, Reached: control.No}}
		}),
		"mapped": with(func(n *control.Network) {
			n.Hairpin = control.Yes
			n.Families = []control.Family{{Name: "IPv4", Seen: at("203.0.113.9:51820"), NAT: control.NATSamePort, Reached: control.Yes}}
			n.PortMappings = []control.PortMapping{
				{Protocol: "UPnP", Router: netip.MustParseAddr("192.168.1.1"), Port: 51820, External: at("203.0.113.9:51820")[0], Public: true},
				{Protocol: "PCP", Router: netip.MustParseAddr("192.168.1.1"), Port: 7946, External: at("100.64.1.2:7946")[0]},
			}
		}),
		"changes-ports": with(func(n *control.Network) {
			n.Families = []control.Family{{Name: "IPv4", Seen: at("203.0.113.9:20011", "203.0.113.9:31234"), NAT: control.NATPorts, Reached: control.No}}
			n.Narrow = []control.NarrowPath{{Node: "aws-1", MTU: 1312}, {Node: "gcp-1", MTU: 1296}}
		}),
		"changes-ports-six": with(func(n *control.Network) {
			n.Families = []control.Family{
				{Name: "IPv4", Seen: at("203.0.113.9:20011", "203.0.113.9:31234"), NAT: control.NATPorts, Reached: control.Unknown},
				{Name: "IPv6", Seen: at("[2001:db8::9]:51820"), NAT: control.NATNone, Reached: control.No},
			}
			n.Relays = nil
		}),
		"one-node": with(func(n *control.Network) {
			n.Families = []control.Family{{Name: "IPv4", Seen: at("203.0.113.9:20011"), NAT: control.NATOneNode, Reached: control.Unknown}}
		}),
		"unseen": with(func(n *control.Network) {
			n.Families = []control.Family{{Name: "IPv4", NAT: control.NATUnknown, Reached: control.Unknown}}
		}),
		"blocked": with(func(n *control.Network) {
			n.UDP = control.No
			n.Families = []control.Family{{Name: "IPv4", NAT: control.NATUnknown, Reached: control.Unknown}}
		}),
		"alone": {Node: "home-1", Port: 51820, UDP: control.Unknown, Hairpin: control.Unknown, MTU: 1420},
	} {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			if err := printNetwork(&b, n); err != nil {
				t.Fatal(err)
			}
			golden(t, "netcheck-"+name, b.String())
		})
	}
}
