// SPDX-License-Identifier: Apache-2.0

package node

import (
	"maps"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// A node that has been away for long loses its slot. The nodes need no common clock to
// agree on it: each counts for itself how long it has not heard of a node, and the first
// that has waited long enough tells all others to forget it. That is a fact like any other.
//
// Count only the time in which this daemon was running and had others to hear from, by a
// clock that does not jump. A node that is cut off would otherwise forget the whole mesh,
// and tell everybody so when it returns.

const (
	// absenceStep is how exactly absences are kept on disk, so that they alone are no
	// reason to write often. It is also how long each node waits for the one before it
	// to have the absent node forgotten, so that not all of them do.
	absenceStep = 10 * time.Minute
	// longestTurn is the most that counts between two turns: a process that was halted
	// for longer did not hear anybody meanwhile.
	longestTurn = time.Minute
)

// Absences holds for how long other nodes have been away. Its zero value knows of none.
type Absences struct {
	counted time.Time // when count was called last
	of      map[mesh.ID]time.Duration
}

// NewAbsences goes on with what Save has returned.
func NewAbsences(saved map[mesh.ID]time.Duration) Absences {
	a := Absences{of: make(map[mesh.ID]time.Duration, len(saved))}
	for id, d := range saved {
		a.of[id] = max(d, 0)
	}
	return a
}

// count adds the time since the last call, and starts again at zero for nodes that are
// alive.
func (a *Absences) count(view mesh.View, self mesh.ID, now time.Time) {
	passed := min(max(now.Sub(a.counted), 0), longestTurn)
	if a.counted.IsZero() || view.Alone {
		passed = 0
	}
	a.counted = now
	absent := make(map[mesh.ID]time.Duration, len(a.of))
	for _, r := range view.Records {
		if id := r.ID(); id != self && !view.Alive[id] {
			absent[id] = a.of[id] + passed
		}
	}
	a.of = absent
}

// overdue returns the records of nodes that self should have forgotten, because they
// have been away for longer than after. The live nodes do so one after another.
func (a *Absences) overdue(view mesh.View, self mesh.ID, after time.Duration) []mesh.Record {
	for other := range view.Alive {
		if other.Compare(self) < 0 {
			after += absenceStep
		}
	}
	var overdue []mesh.Record
	for _, r := range view.Records {
		if absent, ok := a.of[r.ID()]; ok && absent >= after {
			overdue = append(overdue, r)
		}
	}
	return overdue
}

// Of returns for how long a node has been away.
func (a *Absences) Of(id mesh.ID) time.Duration { return a.of[id] }

// Save returns what to keep on disk. It changes every ten minutes at most.
func (a *Absences) Save() map[mesh.ID]time.Duration {
	saved := maps.Clone(a.of)
	for id, d := range saved {
		saved[id] = d.Truncate(absenceStep)
	}
	maps.DeleteFunc(saved, func(_ mesh.ID, d time.Duration) bool { return d == 0 })
	return saved
}
