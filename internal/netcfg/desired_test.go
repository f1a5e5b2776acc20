// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
)

var update = flag.Bool("update", false, "write the golden files")

// addrList parses addresses.
func addrList(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// meshPeer is a peer as mesh.Derive makes it. Node n has the key of number n.
func meshPeer(n byte, name string, allowed ...string) mesh.Peer {
	return mesh.Peer{
		ID: mesh.ID{n}, Name: name, Key: key(n).PublicKey(), MTU: 1420,
		Endpoints:  []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, n}), 51820)},
		AllowedIPs: prefixList(allowed...),
	}
}

// topology4 is the view of a node in slot 0.
func topology4(peers ...mesh.Peer) mesh.Topology {
	return mesh.Topology{
		Addresses: addrList("10.4.0.1"),
		PodCIDRs:  prefixList("10.42.0.0/24"),
		Inside:    prefixList("10.4.0.0/16", "10.42.0.0/16"),
		Guarded:   prefixList("10.4.0.0/16", "10.42.0.0/16"),
		Guests:    prefixList("10.4.128.0/17", "10.42.0.0/16"),
		PodRanges: []mesh.PodRange{{Range: netip.MustParsePrefix("10.42.0.0/16"), Bits: 24}},
		Hosts:     prefixList("10.4.0.0/17", "203.0.113.2/32"),
		Peers:     peers,
	}
}

func settings() Settings {
	return Settings{
		Interface: "meshd0", Implementation: Kernel, PrivateKey: key(1),
		ListenPort: 51820, GossipPort: 7946, MTU: 1420, Bridge: "kube-bridge",
	}
}

func TestDesired(t *testing.T) {
	two := topology4(meshPeer(2, "aws-1", "10.4.0.2/32", "10.42.1.0/24"))

	dual := topology4(meshPeer(2, "aws-1", "10.4.0.2/32", "10.42.1.0/24", "fd00:4::2/128", "fd00:42:0:1::/64"))
	dual.Addresses = append(dual.Addresses, netip.MustParseAddr("fd00:4::1"))
	dual.PodCIDRs = append(dual.PodCIDRs, netip.MustParsePrefix("fd00:42::/64"))
	dual.Inside = append(dual.Inside, prefixList("fd00:4::/64", "fd00:42::/48")...)
	dual.Guarded = append(dual.Guarded, prefixList("fd00:4::/64", "fd00:42::/48")...)
	dual.Guests = append(dual.Guests, prefixList("fd00:4::8000:0:0:0/65", "fd00:42::/48")...)
	dual.PodRanges = append(dual.PodRanges, mesh.PodRange{Range: netip.MustParsePrefix("fd00:42::/48"), Bits: 64})
	dual.Hosts = append(dual.Hosts, prefixList("fd00:4::/65", "2001:db8::2/128")...)

	nat := meshPeer(3, "laptop", "10.4.128.1/32")
	nat.Endpoints = nil
	small := meshPeer(4, "pppoe", "10.4.0.4/32", "10.42.3.0/24", "192.168.20.5/32")
	small.MTU, small.Keepalive = 1412, 25*time.Second
	small.Endpoints = append(small.Endpoints, netip.MustParseAddrPort("[::ffff:192.0.2.9]:4500"))
	natted := topology4(nat, small, meshPeer(2, "aws-1", "10.4.0.2/32", "10.42.1.0/24"))
	natted.Inside = append(natted.Inside, prefixList("192.168.20.5/32", "10.42.3.0/24")...)
	picked := settings()
	picked.Pick = map[mesh.ID]int{small.ID: 3, nat.ID: 1}
	natted.Serves = prefixList("192.168.10.0/24")
	heard := picked
	heard.Heard = map[wgtypes.Key]netip.AddrPort{
		nat.Key:   netip.MustParseAddrPort("[::ffff:203.0.113.9]:40001"),
		small.Key: netip.MustParseAddrPort("203.0.113.9:40002"), // has endpoints
	}

	waiting := two
	waiting.Addresses, waiting.PodCIDRs = nil, nil
	bare := settings()
	bare.Bridge, bare.Implementation, bare.Interface = "", Auto, "mesh.0"

	for _, tt := range []struct {
		name     string
		topology mesh.Topology
		settings Settings
	}{
		{"one-node", topology4(), settings()},
		{"two-nodes", two, settings()},
		{"dual-stack", dual, settings()},
		{"nat", natted, picked},
		{"nat-heard", natted, heard},
		{"no-slot", waiting, settings()},
		{"no-cni", two, bare},
		{"nothing", mesh.Topology{}, settings()},
		{"member", member(), lanSettings()},
		{"member-ipv6-lan", memberOnIPv6(), lanSettings()},
		{"member-plain", plain(member()), lanSettings()},
		{"gateway", gateway(), lanSettings()},
		{"member-without-lan", member(), settings()},
		{"clients", withClients(dual), settings()},
		{"clients-elsewhere", withoutTunnels(withClients(two)), settings()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := Desired(tt.topology, tt.settings).String()
			golden := filepath.Join("testdata", tt.name+".golden")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("desired state (-want +got):\n%s", d)
			}
		})
	}
}

// withClients adds two clients that may reach what clients usually may, and one that
// may reach less.
func withClients(t mesh.Topology) mesh.Topology {
	usual := []mesh.Allowance{{
		Destinations: prefixList("10.4.0.0/17", "10.42.0.0/16", "10.43.0.0/16", "fd00:42::/48"),
		Bridges:      prefixList("10.42.0.0/16", "fd00:42::/48"),
	}}
	for i, name := range []string{"laptop", "tablet", "kiosk"} {
		c := mesh.ClientTunnel{
			ID: mesh.ID{0xc0, byte(i)}, Name: name, Key: key(byte(20 + i)).PublicKey(), Allowed: usual,
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 4, 128, byte(i + 1)})},
		}
		if len(t.Addresses) > 1 {
			c.Addresses = append(c.Addresses, netip.AddrFrom16([16]byte{0: 0xfd, 3: 4, 8: 0x80, 15: byte(i + 1)}))
		}
		t.Clients = append(t.Clients, c)
	}
	t.Clients[0].PresharedKey = mesh.PresharedKey{7}
	t.Clients[2].Allowed = []mesh.Allowance{
		{Protocol: "tcp", Port: 443, Destinations: prefixList("10.43.0.0/16")},
		{Protocol: "udp", Port: 53, Destinations: prefixList("10.43.0.10/32")},
	}
	t.ClientRanges = prefixList("10.4.128.0/17")
	t.Nodes = prefixList("10.4.0.0/17", "192.168.20.5/32")
	t.GossipPorts = []uint16{7946, 17946}
	return t
}

// withoutTunnels is a node that is nobody's home.
func withoutTunnels(t mesh.Topology) mesh.Topology {
	t.Clients = nil
	return t
}

// neighbor is one as mesh.Derive makes it: node n has 192.168.10.n on the LAN.
func neighbor(n byte, name string, prefixes ...string) mesh.Neighbor {
	return mesh.Neighbor{
		ID: mesh.ID{n}, Name: name, InternalIP: netip.AddrFrom4([4]byte{192, 168, 10, n}), MTU: 1420, Encapsulated: true,
		Overlay:  []netip.Addr{netip.AddrFrom4([4]byte{10, 4, 0, n}), netip.AddrFrom16([16]byte{0: 0xfd, 3: 4, 15: n})},
		Prefixes: prefixList(prefixes...),
	}
}

// lanSettings are those of node 1, whose location's network is 192.168.10.0/24.
func lanSettings() Settings {
	s := settings()
	s.ID = mesh.ID{1}
	s.LANs = []LAN{
		{Link: "eth0", Address: netip.MustParsePrefix("192.168.10.1/24"), MTU: 1500},
		{Link: "eth1", Address: netip.MustParsePrefix("fd10::1/64"), MTU: 1480},
	}
	return s
}

// dualTopology is topology4 with both families.
func dualTopology(peers ...mesh.Peer) mesh.Topology {
	t := topology4(peers...)
	t.Addresses = addrList("10.4.0.1", "fd00:4::1")
	t.PodCIDRs = prefixList("10.42.0.0/24", "fd00:42::/64")
	t.Inside = append(t.Inside, prefixList("fd00:4::/64", "fd00:42::/48")...)
	t.Guarded = append(t.Guarded, prefixList("fd00:4::/64", "fd00:42::/48")...)
	return t
}

// member is the view of a node that is no gateway: node 2 is, and node 3 is like itself.
func member() mesh.Topology {
	t := dualTopology()
	t.Neighbors = []mesh.Neighbor{
		neighbor(2, "gate", "10.4.0.2/32", "10.42.1.0/24", "fd00:42:0:1::/64", "10.4.0.9/32", "10.42.8.0/24", "fd00:4::9/128", "192.168.20.0/24"),
		neighbor(3, "next", "10.42.2.0/24", "fd00:42:0:2::/64"),
	}
	t.Neighbors[1].MTU = 1400
	return t
}

// gateway is the view of the same node in office.
func gateway() mesh.Topology {
	t := dualTopology(meshPeer(9, "far", "10.4.0.9/32", "10.42.8.0/24", "fd00:4::9/128", "192.168.20.0/24"))
	t.Inside = append(t.Inside, prefixList("192.168.20.0/24")...)
	t.Serves = prefixList("172.20.0.0/16")
	t.Neighbors = member().Neighbors
	t.Neighbors[0].Prefixes = prefixList("10.42.1.0/24", "fd00:42:0:1::/64")
	return t
}

// plain is a topology without VXLAN.
func plain(t mesh.Topology) mesh.Topology {
	t.Neighbors = slices.Clone(t.Neighbors)
	for i := range t.Neighbors {
		t.Neighbors[i].Encapsulated, t.Neighbors[i].NextHops = false, []netip.Addr{t.Neighbors[i].InternalIP}
	}
	return t
}

// memberOnIPv6 is the member where the LAN has IPv6 only.
func memberOnIPv6() mesh.Topology {
	t := member()
	for i := range t.Neighbors {
		t.Neighbors[i].InternalIP = netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x10, 15: t.Neighbors[i].ID[0]})
	}
	return t
}

// TestDesiredOrder holds Desired to one answer for one topology, in whatever
// order its lists come, and to one route for each destination.
func TestDesiredOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		peers := []mesh.Peer{
			meshPeer(2, "a", "10.4.0.2/32", "10.42.1.0/24", "::ffff:10.99.0.0/112"),
			meshPeer(3, "b", "10.4.0.3/32", "10.42.2.0/24"),
			meshPeer(4, "c", "10.4.0.4/32", "10.42.0.0/16"),
		}
		top := topology4(peers...)
		shuffled := top
		shuffled.Peers = rapid.Permutation(top.Peers).Draw(t, "peers")
		shuffled.Inside = rapid.Permutation(top.Inside).Draw(t, "inside")
		shuffled.Guarded = rapid.Permutation(slices.Concat(top.Guarded, top.Guarded)).Draw(t, "guarded")
		want, got := Desired(top, settings()), Desired(shuffled, settings())
		if d := cmp.Diff(want.String(), got.String()); d != "" {
			t.Fatalf("in another order (-want +got):\n%s", d)
		}
		for i, r := range got.Routes {
			if r.Destination.Addr().Is4In6() {
				t.Errorf("route %s is mapped", r)
			}
			if i > 0 && got.Routes[i-1].Destination == r.Destination {
				t.Errorf("two routes to %s", r.Destination)
			}
		}
	})
}

func TestMerged(t *testing.T) {
	got := families[0].merged(prefixList("10.42.1.0/24", "10.42.0.0/16", "10.42.0.0/24", "fd00::/8", "::ffff:10.4.0.0/112", "10.43.0.0/16"))
	want := prefixList("10.4.0.0/16", "10.42.0.0/16", "10.43.0.0/16")
	if !slices.Equal(got, want) {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestMTU(t *testing.T) {
	for _, tt := range []struct {
		name   string
		egress int
		ipv6   bool
		want   int
	}{
		{"Ethernet", 1500, true, 1420},
		{"jumbo frames", 9000, false, 1420},
		{"PPPoE", 1492, true, 1412},
		{"narrow", 1300, false, 1220},
		{"narrow with IPv6", 1300, true, 1280},
		{"no way out", 0, false, 1420},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := MTU(tt.egress, tt.ipv6); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
}
