// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"pgregory.net/rapid"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg/netcfgtest"
)

var update = flag.Bool("update", false, "write the golden files")

func settings() Settings {
	return Settings{
		Interface: "meshd0", Implementation: Kernel, PrivateKey: netcfgtest.Key(1),
		ListenPort: 51820, GossipPort: 7946, MTU: 1420, Bridge: "kube-bridge",
	}
}

func TestDesired(t *testing.T) {
	two := netcfgtest.IPv4(netcfgtest.Peer(2, "aws-1", "10.4.0.2/32", "10.42.1.0/24"))

	dual := netcfgtest.IPv4(netcfgtest.Peer(2, "aws-1", "10.4.0.2/32", "10.42.1.0/24", "fd00:4::2/128", "fd00:42:0:1::/64"))
	dual.Addresses = append(dual.Addresses, netip.MustParseAddr("fd00:4::1"))
	dual.PodCIDRs = append(dual.PodCIDRs, netip.MustParsePrefix("fd00:42::/64"))
	dual.Inside = append(dual.Inside, netcfgtest.Prefixes("fd00:4::/64", "fd00:42::/48")...)
	dual.Guarded = append(dual.Guarded, netcfgtest.Prefixes("fd00:4::/64", "fd00:42::/48")...)
	dual.PodsAndClients = append(dual.PodsAndClients, netcfgtest.Prefixes("fd00:4::8000:0:0:0/65", "fd00:42::/48")...)
	dual.PodRanges = append(dual.PodRanges, mesh.PodRange{Range: netip.MustParsePrefix("fd00:42::/48"), Bits: 64})
	dual.Hosts = append(dual.Hosts, netcfgtest.Prefixes("fd00:4::/65", "2001:db8::2/128")...)

	nat := netcfgtest.Peer(3, "laptop", "10.4.128.1/32")
	nat.Endpoints = nil
	small := netcfgtest.Peer(4, "pppoe", "10.4.0.4/32", "10.42.3.0/24", "192.168.20.5/32")
	small.MTU = 1412
	kept := settings()
	kept.Keepalives = map[mesh.ID]Keepalive{small.ID: {Interval: 25 * time.Second}}
	small.Endpoints = []netip.AddrPort{netip.MustParseAddrPort("[::ffff:192.0.2.9]:4500")}
	natted := netcfgtest.IPv4(nat, small, netcfgtest.Peer(2, "aws-1", "10.4.0.2/32", "10.42.1.0/24"))
	natted.Inside = append(natted.Inside, netcfgtest.Prefixes("192.168.20.5/32", "10.42.3.0/24")...)
	natted.ServedNetworks = netcfgtest.Prefixes("192.168.10.0/24")
	heard := kept
	heard.LearnedEndpoints = map[wgtypes.Key]netip.AddrPort{
		nat.Key:   netip.MustParseAddrPort("[::ffff:203.0.113.9]:40001"),
		small.Key: netip.MustParseAddrPort("203.0.113.9:40002"), // ignored: this peer has endpoints
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
		{"one-node", netcfgtest.IPv4(), settings()},
		{"two-nodes", two, settings()},
		{"dual-stack", dual, settings()},
		{"nat", natted, kept},
		{"nat-heard", natted, heard},
		{"no-slot", waiting, settings()},
		{"no-cni", two, bare},
		{"nothing", mesh.Topology{}, settings()},
		{"member", netcfgtest.Member(), lanSettings()},
		{"member-ipv6-lan", netcfgtest.MemberOnIPv6(), lanSettings()},
		{"member-plain", netcfgtest.Plain(netcfgtest.Member()), lanSettings()},
		{"gateway", netcfgtest.Gateway(), lanSettings()},
		{"member-without-lan", netcfgtest.Member(), settings()},
		{"clients", netcfgtest.WithClients(dual), settings()},
		{"routers", netcfgtest.WithRouter(netcfgtest.WithClients(dual)), settings()},
		{"linked", netcfgtest.WithLink(two), settings()},
		{"linked-clients", netcfgtest.WithLink(netcfgtest.WithClients(two)), settings()},
		{"clients-internet", netcfgtest.WithInternet(netcfgtest.WithClients(dual)), settings()},
		{"clients-elsewhere", withoutTunnels(netcfgtest.WithClients(two)), settings()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			CheckGolden(t, tt.name, Desired(tt.topology, tt.settings).String())
		})
	}
}

// CheckGolden compares a text with the golden file of a name.
func CheckGolden(t *testing.T, name, got string) {
	t.Helper()
	golden := filepath.Join("testdata", name+".golden")
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
		t.Errorf("%s (-want +got):\n%s", name, d)
	}
}

// withoutTunnels returns the topology of a node on which no client's tunnel ends.
func withoutTunnels(t mesh.Topology) mesh.Topology {
	t.Clients = nil
	return t
}

// lanSettings are the settings of node 1, whose location has the network 192.168.10.0/24.
func lanSettings() Settings {
	s := settings()
	s.ID = mesh.ID{1}
	s.LANs = []LAN{
		{Link: "eth0", Address: netip.MustParsePrefix("192.168.10.1/24"), MTU: 1500},
		{Link: "eth1", Address: netip.MustParsePrefix("fd10::1/64"), MTU: 1480},
	}
	return s
}

// TestDesiredOrder checks that the order of a topology's lists doesn't change the result,
// and that each destination has one route.
// Forwarding is asked for on every link on which packets to be forwarded arrive, and on no
// other link.
func TestForwardingLinks(t *testing.T) {
	uplinks := []Uplink{{Link: "wan.7", Source: netip.MustParsePrefix("192.0.2.1/24")}, {Link: "wan6", Source: netip.MustParsePrefix("2001:db8::1/64")}}
	served := netcfgtest.Member()
	served.PodCIDRs, served.ServedNetworks = nil, netcfgtest.Prefixes("192.168.10.0/24")
	quiet := netcfgtest.Member()
	quiet.PodCIDRs = nil
	for _, tt := range []struct {
		name     string
		topology mesh.Topology
		want     []string
	}{
		{"pods", netcfgtest.Member(), []string{"eth2", "kube-bridge", "meshd0-vx", "meshd0", "wan/7"}},
		{"plain neighbors", netcfgtest.Plain(netcfgtest.Member()), []string{"eth0", "eth2", "kube-bridge", "meshd0", "wan/7"}},
		{"networks of the location", served, []string{"eth0", "eth2", "kube-bridge", "meshd0-vx", "meshd0", "wan/7"}},
		{"no pods", quiet, []string{"kube-bridge", "meshd0-vx", "meshd0"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := lanSettings()
			s.Uplinks, s.Cards = uplinks, []string{"eth2", "wan.7"}
			var got []string
			for _, c := range Desired(tt.topology, s).Sysctls {
				if link, ok := strings.CutSuffix(strings.TrimPrefix(c.Key, "net.ipv4.conf."), ".forwarding"); ok && c.Value == "1" && !strings.HasPrefix(link, "net.") {
					got = append(got, link)
				}
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("links (-want +got):\n%s", d)
			}
		})
	}
}

func TestDesiredOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		peers := []mesh.Peer{
			netcfgtest.Peer(2, "a", "10.4.0.2/32", "10.42.1.0/24", "::ffff:10.99.0.0/112"),
			netcfgtest.Peer(3, "b", "10.4.0.3/32", "10.42.2.0/24"),
			netcfgtest.Peer(4, "c", "10.4.0.4/32", "10.42.0.0/16"),
		}
		top := netcfgtest.IPv4(peers...)
		shuffled := top
		shuffled.Peers = rapid.Permutation(top.Peers).Draw(t, "peers")
		shuffled.Inside = rapid.Permutation(top.Inside).Draw(t, "inside")
		shuffled.Guarded = rapid.Permutation(slices.Concat(top.Guarded, top.Guarded)).Draw(t, "guarded")
		want, got := Desired(top, settings()), Desired(shuffled, settings())
		if d := cmp.Diff(want.String(), got.String()); d != "" {
			t.Fatalf("state of the same topology in another order (-want +got):\n%s", d)
		}
		for i, r := range got.Routes {
			if r.Destination.Addr().Is4In6() {
				t.Errorf("route %s is IPv4-mapped, want IPv4", r)
			}
			if i > 0 && got.Routes[i-1].Destination == r.Destination {
				t.Errorf("two routes to %s", r.Destination)
			}
		}
	})
}

func TestMerged(t *testing.T) {
	got := families()[0].merged(netcfgtest.Prefixes("10.42.1.0/24", "10.42.0.0/16", "10.42.0.0/24", "fd00::/8", "::ffff:10.4.0.0/112", "10.43.0.0/16"))
	want := netcfgtest.Prefixes("10.4.0.0/16", "10.42.0.0/16", "10.43.0.0/16")
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
		{"no uplink", 0, false, 1420},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := MTU(tt.egress, tt.ipv6); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
}

// TestHeardInsideTheMesh: a peer was heard on a LAN that this host has left, and its address
// there is reached through the tunnel now.
func TestHeardInsideTheMesh(t *testing.T) {
	nat := netcfgtest.Peer(3, "home", "10.4.0.3/32", "192.168.20.5/32")
	nat.Endpoints = nil
	topology := netcfgtest.IPv4(nat)
	topology.Inside = append(topology.Inside, netcfgtest.Prefixes("192.168.20.5/32")...)
	s := settings()
	s.LearnedEndpoints = map[wgtypes.Key]netip.AddrPort{nat.Key: netip.MustParseAddrPort("192.168.20.5:51820")}
	if got := Desired(topology, s).Peers[0].Endpoint; got.IsValid() {
		t.Errorf("got endpoint %v, want none", got)
	}
}

// TestPathMTU has the paths beneath two tunnels carry less than the tunnels' MTU, and one carry all.
func TestPathMTU(t *testing.T) {
	narrow := netcfgtest.Peer(2, "narrow", "10.4.0.2/32", "fd00:42:0:1::/64")
	small := netcfgtest.Peer(3, "small", "10.4.0.3/32")
	small.MTU = 1300
	top := netcfgtest.IPv4(narrow, small, netcfgtest.Peer(4, "wide", "10.4.0.4/32"))
	top.Addresses = append(top.Addresses, netip.MustParseAddr("fd00:4::1"))
	s := settings()
	s.PathMTUs = map[mesh.ID]int{{2}: 1248, {3}: 1400, {4}: s.MTU}
	got := make(map[string]int)
	state := Desired(top, s)
	for _, r := range slices.Concat(state.Routes, state.Covered) {
		got[r.Destination.String()] = r.MTU
	}
	for to, want := range map[string]int{
		"10.4.0.2/32":      1248,
		"fd00:42:0:1::/64": mesh.MinMTU6,
		"10.4.0.3/32":      1300,
		"10.4.0.4/32":      0,
	} {
		if mtu, ok := got[to]; !ok || mtu != want {
			t.Errorf("route to %s: got MTU %d, want %d; there are %v", to, mtu, want, got)
		}
	}
}

// TestMergedRoutes checks which routes a host needs beside those of the ranges.
func TestMergedRoutes(t *testing.T) {
	small := netcfgtest.Peer(3, "small", "10.4.0.3/32", "10.42.2.0/24", "192.168.20.5/32")
	small.MTU = 1300
	top := netcfgtest.IPv4(netcfgtest.Peer(2, "a", "10.4.0.2/32", "10.42.1.0/24", "0.0.0.0/0"), small)
	top.Guarded = append(top.Guarded, netcfgtest.Prefixes("10.42.2.128/25")...)
	for _, test := range []struct {
		name     string
		attached []netip.Prefix
		also     []string
	}{
		{name: "no network of the host is near"},
		{name: "a wider one", attached: netcfgtest.Prefixes("10.0.0.0/8")},
		{name: "the range itself", attached: netcfgtest.Prefixes("10.42.0.0/16"), also: []string{"10.42.1.0/24"}},
		{name: "a part of the range", attached: netcfgtest.Prefixes("10.42.0.0/20", "10.42.64.0/20"), also: []string{"10.42.1.0/24"}},
		{name: "a part of a node's", attached: netcfgtest.Prefixes("10.42.1.0/25")},
	} {
		s := settings()
		s.Attached = test.attached
		var got []string
		for _, r := range Desired(top, s).Routes {
			got = append(got, r.Destination.String())
		}
		want := append([]string{"0.0.0.0/0", "10.4.0.0/16", "10.4.0.3/32", "10.42.0.0/16", "10.42.2.0/24", "10.42.2.128/25", "192.168.20.5/32"}, test.also...)
		slices.Sort(want)
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
}
