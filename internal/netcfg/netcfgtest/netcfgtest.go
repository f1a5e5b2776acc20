// SPDX-License-Identifier: Apache-2.0

// Package netcfgtest holds topologies for the tests of packages netcfg and host.
package netcfgtest

import (
	"net/netip"
	"slices"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
)

// Key returns a private key made from a number.
func Key(n byte) wgtypes.Key {
	k := [32]byte{0: n &^ 7, 30: n, 31: 64}
	return k
}

// Prefixes parses prefixes.
func Prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// Addrs parses addresses.
func Addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// Peer returns a peer as mesh.Derive would. Node n has the key Key(n).
func Peer(n byte, name string, allowed ...string) mesh.Peer {
	return mesh.Peer{
		ID: mesh.ID{n}, Name: name, Key: Key(n).PublicKey(), MTU: 1420,
		Endpoints:  []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, n}), 51820)},
		AllowedIPs: Prefixes(allowed...),
	}
}

// IPv4 returns the topology of a node in slot 0.
func IPv4(peers ...mesh.Peer) mesh.Topology {
	return mesh.Topology{
		Addresses:      Addrs("10.4.0.1"),
		PodCIDRs:       Prefixes("10.42.0.0/24"),
		Inside:         Prefixes("10.4.0.0/16", "10.42.0.0/16"),
		Guarded:        Prefixes("10.4.0.0/16", "10.42.0.0/16"),
		PodsAndClients: Prefixes("10.4.128.0/17", "10.42.0.0/16"),
		PodRanges:      []mesh.PodRange{{Range: netip.MustParsePrefix("10.42.0.0/16"), Bits: 24}},
		Hosts:          Prefixes("10.4.0.0/17", "203.0.113.2/32"),
		Peers:          peers,
	}
}

// WithClients adds two clients with the default access, and one with less.
func WithClients(t mesh.Topology) mesh.Topology {
	usual := []mesh.Allowance{{
		Destinations: Prefixes("10.4.0.0/17", "10.42.0.0/16", "10.43.0.0/16", "fd00:42::/48"),
		Bridges:      Prefixes("10.42.0.0/16", "fd00:42::/48"),
	}}
	for i, name := range []string{"laptop", "tablet", "kiosk"} {
		c := mesh.ClientTunnel{
			ID: mesh.ID{0xc0, byte(i)}, Name: name, Key: Key(byte(20 + i)).PublicKey(), Allowed: usual,
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 4, 128, byte(i + 1)})},
		}
		if len(t.Addresses) > 1 {
			c.Addresses = append(c.Addresses, netip.AddrFrom16([16]byte{0: 0xfd, 3: 4, 8: 0x80, 15: byte(i + 1)}))
		}
		t.Clients = append(t.Clients, c)
	}
	t.Clients[0].PresharedKey = mesh.PresharedKey{7}
	t.Clients[2].Allowed = []mesh.Allowance{
		{Protocol: "tcp", Port: 443, Destinations: Prefixes("10.43.0.0/16")},
		{Protocol: "udp", Port: 53, Destinations: Prefixes("10.43.0.10/32")},
	}
	t.ClientRanges = Prefixes("10.4.128.0/17")
	t.Nodes = Prefixes("10.4.0.0/17", "192.168.20.5/32")
	t.GossipPorts = []uint16{7946, 17946}
	return t
}

// WithRouter makes the first two clients routers, of which one offers only a part of its network.
func WithRouter(t mesh.Topology) mesh.Topology {
	office, plant := Prefixes("192.168.50.0/24"), Prefixes("192.168.60.0/24")
	t.Clients[0].Networks, t.Clients[0].Endpoint = office, netip.MustParseAddrPort("203.0.113.77:51820")
	t.Clients[1].Networks = plant
	t.Clients[1].Offers = []mesh.Allowance{{Protocol: "tcp", Port: 9100, Destinations: Prefixes("192.168.60.7/32")}}
	t.ClientNetworks = append(office, plant...)
	t.Inside = append(t.Inside, t.ClientNetworks...)
	t.PodsAndClients = append(t.PodsAndClients, t.ClientNetworks...)
	t.ServedNetworks = Prefixes("10.60.0.0/16")
	return t
}

// WithLink gives the node a link to another cluster, which may reach one port of Services, and nodes.
func WithLink(t mesh.Topology) mesh.Topology {
	t.Linked = mesh.Linked{
		Networks: Prefixes("10.52.0.0/16", "10.53.0.0/16"),
		Allowed: []mesh.Allowance{
			{Protocol: "tcp", Port: 443, Destinations: Prefixes("10.43.0.0/16")},
			{Destinations: Prefixes("10.4.0.0/17"), Bridges: Prefixes("10.42.0.0/16")},
		},
	}
	t.ServedNetworks = append(Prefixes("10.60.0.0/16"), t.Linked.Networks...)
	t.Inside = append(slices.Clone(t.Inside), t.Linked.Networks...)
	t.Nodes, t.GossipPorts = Prefixes("10.4.0.0/17", "192.168.20.5/32"), []uint16{7946, 17946}
	return t
}

// WithInternet has the node be an exit: the first client may reach all of the internet, the last
// one some of it.
func WithInternet(t mesh.Topology) mesh.Topology {
	t.Internet = Prefixes("8.0.0.0/7", "192.0.2.0/24", "2000::/3")
	t.Clients = slices.Clone(t.Clients)
	t.Clients[0].Allowed = append(slices.Clone(t.Clients[0].Allowed), mesh.Allowance{Protocol: "udp", Port: 99, Internet: true})
	t.Clients[2].Allowed = []mesh.Allowance{{Destinations: Prefixes("10.43.0.10/32"), Internet: true}}
	return t
}

// Neighbor returns a neighbor as mesh.Derive would. Node n has 192.168.10.n on the LAN.
func Neighbor(n byte, name string, prefixes ...string) mesh.Neighbor {
	return mesh.Neighbor{
		ID: mesh.ID{n}, Name: name, InternalIP: netip.AddrFrom4([4]byte{192, 168, 10, n}), MTU: 1420, Encapsulated: true,
		Overlay:  []netip.Addr{netip.AddrFrom4([4]byte{10, 4, 0, n}), netip.AddrFrom16([16]byte{0: 0xfd, 3: 4, 15: n})},
		Prefixes: Prefixes(prefixes...),
	}
}

// DualStack returns the topology of IPv4, with IPv6 added.
func DualStack(peers ...mesh.Peer) mesh.Topology {
	t := IPv4(peers...)
	t.Addresses = Addrs("10.4.0.1", "fd00:4::1")
	t.PodCIDRs = Prefixes("10.42.0.0/24", "fd00:42::/64")
	t.Inside = append(t.Inside, Prefixes("fd00:4::/64", "fd00:42::/48")...)
	t.Guarded = append(t.Guarded, Prefixes("fd00:4::/64", "fd00:42::/48")...)
	return t
}

// Member returns the topology of a node that is not a gateway. Node 2 is the gateway,
// node 3 is another member.
func Member() mesh.Topology {
	t := DualStack()
	t.Inside = append(t.Inside, Prefixes("192.168.20.0/24")...)
	t.Neighbors = []mesh.Neighbor{
		Neighbor(2, "gate", "10.4.0.2/32", "10.42.1.0/24", "fd00:42:0:1::/64", "10.4.0.9/32", "10.42.8.0/24", "fd00:4::9/128", "192.168.20.0/24"),
		Neighbor(3, "next", "10.42.2.0/24", "fd00:42:0:2::/64"),
	}
	t.Neighbors[1].MTU = 1400
	return t
}

// Gateway returns the topology of the same node if it is a gateway.
func Gateway() mesh.Topology {
	t := DualStack(Peer(9, "far", "10.4.0.9/32", "10.42.8.0/24", "fd00:4::9/128", "192.168.20.0/24"))
	t.Inside = append(t.Inside, Prefixes("192.168.20.0/24")...)
	t.ServedNetworks = Prefixes("172.20.0.0/16")
	t.Neighbors = Member().Neighbors
	t.Neighbors[0].Prefixes = Prefixes("10.42.1.0/24", "fd00:42:0:1::/64")
	return t
}

// Plain returns the topology without VXLAN.
func Plain(t mesh.Topology) mesh.Topology {
	t.Neighbors = slices.Clone(t.Neighbors)
	for i := range t.Neighbors {
		t.Neighbors[i].Encapsulated, t.Neighbors[i].NextHops = false, []netip.Addr{t.Neighbors[i].InternalIP}
	}
	return t
}

// MemberOnIPv6 returns the topology of Member if the LAN has only IPv6.
func MemberOnIPv6() mesh.Topology {
	t := Member()
	for i := range t.Neighbors {
		t.Neighbors[i].InternalIP = netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x10, 15: t.Neighbors[i].ID[0]})
	}
	return t
}
