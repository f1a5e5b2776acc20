// SPDX-License-Identifier: Apache-2.0

package node

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/mesh"
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
		in := Input{View: mesh.View{Records: records, Alive: make(map[mesh.ID]bool)}}
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
