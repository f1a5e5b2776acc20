// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
)

// testNode is a node of a test. Its name is its location and a number, for example b2; a
// name that begins with "lone" means no location.
type testNode struct {
	name      string
	never     bool // it may not be a gateway
	behindNAT bool // without an endpoint
}

func testNodes(names ...string) (out []testNode) {
	for _, n := range names {
		out = append(out, testNode{name: n})
	}
	return out
}

// around returns Choose's input on one of the nodes.
func around(mode mesh.Mode, encapsulation mesh.Encapsulation, self string, nodes []testNode) ChooseInput {
	a := ChooseInput{Cluster: mesh.Cluster{
		Name: "test", Mode: mode, Encapsulation: encapsulation, Gateways: 1,
		Overlay: []netip.Prefix{netip.MustParsePrefix("10.4.0.0/16")}, Pods: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}, PodPrefix: []int{24},
	}, Alive: make(map[mesh.ID]bool)}
	for i, p := range nodes {
		location := strings.TrimRight(p.name, "0123456789")
		r := mesh.Record{
			Identity: identity(byte(i + 1)), Sequence: 1, Name: p.name, Key: wgtypes.Key{byte(i + 1)}, MTU: 1420, Settings: a.Cluster.Hash(),
			Claim: mesh.Claim{Slot: i, Time: mesh.FirstRelease + int64(i), Since: 1}, ListenPort: 51820, GossipPort: 7946, NAT: p.behindNAT,
		}
		if !p.behindNAT {
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

// describe prints whom a node watches.
func describe(a ChooseInput, w Watch) string {
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
	var neighbors []mesh.ID
	for _, n := range w.Neighbors {
		neighbors = append(neighbors, n.ID)
	}
	return fmt.Sprintf("gateway %s beside %s beyond %s carrier %s peers %s neighbors %s", name(w.Gateway), list(w.LAN), list(w.Remote), name(w.Carrier), list(w.Peers), list(neighbors))
}

// TestChooseServers: who could serve a network watches who does, and nobody else does.
func TestChooseServers(t *testing.T) {
	const none = "servers  others "
	for _, tt := range []struct {
		name   string
		mode   mesh.Mode
		self   string
		change func(a *ChooseInput)
		want   string
	}{
		{"the other one", mesh.ModeFull, "a2", func(*ChooseInput) {}, "servers a1 others b1,lone1"},
		{"mode cross", mesh.ModeCross, "a2", func(*ChooseInput) {}, "servers a1 others b1,lone1"},
		{"mode location", mesh.ModeLocation, "a2", func(*ChooseInput) {}, "servers a1 others b1,lone1"},
		{"the server", mesh.ModeFull, "a1", func(*ChooseInput) {}, none},
		{"a node that uses the network", mesh.ModeFull, "a3", func(*ChooseInput) {}, none},
		{"a node elsewhere", mesh.ModeFull, "lone1", func(*ChooseInput) {}, none},
		{"a network of one node", mesh.ModeFull, "a2", func(a *ChooseInput) { a.Records[0].AllowedLocationIPs = nil }, none},
		{"a network of two locations", mesh.ModeFull, "a2", func(a *ChooseInput) { a.Records[3].AllowedLocationIPs = a.Records[0].AllowedLocationIPs }, none},
		{"nobody elsewhere lives", mesh.ModeFull, "a2", func(a *ChooseInput) {
			delete(a.Alive, a.Records[3].ID())
			delete(a.Alive, a.Records[4].ID())
		}, "servers a1 others a3"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := around(tt.mode, mesh.EncapsulationAlways, tt.self, testNodes("a1", "a2", "a3", "b1", "lone1"))
			for i := range 2 {
				a.Records[i].AllowedLocationIPs = []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16"), netip.MustParsePrefix("fd77::/48")}
			}
			tt.change(&a)
			a.Topology = mesh.Derive(mesh.Input{Cluster: a.Cluster, Self: a.Self, Records: a.Records})
			w := Choose(a)
			name := func(ids []mesh.ID) string {
				var names []string
				for _, id := range ids {
					names = append(names, a.Records[slices.IndexFunc(a.Records, func(r mesh.Record) bool { return r.ID() == id })].Name)
				}
				slices.Sort(names)
				return strings.Join(names, ",")
			}
			if got := fmt.Sprintf("servers %s others %s", name(w.Servers), name(w.Others)); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			probed := slices.ContainsFunc(w.Targets(), func(s ScheduledTarget) bool { return s.Addr == a.Cluster.Overlays(0)[0] && !s.Slow })
			if want := len(w.Servers) > 0; tt.mode == mesh.ModeFull && probed != want {
				t.Errorf("the server is probed: got %t, want %t", probed, want)
			}
		})
	}
}

func TestChoose(t *testing.T) {
	const nobody = "gateway - beside  beyond  carrier - peers  neighbors "
	never := func(ps []testNode, names ...string) []testNode {
		for i := range ps {
			ps[i].never = slices.Contains(names, ps[i].name)
		}
		return ps
	}
	behindNAT := func(ps []testNode, names ...string) []testNode {
		for i := range ps {
			ps[i].behindNAT = slices.Contains(names, ps[i].name)
		}
		return ps
	}
	six := func() []testNode { return testNodes("a1", "a2", "a3", "b1", "b2", "lone1") }
	for _, tt := range []struct {
		name      string
		mode      mesh.Mode
		encap     mesh.Encapsulation
		self      string
		testNodes []testNode
		want      string
	}{
		{"a member watches its gateway and the nodes at the end of its tunnels", mesh.ModeLocation, "always", "a3", six(), "gateway a1 beside a2 beyond b1,lone1 carrier - peers  neighbors a1,a2"},
		{"a gateway watches the LAN only", mesh.ModeLocation, "always", "a1", six(), nobody + "a2,a3"},
		{"a node without a location watches nobody", mesh.ModeLocation, "always", "lone1", six(), nobody},
		{"two on a LAN", mesh.ModeLocation, "always", "b2", six(), "gateway b1 beside  beyond a1,lone1 carrier - peers  neighbors b1"},
		{"no other node may be the gateway", mesh.ModeLocation, "always", "a3", never(six(), "a2", "a3"), nobody + "a1,a2"},
		{"a node that may not be the gateway watches too", mesh.ModeLocation, "always", "a3", never(six(), "a3"), "gateway a1 beside a2 beyond b1,lone1 carrier - peers  neighbors a1,a2"},
		{"mode full", mesh.ModeFull, "always", "a3", six(), nobody},
		{"mode cross", mesh.ModeCross, "always", "a3", six(), nobody + "a1,a2"},
		{"without encapsulation", mesh.ModeCross, "never", "a3", six(), nobody + "a1,a2"},
		{"a few of many nodes are watched", mesh.ModeLocation, "always", "a4", testNodes("a1", "a2", "a3", "a4", "a5", "a6", "b1", "c1", "d1", "e1", "f1"), "gateway a1 beside a2,a6 beyond b1,d1,e1 carrier - peers  neighbors a2,a6"},
		{"behind NAT", mesh.ModeFull, "always", "lone1", behindNAT(testNodes("lone1", "lone2", "lone3", "lone4"), "lone1", "lone2"), nobody},
		{"nodes behind NAT show whether the gateway works, too", mesh.ModeLocation, "always", "a2", behindNAT(testNodes("a1", "a2", "b1", "lone1", "lone2"), "a1", "a2", "b1"), "gateway a1 beside  beyond b1,lone1,lone2 carrier - peers  neighbors a1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := around(tt.mode, tt.encap, tt.self, tt.testNodes)
			if diff := cmp.Diff(tt.want, describe(a, Choose(a))); diff != "" {
				t.Errorf("watch (-want +got):\n%s", diff)
			}
		})
	}
}

// A chosen node stays chosen when others die, and is replaced when it dies.
func TestChooseIsSteady(t *testing.T) {
	a := around(mesh.ModeLocation, "always", "a4", testNodes("a1", "a2", "a3", "a4", "a5", "a6", "b1", "c1", "d1", "e1", "f1"))
	before := Choose(a)
	for _, r := range a.Records {
		id := r.ID()
		if id == a.Self {
			continue
		}
		a.Alive[id] = false
		after := Choose(a)
		for _, lists := range [][2][]mesh.ID{{before.LAN, after.LAN}, {before.Remote, after.Remote}} {
			for _, was := range lists[0] {
				if slices.Contains(lists[1], was) == (was == id) {
					t.Errorf("after %s died: got %s, before %s", r.Name, describe(a, after), describe(a, before))
				}
			}
		}
		a.Alive[id] = true
	}
}

// A node that strangers don't reach watches the node that carries its clients' traffic, and
// others to compare it with.
func TestChooseCarrier(t *testing.T) {
	a := around(mesh.ModeFull, mesh.EncapsulationAlways, "lone1", []testNode{{name: "lone1", behindNAT: true}, {name: "lone2"}, {name: "lone3", behindNAT: true}})
	if w := Choose(a); len(w.Targets()) > 0 {
		t.Errorf("without clients it watches %v", w.Targets())
	}
	a.Topology.ClientHome = a.Records[1].ID()
	w := Choose(a)
	if got, want := describe(a, w), "gateway - beside  beyond  carrier lone2 peers lone3 neighbors "; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	want := []ScheduledTarget{
		{Target: Target{Addr: netip.MustParseAddr("10.4.0.2"), Source: netip.MustParseAddr("10.4.0.1")}},
		{Target: Target{Addr: netip.MustParseAddr("10.4.0.3"), Source: netip.MustParseAddr("10.4.0.1")}},
	}
	if diff := cmp.Diff(want, w.Targets(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("targets (-want +got):\n%s", diff)
	}
}
