// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// layDown is how long a gateway that was relieved while it works stays in office:
// it keeps its tunnels until then, and what others still send by it arrives.
// Gossip has reached all of them within two or three seconds.
const layDown = 5 * time.Second

// office is what the record is to say of this node as a gateway. It follows from
// what was derived, so each turn decides on it for the next one.
type office struct {
	decided bool // before that, the former record's word stands
	next    mesh.Office
	lost    time.Time // when the seat was, zero while it is held
	ended   bool      // by a verdict, with the next record
}

// officeTerms is what an office depends on beside the seat.
type officeTerms struct {
	leave   bool // it is down and must be out of office before it is up again
	settled bool // others were heard, so that the seat is not a mistake
	now     time.Time
}

// decide works out the office for the next record from the current one and the
// seat that was derived. It returns how soon to take the next turn, 0 for no
// wish. Who is in office keeps its seniority as long as it keeps its seat.
func (o *office) decide(current mesh.Office, seat int, terms officeTerms) time.Duration {
	o.decided = true
	o.next, o.ended = current, terms.leave && current.Since != 0
	if seat != mesh.None {
		o.lost = time.Time{}
	}
	switch {
	case terms.leave:
		o.next = mesh.Office{}
	case seat != mesh.None && terms.settled && (current.Since == 0 || current.Seat != seat):
		o.next = mesh.Office{Seat: seat, Since: terms.now.UnixMilli()}
	case seat == mesh.None && current.Since != 0:
		if o.lost.IsZero() {
			o.lost = terms.now
		}
		if left := o.lost.Add(layDown).Sub(terms.now); left > 0 {
			return left
		}
		o.next = mesh.Office{}
	}
	if o.next != current {
		return gather
	}
	return 0
}

// stamp writes into the record what it is to say. A node that was replaced says so
// in the same record in which it is out of office, before it is up again.
func (o *office) stamp(r *mesh.Record) {
	if !o.decided {
		return
	}
	if o.ended && r.Office.Since != 0 {
		r.Replaced++
	}
	r.Office = o.next
}
