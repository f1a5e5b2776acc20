// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"crypto/rand"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

func TestNextSequence(t *testing.T) {
	now := time.UnixMilli(5_000)
	tests := []struct {
		name       string
		own, shown uint64
		now        time.Time
		want       uint64
	}{
		{"first", 0, 0, now, 1},
		{"next", 7, 7, now, 8},
		{"restart before the others say so", 7, 0, now, 8},
		{"somebody knows of more", 7, 9, now, 5_000},
		{"and is ahead of the clock", 7, 9_000, now, 9_001},
		{"a clock before its time", 7, 9, time.UnixMilli(-1), 10},
	}
	for _, tt := range tests {
		if got := nextSequence(tt.own, tt.shown, tt.now); got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestInstancesOrderByStart(t *testing.T) {
	earlier, err := newInstance(1_800_000_000, bytes.NewReader([]byte{255, 255, 255, 255}))
	if err != nil {
		t.Fatal(err)
	}
	later, err := newInstance(1_800_000_001, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if earlier >= later {
		t.Errorf("instances: got %d for the earlier start, %d for the later", earlier, later)
	}
	if _, err := newInstance(1, bytes.NewReader(nil)); err == nil {
		t.Error("no randomness: got no error")
	}
}

// node is a daemon as far as its own record goes: when it is shown one of
// another instance, it publishes the next.
type twinNode struct {
	twin
	instance  uint64
	published uint64
	sure      bool
}

func (n *twinNode) see(r mesh.Record, now time.Time) {
	if r.Sequence <= n.published {
		return // the store refuses it
	}
	n.sure = n.meet(n.instance, r, n.published, now) || n.sure
	n.published = nextSequence(n.published, r.Sequence, now)
}

func (n *twinNode) record() mesh.Record {
	return mesh.Record{Instance: n.instance, Sequence: n.published}
}

// Two that run at once both find out, whatever their clocks say.
func TestTwinsFindOut(t *testing.T) {
	for _, ahead := range []time.Duration{-time.Hour, 0, time.Hour} {
		a, b := &twinNode{instance: 1, published: 20}, &twinNode{instance: 2, published: 20}
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

// Somebody who has all records of our former lives, and whom alone we hear, can
// show them in any order and for as long as he likes.
func TestReplaysAreNoTwin(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	var old []mesh.Record
	life := &twinNode{instance: 1}
	for i := range uint64(2000) {
		if i%500 == 499 { // it has met a lost disk, or a twin
			life.published = nextSequence(life.published, life.published+1, start.Add(time.Duration(i)*time.Second))
		}
		life.published++
		old = append(old, life.record())
	}
	now := start.Add(time.Hour)
	n := &twinNode{instance: 2, published: 5} // put back from an old backup
	for range 3 {
		for _, r := range old {
			n.see(r, now)
			now = now.Add(100 * time.Millisecond)
		}
	}
	if n.sure || n.times > 1 {
		t.Errorf("replays of old records: got %+v, want them counted once at most", n.twin)
	}
}
