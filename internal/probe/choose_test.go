// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/meshd/meshd/internal/mesh"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// place is a node of a test: its name is its location and a number, as b2. A
// hidden one is behind NAT without an endpoint.
type place struct {
	name   string
	never  bool
	hidden bool
}

func places(names ...string) (out []place) {
	for _, n := range names {
		out = append(out, place{name: n})
	}
	return out
}

// around derives what a node sees. A location that begins with "lone" is none.
func around(mode mesh.Mode, encapsulation string, self string, places []place) Around {
	a := Around{Cluster: mesh.Cluster{
		Name: "test", Mode: mode, Encapsulation: encapsulation, Gateways: 1,
		Overlay: []netip.Prefix{netip.MustParsePrefix("10.4.0.0/16")}, Pods: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}, PodPrefix: []int{24},
	}, Alive: make(map[mesh.ID]bool)}
	for i, p := range places {
		location := strings.TrimRight(p.name, "0123456789")
		r := mesh.Record{
			Identity: identity(byte(i + 1)), Sequence: 1, Name: p.name, Key: wgtypes.Key{byte(i + 1)}, MTU: 1420, Settings: a.Cluster.Hash(),
			Claim: mesh.Claim{Slot: i, Time: int64(i + 1), Since: 1}, ListenPort: 51820, GossipPort: 7946, NAT: p.hidden,
		}
		if !p.hidden {
			r.Endpoints = []mesh.Endpoint{{Host: fmt.Sprintf("203.0.113.%d", i+1), Port: 51820}}
		}
		if !strings.HasPrefix(p.name, "lone") {
			r.Location = location
			r.InternalIPs = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, location[0], byte(i + 1)}), 24)}
		}
		if p.never {
			r.Gateway = mesh.GatewayNever
		}
		a.Records = append(a.Records, r)
		a.Alive[r.ID()] = true
		if p.name == self {
			a.Self = r.ID()
		}
	}
	a.Topology = mesh.Derive(mesh.Input{Cluster: a.Cluster, Self: a.Self, Records: a.Records})
	return a
}

// words prints whom a node watches.
func words(a Around, w Watch) string {
	name := func(id mesh.ID) string {
		for _, r := range a.Records {
			if r.ID() == id {
				return r.Name
			}
		}
		return "-"
	}
	list := func(ids []mesh.ID) string {
		var names []string
		for _, id := range ids {
			names = append(names, name(id))
		}
		slices.Sort(names)
		return strings.Join(names, ",")
	}
	var plain []mesh.ID
	for _, n := range w.Plain {
		plain = append(plain, n.ID)
	}
	return fmt.Sprintf("gateway %s beside %s beyond %s relays %s peers %s plain %s", name(w.Gateway), list(w.Beside), list(w.Beyond), list(w.Relays), list(w.Peers), list(plain))
}

func TestChoose(t *testing.T) {
	const nobody = "gateway - beside  beyond  relays  peers  plain "
	never := func(ps []place, names ...string) []place {
		for i := range ps {
			ps[i].never = slices.Contains(names, ps[i].name)
		}
		return ps
	}
	hidden := func(ps []place, names ...string) []place {
		for i := range ps {
			ps[i].hidden = slices.Contains(names, ps[i].name)
		}
		return ps
	}
	six := func() []place { return places("a1", "a2", "a3", "b1", "b2", "lone1") }
	for _, tt := range []struct {
		name   string
		mode   mesh.Mode
		encap  string
		self   string
		places []place
		want   string
	}{
		{"a member watches its gateway, and those at the end of its tunnels", mesh.ModeLocation, "always", "a3", six(), "gateway a1 beside a2 beyond b1,lone1 relays  peers  plain "},
		{"a gateway watches nobody", mesh.ModeLocation, "always", "a1", six(), nobody},
		{"nor does who is alone", mesh.ModeLocation, "always", "lone1", six(), nobody},
		{"two on a LAN", mesh.ModeLocation, "always", "b2", six(), "gateway b1 beside  beyond a1,lone1 relays  peers  plain "},
		{"nobody else may be gateway", mesh.ModeLocation, "always", "a3", never(six(), "a2", "a3"), nobody},
		{"who may not be gateway watches as well", mesh.ModeLocation, "always", "a3", never(six(), "a3"), "gateway a1 beside a2 beyond b1,lone1 relays  peers  plain "},
		{"mode full", mesh.ModeFull, "always", "a3", six(), nobody},
		{"mode cross", mesh.ModeCross, "always", "a3", six(), nobody},
		{"without encapsulation, the LAN is watched too", mesh.ModeCross, "never", "a3", six(), "gateway - beside  beyond  relays  peers  plain a1,a2"},
		{"few of many", mesh.ModeLocation, "always", "a4", places("a1", "a2", "a3", "a4", "a5", "a6", "b1", "c1", "d1", "e1", "f1"), "gateway a1 beside a2,a6 beyond b1,d1,e1 relays  peers  plain "},
		{"behind a relay", mesh.ModeFull, "always", "lone1", hidden(places("lone1", "lone2", "lone3", "lone4"), "lone1", "lone2"), "gateway - beside  beyond  relays lone3 peers lone4 plain "},
		{"a gateway behind NAT uses a relay, its members don't", mesh.ModeLocation, "always", "a1", hidden(places("a1", "a2", "b1", "lone1", "lone2"), "a1", "a2", "b1"), "gateway - beside  beyond  relays lone2 peers lone1 plain "},
		{"what is beyond a relay says nothing about the gateway", mesh.ModeLocation, "always", "a2", hidden(places("a1", "a2", "b1", "lone1", "lone2"), "a1", "a2", "b1"), "gateway a1 beside  beyond lone1,lone2 relays  peers  plain "},
		{"the end of a tunnel is no relay for who is behind it", mesh.ModeLocation, "always", "lone1", six(), nobody},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := around(tt.mode, tt.encap, tt.self, tt.places)
			if diff := cmp.Diff(tt.want, words(a, Choose(a))); diff != "" {
				t.Errorf("watch (-want +got):\n%s", diff)
			}
		})
	}
}

// Who is chosen stays, whatever happens to others, and whoever is dead is replaced.
func TestChooseIsSteady(t *testing.T) {
	a := around(mesh.ModeLocation, "always", "a4", places("a1", "a2", "a3", "a4", "a5", "a6", "b1", "c1", "d1", "e1", "f1"))
	before := Choose(a)
	for _, r := range a.Records {
		id := r.ID()
		if id == a.Self {
			continue
		}
		a.Alive[id] = false
		after := Choose(a)
		for _, lists := range [][2][]mesh.ID{{before.Beside, after.Beside}, {before.Beyond, after.Beyond}} {
			for _, was := range lists[0] {
				if slices.Contains(lists[1], was) == (was == id) {
					t.Errorf("after the death of %s: got %s, was %s", r.Name, words(a, after), words(a, before))
				}
			}
		}
		a.Alive[id] = true
	}
}

// A relay that was found down is watched on, though no path leads through it.
func TestChooseBlamed(t *testing.T) {
	a := around(mesh.ModeFull, "always", "lone1", places("lone1", "lone2", "lone3"))
	a.Blamed = []mesh.ID{a.Records[1].ID()}
	w := Choose(a)
	if got, want := words(a, w), "gateway - beside  beyond  relays lone2 peers lone3 plain "; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	want := []Aim{
		{Target: Target{Addr: netip.MustParseAddr("10.4.0.2"), Source: netip.MustParseAddr("10.4.0.1")}},
		{Target: Target{Addr: netip.MustParseAddr("10.4.0.3"), Source: netip.MustParseAddr("10.4.0.1")}},
	}
	if diff := cmp.Diff(want, w.Aims(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("aims (-want +got):\n%s", diff)
	}
}

// A node that strangers can't speak to watches the one through which its clients come.
func TestChooseWatchesTheHomeOfClients(t *testing.T) {
	a := around(mesh.ModeFull, mesh.EncapsulationAlways, "lone1", []place{{name: "lone1", hidden: true}, {name: "lone2"}, {name: "lone3"}})
	if w := Choose(a); len(w.Relays) > 0 {
		t.Errorf("without clients it watches %v", w.Relays)
	}
	a.Topology.ClientHome = a.Records[2].ID()
	if w := Choose(a); !slices.Equal(w.Relays, []mesh.ID{a.Topology.ClientHome}) || len(w.Peers) != 1 {
		t.Errorf("it watches %v and %v, want the home, and another peer to compare", w.Relays, w.Peers)
	}
}
