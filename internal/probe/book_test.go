// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"net/netip"
	"testing"
	"time"
)

func TestBook(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	b := newBook(Pace{250 * time.Millisecond, 3})
	fast, slow := Target{Addr: netip.MustParseAddr("10.4.0.1")}, Target{Addr: netip.MustParseAddr("10.4.0.2")}
	b.aim([]Aim{{fast, true}, {fast, false}, {slow, true}})
	check := func(what string, target Target, now time.Time, want Result) {
		t.Helper()
		if got := b.results(now)[target]; got != want {
			t.Errorf("%s: got %+v, want %+v", what, got, want)
		}
	}
	first := b.due(at(0))
	if len(first) != 2 {
		t.Fatalf("first requests: got %v, want one to each", first)
	}
	if b.answer(slow.Addr, first[fast].sequence, at(1)) || b.answer(fast.Addr, 999, at(1)) {
		t.Error("an answer that nobody waits for was taken")
	}
	check("under way", fast, at(99), Result{})
	check("overdue", fast, at(100), Result{Misses: 1, FirstMiss: at(0), LastMiss: at(0)})
	b.answer(fast.Addr, first[fast].sequence, at(150))
	well := Result{Answered: at(0), Since: at(150), RTT: 150 * time.Millisecond, Known: true}
	check("late", fast, at(150), well)
	if second := b.due(at(250)); len(second) != 1 {
		t.Errorf("second requests: got %v, want one to the fast target", second)
	}
	third := b.due(at(500))
	// Two round trips and patience are 400 ms now.
	check("one is overdue", fast, at(899), Result{Misses: 1, FirstMiss: at(250), LastMiss: at(250), Answered: at(0), Since: at(150), RTT: well.RTT, Known: true})
	b.answer(fast.Addr, third[fast].sequence, at(900))
	check("a later one was answered", fast, at(900), Result{Answered: at(500), Since: at(150), RTT: 400 * time.Millisecond, Known: true})
	for ms := 2000; ms < 2000+250*maxPending*2; ms += 250 {
		b.due(at(ms))
	}
	r := b.results(at(60_000))[fast]
	if r.Misses != 2*maxPending || r.FirstMiss != at(2000) || r.LastMiss != at(2000+250*(2*maxPending-1)) || !r.Since.IsZero() {
		t.Errorf("long silent: got %+v", r)
	}
	b.aim([]Aim{{slow, true}})
	b.aim([]Aim{{fast, false}})
	check("new again", fast, at(70_000), Result{Known: true})
}
