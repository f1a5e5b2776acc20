// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

func TestNextSequence(t *testing.T) {
	now := time.UnixMilli(5_000)
	tests := []struct {
		name       string
		own, shown uint64
		now        time.Time
		want       uint64
	}{
		{"first", 0, 0, now, 1},
		{"next", 7, 7, now, 8},
		{"restart before the others say so", 7, 0, now, 8},
		{"somebody knows of more", 7, 9, now, 5_000},
		{"and is ahead of the clock", 7, 9_000, now, 9_001},
		{"a clock before its time", 7, 9, time.UnixMilli(-1), 10},
	}
	for _, tt := range tests {
		if got := NextSequence(tt.own, tt.shown, tt.now); got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, got, tt.want)
		}
	}
}

// config is that of a file that names the node, and nothing else.
func config() Config {
	return Config{
		Name: "a", Slot: mesh.None, Gateway: mesh.GatewayAuto, Encrypted: true, ListenPort: 51820, GossipPort: 7946,
		Cluster: mesh.Cluster{
			Name: "default", Mode: mesh.ModeFull,
			Overlay: []netip.Prefix{netip.MustParsePrefix("10.4.0.0/16")}, Pods: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}, PodPrefix: []int{24},
		},
	}
}

var compareNet = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmpopts.IgnoreUnexported(mesh.Record{}),
}

func TestNextRecord(t *testing.T) {
	facts := netcfg.Facts{
		Addresses: []netip.Addr{netip.MustParseAddr("192.168.1.5")},
		Uplinks:   []netcfg.Uplink{{Link: "eth0", Source: netip.MustParsePrefix("192.168.1.5/24"), MTU: 1500}},
		Private:   []netcfg.PrivateAddress{{Link: "eth0", Address: netip.MustParsePrefix("192.168.1.5/24"), Default: true}},
		MTU:       1500,
	}
	seen := []netip.AddrPort{netip.MustParseAddrPort("203.0.113.5:51820")}
	last := mesh.Record{Endpoints: []mesh.Endpoint{{Host: "203.0.113.9", Port: 51820, Source: mesh.EndpointObserved}}, NAT: true}
	configured := config()
	configured.Name, configured.Location, configured.ListenPort, configured.GossipPort, configured.GossipAddr, configured.MTU = "b", "home", 4500, 7000, "g.example.com:7001", 1300
	configured.StreamPort, configured.Etcd = 443, mesh.EtcdWAN
	configured.Endpoint = mesh.Endpoint{Host: "a.example.com", Port: 443, Source: mesh.EndpointConfigured}
	configured.InternalIP = netip.MustParsePrefix("192.168.1.6/25")
	configured.AllowedLocationIPs = []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24")}
	tests := []struct {
		name   string
		config Config
		seen   []netip.AddrPort
		last   mesh.Record
		change func(*mesh.Record) // of what the first case wants
	}{
		{"found out", config(), seen, mesh.Record{}, func(*mesh.Record) {}},
		{"configured", configured, seen, last, func(r *mesh.Record) {
			r.Name, r.Location, r.ListenPort, r.GossipPort, r.GossipAddr, r.MTU = "b", "home", 4500, 7000, "g.example.com:7001", 1300
			r.StreamPort, r.Etcd = 443, mesh.EtcdWAN
			r.Endpoints = []mesh.Endpoint{{Host: "a.example.com", Port: 443, Source: mesh.EndpointConfigured}}
			r.InternalIPs = []netip.Prefix{netip.MustParsePrefix("192.168.1.6/25")}
			r.AllowedLocationIPs = []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24")}
		}},
		{"nobody sees it now", config(), nil, last, func(r *mesh.Record) { r.Endpoints = last.Endpoints }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := mesh.Record{
				Name: "a", Settings: tt.config.Cluster.Hash(), Gateway: mesh.GatewayAuto, Encrypted: true, MTU: 1420, NAT: true, ListenPort: 51820, GossipPort: 7946,
				Endpoints:   []mesh.Endpoint{{Host: "203.0.113.5", Port: 51820, Source: mesh.EndpointObserved}},
				InternalIPs: []netip.Prefix{netip.MustParsePrefix("192.168.1.5/24")},
			}
			tt.change(&want)
			got := nextRecord(tt.config, surroundings{facts, facts.Addresses, tt.config.InternalIPs(facts, nil), tt.seen, nil}, tt.last)
			if diff := cmp.Diff(want, got, compareNet); diff != "" {
				t.Errorf("record (-want +got):\n%s", diff)
			}
		})
	}
}

// A record says in which families its node offers the internet: those with a default route.
func TestExitFamilies(t *testing.T) {
	exit := config()
	exit.Exit = true
	v4 := netcfg.Uplink{Source: netip.MustParsePrefix("192.168.1.5/24")}
	v6 := netcfg.Uplink{Source: netip.MustParsePrefix("2001:db8::5/64")}
	both := mesh.ExitFamilies{IPv4: true, IPv6: true}
	for _, tt := range []struct {
		config  Config
		uplinks []netcfg.Uplink
		want    mesh.ExitFamilies
	}{
		{config(), []netcfg.Uplink{v4, v6}, mesh.ExitFamilies{}},
		{config(), nil, mesh.ExitFamilies{}},
		{exit, []netcfg.Uplink{v4, v6}, both},
		{exit, []netcfg.Uplink{v4}, mesh.ExitFamilies{IPv4: true}},
		{exit, []netcfg.Uplink{v6}, mesh.ExitFamilies{IPv6: true}},
		{exit, nil, both}, // as before
	} {
		got := nextRecord(tt.config, surroundings{facts: netcfg.Facts{Uplinks: tt.uplinks}}, mesh.Record{Exit: both}).Exit
		if got != tt.want {
			t.Errorf("exit %v with %v: got %+v, want %+v", tt.config.Exit, tt.uplinks, got, tt.want)
		}
	}
}

// A node without a default route, at its start or for a while, says what can be
// said, and goes on saying what it said.
func TestNextRecordWithoutUplink(t *testing.T) {
	if first := nextRecord(config(), surroundings{}, mesh.Record{}); first.MTU != 1420 || len(first.InternalIPs) > 0 {
		t.Errorf("at its start: got MTU %d and internal IPs %v, want 1420 and none", first.MTU, first.InternalIPs)
	}
	last := mesh.Record{MTU: 1300, InternalIPs: []netip.Prefix{netip.MustParsePrefix("192.168.1.5/24")}}
	got := nextRecord(config(), surroundings{}, last)
	if diff := cmp.Diff(last, mesh.Record{MTU: got.MTU, InternalIPs: got.InternalIPs}, compareNet); diff != "" {
		t.Errorf("later (-want +got):\n%s", diff)
	}
	elsewhere, configured := config(), config()
	elsewhere.Location = "home" // what it had is of another network
	configured.InternalIP = netip.MustParsePrefix("10.1.2.3/24")
	for _, tt := range []struct {
		config Config
		want   []netip.Prefix
	}{{elsewhere, nil}, {configured, []netip.Prefix{configured.InternalIP}}} {
		if got := nextRecord(tt.config, surroundings{internalIPs: tt.config.InternalIPs(netcfg.Facts{}, nil)}, last).InternalIPs; !slices.Equal(got, tt.want) {
			t.Errorf("%+v: got internal IPs %v, want %v", tt.config, got, tt.want)
		}
	}
}

func TestKeepalive(t *testing.T) {
	configured := 10 * time.Second
	own, mapped := netip.MustParseAddrPort("203.0.113.1:51820"), netip.MustParseAddrPort("203.0.113.9:51820")
	peer := mesh.ID{5}
	tests := []struct {
		name      string
		keepalive *time.Duration
		nat       bool
		seen      []netip.AddrPort
		want      netcfg.Keepalive
	}{
		{"nothing is known", nil, false, nil, netcfg.Keepalive{Guessed: true}},
		{"behind NAT, as other peers say", nil, true, nil, netcfg.Keepalive{Interval: natKeepalive, Guessed: true}},
		{"behind NAT, but not towards this peer", nil, true, []netip.AddrPort{own}, netcfg.Keepalive{}},
		{"behind NAT towards this peer alone", nil, false, []netip.AddrPort{mapped}, netcfg.Keepalive{Interval: natKeepalive}},
		{"switched off", new(time.Duration), true, []netip.AddrPort{mapped}, netcfg.Keepalive{}},
		{"configured", &configured, false, nil, netcfg.Keepalive{Interval: 10 * time.Second}},
	}
	for _, tt := range tests {
		m := Memory{Own: mesh.Record{NAT: tt.nat}}
		in := Input{
			Config: Config{Keepalive: tt.keepalive}, Facts: netcfg.Facts{Addresses: []netip.Addr{own.Addr()}},
			Paths: Paths{Seen: map[mesh.ID][]netip.AddrPort{peer: tt.seen}},
		}
		if got := m.keepalives(in, []mesh.Peer{{ID: peer}})[peer]; got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

// TestInternalIPStays checks that an internal IP stays while the host has it, whatever the
// default route does, also after a restart; and that an address which is merely the first to
// be up after the start does not.
func TestInternalIPStays(t *testing.T) {
	card := func(link, address string, leadsOut bool) netcfg.PrivateAddress {
		return netcfg.PrivateAddress{Link: link, Address: netip.MustParsePrefix(address), Default: leadsOut}
	}
	start := time.Unix(1_800_000_000, 0)
	lan, storage := card("eth0", "192.168.1.5/24", true), card("eth1", "10.0.0.5/16", false)
	quietLAN, newDefault := card("eth0", "192.168.1.5/24", false), card("eth1", "10.0.0.5/16", true)
	ula := card("eth0", "fd00::5/64", false)
	type look struct {
		after time.Duration // since the start
		cards []netcfg.PrivateAddress
		want  string
	}
	tests := []struct {
		name   string
		before string // the restart
		looks  []look
	}{
		{"the default route moves", "", []look{
			{0, []netcfg.PrivateAddress{lan, storage}, "192.168.1.5/24"},
			{time.Second, []netcfg.PrivateAddress{newDefault, quietLAN}, "192.168.1.5/24"},
			{time.Hour, []netcfg.PrivateAddress{storage, quietLAN}, "192.168.1.5/24"},
		}},
		{"the address goes, and returns", "", []look{
			{time.Hour, []netcfg.PrivateAddress{lan, storage}, "192.168.1.5/24"},
			{2 * time.Hour, []netcfg.PrivateAddress{storage}, "10.0.0.5/16"},
			{3 * time.Hour, []netcfg.PrivateAddress{lan, storage}, "10.0.0.5/16"},
		}},
		{"DHCP is slower than another card", "", []look{
			{0, []netcfg.PrivateAddress{storage}, "10.0.0.5/16"},
			{10 * time.Second, []netcfg.PrivateAddress{lan, storage}, "192.168.1.5/24"},
			{time.Hour, []netcfg.PrivateAddress{storage, quietLAN}, "192.168.1.5/24"},
		}},
		{"DHCP is slower after a restart", "192.168.1.5/24", []look{
			{0, []netcfg.PrivateAddress{storage}, "10.0.0.5/16"},
			{10 * time.Second, []netcfg.PrivateAddress{storage, quietLAN}, "192.168.1.5/24"},
		}},
		{"a restart after the default route has moved", "192.168.1.5/24", []look{
			{0, []netcfg.PrivateAddress{newDefault, quietLAN}, "192.168.1.5/24"},
		}},
		{"no default route at all", "", []look{
			{0, []netcfg.PrivateAddress{storage, quietLAN}, "10.0.0.5/16"},
			{time.Hour, []netcfg.PrivateAddress{storage, quietLAN}, "10.0.0.5/16"},
			{2 * time.Hour, []netcfg.PrivateAddress{lan, storage}, "10.0.0.5/16"},
		}},
		{"two families", "", []look{
			{0, []netcfg.PrivateAddress{lan, ula}, "192.168.1.5/24 fd00::5/64"},
			{time.Hour, []netcfg.PrivateAddress{ula}, "fd00::5/64"},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var m Memory
			if tt.before != "" {
				m.internalIPs = []netip.Prefix{netip.MustParsePrefix(tt.before)}
			}
			for _, l := range tt.looks {
				var got []string
				for _, ip := range m.chooseInternalIPs(Input{Now: start.Add(l.after), Started: start, Config: config(), Facts: netcfg.Facts{Private: l.cards}}) {
					got = append(got, ip.String())
				}
				if got := strings.Join(got, " "); got != l.want {
					t.Errorf("after %v: got %q, want %q", l.after, got, l.want)
				}
			}
		})
	}
}

// TestHostileWithheld checks that a node which announces other networks all the time does not
// have others change their records as often.
func TestHostileWithheld(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	var m Memory
	m.Own.Identity = []byte("own")
	facts := netcfg.Facts{Nearby: mesh.Nearby{Attached: []mesh.AttachedNetwork{{Prefix: netip.MustParsePrefix("10.0.0.0/16"), Link: "eth1"}}}}
	changes := 0
	for i := range 600 {
		restless := mesh.Record{Identity: []byte("another"), Claim: mesh.Claim{Slot: mesh.None}, InternalIPs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i / 250), byte(1 + i%250)}), 24)}}
		got, _ := m.withheld(Input{Now: now.Add(time.Duration(i) * time.Second), Facts: facts, View: mesh.View{Records: []mesh.Record{restless}}})
		if !slices.Equal(got, m.Own.Withheld) {
			changes++
		}
		m.Own.Withheld = got
	}
	if want := withheldBurst + 9; changes != want {
		t.Errorf("in ten minutes: %d changes, want %d: some at once, then one a minute", changes, want)
	}
}
