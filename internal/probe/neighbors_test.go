// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"testing"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

func TestBlocked(t *testing.T) {
	a := around(mesh.ModeLocation, mesh.EncapsulationNever, "a1", testNodes("a1", "a2", "lone1"))
	w := Choose(a)
	if len(w.Neighbors) != 1 {
		t.Fatalf("watched: got %s, want a2", describe(a, w))
	}
	now := time.Unix(1_800_000_000, 0)
	overlay, internal := w.neighborTargets(w.Neighbors[0])
	ok := Result{Answered: now.Add(-time.Second)}
	silentFor := func(d time.Duration) Result { return Result{Misses: 1, FirstMiss: now.Add(-d)} }
	for _, tt := range []struct {
		name              string
		overlay, internal Result
		dead              bool
		want              int
	}{
		{"both addresses answer", ok, ok, false, 0},
		{"filtered", silentFor(10 * time.Second), ok, false, 1},
		{"just started", silentFor(9 * time.Second), ok, false, 0},
		{"pings are not answered at all", silentFor(time.Hour), Result{}, false, 0},
		{"the host is gone", silentFor(time.Hour), silentFor(time.Hour), false, 0},
		{"meshd was removed from the host", silentFor(time.Hour), ok, true, 0},
		{"not probed yet", Result{}, ok, false, 0},
	} {
		results := map[Target]Result{overlay[0]: tt.overlay, internal: tt.internal}
		alive := map[mesh.ID]bool{w.Neighbors[0].ID: !tt.dead}
		if got := len(Blocked(w, results, alive, now)); got != tt.want {
			t.Errorf("%s: got %d neighbors, want %d", tt.name, got, tt.want)
		}
	}
	encapsulated := around(mesh.ModeLocation, mesh.EncapsulationAlways, "a1", testNodes("a1", "a2", "lone1"))
	if w := Choose(encapsulated); len(w.Neighbors) != 1 || !w.Neighbors[0].Encapsulated {
		t.Errorf("with VXLAN: got %v, want a2, encapsulated", w.Neighbors)
	}
}
