// SPDX-License-Identifier: Apache-2.0

package node

import (
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// replacedTermLasts is how long a gateway that was replaced while it works keeps its term: it
// keeps its tunnels until then, and what others still send by it arrives. Gossip has
// reached all of them within two or three seconds.
const replacedTermLasts = 5 * time.Second

// term is this node's term as a gateway, as its next record is to state it. It follows
// from what was derived, so each turn decides on it for the next one. Before the first
// decision the former record's term stands.
type term struct {
	decided bool
	next    mesh.GatewayTerm
	lost    time.Time // when the seat was, zero while it is held
	ended   bool      // by a verdict, with the next record
}

// termConditions is what a term depends on beside the seat.
type termConditions struct {
	down    bool // the node is down, and its term must end before it is up again
	settled bool // others were heard, so that the seat is not a mistake
	now     time.Time
}

// decideTerm works out this node's term from the seat that was derived. It returns how soon
// to take the next turn, 0 for no wish.
func (m *Memory) decideTerm(in Input, seat int) time.Duration {
	return m.term.decide(m.Own.Term, seat, termConditions{
		down:    !IsUp(in.standing()) && !m.health.draining,
		settled: in.View.Merged || in.View.JoinEmpty,
		now:     in.Now,
	})
}

// decide works out the term for the next record from the current one and the seat that
// was derived. It returns how soon to take the next turn, 0 for no wish. A gateway
// keeps its seniority as long as it keeps its seat.
func (t *term) decide(current mesh.GatewayTerm, seat int, c termConditions) time.Duration {
	t.decided = true
	t.next, t.ended = current, c.down && current.Since != 0
	if seat != mesh.None {
		t.lost = time.Time{}
	}
	switch {
	case c.down:
		t.next = mesh.GatewayTerm{}
	case seat != mesh.None && c.settled && (current.Since == 0 || current.Seat != seat):
		t.next = mesh.GatewayTerm{Seat: seat, Since: c.now.UnixMilli()}
	case seat == mesh.None && current.Since != 0:
		if t.lost.IsZero() {
			t.lost = c.now
		}
		if left := t.lost.Add(replacedTermLasts).Sub(c.now); left > 0 {
			return left
		}
		t.next = mesh.GatewayTerm{}
	}
	if t.next != current {
		return soon
	}
	return 0
}

// stamp writes the term into a record. A node that was replaced says so in the same
// record in which its term ends, before it is up again.
func (t *term) stamp(r *mesh.Record) {
	if !t.decided {
		return
	}
	if t.ended && r.Term.Since != 0 {
		r.Replaced++
	}
	r.Term = t.next
}

// noted is when this node learned of a gateway's term.
type noted struct {
	since int64 // of the term
	at    time.Time
}

// noteTerms notes when the terms of gateways are first seen.
func (m *Memory) noteTerms(in Input) {
	terms := make(map[mesh.ID]noted)
	for _, r := range in.View.Records {
		if r.Term.Since == 0 {
			continue
		}
		seen := m.terms[r.ID()]
		if seen.since != r.Term.Since {
			seen = noted{r.Term.Since, in.Now}
		}
		terms[r.ID()] = seen
	}
	m.terms = terms
}
