// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/meshd/meshd/internal/mesh"
	"pgregory.net/rapid"
)

// linkTo gives a node a link to another cluster.
func linkTo(r *mesh.Record, cluster string, networks ...string) {
	for _, p := range prefixes(networks...) {
		r.AllowedLocationIPs = append(r.AllowedLocationIPs, p)
		r.Linked = append(r.Linked, mesh.LinkedNetwork{Network: p, Cluster: cluster})
	}
}

// joined returns a cluster that is joined to two others: aws-1 and alone-1 have links to west, and the
// clients c0 and c1 are link nodes of east. Client c2 is a laptop.
func joined() mesh.Input {
	in := clusterIn(mesh.ModeLocation, "aws aws -")
	linkTo(&in.Records[0], "west", "10.52.0.0/16", "10.53.0.0/16")
	linkTo(&in.Records[2], "west", "10.53.0.0/16", "10.52.0.0/16")
	for i := range 3 {
		in.Clients = append(in.Clients, client(in.Records[0], i))
	}
	in.Clients[0].Cluster, in.Clients[0].Networks = "east", prefixes("10.62.0.0/16", "10.61.0.0/16")
	in.Clients[1].Cluster, in.Clients[1].Networks = "east", prefixes("10.61.0.0/16")
	return in
}

// readable is a linked cluster with names in place of IDs.
type readable struct {
	Name, Networks          string
	Nodes, Servers, Clients []string
}

func readableClusters(in mesh.Input) []readable {
	names := make(map[mesh.ID]string)
	for _, r := range in.Records {
		names[r.ID()] = r.Name
	}
	for _, c := range in.Clients {
		names[c.ID] = c.Name
	}
	named := func(ids []mesh.ID) (out []string) {
		for _, id := range ids {
			out = append(out, names[id])
		}
		slices.Sort(out)
		return out
	}
	var out []readable
	for _, c := range mesh.LinkedClusters(in) {
		networks := ""
		for _, p := range c.Networks {
			networks += p.String() + " "
		}
		out = append(out, readable{c.Name, networks, named(c.Nodes), named(c.Servers), named(c.Clients)})
	}
	return out
}

func TestLinkedClusters(t *testing.T) {
	const ranges = "10.52.0.0/16 10.53.0.0/16 "
	east := readable{"east", "10.61.0.0/16 10.62.0.0/16 ", nil, nil, []string{"c0", "c1"}}
	west := func(servers ...string) readable {
		return readable{"west", ranges, []string{"alone-1", "aws-1"}, servers, nil}
	}
	for _, tt := range []struct {
		name   string
		change func(in *mesh.Input)
		want   []readable
	}{
		{"the strongest claim serves", func(*mesh.Input) {}, []readable{east, west("aws-1")}},
		{"the other one serves", func(in *mesh.Input) {
			for _, p := range prefixes("10.52.0.0/16", "10.53.0.0/16") {
				in.Records[2].Serving = append(in.Records[2].Serving, mesh.NetworkTerm{Network: p, Since: 7})
			}
		}, []readable{east, west("alone-1")}},
		{"each serves a network", func(in *mesh.Input) { in.Records[0].Unserved = prefixes("10.53.0.0/16") }, []readable{east, west("alone-1", "aws-1")}},
		{"a node in another location has a network, too", func(in *mesh.Input) {
			in.Records[0].AllowedLocationIPs, in.Records[0].Linked = nil, nil
			in.Records[1].AllowedLocationIPs = prefixes("10.52.0.0/16", "10.53.0.0/16")
		}, []readable{east, {"west", ranges, []string{"alone-1"}, nil, nil}}},
		{"a range of this cluster", func(in *mesh.Input) { in.Cluster.Services = prefixes("10.52.0.0/15") }, []readable{east, west()}},
		{"a client that does not count", func(in *mesh.Input) { in.Clients[1].Index = 0 }, []readable{{"east", east.Networks, nil, nil, []string{"c0"}}, west("aws-1")}},
		{"links of both kinds", func(in *mesh.Input) {
			in.Clients[1].Cluster, in.Clients[1].Networks = "west", prefixes("10.54.0.0/16")
		}, []readable{
			{"east", east.Networks, nil, nil, []string{"c0"}},
			{"west", ranges + "10.54.0.0/16 ", []string{"alone-1", "aws-1"}, []string{"aws-1"}, []string{"c1"}},
		}},
		{"clients only", func(in *mesh.Input) { in.Records = in.Records[1:2] }, []readable{east}},
		{"none", func(in *mesh.Input) { in.Records, in.Clients = in.Records[1:2], in.Clients[2:] }, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := joined()
			tt.change(&in)
			if diff := cmp.Diff(tt.want, readableClusters(in)); diff != "" {
				t.Errorf("linked clusters (-want +got):\n%s", diff)
			}
		})
	}
}

// The order of records, links and clients, and which node it is, make no difference.
func TestLinkedClustersInAnyOrder(t *testing.T) {
	want := fmt.Sprint(mesh.LinkedClusters(joined()))
	rapid.Check(t, func(t *rapid.T) {
		in := joined()
		in.Records, in.Clients = rapid.Permutation(in.Records).Draw(t, "records"), rapid.Permutation(in.Clients).Draw(t, "clients")
		in.Self = in.Records[0].ID()
		for i := range in.Records {
			in.Records[i].Linked = rapid.Permutation(in.Records[i].Linked).Draw(t, "links")
		}
		if got := fmt.Sprint(mesh.LinkedClusters(in)); got != want {
			t.Fatalf("got %s, want %s", got, want)
		}
	})
}
