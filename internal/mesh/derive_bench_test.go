// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"testing"

	"github.com/meshd/meshd/internal/mesh"
)

// BenchmarkDeriveFull1000 is the figure derive_full_1000_us of make bench.
func BenchmarkDeriveFull1000(b *testing.B) {
	in := clusterOf(1000)
	b.ReportAllocs()
	for b.Loop() {
		if t := mesh.Derive(in); len(t.Peers) != 999 {
			b.Fatalf("got %d peers, want 999", len(t.Peers))
		}
	}
}
