// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

func parse(t *testing.T, text string) config.Config {
	t.Helper()
	cfg, err := config.Parse("meshd.yaml", []byte("secret-file: /etc/meshd/secret\n"+text))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

var compareNet = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmpopts.IgnoreUnexported(mesh.Record{}),
}

func TestNextRecord(t *testing.T) {
	facts := netcfg.Facts{
		Addresses:   []netip.Addr{netip.MustParseAddr("192.168.1.5")},
		Uplinks:     []netcfg.Uplink{{Link: "eth0", Source: netip.MustParsePrefix("192.168.1.5/24"), MTU: 1500}},
		InternalIPs: []netip.Prefix{netip.MustParsePrefix("192.168.1.5/24")},
		MTU:         1500,
	}
	seen := []mesh.Observation{{Addr: netip.MustParseAddr("203.0.113.5"), Open: true}}
	last := mesh.Record{Endpoints: []mesh.Endpoint{{Host: "203.0.113.9", Port: 51820, Source: mesh.EndpointObserved}}, NAT: true}
	tests := []struct {
		name   string
		config string
		view   mesh.View
		last   mesh.Record
		change func(*mesh.Record) // of what the first case wants
	}{
		{"found out", "node: {name: a}", mesh.View{Observed: seen}, mesh.Record{}, func(*mesh.Record) {}},
		{"configured", "node: {name: b, location: home, endpoint: a.example.com:443, internal-ip: 192.168.1.6/25, allowed-location-ips: [192.168.1.0/24]}\nwireguard: {listen-port: 4500, mtu: 1300}\ngossip: {bind: ':7000', advertise: 'g.example.com:7001'}", mesh.View{Observed: seen}, last, func(r *mesh.Record) {
			r.Name, r.Location, r.ListenPort, r.GossipPort, r.GossipAddr, r.MTU = "b", "home", 4500, 7000, "g.example.com:7001", 1300
			r.Endpoints = []mesh.Endpoint{{Host: "a.example.com", Port: 443, Source: mesh.EndpointConfigured}, {Host: "203.0.113.5", Port: 4500, Source: mesh.EndpointObserved}}
			r.InternalIPs = []netip.Prefix{netip.MustParsePrefix("192.168.1.6/25")}
			r.AllowedLocationIPs = []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24")}
		}},
		{"nobody sees it now", "node: {name: a}", mesh.View{}, last, func(r *mesh.Record) { r.Endpoints = last.Endpoints }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := parse(t, tt.config)
			want := mesh.Record{
				Name: "a", Settings: cfg.Cluster.Hash(), Gateway: mesh.GatewayAuto, Encrypted: true, MTU: 1420, NAT: true, ListenPort: 51820, GossipPort: 7946,
				Endpoints:   []mesh.Endpoint{{Host: "203.0.113.5", Port: 51820, Source: mesh.EndpointObserved}},
				InternalIPs: facts.InternalIPs,
			}
			tt.change(&want)
			got := nextRecord(cfg, surroundings{Facts: facts, observed: tt.view.Observed, voices: 1}, tt.last)
			if diff := cmp.Diff(want, got, compareNet); diff != "" {
				t.Errorf("record (-want +got):\n%s", diff)
			}
		})
	}
}

// A node without a default route, at its start or for a while, says what can be
// said, and goes on saying what it said.
func TestNextRecordWithoutUplink(t *testing.T) {
	cfg := parse(t, "node: {name: a}")
	if first := nextRecord(cfg, surroundings{}, mesh.Record{}); first.MTU != 1420 || len(first.InternalIPs) > 0 {
		t.Errorf("at its start: got MTU %d and internal IPs %v, want 1420 and none", first.MTU, first.InternalIPs)
	}
	last := mesh.Record{MTU: 1300, InternalIPs: []netip.Prefix{netip.MustParsePrefix("192.168.1.5/24")}}
	got := nextRecord(cfg, surroundings{}, last)
	if diff := cmp.Diff(last, mesh.Record{MTU: got.MTU, InternalIPs: got.InternalIPs}, compareNet); diff != "" {
		t.Errorf("later (-want +got):\n%s", diff)
	}
	for config, want := range map[string][]netip.Prefix{
		"node: {name: a, location: home}":           nil, // what it had is of another network
		"node: {name: a, internal-ip: 10.1.2.3/24}": {netip.MustParsePrefix("10.1.2.3/24")},
	} {
		if got := nextRecord(parse(t, config), surroundings{}, last).InternalIPs; !slices.Equal(got, want) {
			t.Errorf("%s: got internal IPs %v, want %v", config, got, want)
		}
	}
}

// A node that is revoked says nothing of itself, and needs a device all the same.
func TestDeviceWithoutRecord(t *testing.T) {
	d, _ := neighborhood()
	d.cfg, d.own = parse(t, ""), mesh.Record{}
	if got := d.settings(turn{facts: netcfg.Facts{MTU: 1500}}).MTU; got != 1420 {
		t.Errorf("got MTU %d, want 1420", got)
	}
}

func TestKeepalive(t *testing.T) {
	tests := []struct {
		name, config string
		nat          bool
		want         time.Duration
	}{
		{"not behind NAT", "", false, 0},
		{"behind NAT", "", true, natKeepalive},
		{"switched off", "node: {keepalive: 0s}", true, 0},
		{"configured", "node: {keepalive: 10s}", false, 10 * time.Second},
	}
	for _, tt := range tests {
		if got := keepalive(parse(t, tt.config), mesh.Record{NAT: tt.nat}); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestStaticSlot(t *testing.T) {
	if got := staticSlot(parse(t, "node: {pod-cidr: [10.42.7.0/24]}")); got != 7 {
		t.Errorf("got slot %d, want 7", got)
	}
	if got := staticSlot(parse(t, "")); got != mesh.None {
		t.Errorf("got slot %d, want none", got)
	}
}

// What others said of our address before it changed counts no more, and right after
// a start one word does not change what the last record says.
func TestHostileOldObservations(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	one, two := []netip.Addr{netip.MustParseAddr("192.168.1.5")}, []netip.Addr{netip.MustParseAddr("192.168.2.5")}
	said := []mesh.Observation{{By: mesh.ID{1}, At: start.Add(time.Second)}, {By: mesh.ID{2}, At: start.Add(3 * time.Second)}}
	var m moves
	if m.look(one, start) || m.look(one, start.Add(time.Second)) || len(m.since(said)) != 2 {
		t.Error("the same address counts as a change")
	}
	if !m.look(two, start.Add(2*time.Second)) {
		t.Error("another address is no change")
	}
	if got := m.since(said); len(got) != 1 || got[0].By != (mesh.ID{2}) {
		t.Errorf("observations since then: got %v, want the last one", got)
	}

	d := &daemon{cfg: parse(t, "node: {name: a}"), started: start}
	facts := netcfg.Facts{Addresses: one, InternalIPs: []netip.Prefix{netip.MustParsePrefix("192.168.1.5/24")}}
	d.own = mesh.Record{InternalIPs: facts.InternalIPs, MTU: 1420, Endpoints: []mesh.Endpoint{{Host: "192.168.1.5", Port: 51820, Source: mesh.EndpointObserved}}}
	lie := mesh.View{Observed: []mesh.Observation{{By: mesh.ID{6}, Addr: netip.MustParseAddr("203.0.113.66"), From: netip.MustParseAddr("198.51.100.6"), At: start, Open: true}}}
	got := nextRecord(d.cfg, d.lookAround(facts, lie, start.Add(time.Second)), d.own)
	if got.NAT || !slices.Equal(got.Endpoints, d.own.Endpoints) {
		t.Errorf("after one lie: NAT %v, endpoints %v; want %v", got.NAT, got.Endpoints, d.own.Endpoints)
	}
	// Against another's word it does not count later either.
	truth := mesh.Observation{By: mesh.ID{7}, Addr: one[0], From: netip.MustParseAddr("198.51.100.7"), At: start}
	lie.Observed = append(lie.Observed, truth)
	if got = nextRecord(d.cfg, d.lookAround(facts, lie, start.Add(time.Hour)), d.own); got.NAT || !slices.Equal(got.Endpoints, d.own.Endpoints) {
		t.Errorf("with a liar and an honest node: NAT %v, endpoints %v; want %v", got.NAT, got.Endpoints, d.own.Endpoints)
	}
}
