// SPDX-License-Identifier: Apache-2.0

package host

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

func TestChooseFacts(t *testing.T) {
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	tests := []struct {
		name string
		raw  rawFacts
		want netcfg.Facts
	}{
		{name: "nothing"},
		{
			name: "public address",
			raw: rawFacts{
				links:   []rawLink{{index: 1, name: "lo", mtu: 65536, flags: net.FlagLoopback}, {index: 2, name: "eth0", mtu: 1500}},
				addrs:   []rawAddr{{1, prefix("127.0.0.1/8"), 0}, {2, prefix("203.0.113.7/24"), 0}, {2, prefix("fe80::1/64"), 0}},
				sources: []rawSource{{2, addr("203.0.113.7"), addr("203.0.113.1")}},
			},
			want: netcfg.Facts{
				Addresses: []netip.Addr{addr("203.0.113.7")},
				Cards:     []string{"eth0"},
				Uplinks:   []netcfg.Uplink{{Link: "eth0", Source: prefix("203.0.113.7/24"), MTU: 1500, Gateway: addr("203.0.113.1")}},
				Attached:  []netcfg.LAN{{Link: "eth0", Address: prefix("203.0.113.7/24"), MTU: 1500}},
				MTU:       1500, MTULink: "eth0",
			},
		},
		{
			name: "private and shared address, one link each, lowest MTU",
			raw: rawFacts{
				links: []rawLink{{index: 2, name: "eth0", mtu: 9001}, {index: 3, name: "ppp0", mtu: 1492, kind: "ppp", flags: net.FlagPointToPoint}},
				addrs: []rawAddr{
					{3, prefix("fd12::5/64"), 0}, {2, prefix("100.64.3.4/10"), 0}, {2, prefix("192.168.1.9/24"), unix.IFA_F_SECONDARY},
				},
				sources: []rawSource{{link: 2, addr: addr("100.64.3.4")}, {link: 3, addr: addr("fd12::5")}},
			},
			want: netcfg.Facts{
				Cards:     []string{"eth0"},
				Addresses: []netip.Addr{addr("100.64.3.4"), addr("192.168.1.9"), addr("fd12::5")},
				Uplinks:   []netcfg.Uplink{{Link: "eth0", Source: prefix("100.64.3.4/10"), MTU: 9001}, {Link: "ppp0", Source: prefix("fd12::5/64"), MTU: 1492}},
				Private: []netcfg.PrivateAddress{
					{Link: "eth0", Address: prefix("100.64.3.4/10"), Default: true},
					{Link: "eth0", Address: prefix("192.168.1.9/24")},
					{Link: "ppp0", Address: prefix("fd12::5/64"), Unfit: "a tunnel"},
				},
				Attached: []netcfg.LAN{
					{Link: "eth0", Address: prefix("100.64.3.4/10"), MTU: 9001}, {Link: "eth0", Address: prefix("192.168.1.9/24"), MTU: 9001}, {Link: "ppp0", Address: prefix("fd12::5/64"), MTU: 1492},
				},
				MTU: 1492, MTULink: "ppp0",
			},
		},
		{
			name: "links by which packets to pods arrive",
			raw: rawFacts{
				links: []rawLink{{index: 1, name: "lo", flags: net.FlagLoopback}, {index: 2, name: "eth0"}, {index: 3, name: "eth1"}, {index: 4, name: "eth2"}, {index: 5, name: "eth3"}, {index: 6, name: "ppp0", kind: "ppp", flags: net.FlagPointToPoint}, {index: 7, name: "meshd0", kind: "wireguard"}, {index: 8, name: "docker0", kind: "bridge"}},
				addrs: []rawAddr{{1, prefix("203.0.113.1/32"), 0}, {2, prefix("203.0.113.2/32"), 0}, {3, prefix("2001:db8::3/64"), 0}, {8, prefix("203.0.113.8/32"), 0}},
				routes: []rawRoute{
					{links: []int{5, 6}, to: prefix("0.0.0.0/0")},
					{links: []int{7}, to: prefix("0.0.0.0/0")},
					{links: []int{4}, to: prefix("::/0")},
					{links: []int{4}, to: prefix("198.51.100.0/24")},
				},
			},
			want: netcfg.Facts{
				Addresses: []netip.Addr{addr("203.0.113.1"), addr("203.0.113.2"), addr("2001:db8::3")},
				Cards:     []string{"eth0", "eth3", "ppp0"},
				Attached:  []netcfg.LAN{{Link: "lo", Address: prefix("203.0.113.1/32")}, {Link: "eth0", Address: prefix("203.0.113.2/32")}, {Link: "docker0", Address: prefix("203.0.113.8/32")}, {Link: "eth1", Address: prefix("2001:db8::3/64")}},
			},
		},
		{
			name: "ours and containers'",
			raw: rawFacts{
				links: []rawLink{{index: 1, name: "meshd0-vx", mtu: 1420, kind: "vxlan"}, {index: 2, name: "meshd0", mtu: 1420, kind: "wireguard"}, {index: 3, name: "pods", mtu: 1420, kind: "bridge"}, {index: 4, name: "docker0", mtu: 1500, kind: "bridge"}, {index: 5, name: "br-1f2e", mtu: 1500, kind: "bridge"}, {index: 6, name: "kube-ipvs0", mtu: 1500, kind: "dummy"}, {index: 7, name: "vethab", mtu: 1500, kind: "veth"}},
				addrs: []rawAddr{
					{1, prefix("10.4.0.1/32"), 0},
					{2, prefix("10.4.0.1/32"), 0},
					{3, prefix("10.42.0.1/24"), 0},
					{4, prefix("172.17.0.1/16"), 0},
					{5, prefix("172.18.0.1/16"), 0},
					{6, prefix("10.43.0.1/32"), 0},
					{7, prefix("203.0.113.9/32"), 0},
				},
				sources: []rawSource{{link: 2, addr: addr("10.4.0.1")}},
			},
			want: netcfg.Facts{Private: []netcfg.PrivateAddress{
				{Link: "docker0", Address: prefix("172.17.0.1/16"), Unfit: "a bridge without a network card"},
				{Link: "br-1f2e", Address: prefix("172.18.0.1/16"), Unfit: "a bridge without a network card"},
			}, Attached: []netcfg.LAN{
				{Link: "kube-ipvs0", Address: prefix("10.43.0.1/32"), MTU: 1500},
				{Link: "docker0", Address: prefix("172.17.0.1/16"), MTU: 1500},
				{Link: "br-1f2e", Address: prefix("172.18.0.1/16"), MTU: 1500},
				{Link: "vethab", Address: prefix("203.0.113.9/32"), MTU: 1500},
			}},
		},
		{
			name: "addresses that do not last",
			raw: rawFacts{
				links: []rawLink{{index: 2, name: "eth0", mtu: 1500}},
				addrs: []rawAddr{
					{2, prefix("2001:db8::1/64"), unix.IFA_F_TENTATIVE},
					{2, prefix("2001:db8::2/64"), unix.IFA_F_DEPRECATED},
					{2, prefix("2001:db8::3/64"), unix.IFA_F_TEMPORARY},
					{2, prefix("2001:db8::4/64"), unix.IFA_F_DADFAILED},
					{2, prefix("2001:db8::5/64"), unix.IFA_F_PERMANENT},
					{2, prefix("2001:db8::5/128"), 0},
				},
			},
			want: netcfg.Facts{
				Addresses: []netip.Addr{addr("2001:db8::5")},
				Attached:  []netcfg.LAN{{Link: "eth0", Address: prefix("2001:db8::5/64"), MTU: 1500}, {Link: "eth0", Address: prefix("2001:db8::5/128"), MTU: 1500}},
			},
		},
		{
			name: "source on another link",
			raw: rawFacts{
				links:   []rawLink{{index: 1, name: "lo", mtu: 65536, flags: net.FlagLoopback}, {index: 2, name: "eth0", mtu: 1500}},
				addrs:   []rawAddr{{1, prefix("10.0.0.1/32"), 0}},
				sources: []rawSource{{link: 2, addr: addr("10.0.0.1")}},
			},
			want: netcfg.Facts{
				Addresses: []netip.Addr{addr("10.0.0.1")},
				Uplinks:   []netcfg.Uplink{{Link: "eth0", Source: prefix("10.0.0.1/32"), MTU: 1500}},
				Private:   []netcfg.PrivateAddress{{Link: "lo", Address: prefix("10.0.0.1/32"), Default: true}},
				Attached:  []netcfg.LAN{{Link: "lo", Address: prefix("10.0.0.1/32"), MTU: 65536}},
				MTU:       1500, MTULink: "eth0",
			},
		},
		{
			name: "packets to the others leave by another link than the default route's",
			raw: rawFacts{
				links:   []rawLink{{index: 2, name: "eth0", mtu: 9000}, {index: 3, name: "tun0", mtu: 1280, kind: "tuntap", flags: net.FlagPointToPoint}, {index: 4, name: "meshd0", mtu: 1000, kind: "wireguard"}},
				addrs:   []rawAddr{{3, prefix("198.51.100.9/32"), 0}},
				sources: []rawSource{{link: 3, addr: addr("198.51.100.9")}},
				egress:  []int{2, 4},
			},
			want: netcfg.Facts{
				Addresses: []netip.Addr{addr("198.51.100.9")},
				Uplinks:   []netcfg.Uplink{{Link: "tun0", Source: prefix("198.51.100.9/32"), MTU: 1280}},
				Attached:  []netcfg.LAN{{Link: "tun0", Address: prefix("198.51.100.9/32"), MTU: 1280}},
				MTU:       9000, MTULink: "eth0",
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := chooseFacts(tt.raw, newLinks(tt.raw.links, "meshd0", "pods"))
			got.Nearby = mesh.Nearby{} // TestHostileNearby
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
				t.Errorf("facts (-want +got):\n%s", diff)
			}
		})
	}
}

// TestInternalIP checks whose address becomes the internal IP, for hosts of many kinds. The
// first link of each host has index 1, and an address of a link is named after it.
func TestInternalIP(t *testing.T) {
	const p2p = net.FlagPointToPoint
	lo := rawLink{name: "lo", flags: net.FlagLoopback}
	eth0, eth1 := rawLink{name: "eth0"}, rawLink{name: "eth1"}
	docker0, virbr0 := rawLink{name: "docker0", kind: "bridge"}, rawLink{name: "virbr0", kind: "bridge"}
	wg0 := rawLink{name: "wg0", kind: "wireguard", flags: p2p}
	type address struct {
		link   int // index
		prefix string
	}
	type route struct {
		link   int
		metric int
		other  int // link of another next hop; 0 for none
	}
	tests := []struct {
		name     string
		links    []rawLink
		addrs    []address
		defaults []route // routes of the main table
		source   address // of packets to the internet, if a VPN's rules decide
		last     string
		want     string // "" for none
		others   string
	}{
		{name: "one card", links: []rawLink{lo, eth0}, addrs: []address{{2, "192.168.1.5/24"}}, defaults: []route{{2, 0, 0}}, want: "192.168.1.5/24 on eth0"},
		{name: "no default route", links: []rawLink{lo, eth0}, addrs: []address{{2, "192.168.1.5/24"}}, want: "192.168.1.5/24 on eth0"},
		{name: "a VPN has the default route", links: []rawLink{eth0, wg0}, addrs: []address{{1, "192.168.1.5/24"}, {2, "10.8.0.2/24"}}, defaults: []route{{1, 100, 0}}, source: address{2, "10.8.0.2"}, want: "192.168.1.5/24 on eth0", others: "10.8.0.2/24: its link is a tunnel"},
		{name: "a VPN replaced the default route", links: []rawLink{eth0, {name: "tun0", kind: "tuntap", flags: p2p}}, addrs: []address{{1, "192.168.1.5/24"}, {2, "10.8.0.2/24"}}, defaults: []route{{2, 0, 0}}, source: address{2, "10.8.0.2"}, want: "192.168.1.5/24 on eth0", others: "10.8.0.2/24: its link is a tunnel"},
		{name: "a VPN over Ethernet frames", links: []rawLink{eth0, {name: "tap0", kind: "tuntap"}}, addrs: []address{{1, "203.0.113.5/24"}, {2, "10.8.0.2/24"}}, others: "10.8.0.2/24: its link is a tunnel"},
		{name: "a modem", links: []rawLink{{name: "ppp0", kind: "ppp", flags: p2p}, {name: "wwan0", flags: p2p}}, addrs: []address{{1, "10.64.0.9/32"}, {2, "10.65.0.9/30"}}, defaults: []route{{1, 0, 0}}, source: address{1, "10.64.0.9"}, others: "10.64.0.9/32: its link is a tunnel; 10.65.0.9/30: its link is a tunnel"},
		{name: "two cards, the second has the default route", links: []rawLink{eth0, eth1}, addrs: []address{{1, "10.0.0.5/16"}, {2, "192.168.1.5/24"}}, defaults: []route{{2, 0, 0}}, want: "192.168.1.5/24 on eth1", others: "10.0.0.5/16: node.internal-ip can name it"},
		{name: "two cards with default routes", links: []rawLink{eth0, eth1}, addrs: []address{{1, "10.0.0.5/16"}, {2, "192.168.1.5/24"}}, defaults: []route{{1, 600, 0}, {2, 100, 0}}, want: "192.168.1.5/24 on eth1", others: "10.0.0.5/16: node.internal-ip can name it"},
		{name: "two cards with one default route", links: []rawLink{eth0, eth1, {name: "eth2"}}, addrs: []address{{1, "203.0.113.5/24"}, {2, "172.16.0.5/16"}, {3, "192.168.1.5/24"}}, defaults: []route{{1, 0, 3}}, want: "192.168.1.5/24 on eth2", others: "172.16.0.5/16: node.internal-ip can name it"},
		{name: "the default route has moved", links: []rawLink{eth0, eth1}, addrs: []address{{1, "10.0.0.5/16"}, {2, "192.168.1.5/24"}}, defaults: []route{{2, 0, 0}}, source: address{2, "192.168.1.5"}, last: "10.0.0.5/16", want: "10.0.0.5/16 on eth0", others: "192.168.1.5/24: node.internal-ip can name it"},
		{name: "the last one was a tunnel's", links: []rawLink{eth0, wg0}, addrs: []address{{1, "192.168.1.5/24"}, {2, "10.8.0.2/24"}}, last: "10.8.0.2/24", want: "192.168.1.5/24 on eth0", others: "10.8.0.2/24: its link is a tunnel"},
		{name: "the last one has gone", links: []rawLink{eth0}, addrs: []address{{1, "192.168.1.5/24"}}, last: "192.168.1.4/24", want: "192.168.1.5/24 on eth0"},
		{name: "a public and a private card", links: []rawLink{eth0, eth1}, addrs: []address{{1, "203.0.113.5/24"}, {2, "10.0.0.2/32"}}, defaults: []route{{1, 0, 0}}, want: "10.0.0.2/32 on eth1"},
		{name: "a virtual address besides", links: []rawLink{eth0}, addrs: []address{{1, "192.168.1.100/32"}, {1, "192.168.1.5/24"}}, want: "192.168.1.5/24 on eth0", others: "192.168.1.100/32: node.internal-ip can name it"},
		{name: "bridges of docker and libvirt", links: []rawLink{eth0, docker0, virbr0, {name: "vethab", kind: "veth", master: 2}, {name: "vnet0", kind: "tuntap", master: 3}}, addrs: []address{{1, "203.0.113.5/24"}, {2, "172.17.0.1/16"}, {3, "192.168.122.1/24"}}, others: "172.17.0.1/16: its link is a bridge without a network card; 192.168.122.1/24: its link is a bridge without a network card"},
		{name: "links to virtual machines", links: []rawLink{eth0, {name: "vboxnet0"}, {name: "vmnet8"}}, addrs: []address{{1, "203.0.113.5/24"}, {2, "192.168.56.1/24"}, {3, "172.16.5.1/24"}}, others: "192.168.56.1/24: its link is a link to virtual machines; 172.16.5.1/24: its link is a link to virtual machines"},
		{name: "pods of another network", links: []rawLink{eth0, {name: "cni0", kind: "bridge"}, {name: "flannel.1", kind: "vxlan"}, {name: "kube-ipvs0", kind: "dummy"}}, addrs: []address{{1, "192.168.1.5/24"}, {2, "10.42.0.1/24"}, {3, "10.42.0.0/32"}, {4, "10.43.0.1/32"}}, want: "192.168.1.5/24 on eth0", others: "10.42.0.1/24: its link is a bridge without a network card; 10.42.0.0/32: its link is a link to containers"},
		{name: "a LAN bridge with a card", links: []rawLink{{name: "br0", kind: "bridge"}, {name: "eth0", master: 1}, {name: "vnet0", kind: "tuntap", master: 1}}, addrs: []address{{1, "192.168.1.5/24"}}, want: "192.168.1.5/24 on br0"},
		{name: "a LAN bridge with a VLAN of a bond of cards", links: []rawLink{{name: "br-lan", kind: "bridge"}, {name: "bond0.5", kind: "vlan", lower: 3, master: 1}, {name: "bond0", kind: "bond"}, {name: "eth0", master: 3}}, addrs: []address{{1, "192.168.1.5/24"}}, want: "192.168.1.5/24 on br-lan"},
		{name: "a VLAN of a card", links: []rawLink{{name: "eth0.5", kind: "vlan", lower: 2}, eth0}, addrs: []address{{1, "192.168.1.5/24"}}, want: "192.168.1.5/24 on eth0.5"},
		{name: "a VLAN of a bridge without a card", links: []rawLink{{name: "docker0.5", kind: "vlan", lower: 2}, docker0, eth0}, addrs: []address{{1, "192.168.1.5/24"}}, others: "192.168.1.5/24: its link is a link of kind vlan"},
		{name: "a macvlan of a card, towards containers", links: []rawLink{{name: "shim", kind: "macvlan", lower: 2}, eth0}, addrs: []address{{1, "192.168.1.5/24"}}, want: "192.168.1.5/24 on shim"},
		{name: "a card in a VRF", links: []rawLink{{name: "blue", kind: "vrf"}, {name: "eth0", master: 1}}, addrs: []address{{1, "10.255.0.1/32"}, {2, "192.168.1.5/24"}}, want: "192.168.1.5/24 on eth0", others: "10.255.0.1/32: its link is a link of kind vrf"},
		{name: "a bond without cards", links: []rawLink{{name: "bond0", kind: "bond"}}, addrs: []address{{1, "192.168.1.5/24"}}, others: "192.168.1.5/24: its link is a link of kind bond"},
		{name: "a veth plugged into the LAN's bridge", links: []rawLink{{name: "host0", kind: "veth", lower: 2}, {name: "port0", kind: "veth", lower: 1, master: 3}, {name: "br0", kind: "bridge"}, {name: "eth0", master: 3}}, addrs: []address{{1, "192.168.1.5/24"}}, want: "192.168.1.5/24 on host0"},
		{name: "Open vSwitch with a card", links: []rawLink{{name: "ovs-system", kind: "openvswitch"}, {name: "br-ex", kind: "openvswitch"}, {name: "eth0", master: 1}}, addrs: []address{{2, "192.168.1.5/24"}}, want: "192.168.1.5/24 on br-ex"},
		{name: "a container", links: []rawLink{lo, {name: "eth0", kind: "veth"}}, addrs: []address{{2, "172.17.0.2/16"}}, want: "172.17.0.2/16 on eth0"},
		{name: "a container with containers inside", links: []rawLink{lo, {name: "vethab", kind: "veth", master: 3}, docker0, {name: "eth0", kind: "veth"}, {name: "veth12", kind: "veth"}}, addrs: []address{{3, "172.18.0.1/16"}, {4, "172.17.0.2/16"}, {5, "10.1.1.1/24"}}, want: "172.17.0.2/16 on eth0", others: "172.18.0.1/16: its link is a bridge without a network card; 10.1.1.1/24: its link is a link to containers"},
		{name: "a container on the LAN", links: []rawLink{lo, {name: "eth0", kind: "macvlan"}}, addrs: []address{{2, "192.168.1.5/24"}}, want: "192.168.1.5/24 on eth0"},
		{name: "a veth of a host", links: []rawLink{eth0, {name: "host1", kind: "veth"}}, addrs: []address{{1, "203.0.113.5/24"}, {2, "192.168.1.5/24"}}, others: "192.168.1.5/24: its link is a link to containers"},
		{name: "an address that routers announce", links: []rawLink{lo, eth0}, addrs: []address{{1, "10.0.0.1/32"}}, source: address{2, "10.0.0.1"}, want: "10.0.0.1/32 on lo"},
		{name: "other addresses of the loopback device", links: []rawLink{lo, eth0}, addrs: []address{{1, "10.0.0.1/32"}}, others: "10.0.0.1/32: its link is the loopback device"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var raw rawFacts
			for i, l := range tt.links {
				l.index = i + 1
				raw.links = append(raw.links, l)
			}
			for _, a := range tt.addrs {
				raw.addrs = append(raw.addrs, rawAddr{link: a.link, prefix: netip.MustParsePrefix(a.prefix)})
			}
			for _, r := range tt.defaults {
				hops := []int{r.link}
				if r.other != 0 {
					hops = append(hops, r.other)
				}
				raw.routes = append(raw.routes, rawRoute{links: hops, to: netip.MustParsePrefix("0.0.0.0/0"), metric: r.metric})
			}
			if tt.source.link != 0 {
				raw.sources = append(raw.sources, rawSource{link: tt.source.link, addr: netip.MustParseAddr(tt.source.prefix)})
			}
			var last []netip.Prefix
			if tt.last != "" {
				last = append(last, netip.MustParsePrefix(tt.last))
			}
			chosen, others := chooseFacts(raw, newLinks(raw.links, "meshd0", "kube-bridge")).InternalIPs(netip.Prefix{}, last)
			var got, rest []string
			for _, c := range chosen {
				got = append(got, fmt.Sprintf("%v on %s", c.Address, c.Link))
			}
			for _, o := range others {
				rest = append(rest, fmt.Sprintf("%v: %s", o.Address, o.Reason))
			}
			if got := strings.Join(got, "; "); got != tt.want {
				t.Errorf("internal IP: got %q, want %q", got, tt.want)
			}
			if rest := strings.Join(rest, "; "); rest != tt.others {
				t.Errorf("other addresses: got %q, want %q", rest, tt.others)
			}
		})
	}
}
