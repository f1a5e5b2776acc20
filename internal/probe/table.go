// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

const (
	// Grace is added to two round trips before a request counts as missed. It covers a
	// host that is busy for a moment; on a LAN answers take less than 1 ms.
	Grace = 100 * time.Millisecond
	// maxPending is how many unanswered requests of a target are kept, so an answer may
	// take that many intervals.
	maxPending = 64
)

// Table records the requests and answers of all targets. It does no I/O and reads
// no clock.
type Table struct {
	Pace
	entries  map[Target]*entry
	known    map[netip.Addr]bool // addresses that have ever answered
	sequence uint16              // of the last request
}

// entry is the table's state of one target. See Result for answered and rtt.
type entry struct {
	slow     bool
	due      time.Time // when the next request of a slow target is sent
	pending  []Request // unanswered, the oldest first
	dropped  int       // unanswered requests that are no longer in pending
	first    time.Time // when the oldest unanswered request was sent
	answered time.Time
	rtt      time.Duration
}

// Request is one echo request.
type Request struct {
	Sequence uint16
	At       time.Time
}

// NewTable returns one without targets.
func NewTable(pace Pace) *Table {
	return &Table{Pace: pace, entries: make(map[Target]*entry), known: make(map[netip.Addr]bool)}
}

// SetTargets replaces the targets. Those that are in the table already keep their state.
func (p *Table) SetTargets(aims []ScheduledTarget) {
	wanted := make(map[Target]bool, len(aims)) // the value: whether slowly
	for _, a := range aims {
		slow, there := wanted[a.Target]
		wanted[a.Target] = a.Slow && (slow || !there)
	}
	maps.DeleteFunc(p.entries, func(t Target, _ *entry) bool { _, ok := wanted[t]; return !ok })
	for t, slow := range wanted {
		if p.entries[t] == nil {
			p.entries[t] = &entry{}
		}
		p.entries[t].slow = slow
	}
}

// TakeDue returns the requests to send now and records them as sent.
func (p *Table) TakeDue(now time.Time) map[Target]Request {
	out := make(map[Target]Request, len(p.entries))
	for t, e := range p.entries {
		if e.slow && now.Before(e.due) {
			continue
		}
		e.due = now.Add(slowInterval)
		r := Request{p.NextSequence(), now}
		if len(e.pending) == 0 && e.dropped == 0 {
			e.first = now
		}
		if len(e.pending) == maxPending {
			e.pending = slices.Delete(e.pending, 0, 1)
			e.dropped++
		}
		e.pending = append(e.pending, r)
		out[t] = r
	}
	return out
}

// NextSequence numbers a request.
func (p *Table) NextSequence() uint16 {
	p.sequence++
	return p.sequence
}

// RecordAnswer records an answer and reports whether it belongs to a pending request.
func (p *Table) RecordAnswer(from netip.Addr, sequence uint16, now time.Time) bool {
	for t, e := range p.entries {
		if t.Addr != from {
			continue
		}
		i := slices.IndexFunc(e.pending, func(r Request) bool { return r.Sequence == sequence })
		if i < 0 {
			continue
		}
		e.answered, e.rtt = e.pending[i].At, now.Sub(e.pending[i].At)
		e.pending, e.dropped = slices.Delete(e.pending, 0, i+1), 0
		if len(e.pending) > 0 {
			e.first = e.pending[0].At
		}
		p.known[from] = true
		return true
	}
	return false
}

// overdue counts the requests of an entry that were not answered in time.
func (p *Table) overdue(e *entry, now time.Time) int {
	late := min(Grace, p.Interval) + min(2*e.rtt, slowInterval)
	n := e.dropped
	for _, r := range e.pending {
		if now.Sub(r.At) >= late {
			n++
		}
	}
	return n
}

// Results returns the results of all targets.
func (p *Table) Results(now time.Time) map[Target]Result {
	out := make(map[Target]Result, len(p.entries))
	for t, e := range p.entries {
		r := Result{Misses: p.overdue(e, now), Answered: e.answered, RTT: e.rtt, Known: p.known[t.Addr]}
		if r.Misses > 0 {
			r.FirstMiss, r.LastMiss = e.first, e.pending[max(r.Misses-e.dropped-1, 0)].At
		}
		out[t] = r
	}
	return out
}

// Level is a coarse state of a target; a change of it means that Evaluate must run again.
type Level int

const (
	unknown Level = iota
	answering
	suspect // some requests are overdue
	silent
)

// Levels returns the levels of all targets.
func (p *Table) Levels(now time.Time) map[Target]Level {
	out := make(map[Target]Level, len(p.entries))
	for t, e := range p.entries {
		switch n := p.overdue(e, now); {
		case n >= p.Misses:
			out[t] = silent
		case n >= suspectAfter:
			out[t] = suspect
		case !e.answered.IsZero():
			out[t] = answering
		}
	}
	return out
}
