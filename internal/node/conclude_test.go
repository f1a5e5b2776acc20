// SPDX-License-Identifier: Apache-2.0

package node

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/probe"
)

// A gateway that is gone and that nobody relieves is named on both ends.
func TestLostGateways(t *testing.T) {
	records := location()
	id := func(i int) mesh.ID { return records[i].ID() }
	for _, tt := range []struct {
		name   string
		change func(in *Input, c *Configuration)
		want   []string
	}{
		{"all live", func(*Input, *Configuration) {}, nil},
		{"a member that is gone", func(in *Input, c *Configuration) { delete(in.View.Alive, id(1)) }, nil},
		{"gone, as its members see it", func(in *Input, c *Configuration) { delete(in.View.Alive, id(0)) }, []string{"a1"}},
		{"gone, from elsewhere", func(in *Input, c *Configuration) {
			delete(in.View.Alive, id(0))
			c.Input.Self = id(3)
			c.Topology.Routes = []mesh.Route{{ID: id(0)}, {ID: id(1), Hops: []mesh.ID{id(0)}}, {ID: id(2), Hops: []mesh.ID{id(0)}}}
		}, []string{"a1"}},
		{"a relay that is gone", func(in *Input, c *Configuration) {
			delete(in.View.Alive, id(3))
			c.Topology.Routes = []mesh.Route{{ID: id(1), Hops: []mesh.ID{id(3)}}}
		}, nil},
		{"another mode", func(in *Input, c *Configuration) { delete(in.View.Alive, id(0)); c.Input.Cluster.Mode = mesh.ModeCross }, nil},
	} {
		in := Input{View: mesh.View{Alive: make(map[mesh.ID]bool)}}
		for _, r := range records {
			in.View.Alive[r.ID()] = true
		}
		c := Configuration{
			Input:    mesh.Input{Self: id(1), Records: records, Cluster: mesh.Cluster{Mode: mesh.ModeLocation}},
			Topology: mesh.Topology{Routes: []mesh.Route{{ID: id(0)}, {ID: id(2)}, {ID: id(3), Hops: []mesh.ID{id(0)}}}},
		}
		tt.change(&in, &c)
		var got []string
		for _, p := range lostGateways(in, c) {
			got = append(got, p.Node)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// TestFilteredNeighbors: a neighbor that answers at its internal IP only is a problem with
// the LAN, and named.
func TestFilteredNeighbors(t *testing.T) {
	w := newTown()
	for _, m := range w.machines {
		m.config.Cluster.Encapsulation = mesh.EncapsulationNever
	}
	w.pass(time.Minute, time.Second)
	m := w.machines[1]
	in := Input{Now: w.now, Started: founded, Self: m.self, Config: m.config, Promise: m.promise, View: w.view(m), Facts: m.facts}
	in.Results = make(map[probe.Target]probe.Result)
	for _, a := range m.concluded.Watch.Targets() {
		in.Results[a.Target] = probe.Result{Answered: w.now}
		if a.Slow && !m.config.Cluster.Outside(a.Addr) {
			in.Results[a.Target] = probe.Result{Misses: 9, FirstMiss: w.now.Add(-time.Minute)}
		}
	}
	got := m.memory.Conclude(in, m.memory.Configure(in), &m.observed).Problems
	if len(got) != 1 || got[0].Kind != mesh.ProblemNeighbor || !strings.HasPrefix(got[0].Text, "node a1 answers at 192.168.1.1 ") {
		t.Errorf("got %v, want one about a1", got)
	}
	if name := NameOf(nil, m.self.ID()); name != m.self.ID().String() {
		t.Errorf("of an unknown node: got %s, want its fingerprint", name)
	}
}
