// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/node"
)

// smallTown returns nodes a1 and a2 in location a, and b1, which stands alone.
func smallTown(t *testing.T) *simulation {
	s := newSimulation(t, 1)
	s.cluster.Mode = mesh.ModeLocation
	s.addTown()
	s.settleDown(s.hosts...)
	s.pass(time.Minute)
	return s
}

func (s *simulation) addTown() {
	for _, name := range []string{"a1", "a2"} {
		s.add(name, "a", place{1, cloud})
	}
	s.add("b1", "", place{0, routed})
	for _, h := range s.hosts {
		h.config.ForgetAfter = time.Hour
	}
}

// TestTurns has three nodes find each other, replace a gateway, and forget a node.
func TestTurns(t *testing.T) {
	s := smallTown(t)
	a1, a2, b1 := s.hosts[0], s.hosts[1], s.hosts[2]
	serves := func(when string, want *host) {
		t.Helper()
		var got []string
		for _, h := range s.hosts {
			if h.memory.Own.Term.Since != 0 {
				got = append(got, h.name)
			}
		}
		if !slices.Equal(got, []string{want.name}) {
			t.Fatalf("%s: got gateways %v, want %s", when, got, want.name)
		}
		if p := b1.wanted.Topology.Peers; len(p) != 1 || p[0].ID != want.id {
			t.Fatalf("%s: b1 has peers %v, want %s", when, p, want.name)
		}
	}
	for _, h := range s.hosts {
		if !h.disk.promise.Ready || len(h.concluded.Problems) > 0 || !h.wanted.Prune {
			t.Errorf("%s: got ready %t, problems %v, prune %t", h.name, h.disk.promise.Ready, h.concluded.Problems, h.wanted.Prune)
		}
	}
	s.checkSlots(make(map[*host]int))
	serves("at first", a1)
	if got := a2.concluded.Watch.Gateway; got != a1.id {
		t.Errorf("a2 watches %v, want its gateway", got)
	}

	a1.blocked = true
	a1.turn()
	a2.say(mesh.Verdict{Author: a2.self.Public, Subject: a1.id, State: mesh.HealthDown, Epoch: 1})
	a2.tellUrgently()
	s.pass(5 * time.Second)
	serves("after a verdict", a2)
	if a1.memory.Own.Replaced != 1 {
		t.Errorf("a1 was replaced %d times, want once", a1.memory.Own.Replaced)
	}
	standing := func() mesh.Verdict {
		return mesh.GatewayVerdicts(b1.view().Verdicts, b1.view().Records)[a1.id]
	}
	s.pass(20 * time.Second)
	if v := standing(); v.State != mesh.HealthDown {
		t.Errorf("the verdict on a1 while it does not forward: got %+v", v)
	}
	a1.blocked = false
	s.pass(15 * time.Second)
	serves("when the former one is up again", a2)
	if v := standing(); v.State != mesh.HealthUp || v.Epoch != 2 || v.Record == 0 {
		t.Errorf("the verdict on a1: got %+v, want that it is up", v)
	}

	a2.memory.Drain(false)
	a2.tellUrgently()
	s.pass(3 * time.Second)
	if a1.memory.Own.Term.Since == 0 || a2.memory.Own.Term.Since == 0 {
		t.Error("just after one is drained: want both to serve")
	}
	s.pass(10 * time.Second)
	serves("when the other one is drained", a1)

	b1.crash()
	s.pass(70 * time.Minute)
	for _, h := range []*host{a1, a2} {
		if len(h.view().Records) != 2 || len(h.kernel.Peers) > 0 {
			t.Errorf("%s after an hour without b1: got %d records and peers %v", h.name, len(h.view().Records), h.kernel.Peers)
		}
	}
}

// TestParametersNotSet: a host whose kernel parameters can't be set drops what pods send.
// That is a problem, and the node is not ready.
func TestParametersNotSet(t *testing.T) {
	h := smallTown(t).hosts[1]
	problem := func() bool {
		return slices.ContainsFunc(h.concluded.Problems, func(p mesh.Problem) bool {
			return p.Kind == netcfg.ProblemParameter && p.Node == h.name
		})
	}
	if !h.concluded.ParametersSet || problem() {
		t.Errorf("parameters are set: got ParametersSet %v, problems %v", h.concluded.ParametersSet, h.concluded.Problems)
	}
	h.blocked = true
	h.turn()
	if h.concluded.ParametersSet || !problem() {
		t.Errorf("parameters are not set: got ParametersSet %v, problems %v", h.concluded.ParametersSet, h.concluded.Problems)
	}
}

// TestSimulationsAgree: the same seed has the same result, whatever the order of a map.
func TestSimulationsAgree(t *testing.T) {
	first, second := newChaos(t, 1), newChaos(t, 1)
	for _, c := range []*chaos{first, second} {
		c.run()
	}
	if !slices.Equal(first.history, second.history) {
		t.Error("the histories differ")
	}
	for i, h := range first.hosts {
		if o := second.hosts[i]; !reflect.DeepEqual(h.wanted, o.wanted) {
			t.Errorf("%s: got\n%+v\nand\n%+v", h.name, h.wanted, o.wanted)
		}
	}
}

// TestUnknownHost: of a host that can't be observed, nothing is believed.
func TestUnknownHost(t *testing.T) {
	s := smallTown(t)
	h := s.hosts[1]
	in := h.input()
	in.View.Merged, in.Started = false, s.now
	wanted := h.memory.Configure(in)
	if wanted.Prune {
		t.Error("just after a start, before anybody was heard: got that what is not desired may go")
	}
	c := h.memory.Conclude(in, wanted, nil)
	if c.HasAddresses || c.ParametersSet || c.Watch.Gateway != (mesh.ID{}) || len(c.Handshakes.Initiate) > 0 || len(c.Problems) > 0 {
		t.Errorf("got %+v", c)
	}
}

// TestBlockedNeighbors: a neighbor that answers at its internal IP only is a problem with
// the LAN, and named.
func TestBlockedNeighbors(t *testing.T) {
	for encapsulation, advice := range map[mesh.Encapsulation]string{
		mesh.EncapsulationNever: "cluster.encapsulation: always", mesh.EncapsulationAlways: "let UDP 7947 pass",
	} {
		t.Run(string(encapsulation), func(t *testing.T) {
			s := newSimulation(t, 1)
			s.cluster.Mode, s.cluster.Encapsulation, s.antiSpoofing = mesh.ModeLocation, encapsulation, true
			s.noVXLAN = encapsulation == mesh.EncapsulationAlways
			s.addTown()
			s.watchMembers()
			for _, h := range s.hosts {
				h.boot()
			}
			s.pass(time.Minute)
			a2 := s.hosts[1]
			got := a2.concluded.Problems
			if len(got) != 1 || got[0].Kind != mesh.ProblemNeighbor || !strings.HasPrefix(got[0].Text, "node a1 answers at 192.168.1.1 ") || !strings.Contains(got[0].Advice, advice) {
				t.Errorf("got %v, want one about a1 with the advice %q", got, advice)
			}
			if name := node.NameOf(nil, a2.id); name != a2.id.String() {
				t.Errorf("of an unknown node: got %s, want its fingerprint", name)
			}
		})
	}
}

// TestInternalIPsClash has two nodes of no common location with one internal IP: nobody routes
// it, and everybody says why.
func TestInternalIPsClash(t *testing.T) {
	s := newSimulation(t, 1)
	for _, name := range []string{"a", "b", "c"} {
		s.add(name, "", place{0, routed})
	}
	s.settleDown(s.hosts...)
	contested, other := netip.MustParsePrefix("172.20.0.1/24"), netip.MustParsePrefix("172.20.1.1/24")
	configure := func(h *host, ip netip.Prefix) {
		h.config.InternalIP = ip
		h.tellUrgently()
		s.pass(15 * time.Second)
	}
	a := s.hosts[0]
	routes := func(ip netip.Prefix) bool {
		_, ok := a.route(ip.Addr())
		return ok
	}
	clash := func() bool {
		return slices.ContainsFunc(a.wanted.Problems, func(p mesh.Problem) bool {
			return p.Kind == mesh.ProblemNote && strings.Contains(p.Text, "172.20.0.1")
		})
	}
	configure(s.hosts[1], contested)
	if clash() || !routes(contested) {
		t.Errorf("of one node: got problems %v, and that a routes it: %t", a.wanted.Problems, routes(contested))
	}
	configure(s.hosts[2], contested)
	if !clash() || routes(contested) {
		t.Errorf("of two nodes: got problems %v, and that a routes it: %t", a.wanted.Problems, routes(contested))
	}
	if err := s.whole(); err != nil {
		t.Error(err)
	}
	configure(s.hosts[2], other)
	if clash() || !routes(contested) || !routes(other) {
		t.Errorf("of one node each: got problems %v, and that a routes them: %t, %t", a.wanted.Problems, routes(contested), routes(other))
	}
}
