// SPDX-License-Identifier: Apache-2.0

package node

import (
	"testing"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// TestTerm follows a node's record over the years.
func TestTerm(t *testing.T) {
	start := time.UnixMilli(1_800_000_000_000)
	const none = mesh.None
	var o term
	record := mesh.Record{Term: mesh.GatewayTerm{Since: 7}}
	if o.stamp(&record); record.Term != (mesh.GatewayTerm{Since: 7}) {
		t.Errorf("before the first turn: got %+v, want what it was", record.Term)
	}
	record.Term = mesh.GatewayTerm{}
	since := func(seat int, after time.Duration) mesh.GatewayTerm {
		return mesh.GatewayTerm{Seat: seat, Since: start.Add(after).UnixMilli()}
	}
	for _, s := range []struct {
		what    string
		at      time.Duration
		seat    int
		down    bool
		unheard bool
		want    mesh.GatewayTerm
		again   time.Duration
	}{
		{"nobody", 0, none, false, false, mesh.GatewayTerm{}, 0},
		{"a seat before anybody was heard may be a mistake", time.Second, 0, false, true, mesh.GatewayTerm{}, 0},
		{"elected", 2 * time.Second, 0, false, false, since(0, 2*time.Second), soon},
		{"serves", time.Minute, 0, false, false, since(0, 2*time.Second), 0},
		{"still, though nobody is heard", time.Minute, 0, false, true, since(0, 2*time.Second), 0},
		{"another seat", 2 * time.Minute, 1, false, false, since(1, 2*time.Minute), soon},
		{"replaced: what is under way arrives", 3 * time.Minute, none, false, false, since(1, 2*time.Minute), replacedTermLasts},
		{"a moment later", 3*time.Minute + time.Second, none, false, false, since(1, 2*time.Minute), replacedTermLasts - time.Second},
		{"called back", 3*time.Minute + 2*time.Second, 1, false, false, since(1, 2*time.Minute), 0},
		{"replaced again", 4 * time.Minute, none, false, false, since(1, 2*time.Minute), replacedTermLasts},
		{"for good", 4*time.Minute + replacedTermLasts, none, false, false, mesh.GatewayTerm{}, soon},
		{"elected again", 5 * time.Minute, 0, false, false, since(0, 5*time.Minute), soon},
		{"down, and nobody else is there", 6 * time.Minute, 0, true, false, mesh.GatewayTerm{}, soon},
		{"and still", 7 * time.Minute, 0, true, false, mesh.GatewayTerm{}, 0},
	} {
		again := o.decide(record.Term, s.seat, termConditions{down: s.down, settled: !s.unheard, now: start.Add(s.at)})
		o.stamp(&record)
		o.stamp(&record) // the record may be made anew before the next turn
		if record.Term != s.want || again != s.again {
			t.Errorf("%s: got %+v, again in %v; want %+v, %v", s.what, record.Term, again, s.want, s.again)
		}
	}
	if record.Replaced != 1 {
		t.Errorf("replaced %d times, want once: who ends its term for another reason was not", record.Replaced)
	}
}
