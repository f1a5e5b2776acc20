// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/meshd/meshd/internal/mesh"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "write the golden files anew")

// clusterIn returns a cluster with nodes in locations, such as "aws aws gcp -": one word
// per node, a dash for one without a location. Node n has the LAN address n.
func clusterIn(mode mesh.Mode, places string) mesh.Input {
	in := mesh.Input{Cluster: cluster(true)}
	in.Cluster.Mode, in.Cluster.Encapsulation = mode, mesh.EncapsulationAlways
	nth := map[string]int{}
	for i, place := range strings.Fields(places) {
		r := record(i)
		nth[place]++
		r.Name = fmt.Sprintf("%s-%d", place, nth[place])
		if place == "-" {
			r.Name = fmt.Sprintf("alone-%d", nth[place])
		} else {
			r.Location = place
			r.InternalIPs = prefixes(fmt.Sprintf("192.168.%d.%d/24", place[0], i+1))
		}
		in.Records = append(in.Records, r)
	}
	in.Self = in.Records[0].ID()
	return in
}

// graphText lists a graph in readable form.
func graphText(g mesh.Graph) string {
	var b strings.Builder
	names := map[mesh.ID]string{}
	for _, n := range g.Nodes {
		names[n.ID] = n.Name
		fmt.Fprintf(&b, "node %s in %q gateway %v %v %v\n", n.Name, n.Location, n.Gateway, n.Overlay, n.PodCIDRs)
	}
	for _, p := range g.Tunnels {
		fmt.Fprintf(&b, "tunnel %s %s\n", names[p.A], names[p.B])
	}
	for _, p := range g.Links {
		fmt.Fprintf(&b, "lan %s %s\n", names[p.A], names[p.B])
	}
	for _, c := range g.Clients {
		fmt.Fprintf(&b, "client %s %v\n", c.Name, c.Overlay)
		names[c.ID] = c.Name
	}
	for _, c := range g.Clusters {
		fmt.Fprintf(&b, "cluster %s %v", c.Name, c.Networks)
		for _, id := range slices.Concat(c.Nodes, c.Clients) {
			fmt.Fprintf(&b, " %s", names[id])
		}
		b.WriteString("\n")
	}
	return b.String()
}

// Typical clusters, and special cases.
func TestGraphs(t *testing.T) {
	tests := []struct {
		name string
		in   mesh.Input
	}{
		{"two-locations", clusterIn(mesh.ModeLocation, "aws aws gcp gcp")},
		{"full-mesh", clusterIn(mesh.ModeFull, "- - - -")},
		{"one-location-and-lone-nodes", clusterIn(mesh.ModeLocation, "gcp gcp - -")},
		{"two-locations-and-lone-nodes", clusterIn(mesh.ModeLocation, "aws aws gcp gcp - -")},
		{"full-mesh-of-locations", clusterIn(mesh.ModeFull, "aws aws gcp gcp")},
		{"cross", clusterIn(mesh.ModeCross, "aws aws gcp gcp -")},
		{"two-gateways", func() mesh.Input {
			in := clusterIn(mesh.ModeLocation, "aws aws aws aws aws gcp gcp gcp -")
			in.Cluster.Gateways = 2
			return in
		}()},
		{"behind-nat", func() mesh.Input {
			in := clusterIn(mesh.ModeLocation, "home home office office - -")
			for _, i := range []int{0, 1, 2, 3, 5} {
				in.Records[i].NAT, in.Records[i].Endpoints = true, nil
			}
			return in
		}()},
		// Too many tunnels to draw each of them.
		{"clients", func() mesh.Input {
			in := clusterIn(mesh.ModeLocation, "aws aws -")
			in.Clients = []mesh.Client{client(in.Records[0], 1), client(in.Records[0], 0)}
			return in
		}()},
		{"joined-clusters", joined()},
		{"crowded-joined-clusters", func() mesh.Input {
			in := joined()
			for i := range 20 {
				in.Clients = append(in.Clients, client(in.Records[0], 10+i))
			}
			return in
		}()},
		{"crowded-clients", func() mesh.Input {
			in := clusterIn(mesh.ModeFull, "- - - -")
			for i := range 8 {
				in.Clients = append(in.Clients, client(in.Records[0], i))
			}
			return in
		}()},
		{"crowded-full", clusterIn(mesh.ModeFull, strings.Repeat("- ", 12))},
		{"crowded-cross", clusterIn(mesh.ModeCross, strings.Repeat("aws gcp ovh ", 4))},
		{"crowded-location", clusterIn(mesh.ModeLocation, strings.Repeat("aws gcp ovh hetzner - ", 8))},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := mesh.GraphOf(tt.in)
			golden(t, tt.name+".txt", graphText(g))
			golden(t, tt.name+".dot", g.DOT())
		})
	}
}

// TestGraphWithPaths draws what one node knows of its own tunnels.
func TestGraphWithPaths(t *testing.T) {
	g := mesh.GraphOf(clusterIn(mesh.ModeFull, "- - - - - -"))
	for i, kind := range []string{"lan", "direct", "relayed", "tcp", "none"} {
		g.Tunnels[i].Path = kind
	}
	golden(t, "paths.dot", g.DOT())
}

// golden compares with a file in testdata; -update writes it.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// The graph shows what the nodes derive: its tunnels are all nodes' peers.
func TestGraphIsWhatNodesDerive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		k := newWalker(w.cluster, w.records, w.verdicts...)
		g := mesh.GraphOf(mesh.Input{Cluster: w.cluster, Records: w.records, Verdicts: w.verdicts})
		tunnels := 0
		for _, n := range g.Nodes {
			tunnels += len(k.hosts[n.ID].top.Peers)
			if seat := k.hosts[n.ID].top.Seat; n.Seat != seat || n.Gateway != (seat != mesh.None) {
				t.Fatalf("%s: seat %d in the graph, %d in its own topology", n.Name, n.Seat, seat)
			}
		}
		if tunnels != 2*len(g.Tunnels) {
			t.Fatalf("got %d tunnels, and all nodes together have %d peers", len(g.Tunnels), tunnels)
		}
		for _, p := range g.Tunnels {
			if !slices.ContainsFunc(k.hosts[p.A].top.Peers, func(o mesh.Peer) bool { return k.keys[o.Key] == p.B }) {
				t.Fatalf("a tunnel from %s to %s that the node does not have", k.hosts[p.A].Name, k.hosts[p.B].Name)
			}
		}
		for _, p := range g.Links {
			if route := k.hosts[p.A].route(p.B); route.Kind != mesh.RouteLAN || len(route.Hops) > 0 {
				t.Fatalf("a link from %s to %s; the route is %v", k.hosts[p.A].Name, k.hosts[p.B].Name, route)
			}
		}
	})
}

func TestWithout(t *testing.T) {
	in := clusterIn(mesh.ModeLocation, "aws aws aws gcp gcp -")
	before := graphText(mesh.GraphOf(in))
	after := mesh.GraphOf(mesh.Without(in, in.Records[0].ID()))
	if text := graphText(after); !strings.Contains(text, "node aws-1 in \"aws\" gateway false") || !strings.Contains(text, "node aws-2 in \"aws\" gateway true") {
		t.Errorf("without the gateway: got\n%s", text)
	}
	if got := graphText(mesh.GraphOf(in)); got != before {
		t.Errorf("the input has changed: got\n%s\nwant\n%s", got, before)
	}
}
