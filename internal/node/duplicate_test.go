// SPDX-License-Identifier: Apache-2.0

package node

import (
	"testing"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// instance is a daemon as far as its own record goes: when it is shown one of another
// instance, it publishes the next.
type instance struct {
	duplicate
	number    uint64
	published uint64
	sure      bool
}

func (n *instance) see(r mesh.Record, now time.Time) {
	if r.Sequence <= n.published {
		return // the store refuses it
	}
	n.look(n.number, r, n.published, now)
	n.sure = n.runs(now) || n.sure
	n.published = NextSequence(n.published, r.Sequence, now)
}

func (n *instance) record() mesh.Record {
	return mesh.Record{Instance: n.number, Sequence: n.published}
}

// Two that run at once both find out, whatever their clocks say.
func TestDuplicatesFindOut(t *testing.T) {
	for _, ahead := range []time.Duration{-time.Hour, 0, time.Hour} {
		a, b := &instance{number: 1, published: 20}, &instance{number: 2, published: 20}
		b.published++
		for now := time.Unix(1_800_000_000, 0); !a.sure || !b.sure; now = now.Add(time.Second) {
			if now.Unix() > 1_800_000_060 {
				t.Fatalf("clock ahead by %v: after a minute got %+v and %+v, want both sure", ahead, a, b)
			}
			a.see(b.record(), now)
			b.see(a.record(), now.Add(ahead))
		}
	}
}

// TestSawDuplicate: of two instances the one that was started later gives way. The other one
// reports it as a problem, for as long as its records keep coming.
func TestSawDuplicate(t *testing.T) {
	records := location()
	for _, tt := range []struct {
		name        string
		own, theirs uint64
		want        bool
		problems    int
	}{{"ours is later", 2, 1, true, 1}, {"ours is earlier", 1, 2, false, 1}, {"it is ours", 1, 1, false, 0}} {
		in := Input{Now: time.Unix(1_800_000_000, 0), Self: Identity{Public: records[0].Identity, Instance: tt.own}}
		m := Memory{Own: mesh.Record{Sequence: 20}}
		saw := false
		for range 20 {
			other := records[0]
			other.Instance, other.Sequence = tt.theirs, m.Own.Sequence+1
			in.View.Records = append([]mesh.Record{other}, records[1:]...)
			saw = m.SawDuplicate(in) || saw
			m.Own.Sequence, in.Now = other.Sequence+1, in.Now.Add(time.Second)
		}
		problems := m.duplicate.problems("a1", in.Now)
		if saw != tt.want || len(problems) != tt.problems {
			t.Errorf("%s: got %t and %v, want %t and %d problems", tt.name, saw, problems, tt.want, tt.problems)
		}
		if later := m.duplicate.problems("a1", in.Now.Add(time.Hour)); len(later) > 0 {
			t.Errorf("%s: an hour later: got %v, want no problem", tt.name, later)
		}
	}
	if new(Memory).SawDuplicate(Input{}) {
		t.Error("without a record of ours: got a duplicate")
	}
}

// TestDuplicateWait: after a stop as a duplicate, a node leaves the host alone until it has
// heard from others, and from no other instance, for a while, however late the network is.
func TestDuplicateWait(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	records := location()
	other := records[0]
	other.Instance, other.Sequence = 1, 21
	for _, tt := range []struct {
		name         string
		merged, seen time.Duration // after the start; 0 for never
		want         time.Duration // after the start
	}{
		{"nobody is heard", 0, 0, listenFirst},
		{"others are heard", time.Second, 0, time.Second + duplicateGone},
		{"the network is late", 50 * time.Second, 0, 50*time.Second + duplicateGone},
		{"the other instance is heard", time.Second, 20 * time.Second, 20*time.Second + duplicateGone},
	} {
		m := Memory{Own: mesh.Record{Sequence: 20}}
		in := Input{Started: start, Self: Identity{Public: other.Identity, Instance: 2}, Promise: Promise{Duplicate: true}}
		var ended time.Duration
		for ; ended < 5*time.Minute; ended += time.Second {
			in.Now, in.View.Merged = start.Add(ended), tt.merged > 0 && ended >= tt.merged
			in.View.Records = records[1:]
			if tt.seen > 0 && ended == tt.seen {
				in.View.Records = append([]mesh.Record{other}, records[1:]...)
			}
			m.SawDuplicate(in)
			if m.DuplicateWait(in) == 0 {
				break
			}
		}
		if ended != tt.want {
			t.Errorf("%s: got %v after the start, want %v", tt.name, ended, tt.want)
		}
		in.Promise.Duplicate = false
		if got := new(Memory).DuplicateWait(in); got != 0 {
			t.Errorf("after any other stop: got %v, want no wait", got)
		}
	}
}

// Somebody who has all records of our former lives, and whom alone we hear, can
// show them in any order and for as long as he likes.
func TestReplaysAreNoDuplicate(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	var old []mesh.Record
	life := &instance{number: 1}
	for i := range uint64(2000) {
		if i%500 == 499 { // it has met a lost disk, or a duplicate
			life.published = NextSequence(life.published, life.published+1, start.Add(time.Duration(i)*time.Second))
		}
		life.published++
		old = append(old, life.record())
	}
	now := start.Add(time.Hour)
	n := &instance{number: 2, published: 5} // put back from an old backup
	for range 3 {
		for _, r := range old {
			n.see(r, now)
			now = now.Add(100 * time.Millisecond)
		}
	}
	if n.sure || n.times > 1 {
		t.Errorf("replays of old records: got %+v, want them counted once at most", n.duplicate)
	}
}
