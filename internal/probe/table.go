// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

// probeTable records the requests and answers of all targets. It does no I/O and reads
// no clock.
type probeTable struct {
	Pace
	entries  map[Target]*entry
	known    map[netip.Addr]bool // addresses that have ever answered
	sequence uint16              // of the last request
}

// entry is the table's state of one target. See Result for answered, since and rtt.
type entry struct {
	slow     bool
	due      time.Time // when the next request of a slow target is sent
	pending  []request // unanswered, the oldest first
	dropped  int       // unanswered requests that are no longer in pending
	first    time.Time // when the oldest unanswered request was sent
	answered time.Time
	since    time.Time
	rtt      time.Duration
}

// request is one echo request.
type request struct {
	sequence uint16
	at       time.Time
}

func newProbeTable(pace Pace) *probeTable {
	return &probeTable{Pace: pace, entries: make(map[Target]*entry), known: make(map[netip.Addr]bool)}
}

// setTargets replaces the targets. Those that are in the table already keep their state.
func (p *probeTable) setTargets(aims []Aim) {
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

// takeDue returns the requests to send now and records them as sent.
func (p *probeTable) takeDue(now time.Time) map[Target]request {
	out := make(map[Target]request, len(p.entries))
	for t, e := range p.entries {
		if e.slow && now.Before(e.due) {
			continue
		}
		e.due = now.Add(slowInterval)
		p.sequence++
		r := request{p.sequence, now}
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

// recordAnswer records an answer and reports whether it belongs to a pending request.
func (p *probeTable) recordAnswer(from netip.Addr, sequence uint16, now time.Time) bool {
	for t, e := range p.entries {
		if t.Addr != from {
			continue
		}
		i := slices.IndexFunc(e.pending, func(r request) bool { return r.sequence == sequence })
		if i < 0 {
			continue
		}
		if p.overdue(e, now) >= p.Misses {
			e.since = time.Time{} // it was silent
		}
		e.answered, e.rtt = e.pending[i].at, now.Sub(e.pending[i].at)
		e.pending, e.dropped = slices.Delete(e.pending, 0, i+1), 0
		if len(e.pending) > 0 {
			e.first = e.pending[0].at
		}
		if e.since.IsZero() {
			e.since = now
		}
		p.known[from] = true
		return true
	}
	return false
}

// overdue counts the requests of an entry that were not answered in time.
func (p *probeTable) overdue(e *entry, now time.Time) int {
	late := min(grace, p.Interval) + min(2*e.rtt, slowInterval)
	n := e.dropped
	for _, r := range e.pending {
		if now.Sub(r.at) >= late {
			n++
		}
	}
	return n
}

// results returns the results of all targets.
func (p *probeTable) results(now time.Time) map[Target]Result {
	out := make(map[Target]Result, len(p.entries))
	for t, e := range p.entries {
		r := Result{Misses: p.overdue(e, now), Answered: e.answered, RTT: e.rtt, Since: e.since, Known: p.known[t.Addr]}
		if r.Misses > 0 {
			r.FirstMiss, r.LastMiss = e.first, e.pending[max(r.Misses-e.dropped-1, 0)].at
		}
		if r.Misses >= p.Misses {
			r.Since = time.Time{}
		}
		out[t] = r
	}
	return out
}

// level is a coarse state of a target; a change of it means that Judge must run again.
type level int

const (
	unknown level = iota
	answering
	suspect // some requests are overdue
	silent
)

// levels returns the levels of all targets.
func (p *probeTable) levels(now time.Time) map[Target]level {
	out := make(map[Target]level, len(p.entries))
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
