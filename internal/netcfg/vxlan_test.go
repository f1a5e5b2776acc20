// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg/netcfgtest"
)

func TestVXLANName(t *testing.T) {
	seen := make(map[string]string)
	for _, tt := range []struct{ iface, want string }{
		{"meshd0", "meshd0-vx"},
		{"twelve_chars", "twelve_chars-vx"},
		{"thirteen_char", ""},
		{"fifteen_chars_a", ""},
		{"fifteen_chars_b", ""},
	} {
		got := VXLANName(tt.iface)
		if tt.want != "" && got != tt.want || len(got) >= unix.IFNAMSIZ {
			t.Errorf("VXLANName(%q): got %s, want %s, shorter than %d", tt.iface, got, tt.want, unix.IFNAMSIZ)
		}
		if other, ok := seen[got]; ok {
			t.Errorf("%s and %s have the same name %s", other, tt.iface, got)
		}
		seen[got] = tt.iface
	}
}

func TestMACAsText(t *testing.T) {
	if got, want := MAC(mesh.MAC(mesh.ID{1, 2, 3, 4, 5, 6})).String(), "02:01:02:03:04:05"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestVXLANMTU(t *testing.T) {
	for _, tt := range []struct {
		name string
		lan  string
		mtu  int // of the LAN's link
		six  bool
		want int
	}{
		{"Ethernet", "192.168.10.1/24", 1500, false, 1420},
		{"Ethernet, IPv6 outside", "fd10::1/64", 1500, false, 1420},
		{"just wide enough", "192.168.10.1/24", 1470, false, 1420},
		{"too narrow", "192.168.10.1/24", 1450, false, 1400},
		{"too narrow, IPv6 outside", "fd10::1/64", 1450, false, 1380},
		{"never below what IPv6 inside needs", "fd10::1/64", 1300, true, 1280},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lan := LAN{Link: "eth0", Address: netip.MustParsePrefix(tt.lan), MTU: tt.mtu}
			top := netcfgtest.IPv4()
			if tt.six {
				top = netcfgtest.DualStack()
			}
			top.Neighbors = []mesh.Neighbor{netcfgtest.Neighbor(2, "b")}
			top.Neighbors[0].InternalIP = lan.Address.Addr().Next()
			s := settings()
			s.LANs = []LAN{lan}
			if got := Desired(top, s).VXLAN.MTU; got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
}

// If two links have an address in the location's family, the one in the neighbor's subnet
// is used.
func TestNeighborsLink(t *testing.T) {
	s := settings()
	s.LANs = []LAN{
		{Link: "eth0", Address: netip.MustParsePrefix("10.0.0.1/24"), MTU: 1500},
		{Link: "eth1", Address: netip.MustParsePrefix("192.168.10.1/24"), MTU: 1500},
	}
	top := netcfgtest.IPv4()
	top.Neighbors = []mesh.Neighbor{netcfgtest.Neighbor(2, "b", "10.42.1.0/24")}
	if got := Desired(top, s).VXLAN.Local.String(); got != "192.168.10.1" {
		t.Errorf("outer source: got %s, want the one in the neighbor's subnet", got)
	}
	routes := Desired(netcfgtest.Plain(top), s).Routes
	if got, want := routes[1].String(), "route 10.4.0.2/32 via 192.168.10.2 dev eth1 src 10.4.0.1 mtu 1420"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	top.Neighbors[0].InternalIP = netip.MustParseAddr("172.16.0.9")
	if got := Desired(top, s).VXLAN.Local.String(); got != "10.0.0.1" {
		t.Errorf("outer source towards another subnet: got %s, want the first", got)
	}
}

// A node that uses a neighbor's MAC as its own gets no packets for that neighbor.
func TestSameMAC(t *testing.T) {
	s := lanSettings()
	top := netcfgtest.Member()
	top.Neighbors[1].ID = top.Neighbors[0].ID
	top.Neighbors[1].ID[15]++
	got := Desired(top, s)
	if len(got.Forwarding) != 1 {
		t.Errorf("got forwarding entries %v, want one", got.Forwarding)
	}
	if again := Diff(got, Desired(top, s), Options{Prune: true}); !again.Empty() {
		t.Errorf("plan after the plan: got\n%s, want none", again)
	}
}

// TestDiffVXLAN checks the plans for changes of a location.
func TestDiffVXLAN(t *testing.T) {
	for _, tt := range []struct {
		name     string
		from, to func() mesh.Topology
		edit     func(observed *State)
		want     string
	}{
		{
			name: "gateway becomes a member", from: netcfgtest.Gateway, to: netcfgtest.Member,
			want: `+ route 10.4.0.9/32 via 10.4.0.2 dev meshd0-vx onlink src 10.4.0.1
+ route 10.42.8.0/24 via 10.4.0.2 dev meshd0-vx onlink src 10.4.0.1
~ route 192.168.20.0/24 via 10.4.0.2 dev meshd0-vx onlink src 10.4.0.1 (was route 192.168.20.0/24 dev meshd0 src 10.4.0.1)
+ route fd00:4::9/128 via fd00:4::2 dev meshd0-vx onlink src fd00:4::1
- peer FAR (far)
`,
		},
		{
			name: "member becomes a gateway: routes after the peer", from: netcfgtest.Member, to: netcfgtest.Gateway,
			want: `~ sysctl net.ipv4.conf.eth0.forwarding = 1
+ peer FAR (far) endpoint 203.0.113.9:51820 allowed-ips +10.4.0.9/32, +10.42.8.0/24, +192.168.20.0/24, +fd00:4::9/128
~ route 192.168.20.0/24 dev meshd0 src 10.4.0.1 (was route 192.168.20.0/24 via 10.4.0.2 dev meshd0-vx onlink src 10.4.0.1)
- route 10.4.0.9/32 via 10.4.0.2 dev meshd0-vx onlink src 10.4.0.1
- route 10.42.8.0/24 via 10.4.0.2 dev meshd0-vx onlink src 10.4.0.1
- route fd00:4::9/128 via fd00:4::2 dev meshd0-vx onlink src fd00:4::1
`,
		},
		{
			name: "a neighbor leaves and another moves", from: netcfgtest.Member,
			to: func() mesh.Topology {
				top := netcfgtest.Member()
				top.Neighbors = top.Neighbors[1:]
				top.Neighbors[0].InternalIP = netip.MustParseAddr("192.168.10.33")
				return top
			},
			want: `+ fdb 02:03:00:00:00:00 dev meshd0-vx dst 192.168.10.33
- route 10.4.0.2/32 dev meshd0-vx src 10.4.0.1
- route 10.4.0.9/32 via 10.4.0.2 dev meshd0-vx onlink src 10.4.0.1
- route 10.42.1.0/24 via 10.4.0.2 dev meshd0-vx onlink src 10.4.0.1
- route 10.42.8.0/24 via 10.4.0.2 dev meshd0-vx onlink src 10.4.0.1
- route 192.168.20.0/24 via 10.4.0.2 dev meshd0-vx onlink src 10.4.0.1
- route fd00:4::2/128 dev meshd0-vx src fd00:4::1
- route fd00:4::9/128 via fd00:4::2 dev meshd0-vx onlink src fd00:4::1
- route fd00:42:0:1::/64 via fd00:4::2 dev meshd0-vx onlink src fd00:4::1
- neigh 10.4.0.2 lladdr 02:02:00:00:00:00 dev meshd0-vx
- neigh fd00:4::2 lladdr 02:02:00:00:00:00 dev meshd0-vx
- fdb 02:02:00:00:00:00 dev meshd0-vx dst 192.168.10.2
`,
		},
		{
			name: "learning", from: netcfgtest.Member, to: netcfgtest.Member,
			edit: func(o *State) {
				v := *o.VXLAN
				v.Learning = true
				*o = State{Device: o.Device, Addresses: o.Addresses, Backstops: o.Backstops, Firewall: o.Firewall, Sysctls: o.Sysctls, VXLAN: &v}
			},
			want: "- link meshd0-vx\n+ link meshd0-vx vxlan id 77 local 192.168.10.1 dstport 7947 nolearning address 02:01:00:00:00:00 mtu 1420 up\n" +
				"~ sysctl net.ipv4.conf.meshd0-vx.forwarding = 1\n~ sysctl net.ipv4.conf.meshd0-vx.rp_filter = 2\n~ sysctl net.ipv4.conf.meshd0-vx.send_redirects = 0\n" +
				"~ sysctl net.ipv6.conf.meshd0-vx.accept_ra = 0\n~ sysctl net.ipv6.conf.meshd0-vx.disable_ipv6 = 0\n" +
				"~ sysctl net.ipv6.conf.meshd0-vx.forwarding = 1\n" +
				entriesOnly(Diff(State{Backstops: Desired(netcfgtest.Member(), lanSettings()).Backstops}, Desired(netcfgtest.Member(), lanSettings()), Options{}).String()),
		},
		{
			name: "the last neighbor leaves", from: netcfgtest.Member, to: func() mesh.Topology { return netcfgtest.DualStack() },
			edit: func(o *State) { o.Routes = Desired(netcfgtest.DualStack(), lanSettings()).Routes },
			want: "- link meshd0-vx\n",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			observed, desired := Desired(tt.from(), lanSettings()), Desired(tt.to(), lanSettings())
			if tt.edit != nil {
				tt.edit(&observed)
			}
			plan := Diff(observed, desired, Options{Now: now, Prune: true})
			plan.Firewall = nil
			got := strings.ReplaceAll(plan.String(), netcfgtest.Key(9).PublicKey().String(), "FAR")
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("plan (-want +got):\n%s", d)
			}
		})
	}
}

// entriesOnly returns a plan with only the entries of the VXLAN device and the routes.
func entriesOnly(plan string) string {
	var b strings.Builder
	for line := range strings.Lines(plan) {
		for _, kind := range []string{"+ fdb ", "+ neigh ", "+ route "} {
			if strings.HasPrefix(line, kind) {
				b.WriteString(line)
			}
		}
	}
	return b.String()
}
