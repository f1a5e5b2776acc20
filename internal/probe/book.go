// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

// book keeps what was sent and answered. It does no I/O and reads no clock.
type book struct {
	Pace
	tracks   map[Target]*track
	known    map[netip.Addr]bool // addresses that have ever answered
	sequence uint16
}

// track is the book's page of one target.
type track struct {
	slow     bool
	due      time.Time
	pending  []request // unanswered, the oldest first
	dropped  int       // unanswered ones that are not in pending any more
	first    time.Time // when the oldest unanswered one was sent
	answered time.Time
	since    time.Time
	rtt      time.Duration
}

// request is one echo request.
type request struct {
	sequence uint16
	at       time.Time
}

func newBook(pace Pace) *book {
	return &book{Pace: pace, tracks: make(map[Target]*track), known: make(map[netip.Addr]bool)}
}

// aim replaces the targets. Those that stay keep what is known of them.
func (b *book) aim(aims []Aim) {
	wanted := make(map[Target]bool, len(aims)) // to whether slowly
	for _, a := range aims {
		slow, there := wanted[a.Target]
		wanted[a.Target] = a.Slow && (slow || !there)
	}
	maps.DeleteFunc(b.tracks, func(t Target, _ *track) bool { _, ok := wanted[t]; return !ok })
	for t, slow := range wanted {
		if b.tracks[t] == nil {
			b.tracks[t] = &track{}
		}
		b.tracks[t].slow = slow
	}
}

// due returns the requests to send now, and takes them for sent.
func (b *book) due(now time.Time) map[Target]request {
	out := make(map[Target]request, len(b.tracks))
	for t, k := range b.tracks {
		if k.slow && now.Before(k.due) {
			continue
		}
		k.due = now.Add(slowly)
		b.sequence++
		r := request{b.sequence, now}
		if len(k.pending) == 0 && k.dropped == 0 {
			k.first = now
		}
		if len(k.pending) == maxPending {
			k.pending = slices.Delete(k.pending, 0, 1)
			k.dropped++
		}
		k.pending = append(k.pending, r)
		out[t] = r
	}
	return out
}

// answer notes an answer. It says whether anybody had waited for it.
func (b *book) answer(from netip.Addr, sequence uint16, now time.Time) bool {
	for t, k := range b.tracks {
		if t.Addr != from {
			continue
		}
		i := slices.IndexFunc(k.pending, func(r request) bool { return r.sequence == sequence })
		if i < 0 {
			continue
		}
		if b.overdue(k, now) >= b.Misses {
			k.since = time.Time{} // it was silent
		}
		k.answered, k.rtt = k.pending[i].at, now.Sub(k.pending[i].at)
		k.pending, k.dropped = slices.Delete(k.pending, 0, i+1), 0
		if len(k.pending) > 0 {
			k.first = k.pending[0].at
		}
		if k.since.IsZero() {
			k.since = now
		}
		b.known[from] = true
		return true
	}
	return false
}

// overdue counts a track's misses.
func (b *book) overdue(k *track, now time.Time) int {
	late := min(patience, b.Interval) + min(2*k.rtt, slowly)
	n := k.dropped
	for _, r := range k.pending {
		if now.Sub(r.at) >= late {
			n++
		}
	}
	return n
}

// results returns what is known of all targets.
func (b *book) results(now time.Time) map[Target]Result {
	out := make(map[Target]Result, len(b.tracks))
	for t, k := range b.tracks {
		r := Result{Misses: b.overdue(k, now), Answered: k.answered, RTT: k.rtt, Since: k.since, Known: b.known[t.Addr]}
		if r.Misses > 0 {
			r.FirstMiss, r.LastMiss = k.first, k.pending[max(r.Misses-k.dropped-1, 0)].at
		}
		if r.Misses >= b.Misses {
			r.Since = time.Time{}
		}
		out[t] = r
	}
	return out
}

// level is how a target fares, as far as anybody has to look again.
type level int

const (
	unheard level = iota
	answers
	suspect // some requests are overdue
	silent
)

// levels returns how all targets fare.
func (b *book) levels(now time.Time) map[Target]level {
	out := make(map[Target]level, len(b.tracks))
	for t, k := range b.tracks {
		switch n := b.overdue(k, now); {
		case n >= b.Misses:
			out[t] = silent
		case n >= suspicion:
			out[t] = suspect
		case !k.answered.IsZero():
			out[t] = answers
		}
	}
	return out
}
