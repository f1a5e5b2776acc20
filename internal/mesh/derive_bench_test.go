// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/meshd/meshd/internal/mesh"
)

// BenchmarkDeriveFull1000 is the figure derive_full_1000_us of make bench.
func BenchmarkDeriveFull1000(b *testing.B) {
	in := asDelivered(clusterOf(1000))
	b.ReportAllocs()
	for b.Loop() {
		if t := mesh.Derive(in); len(t.Peers) != 999 {
			b.Fatalf("got %d peers, want 999", len(t.Peers))
		}
	}
}

// BenchmarkDeriveLocation10000 is the figure derive_location_10000_ms of make bench: 50
// locations with two gateways each. One gateway has most of the work; the other nodes
// derive routes through it.
func BenchmarkDeriveLocation10000(b *testing.B) {
	in := manyLocations(10_000, 50)
	for _, seat := range []int{0, mesh.None} {
		for _, r := range in.Records {
			if in.Self = r.ID(); mesh.Derive(in).Seat == seat {
				break
			}
		}
		name, peers := "gateway", 98
		if seat == mesh.None {
			name, peers = "member", 0
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if t := mesh.Derive(in); len(t.Peers) != peers || len(t.Neighbors) != 199 || len(t.Problems) > 0 {
					b.Fatalf("got %d peers, %d neighbors, %d problems, want %d, 199 and 0", len(t.Peers), len(t.Neighbors), len(t.Problems), peers)
				}
			}
		})
	}
}

// manyLocations returns nodes that are spread evenly over locations with two gateways
// each.
func manyLocations(nodes, locations int) mesh.Input {
	in := clusterOf(nodes)
	in.Cluster.Mode, in.Cluster.Gateways, in.Cluster.Encapsulation = mesh.ModeLocation, 2, mesh.EncapsulationAlways
	for i := range in.Records {
		l := i % locations
		in.Records[i].Location = fmt.Sprintf("l%d", l)
		in.Records[i].InternalIPs = prefixes(fmt.Sprintf("172.%d.%d.%d/16", 16+l, i/locations/250, i/locations%250+1))
	}
	return asDelivered(in)
}

// asDelivered returns the input with its records as gossip delivers them: sorted, with
// their IDs computed.
func asDelivered(in mesh.Input) mesh.Input {
	for i := range in.Records {
		in.Records[i].Identify()
	}
	slices.SortFunc(in.Records, func(a, b mesh.Record) int { return a.ID().Compare(b.ID()) })
	return in
}
