// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg/netcfgtest"
)

// now is the time of the observations in the tests.
var now = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

func TestDiff(t *testing.T) {
	base := func() State {
		return Desired(netcfgtest.IPv4(
			netcfgtest.Peer(2, "a", "10.4.0.2/32", "10.42.1.0/24"),
			netcfgtest.Peer(3, "b", "10.4.0.3/32", "10.42.2.0/24"),
		), settings())
	}
	// names replaces keys, which are hard to read, by short words.
	names := strings.NewReplacer(
		netcfgtest.Key(1).PublicKey().String(), "OWN", netcfgtest.Key(9).PublicKey().String(), "NEW",
		netcfgtest.Key(2).PublicKey().String(), "A", netcfgtest.Key(3).PublicKey().String(), "B", throwaway().String(), "T")
	peer := func(s *State, n byte) *Peer {
		for i := range s.Peers {
			if s.Peers[i].Key == netcfgtest.Key(n).PublicKey() {
				return &s.Peers[i]
			}
		}
		t.Fatalf("no peer %d", n)
		return nil
	}
	elsewhere := netip.MustParseAddrPort("198.51.100.1:4500")

	for _, tt := range []struct {
		name  string
		edit  func(observed, desired *State)
		prune string // the plan with Prune
		keep  string // the plan without Prune; "same" if it is equal
	}{
		{name: "nothing", edit: func(_, _ *State) {}, keep: "same"},
		{
			name:  "MTU and down",
			edit:  func(o, _ *State) { o.Device.MTU, o.Device.Up = 1500, false },
			prune: "~ link meshd0 mtu 1420 up\n", keep: "same",
		},
		{
			name:  "key and port",
			edit:  func(_, d *State) { d.Device.PublicKey, d.Device.ListenPort = netcfgtest.Key(9).PublicKey(), 4500 },
			prune: "~ link meshd0 listen-port 4500 public-key NEW\n", keep: "same",
		},
		{
			name: "any implementation is acceptable",
			edit: func(o, d *State) { o.Device.Implementation, d.Device.Implementation = Userspace, Auto },
			keep: "same",
		},
		{
			name: "live session keeps the kernel's endpoint",
			edit: func(o, _ *State) {
				peer(o, 2).Endpoint, peer(o, 2).LastHandshake = elsewhere, now.Add(-179*time.Second)
			},
			prune: "", keep: "same",
		},
		{
			name: "the kernel's endpoint stays after the session",
			edit: func(o, _ *State) {
				peer(o, 2).Endpoint, peer(o, 2).LastHandshake = elsewhere, now.Add(-180*time.Second)
			},
			keep: "same",
		},
		{
			name:  "a peer without endpoint gets one",
			edit:  func(o, _ *State) { peer(o, 2).Endpoint = netip.AddrPort{} },
			prune: "~ peer A (a) endpoint 203.0.113.2:51820\n", keep: "same",
		},
		{
			name: "no session and no desired endpoint",
			edit: func(o, d *State) { peer(o, 2).Endpoint, peer(d, 2).Endpoint = elsewhere, netip.AddrPort{} },
			keep: "same",
		},
		{
			name: "IPv4 endpoint in IPv6-mapped form",
			edit: func(o, _ *State) {
				peer(o, 2).Endpoint = netip.MustParseAddrPort("[::ffff:203.0.113.2]:51820")
			},
			keep: "same",
		},
		{
			name: "keepalive waits for a handshake",
			edit: func(_, d *State) { peer(d, 2).Keepalive = 25 * time.Second },
			keep: "same",
		},
		{
			name: "keepalive after a handshake, however old",
			edit: func(o, d *State) {
				peer(d, 2).Keepalive, peer(o, 2).LastHandshake = 25*time.Second, now.Add(-24*time.Hour)
			},
			prune: "~ peer A (a) keepalive 25s\n", keep: "same",
		},
		{
			name: "a guessed keepalive changes none",
			edit: func(o, d *State) {
				peer(o, 2).Keepalive, peer(d, 2).Guessed = 25*time.Second, true
			},
			keep: "same",
		},
		{
			name:  "keepalive off needs no handshake",
			edit:  func(o, _ *State) { peer(o, 2).Keepalive = 25 * time.Second },
			prune: "~ peer A (a) keepalive 0s\n", keep: "same",
		},
		{
			name: "new peer",
			edit: func(o, d *State) {
				peer(d, 2).Keepalive = 25 * time.Second
				o.Peers = without(o.Peers, *peer(o, 2))
			},
			prune: "+ peer A (a) endpoint 203.0.113.2:51820 allowed-ips +10.4.0.2/32, +10.42.1.0/24\n", keep: "same",
		},
		{
			name: "allowed IP moves between peers that stay",
			edit: func(_, d *State) {
				peer(d, 2).AllowedIPs = netcfgtest.Prefixes("10.4.0.2/32")
				peer(d, 3).AllowedIPs = netcfgtest.Prefixes("10.4.0.3/32", "10.42.1.0/24", "10.42.2.0/24")
			},
			prune: "~ peer B (b) allowed-ips +10.42.1.0/24\n", keep: "same",
		},
		{
			name: "allowed IP belongs to no peer any more",
			edit: func(_, d *State) { peer(d, 2).AllowedIPs = netcfgtest.Prefixes("10.4.0.2/32") },
			prune: "+ peer T (throwaway) allowed-ips +10.42.1.0/24\n" +
				"- peer T (throwaway)\n",
		},
		{
			name: "new key takes over before the old one is removed",
			edit: func(_, d *State) { peer(d, 2).Key = netcfgtest.Key(9).PublicKey() },
			prune: "+ peer NEW (a) endpoint 203.0.113.2:51820 allowed-ips +10.4.0.2/32, +10.42.1.0/24\n" +
				"- peer A (a)\n",
			keep: "+ peer NEW (a) endpoint 203.0.113.2:51820 allowed-ips +10.4.0.2/32, +10.42.1.0/24\n",
		},
		{
			name:  "preshared key",
			edit:  func(_, d *State) { peer(d, 2).PresharedKey = mesh.PresharedKey{7} },
			prune: "~ peer A (a) preshared-key (hidden)\n", keep: "same",
		},
		{
			name:  "throwaway peer left by a crash",
			edit:  func(o, _ *State) { o.Peers = append(o.Peers, Peer{Key: throwaway()}) },
			prune: "- peer T (throwaway)\n", keep: "same",
		},
		{
			name:  "route changed",
			edit:  func(o, _ *State) { o.Routes[1].Link, o.Routes[1].MTU = "eth0", 1300 },
			prune: "~ route 10.42.0.0/16 dev meshd0 src 10.4.0.1 (was route 10.42.0.0/16 dev eth0 src 10.4.0.1 mtu 1300)\n", keep: "same",
		},
		{
			name:  "route without link in place of ours",
			edit:  func(o, _ *State) { o.Routes[1] = Route{Destination: o.Routes[1].Destination} },
			prune: "~ route 10.42.0.0/16 dev meshd0 src 10.4.0.1 (was route 10.42.0.0/16 dev none)\n", keep: "same",
		},
		{
			name: "route elsewhere to what a wider one leads to now",
			edit: func(o, d *State) {
				o.Routes = append(o.Routes, Route{Destination: d.Covered[0].Destination, Link: "eth0"})
			},
			prune: "- route 10.4.0.2/32 dev eth0\n",
			keep:  "~ route 10.4.0.2/32 dev meshd0 src 10.4.0.1 (was route 10.4.0.2/32 dev eth0)\n",
		},
		{
			name:  "route beside a wider one that leads there too",
			edit:  func(o, d *State) { o.Routes = append(o.Routes, d.Covered...) },
			prune: "- route 10.4.0.2/32 dev meshd0 src 10.4.0.1\n- route 10.4.0.3/32 dev meshd0 src 10.4.0.1\n- route 10.42.1.0/24 dev meshd0 src 10.4.0.1\n- route 10.42.2.0/24 dev meshd0 src 10.4.0.1\n",
		},
		{
			name: "route and address no longer desired",
			edit: func(o, _ *State) {
				o.Routes = append(o.Routes, Route{Destination: netip.MustParsePrefix("10.42.9.0/24"), Link: "meshd0"})
				o.Addresses = append(o.Addresses, netip.MustParsePrefix("10.4.0.99/32"))
			},
			prune: "- route 10.42.9.0/24 dev meshd0\n- addr 10.4.0.99/32 dev meshd0\n",
		},
		{
			name:  "sysctl",
			edit:  func(o, _ *State) { o.Sysctls[len(o.Sysctls)-1].Value = "0" },
			prune: "~ sysctl net.ipv4.ip_forward = 1\n", keep: "same",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			observed, desired := base(), base()
			tt.edit(&observed, &desired)
			if tt.keep == "same" {
				tt.keep = tt.prune
			}
			for prune, want := range map[bool]string{true: tt.prune, false: tt.keep} {
				p := Diff(observed, desired, Options{Now: now, Prune: prune})
				if d := cmp.Diff(want, names.Replace(p.String())); d != "" {
					t.Errorf("plan, prune %v (-want +got):\n%s", prune, d)
				}
				if p.Empty() != (want == "") {
					t.Errorf("prune %v: Empty() = %v", prune, p.Empty())
				}
			}
		})
	}
}

// without returns the peers without one of them.
func without(peers []Peer, p Peer) []Peer {
	var out []Peer
	for _, o := range peers {
		if o.Key != p.Key {
			out = append(out, o)
		}
	}
	return out
}

// TestForgotten checks where connections are forgotten: at addresses that nobody has any more, and
// not where only the way there is another one.
func TestForgotten(t *testing.T) {
	a, b := netcfgtest.Peer(2, "a", "10.4.0.2/32", "10.42.1.0/24"), netcfgtest.Peer(3, "b", "10.4.0.3/32", "192.168.20.5/32")
	observed := Desired(netcfgtest.IPv4(a, b), settings())
	observed.Routes = append(observed.Routes, observed.Covered...)
	for _, test := range []struct {
		name string
		left []mesh.Peer
		want []netip.Prefix
	}{
		{"nobody left", []mesh.Peer{a, b}, nil},
		{"one left", []mesh.Peer{b}, netcfgtest.Prefixes("10.4.0.2/32", "10.42.1.0/24")},
		{"another has its pods", []mesh.Peer{netcfgtest.Peer(3, "b", "10.4.0.3/32", "10.42.1.0/24")}, netcfgtest.Prefixes("10.4.0.2/32", "192.168.20.5/32")},
	} {
		desired := Desired(netcfgtest.IPv4(test.left...), settings())
		if got := Diff(observed, desired, Options{Now: now, Prune: true}).Forgotten; !slices.Equal(got, test.want) {
			t.Errorf("%s: got %v, want %v", test.name, got, test.want)
		}
		if got := Diff(observed, desired, Options{Now: now}).Forgotten; got != nil {
			t.Errorf("%s, nothing may be removed: got %v, want none", test.name, got)
		}
	}
}

// TestDiffDevice checks what is planned anew when the device is created or replaced.
func TestDiffDevice(t *testing.T) {
	desired := Desired(netcfgtest.IPv4(netcfgtest.Peer(2, "a", "10.4.0.2/32")), settings())
	other := desired
	other.Device = new(*desired.Device)
	other.Device.Implementation = Userspace
	other.Routes = append([]Route{{Destination: netip.MustParsePrefix("10.42.9.0/24"), Link: "eth0"}}, desired.Routes...)

	all := Diff(State{}, desired, Options{Now: now})
	if all.Firewall == nil || len(all.Sysctls) != len(desired.Sysctls) || len(all.Routes) != len(desired.Routes) {
		t.Errorf("new device, got:\n%s", all)
	}
	again := Diff(other, desired, Options{Now: now, Prune: true})
	if !again.Device.Replace || !again.Device.Create {
		t.Errorf("other implementation: got %s", again.Device)
	}
	if len(again.Addresses) != 1 || len(again.Peers) != 1 || len(again.Routes) != len(desired.Routes) || len(again.StaleRoutes) != 1 {
		t.Errorf("other implementation, got:\n%s", again)
	}
	if got := len(again.Sysctls); got != 3 {
		t.Errorf("other implementation: got %d kernel parameters to set, want those 3 of the device", got)
	}
}

// TestDiffFirewall makes one change at a time to the observed table.
func TestDiffFirewall(t *testing.T) {
	desired := Desired(netcfgtest.IPv4(), settings())
	for name, test := range map[string]struct {
		edit     func(*Firewall)
		reserves bool // whether the ports were not reserved before
	}{
		"no table":      {func(f *Firewall) { *f = Firewall{} }, true},
		"port missing":  {func(f *Firewall) { c := f.chain(chainOwnPorts); c.Rules = c.Rules[1:] }, true},
		"port's chain":  {func(f *Firewall) { f.chain(chainOwnPortsOut).Name = "x" }, true},
		"rule missing":  {func(f *Firewall) { f.Chains[3].Rules = f.Chains[3].Rules[1:] }, false},
		"rules swapped": {func(f *Firewall) { r := f.Chains[3].Rules; r[0], r[1] = r[1], r[0] }, false},
		"foreign rule":  {func(f *Firewall) { f.Chains[0].Rules = append(f.Chains[0].Rules, Rule{}) }, false},
		"priority":      {func(f *Firewall) { f.Chains[1].Priority++ }, false},
		"hook":          {func(f *Firewall) { f.Chains[1].Hook = "output" }, false},
		"foreign chain": {func(f *Firewall) { f.Chains = append(f.Chains, Chain{Name: "x"}) }, false},
		"set missing":   {func(f *Firewall) { f.Sets = f.Sets[1:] }, false},
	} {
		t.Run(name, func(t *testing.T) {
			observed := Desired(netcfgtest.IPv4(), settings())
			test.edit(&observed.Firewall)
			got := Diff(observed, desired, Options{Now: now})
			want := Plan{Firewall: &desired.Firewall, link: "meshd0"}
			if d := cmp.Diff(want.String(), got.String()); d != "" {
				t.Errorf("plan (-want +got):\n%s", d)
			}
			if reserves := len(got.OwnPorts) > 0; reserves != test.reserves {
				t.Errorf("reserves ports: %v, want %v", reserves, test.reserves)
			}
		})
	}
	t.Run("element", func(t *testing.T) {
		observed := Desired(netcfgtest.IPv4(), settings())
		observed.Firewall.Sets[1].Elements = nil
		want := "~ " + desired.Firewall.Sets[1].String() + "\n"
		if got := Diff(observed, desired, Options{Now: now}).String(); got != want {
			t.Errorf("got:\n%swant:\n%s", got, want)
		}
	})
	observed := Desired(netcfgtest.IPv4(), settings())
	for i := range observed.Firewall.Chains {
		for j := range observed.Firewall.Chains[i].Rules {
			observed.Firewall.Chains[i].Rules[j].Text = "" // the kernel doesn't keep it
		}
	}
	if got := Diff(observed, desired, Options{Now: now, Prune: true}); !got.Empty() {
		t.Errorf("same hashes, got:\n%s", got)
	}
}

// chain returns a chain to change it.
func (f *Firewall) chain(name string) *Chain {
	return &f.Chains[slices.IndexFunc(f.Chains, func(c Chain) bool { return c.Name == name })]
}

// TestDiffRemoval plans the removal of everything.
func TestDiffRemoval(t *testing.T) {
	observed := Desired(mesh.Topology{}, settings())
	observed.Routes = []Route{{Destination: netip.MustParsePrefix("10.42.9.0/24"), Link: "eth0"}}
	want := "- route 10.42.9.0/24 dev eth0\n- link meshd0\n- nft table inet meshd\n"
	if got := Diff(observed, State{}, Options{Now: now, Prune: true}).String(); got != want {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
	if got := Diff(observed, State{}, Options{Now: now}); !got.Empty() {
		t.Errorf("without Prune, got:\n%s", got)
	}
}

// TestDiffCorrectsEndpoints: whoever finds no endpoints by probes gets the desired one as soon as
// there is no session.
func TestDiffCorrectsEndpoints(t *testing.T) {
	desired := Desired(netcfgtest.IPv4(netcfgtest.Peer(2, "a", "10.4.0.2/32")), settings())
	for age, want := range map[time.Duration]string{
		179 * time.Second: "",
		180 * time.Second: "~ peer " + netcfgtest.Key(2).PublicKey().String() + " (a) endpoint 203.0.113.2:51820\n",
	} {
		observed := Desired(netcfgtest.IPv4(netcfgtest.Peer(2, "a", "10.4.0.2/32")), settings())
		observed.Peers[0].Endpoint, observed.Peers[0].LastHandshake = netip.MustParseAddrPort("198.51.100.9:1"), now.Add(-age)
		if got := Diff(observed, desired, Options{Now: now, CorrectEndpoints: true}).String(); got != want {
			t.Errorf("%v after the handshake: got %q, want %q", age, got, want)
		}
	}
}

// TestDiffRenews removes a peer and adds it again, unless that would end a younger session. It
// keeps the endpoint.
func TestDiffRenews(t *testing.T) {
	desired := Desired(netcfgtest.IPv4(netcfgtest.Peer(2, "a", "10.4.0.2/32")), settings())
	for _, tt := range []struct {
		name      string
		handshake time.Time
		after     time.Time
		want      bool
	}{
		{"never", time.Time{}, now.Add(-HandshakeFresh), true},
		{"just now", now, now.Add(-HandshakeFresh), false},
		{"session may be live", now.Add(-179 * time.Second), now.Add(-HandshakeFresh), false},
		{"session is over", now.Add(-180 * time.Second), now.Add(-HandshakeFresh), true},
		{"asked for since", now.Add(-2 * time.Second), now.Add(-time.Second), true},
		{"asked for before", now.Add(-time.Second), now.Add(-2 * time.Second), false},
	} {
		renew := map[wgtypes.Key]time.Time{netcfgtest.Key(2).PublicKey(): tt.after}
		observed := Desired(netcfgtest.IPv4(netcfgtest.Peer(2, "a", "10.4.0.2/32")), settings())
		observed.Peers[0].LastHandshake, observed.Peers[0].Endpoint = tt.handshake, netip.MustParseAddrPort("198.51.100.9:1")
		var got []bool // for each change of a peer, whether it is a removal
		for _, c := range Diff(observed, desired, Options{Now: now, Renew: renew}).Peers {
			got = append(got, c.Remove)
			if c.Add && c.Endpoint != observed.Peers[0].Endpoint {
				t.Errorf("%s: got endpoint %v, want the old one", tt.name, c.Endpoint)
			}
		}
		var want []bool
		if tt.want {
			want = []bool{true, false}
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: removals (-want +got):\n%s", tt.name, d)
		}
	}
}
