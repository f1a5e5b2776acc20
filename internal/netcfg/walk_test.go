// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"pgregory.net/rapid"

	"github.com/meshd/meshd/internal/netcfg/netcfgtest"
)

// kernel is a simulated host. It applies plans as the real one does. It fails the test if
// the real one would refuse a step, or if a plan breaks one of its guarantees.
type kernel struct {
	t *rapid.T
	State
	watch     func()         // runs after each change of a peer or a route
	backstops []netip.Prefix // that must exist before an address is added
}

func (k *kernel) apply(p Plan) {
	if p.Firewall != nil {
		k.Firewall = *p.Firewall
	}
	k.Backstops = normalize(slices.Concat(k.Backstops, p.Backstops))
	if p.Device != nil {
		k.applyDevice(*p.Device)
	}
	if p.VXLAN != nil {
		k.applyVXLAN(*p.VXLAN)
	}
	for _, s := range p.Sysctls {
		if strings.Contains(s.Key, ".meshd0.") && k.Device == nil || strings.Contains(s.Key, ".meshd0-vx.") && k.VXLAN == nil {
			k.t.Fatalf("%s: no such device", s)
		}
		k.Sysctls = slices.DeleteFunc(slices.Clone(k.Sysctls), func(o Sysctl) bool { return o.Key == s.Key })
		k.Sysctls = append(k.Sysctls, s)
		slices.SortFunc(k.Sysctls, func(a, b Sysctl) int { return strings.Compare(a.Key, b.Key) })
	}
	for _, a := range p.Addresses {
		if k.Device == nil || slices.Contains(k.Addresses, a) {
			k.t.Fatalf("add address %s to %v with %v", a, k.Device, k.Addresses)
		}
		if missed := missing(k.Backstops, k.backstops); len(missed) > 0 {
			k.t.Fatalf("add address %s without the backstops %v", a, missed)
		}
		k.Addresses = append(slices.Clone(k.Addresses), a)
		slices.SortFunc(k.Addresses, netip.Prefix.Compare)
	}
	k.addEntries(p)
	for _, r := range p.Routes {
		k.replaceRoute(r)
	}
	k.configure(p.Peers)
	for _, r := range p.MovedRoutes {
		k.replaceRoute(r)
	}
	for _, r := range p.StaleRoutes {
		// Like the real kernel, it compares only destination, link and next hop.
		i := slices.IndexFunc(k.Routes, func(o Route) bool {
			return o.Destination == r.Destination && (r.Link == "" || o.Link == r.Link) && (!r.Via.IsValid() || o.Via == r.Via)
		})
		if i >= 0 {
			k.Routes = slices.Delete(slices.Clone(k.Routes), i, i+1)
			k.watch()
		}
	}
	k.deleteEntries(p)
	for _, a := range p.StaleAddresses {
		if slices.ContainsFunc(k.Routes, func(r Route) bool { return r.Source == a.Addr() }) {
			k.t.Fatalf("the kernel drops the routes with source %s", a)
		}
		k.Addresses = slices.DeleteFunc(slices.Clone(k.Addresses), func(o netip.Prefix) bool { return o == a })
	}
	if p.StaleDevice != "" {
		k.deleteDevice()
	}
	k.Backstops = missing(p.StaleBackstops, k.Backstops)
	if p.StaleFirewall {
		k.Firewall = Firewall{}
	}
}

func (k *kernel) applyDevice(c DeviceChange) {
	if c.Replace {
		k.deleteDevice()
	}
	if c.Create {
		if k.Device != nil {
			k.t.Fatalf("create %s: it exists", c.Device.Name)
		}
		k.Device = &Device{Name: c.Device.Name, Implementation: c.Device.Implementation}
		if c.Device.Implementation == Auto {
			k.Device.Implementation = Kernel
		}
	}
	d := *k.Device
	if c.SetKey {
		d.PublicKey = c.Device.privateKey.PublicKey()
	}
	if c.SetPort {
		d.ListenPort = c.Device.ListenPort
	}
	if c.SetMTU {
		d.MTU = c.Device.MTU
	}
	if c.SetUp {
		d.Up = c.Device.Up
	}
	k.Device = &d
}

// deleteDevice deletes the device with everything on it.
func (k *kernel) deleteDevice() {
	rest := State{Firewall: k.Firewall, Backstops: k.Backstops, VXLAN: k.VXLAN, Forwarding: k.Forwarding, Neighbors: k.Neighbors}
	for _, r := range k.Routes {
		if r.Link != "meshd0" && !slices.Contains(k.Addresses, netip.PrefixFrom(r.Source, r.Source.BitLen())) {
			rest.Routes = append(rest.Routes, r)
		}
	}
	for _, s := range k.Sysctls {
		if !strings.Contains(s.Key, ".meshd0.") {
			rest.Sysctls = append(rest.Sysctls, s)
		}
	}
	k.State = rest
}

func (k *kernel) replaceRoute(c RouteChange) {
	if r := c.Route; k.Device == nil || r.Link == "meshd0-vx" && k.VXLAN == nil {
		k.t.Fatalf("%s: no such device", c)
	}
	k.checkNextHop(c.Route)
	if !slices.ContainsFunc(k.Addresses, func(p netip.Prefix) bool { return p.Addr() == c.Route.Source }) {
		k.t.Fatalf("%s: the source is no address of ours", c)
	}
	i := slices.IndexFunc(k.Routes, func(o Route) bool { return o.Destination == c.Route.Destination })
	if (i >= 0) != (c.Old != nil) {
		k.t.Fatalf("%s: with routes %v", c, k.Routes)
	}
	k.Routes = slices.Clone(k.Routes)
	if i >= 0 {
		k.Routes[i] = c.Route
	} else {
		k.Routes = append(k.Routes, c.Route)
	}
	slices.SortFunc(k.Routes, Route.Compare)
	k.watch()
}

// configure does what wg_set_device does, one peer after the other.
func (k *kernel) configure(changes []PeerChange) {
	for _, pc := range changes {
		i := slices.IndexFunc(k.Peers, func(p Peer) bool { return p.Key == pc.Key })
		if pc.Remove {
			if i < 0 {
				k.t.Fatalf("remove peer %s: there is none", pc.Key)
			}
			k.Peers = slices.Delete(slices.Clone(k.Peers), i, i+1)
			k.watch()
			continue
		}
		if (i < 0) != pc.Add && pc.Key != throwaway() {
			k.t.Fatalf("peer %s: add %v, but %d is its place", pc.Key, pc.Add, i)
		}
		peers := slices.Clone(k.Peers)
		if i < 0 {
			i, peers = len(peers), append(peers, Peer{Key: pc.Key})
		}
		if pc.Endpoint.IsValid() {
			peers[i].Endpoint = pc.Endpoint
		}
		if pc.Keepalive != nil {
			peers[i].Keepalive = *pc.Keepalive
		}
		for _, ip := range pc.AllowedIPs {
			for j := range peers {
				peers[j].AllowedIPs = slices.DeleteFunc(slices.Clone(peers[j].AllowedIPs), func(o netip.Prefix) bool { return o == ip })
			}
			peers[i].AllowedIPs = append(peers[i].AllowedIPs, ip)
			slices.SortFunc(peers[i].AllowedIPs, netip.Prefix.Compare)
		}
		slices.SortFunc(peers, func(a, b Peer) int { return compareKeys(a.Key, b.Key) })
		k.Peers = peers
		k.watch()
	}
}

// owners returns which peer has each allowed IP. It fails if two peers have the same.
func owners(t *rapid.T, peers []Peer) map[netip.Prefix]wgtypes.Key {
	m := make(map[netip.Prefix]wgtypes.Key)
	for _, p := range peers {
		for _, ip := range p.AllowedIPs {
			if _, ok := m[ip]; ok {
				t.Fatalf("two peers have %s", ip)
			}
			m[ip] = p.Key
		}
	}
	return m
}

// The values that random states are drawn from. They are few, so that they often collide.
var (
	walkKeys     = []wgtypes.Key{netcfgtest.Key(2).PublicKey(), netcfgtest.Key(3).PublicKey(), netcfgtest.Key(4).PublicKey(), netcfgtest.Key(5).PublicKey()}
	walkPrefixes = netcfgtest.Prefixes("10.4.0.2/32", "10.4.0.3/32", "10.42.1.0/24", "10.42.2.0/24", "10.42.0.0/16",
		"fd00::2/128", "fd00:4::2/128", "fd00:4::3/128", "fd00:42:0:1::/64", "0.0.0.0/0")
	walkOwn  = netcfgtest.Prefixes("10.4.0.1/32", "10.4.0.9/32", "fd00:4::1/128")
	walkAges = []time.Duration{0, time.Second, 179 * time.Second, 180 * time.Second, 24 * time.Hour, -time.Hour}
)

// drawState draws a state. An observed state may also contain what a desired one never
// has: leftovers, routes to other links, handshakes.
func drawState(t *rapid.T, observed bool) State {
	var s State
	draw := func(name string, n int) int { return rapid.IntRange(0, n-1).Draw(t, name) }
	s.Firewall = []Firewall{
		{},
		Desired(netcfgtest.IPv4(), settings()).Firewall,
		Desired(netcfgtest.IPv4(netcfgtest.Peer(2, "a")), Settings{Interface: "meshd0"}).Firewall,
	}[draw("firewall", 3)]
	for _, k := range []string{"net.ipv4.conf.meshd0.rp_filter", "net.ipv4.ip_forward"} {
		if v := draw(k, 3); v > 0 {
			s.Sysctls = append(s.Sysctls, Sysctl{k, fmt.Sprint(v)})
		}
	}
	for _, dst := range netcfgtest.Prefixes("10.4.0.0/16", "10.42.0.0/16", "fd00:42::/48") {
		if draw("backstop", 2) == 0 {
			s.Backstops = append(s.Backstops, dst)
		}
	}
	if draw("device", 5) == 0 {
		s.Sysctls = slices.DeleteFunc(s.Sysctls, func(c Sysctl) bool { return strings.Contains(c.Key, "meshd0") })
		return s
	}
	private := netcfgtest.Key(byte(8 + 8*draw("key", 2)))
	s.Device = &Device{
		Name: "meshd0", ListenPort: 51820 + draw("port", 2), MTU: 1400 + draw("MTU", 2),
		Up:             !observed || draw("up", 2) == 0,
		Implementation: []Implementation{Kernel, Userspace, Auto}[draw("implementation", 3)],
		PublicKey:      private.PublicKey(), privateKey: private,
	}
	if observed && s.Device.Implementation == Auto {
		s.Device.Implementation = Kernel
	}
	keys := slices.Clone(walkKeys)
	if observed {
		keys = append(keys, throwaway())
	}
	slices.SortFunc(keys, compareKeys)
	for _, k := range keys {
		if draw("peer", 3) == 0 {
			continue
		}
		p := Peer{Key: k, Keepalive: time.Duration(draw("keepalive", 3)) * time.Second}
		if n := draw("endpoint", 3); n > 0 {
			p.Endpoint = netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(n))
		}
		if age := walkAges[draw("age", len(walkAges))]; observed && age != 0 {
			p.LastHandshake = now.Add(-age)
		}
		s.Peers = append(s.Peers, p)
	}
	for _, ip := range normalize(walkPrefixes) {
		if i := draw("owner", len(keys)+1); i < len(s.Peers) {
			s.Peers[i].AllowedIPs = append(s.Peers[i].AllowedIPs, ip)
		}
	}
	for _, a := range walkOwn {
		if draw("address", 2) == 0 {
			s.Addresses = append(s.Addresses, a)
		}
	}
	drawVXLAN(t, &s, observed)
	drawRoutes(t, &s, observed)
	return s
}

// drawRoutes adds routes by the device or to a neighbor. A desired state has one with a
// source for each destination.
func drawRoutes(t *rapid.T, s *State, observed bool) {
	var own []netip.Addr
	for _, a := range s.Addresses {
		own = append(own, a.Addr())
	}
	for _, dst := range normalize(walkPrefixes) {
		r := Route{Destination: dst, Link: "meshd0", Source: sourceFor(dst.Addr(), own)}
		r.MTU = rapid.SampledFrom([]int{0, 1300}).Draw(t, "route MTU")
		if observed {
			r.Link = rapid.SampledFrom([]string{"meshd0", "eth0", ""}).Draw(t, "link")
		} else if !r.Source.IsValid() {
			continue
		}
		wanted := rapid.Bool().Draw(t, "route")
		if s.VXLAN != nil {
			wanted = drawVia(t, s, &r) || wanted
		}
		if wanted {
			s.Routes = append(s.Routes, r)
		}
	}
}

// TestWalk takes a host from a random state through several desired ones.
func TestWalk(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := &kernel{t: t, State: drawState(t, true)}
		for range rapid.IntRange(1, 4).Draw(t, "steps") {
			desired := drawState(t, false)
			o := Options{Now: now, Prune: rapid.Bool().Draw(t, "prune")}
			before := k.State
			k.backstops = desired.Backstops
			plan := Diff(before, desired, o)
			peers, routes := guarantees(t, k, before, desired, plan), routesStay(t, k, before, desired, plan)
			k.watch = func() { peers(); routes() }
			k.apply(plan)
			if again := Diff(k.State, desired, o); !again.Empty() {
				t.Fatalf("from\n%sto\n%swith\n%sthe next plan is\n%s", before, desired, plan, again)
			}
			if plan.Device != nil && plan.Device.Create {
				before.Peers = nil
			}
			checkReached(t, before, k.State, desired, o)
		}
	})
}

// guarantees returns a check of what must hold after every single change.
func guarantees(t *rapid.T, k *kernel, before, desired State, plan Plan) func() {
	if plan.Device != nil && plan.Device.Create {
		before = State{}
	}
	had, want := owners(t, before.Peers), owners(t, desired.Peers)
	old, stay := byKey(before.Peers), byKey(desired.Peers)
	return func() {
		has, there := owners(t, k.Peers), byKey(k.Peers)
		for ip, owner := range want {
			if first, ok := had[ip]; ok {
				if _, ok := has[ip]; !ok {
					t.Fatalf("%s, which moves from %s to %s, is absent", ip, first, owner)
				}
				if first == owner && has[ip] != owner {
					t.Fatalf("%s, which stays, has left its peer", ip)
				}
			}
		}
		for key := range old {
			_, ok := there[key]
			if _, stays := stay[key]; stays && !ok {
				t.Fatalf("peer %s, which stays, is removed", key)
			}
		}
	}
}

// checkReached compares a host with its desired state.
func checkReached(t *rapid.T, before, got, desired State, o Options) {
	checkVXLAN(t, got, desired, o)
	if o.Prune {
		checkSame(t, "device is there", got.Device != nil, desired.Device != nil)
		checkSame(t, "number of routes", len(got.Routes), len(desired.Routes))
		checkSame(t, "firewall", got.Firewall.String(), desired.Firewall.String())
		checkSame(t, "backstops", joinPrefixes(got.Backstops), joinPrefixes(desired.Backstops))
		if desired.Device != nil {
			checkSame(t, "addresses", fmt.Sprint(got.Addresses), fmt.Sprint(desired.Addresses))
			checkSame(t, "keys", fmt.Sprint(sortedKeys(got.Peers)), fmt.Sprint(sortedKeys(desired.Peers)))
		}
	}
	if missed := missing(got.Backstops, desired.Backstops); len(missed) > 0 {
		t.Fatalf("backstops %v are missing", missed)
	}
	if missed := missing(got.Routes, desired.Routes); len(missed) > 0 {
		t.Fatalf("routes %v are missing", missed)
	}
	if missed := missing(got.Sysctls, desired.Sysctls); len(missed) > 0 {
		t.Fatalf("%v are missing", missed)
	}
	if desired.Device == nil {
		return
	}
	if missed := missing(got.Addresses, desired.Addresses); len(missed) > 0 {
		t.Fatalf("addresses %v are missing", missed)
	}
	d := *desired.Device
	if d.Implementation == Auto {
		d.Implementation = got.Device.Implementation
	}
	checkSame(t, "device", got.Device.String(), d.String())
	have, was := byKey(got.Peers), byKey(before.Peers)
	if _, ok := have[throwaway()]; ok {
		t.Fatal("the throwaway peer is left")
	}
	for _, p := range desired.Peers {
		h, _ := have.get(p.Key)
		if o.Prune {
			checkSame(t, "allowed IPs", joinPrefixes(h.AllowedIPs), joinPrefixes(p.AllowedIPs))
		}
		if missed := missing(h.AllowedIPs, p.AllowedIPs); len(missed) > 0 {
			t.Fatalf("peer %s lacks %v", p, missed)
		}
		if kept, _ := was.get(p.Key); kept.Endpoint.IsValid() {
			checkSame(t, "endpoint of a peer that had one", h.Endpoint, kept.Endpoint)
		} else {
			checkSame(t, "endpoint", h.Endpoint, p.Endpoint)
		}
		if !h.LastHandshake.IsZero() || p.Keepalive == 0 {
			checkSame(t, "keepalive", h.Keepalive, p.Keepalive)
		} else if _, ok := was[p.Key]; !ok {
			checkSame(t, "keepalive of a new peer", h.Keepalive, 0)
		}
	}
}

func checkSame[T comparable](t *rapid.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Fatalf("%s: got %v, want %v", what, got, want)
	}
}

func sortedKeys(peers []Peer) []wgtypes.Key {
	return slices.SortedFunc(maps.Keys(byKey(peers)), compareKeys)
}

// TestPrivateKeyIsNeverPrinted tries all verbs and types.
func TestPrivateKeyIsNeverPrinted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		private := wgtypes.Key(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "private key"))
		if private == (wgtypes.Key{}) {
			t.Skip("zeros are everywhere")
		}
		s := settings()
		s.PrivateKey = private
		want := Desired(netcfgtest.IPv4(), s)
		plan := Diff(State{}, want, Options{})
		var out []string
		for _, v := range []any{s, &s, want, &want, want.Device, *want.Device, plan, &plan, plan.Device, *plan.Device} {
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x", "%X"} {
				out = append(out, fmt.Sprintf(verb, v))
			}
			b, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, string(b))
		}
		text := strings.Join(out, "\n")
		half := private[:16]
		for _, secret := range []string{
			base64.StdEncoding.EncodeToString(private[:15]), hex.EncodeToString(half), strings.ToUpper(hex.EncodeToString(half)),
			strings.Trim(fmt.Sprint(half), "[]"), strings.Trim(strings.ReplaceAll(fmt.Sprint(half), " ", ","), "[]"),
			strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", half), "[]byte{"), "}"),
		} {
			if strings.Contains(text, secret) {
				t.Fatalf("%q is printed", secret)
			}
		}
	})
}

// TestPlanString checks the text of a complete plan.
func TestPlanString(t *testing.T) {
	desired := Desired(netcfgtest.IPv4(netcfgtest.Peer(2, "aws-1", "10.4.0.2/32")), Settings{
		Interface: "meshd0", PrivateKey: netcfgtest.Key(1), ListenPort: 51820, MTU: 1420, Implementation: Userspace,
	})
	desired.Firewall.Sets, desired.Firewall.Chains = nil, desired.Firewall.Chains[2:3]
	observed := desired
	observed.Device = new(*desired.Device)
	observed.Device.Implementation = Kernel
	observed.Firewall = Firewall{}
	want := `~ nft table inet meshd
  nft chain guard type filter hook prerouting priority -290
  nft rule guard iifname "meshd0" fib saddr . iif oif exists accept
  nft rule guard ip saddr @guarded4 fib saddr . iif oif missing counter drop
  nft rule guard iifname "meshd0" ip saddr != 0.0.0.0 fib saddr . iif oif missing counter drop
  nft rule guard iifname "meshd0" ip6 saddr != { ::, fe80::/10 } fib saddr . iif oif missing counter drop
- link meshd0
+ link meshd0 wireguard userspace mtu 1420 listen-port 51820 public-key ` + netcfgtest.Key(1).PublicKey().String() + ` up
~ sysctl net.ipv4.conf.meshd0.forwarding = 1
~ sysctl net.ipv4.conf.meshd0.rp_filter = 2
~ sysctl net.ipv4.conf.meshd0.send_redirects = 0
+ addr 10.4.0.1/32 dev meshd0
+ route 10.4.0.0/16 dev meshd0 src 10.4.0.1
+ route 10.42.0.0/16 dev meshd0 src 10.4.0.1
+ peer ` + netcfgtest.Key(2).PublicKey().String() + ` (aws-1) endpoint 203.0.113.2:51820 allowed-ips +10.4.0.2/32
`
	if d := cmp.Diff(want, Diff(observed, desired, Options{Prune: true}).String()); d != "" {
		t.Errorf("plan (-want +got):\n%s", d)
	}
}
