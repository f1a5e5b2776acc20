// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"net/netip"
	"testing"
	"time"
)

func TestProbeTable(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	p := NewTable(Pace{250 * time.Millisecond, 3})
	fast, slow := Target{Addr: netip.MustParseAddr("10.4.0.1")}, Target{Addr: netip.MustParseAddr("10.4.0.2")}
	p.SetTargets([]ScheduledTarget{{fast, true}, {fast, false}, {slow, true}})
	check := func(what string, target Target, now time.Time, want Result) {
		t.Helper()
		if got := p.Results(now)[target]; got != want {
			t.Errorf("%s: got %+v, want %+v", what, got, want)
		}
	}
	first := p.TakeDue(at(0))
	if len(first) != 2 {
		t.Fatalf("first requests: got %v, want one to each", first)
	}
	if p.RecordAnswer(slow.Addr, first[fast].Sequence, at(1)) || p.RecordAnswer(fast.Addr, 999, at(1)) {
		t.Error("an answer without a pending request was recorded")
	}
	check("not overdue yet", fast, at(99), Result{})
	check("overdue", fast, at(100), Result{Misses: 1, FirstMiss: at(0), LastMiss: at(0)})
	p.RecordAnswer(fast.Addr, first[fast].Sequence, at(150))
	answered := Result{Answered: at(0), RTT: 150 * time.Millisecond, Known: true}
	check("answered late", fast, at(150), answered)
	if second := p.TakeDue(at(250)); len(second) != 1 {
		t.Errorf("second requests: got %v, want one to the fast target", second)
	}
	third := p.TakeDue(at(500))
	// Two round trips and the grace time are 400 ms now.
	check("one is overdue", fast, at(899), Result{Misses: 1, FirstMiss: at(250), LastMiss: at(250), Answered: at(0), RTT: answered.RTT, Known: true})
	p.RecordAnswer(fast.Addr, third[fast].Sequence, at(900))
	check("a later request was answered", fast, at(900), Result{Answered: at(500), RTT: 400 * time.Millisecond, Known: true})
	for ms := 2000; ms < 2000+250*maxPending*2; ms += 250 {
		p.TakeDue(at(ms))
	}
	r := p.Results(at(60_000))[fast]
	if r.Misses != 2*maxPending || r.FirstMiss != at(2000) || r.LastMiss != at(2000+250*(2*maxPending-1)) {
		t.Errorf("silent for long: got %+v", r)
	}
	p.SetTargets([]ScheduledTarget{{slow, true}})
	p.SetTargets([]ScheduledTarget{{fast, false}})
	check("removed and added again", fast, at(70_000), Result{Known: true})
}
