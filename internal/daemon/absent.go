// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
	"slices"
	"time"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/state"
)

// A node that has been away for long loses its slot. That all nodes agree on it
// needs no common clock: each counts for itself how long it has not heard of a
// node, and the first to lose patience tells all others to forget it, which is
// a fact like any other.
//
// What is counted is time that this daemon was running, by a clock that does not
// jump, and that it had others to hear from. One that is cut off alone would
// otherwise forget the whole mesh, and say so on its return.

const (
	// absenceStep is how exactly absences are kept on disk, so that they alone are
	// no reason to write often. It is also how long one node waits for another
	// to say it, so that not all of them do.
	absenceStep = 10 * time.Minute
	// longestTurn is the most that counts between two looks: a process that was
	// halted for longer was not there to hear anybody.
	longestTurn = time.Minute
)

// absences is for how long nodes have been away.
type absences struct {
	last time.Time
	of   map[mesh.ID]time.Duration
}

func newAbsences(saved []state.Absence) absences {
	a := absences{of: make(map[mesh.ID]time.Duration, len(saved))}
	for _, s := range saved {
		a.of[s.ID] = max(s.Time, 0)
	}
	return a
}

// count adds the time since it was called last, or starts anew for who is alive.
func (a *absences) count(view mesh.View, self mesh.ID, now time.Time) {
	passed := min(max(now.Sub(a.last), 0), longestTurn)
	if a.last.IsZero() || view.Alone {
		passed = 0
	}
	a.last = now
	absent := make(map[mesh.ID]time.Duration, len(a.of))
	for _, r := range view.Records {
		if id := r.ID(); id != self && !view.Alive[id] {
			absent[id] = a.of[id] + passed
		}
	}
	a.of = absent
}

// longest says whether it is on self to have a node forgotten: the live nodes
// lose patience one after another.
func (a *absences) longest(id, self mesh.ID, view mesh.View, after time.Duration) bool {
	for other := range view.Alive {
		if other.Compare(self) < 0 {
			after += absenceStep
		}
	}
	return a.of[id] >= after
}

// save returns what to keep on disk.
func (a *absences) save() []state.Absence {
	var all []state.Absence
	for id, d := range a.of {
		if d = d.Truncate(absenceStep); d > 0 {
			all = append(all, state.Absence{ID: id, Time: d})
		}
	}
	slices.SortFunc(all, func(x, y state.Absence) int { return x.ID.Compare(y.ID) })
	return all
}

// forgetAbsent has the nodes forgotten that have been away for too long.
func (d *daemon) forgetAbsent(t turn) error {
	self := d.identity.ID()
	d.absences.count(t.view, self, t.now)
	for _, r := range t.view.Records {
		id := r.ID()
		if !d.absences.longest(id, self, t.view, d.cfg.ForgetAfter) {
			continue
		}
		if err := d.gossip.Forget(id, r.Sequence); err != nil {
			return fmt.Errorf("forget absent node %s: %w", r.Name, err)
		}
		d.log.Info("node forgotten after a long absence", "name", r.Name, "id", id, "absent", d.absences.of[id].Truncate(time.Minute))
	}
	return nil
}
