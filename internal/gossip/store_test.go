// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/meshd/meshd/internal/mesh"
)

func mustDecode(t testing.TB, raw []byte) object {
	t.Helper()
	o, err := decodeObject("default", raw)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// conflicting returns a record with the same sequence as testRecord's, but different
// content.
func conflicting(t testing.TB, n int, sequence uint64) []byte {
	r := testRecord(n, sequence)
	r.Location = "elsewhere"
	return signRecord(t, n, r)
}

// A node that returns after it was forgotten has no claim from before, however new its
// records are: its slot may belong to another node by now.
func TestClaimsAreForgottenWithTheirRecord(t *testing.T) {
	record := func(sequence, since uint64) []byte {
		r := testRecord(0, sequence)
		r.Claim.Since = since
		return signRecord(t, 0, r)
	}
	s := newStore()
	for _, step := range []struct {
		raw  []byte
		want int // the slot
	}{
		{record(4, 3), 0},
		{signTombstone(t, 1, testRecord(0, 1).ID(), 5), mesh.None}, // no record remains
		{record(6, 3), mesh.None},
		{record(7, 7), 0},
	} {
		s.put(mustDecode(t, step.raw))
		got := mesh.None
		for _, r := range s.records() {
			got = r.Claim.Slot
		}
		if got != step.want {
			t.Errorf("slot: got %d, want %d", got, step.want)
		}
	}
}

func TestStorePut(t *testing.T) {
	id := testRecord(0, 1).ID()
	record := func(sequence uint64) []byte { return signRecord(t, 0, testRecord(0, sequence)) }
	type step struct {
		raw  []byte
		want outcome
	}
	tests := []struct {
		name  string
		steps []step
		left  int
	}{
		{"highest counts", []step{{record(2), fresh}, {record(1), stale}, {record(3), fresh}, {record(3), known}}, 1},
		{"same sequence, other bytes", []step{{record(2), fresh}, {conflicting(t, 0, 2), conflict}}, 1},
		{"forgotten", []step{{record(2), fresh}, {signTombstone(t, 1, id, 2), fresh}, {record(2), covered}, {record(3), fresh}}, 2},
		{"forgotten before it came", []step{{signTombstone(t, 1, id, 5), fresh}, {record(4), covered}, {record(6), fresh}}, 2},
		{"a lower tombstone does not count", []step{{signTombstone(t, 1, id, 5), fresh}, {signTombstone(t, 1, id, 3), stale}, {record(4), covered}}, 1},
		{"revoked", []step{{record(2), fresh}, {signTombstone(t, 1, id, mesh.Forever), fresh}, {record(maxSequence), covered}}, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore()
			for i, step := range tt.steps {
				if got := s.put(mustDecode(t, step.raw)); got != step.want {
					t.Errorf("step %d: got %v, want %v", i, got, step.want)
				}
			}
			if len(s.objects) != tt.left || len(s.sums) != tt.left {
				t.Errorf("%d objects and %d sums are left, want %d", len(s.objects), len(s.sums), tt.left)
			}
		})
	}
}

func TestReplayFailsAfterRestart(t *testing.T) {
	s := newStore()
	old, recent := mustDecode(t, signRecord(t, 0, testRecord(0, 3))), mustDecode(t, signRecord(t, 0, testRecord(0, 4)))
	s.raise(old.key, 4)
	if got := s.put(old); got != stale {
		t.Errorf("old record: got %v, want %v", got, stale)
	}
	if got := s.put(recent); got != fresh {
		t.Errorf("recent record: got %v, want %v", got, fresh)
	}
}

// pool returns the objects of the property tests: versions of some records, two with the
// same sequence, verdicts of the nodes on each other, and tombstones.
func pool(t testing.TB) []object {
	var all []object
	for n := range 3 {
		for sequence := range uint64(4) {
			v := verdict{testVerdict(n, (n+1)%3, mesh.HealthDown, sequence+1), sequence, sequence + 1}
			all = append(all, mustDecode(t, signRecord(t, n, testRecord(n, sequence+1))), mustDecode(t, signVerdict(t, n, v)))
		}
		all = append(all,
			mustDecode(t, conflicting(t, n, 2)), mustDecode(t, conflicting(t, n, 4)),
			mustDecode(t, signTombstone(t, n, testRecord((n+1)%3, 1).ID(), 1)),
			mustDecode(t, signTombstone(t, n, testRecord((n+1)%3, 1).ID(), 3)))
	}
	return append(all, mustDecode(t, signTombstone(t, 2, testRecord(1, 1).ID(), mesh.Forever)))
}

// exchange runs one comparison that a starts, over packets that all arrive.
func exchange(t rapid.TB, a, b *store) {
	type packet struct {
		to, from *store
		step     []byte
		objects  [][]byte
	}
	queue := []packet{{to: b, from: a, step: a.rootMessage()}}
	for n := 0; len(queue) > 0; n++ {
		if n > 1000 {
			t.Fatal("the exchange does not end")
		}
		p := queue[0]
		queue = queue[1:]
		for _, raw := range p.objects {
			o, err := decodeObject("default", raw)
			if err != nil {
				t.Fatal(err)
			}
			p.to.put(o)
		}
		if p.step == nil {
			continue
		}
		if len(p.step) > maxPayload {
			t.Fatalf("a step of %d bytes", len(p.step))
		}
		steps, objects, err := p.to.answer(p.step)
		if err != nil {
			t.Fatal(err)
		}
		if len(objects) > 0 {
			queue = append(queue, packet{to: p.from, from: p.to, objects: objects})
		}
		for _, s := range steps {
			queue = append(queue, packet{to: p.from, from: p.to, step: s})
		}
	}
}

// raws returns all objects, in order, so that equal stores return the same.
func (s *store) raws() [][]byte {
	var all [][]byte
	for _, o := range s.sorted() {
		all = append(all, o.raw)
	}
	return all
}

func equalStores(a, b *store) bool {
	return slices.EqualFunc(a.raws(), b.raws(), bytes.Equal) && bytes.Equal(a.digest.root(), b.digest.root())
}

// offer adds objects to a store until nothing changes, as other nodes do that have them:
// what a revoked node has removed may come back.
func offer(s *store, objects []object) {
	for again := true; again; {
		again = false
		for _, o := range objects {
			again = s.put(o) == fresh || again
		}
	}
}

// Whatever objects arrive, in any order, twice or not at all: once the stores have been
// compared, they are equal, and once all objects are sent again, equal to a store that
// received all.
func TestStoresConverge(t *testing.T) {
	objects := pool(t)
	rapid.Check(t, func(t *rapid.T) {
		stores := []*store{newStore(), newStore(), newStore()}
		everything := newStore()
		var all []object
		for i := range stores {
			delivered := rapid.SliceOfN(rapid.SampledFrom(objects), 0, 20).Draw(t, fmt.Sprint("delivered", i))
			for _, o := range delivered {
				stores[i].put(o)
			}
			all = append(all, delivered...)
		}
		offer(everything, all)
		for range 2 * len(stores) {
			exchange(t, stores[0], stores[1])
			exchange(t, stores[1], stores[2])
			exchange(t, stores[2], stores[0])
		}
		for i, s := range stores {
			if !equalStores(s, stores[2]) {
				t.Errorf("store %d: %d objects, want %d", i, len(s.objects), len(stores[2].objects))
			}
		}
		for i, s := range stores {
			offer(s, all) // as authors do whose records were removed by a node that is revoked now
			if !equalStores(s, everything) {
				t.Errorf("store %d: %d objects, want %d", i, len(s.objects), len(everything.objects))
			}
		}
	})
}

// Neither the order of delivery nor repetition matters.
func TestStoreIsAFunctionOfTheSet(t *testing.T) {
	objects := pool(t)
	rapid.Check(t, func(t *rapid.T) {
		delivered := rapid.SliceOf(rapid.SampledFrom(objects)).Draw(t, "delivered")
		again := rapid.Permutation(delivered).Draw(t, "again")
		a, b := newStore(), newStore()
		offer(a, delivered)
		offer(b, again)
		if !equalStores(a, b) {
			t.Errorf("%d objects and %d objects", len(a.objects), len(b.objects))
		}
	})
}

// A store of many objects is compared in several packets and rounds.
func TestLargeStoresConverge(t *testing.T) {
	a, b := newStore(), newStore()
	for n := range 600 {
		a.put(mustDecode(t, signTombstone(t, 0, mesh.ID{byte(n), byte(n >> 8)}, 1)))
	}
	rapid.Check(t, func(t *rapid.T) {
		for range 50 {
			if equalStores(a, b) {
				return
			}
			exchange(t, b, a)
		}
		t.Fatalf("%d of %d objects arrived", len(b.objects), len(a.objects))
	})
}

func FuzzAnswer(f *testing.F) {
	s := newStore()
	for _, o := range pool(f) {
		s.put(o)
	}
	f.Add(newStore().rootMessage())
	f.Add(append([]byte{stepBuckets}, make([]byte, 8*buckets)...))
	for _, m := range s.listDifferences(make([]byte, 8*buckets)) {
		f.Add(m)
	}
	f.Add([]byte{stepWant, 1, 2, 3, 4, 5, 6, 7, 8})
	f.Fuzz(func(t *testing.T, b []byte) {
		steps, objects, err := s.answer(b)
		if err != nil {
			return
		}
		size := 0
		for _, o := range objects {
			size += len(o)
		}
		if len(steps) > maxListPackets || size > maxReplyBytes {
			t.Errorf("%d steps and %d bytes of objects in reply", len(steps), size)
		}
	})
}

// Forgetting a node frees its place in a full store.
func TestForgettingFreesAFullStore(t *testing.T) {
	s := newStore()
	gone, news := mustDecode(t, signRecord(t, 1, testRecord(1, 7))), mustDecode(t, signRecord(t, 0, testRecord(0, 1)))
	s.put(gone)
	s.put(mustDecode(t, signRecord(t, 2, testRecord(2, 1))))
	for n := 0; len(s.authors) < maxAuthors; n++ {
		s.authors[mesh.ID{1, byte(n), byte(n >> 8)}]++
	}
	if got := s.put(news); got != full {
		t.Errorf("new record: got %v, want %v", got, full)
	}
	if got := s.put(mustDecode(t, signTombstone(t, 2, gone.key.author, 7))); got != fresh {
		t.Errorf("tombstone: got %v, want %v", got, fresh)
	}
	if got := s.put(gone); got != covered {
		t.Errorf("forgotten record: got %v, want %v", got, covered)
	}
	if got := s.put(news); got != fresh {
		t.Errorf("new record: got %v, want %v", got, fresh)
	}
}

// Objects that the other side always refuses, here because it has seen later ones, don't
// hide those that it would accept.
func TestLastingDifferenceHidesNothing(t *testing.T) {
	const refused = 900
	a := newStore()
	seen := make(map[objectKey]uint64)
	for n := range refused {
		o := mustDecode(t, signTombstone(t, 0, mesh.ID{byte(n), byte(n >> 8)}, 1))
		a.put(o)
		seen[o.key] = 2
	}
	const wanted = 20
	for n := range wanted {
		a.put(mustDecode(t, signRecord(t, n, testRecord(n, 1))))
	}
	for _, begins := range []string{"the one that has", "the one that lacks"} {
		t.Run(begins, func(t *testing.T) {
			b := newStore()
			for key, sequence := range seen {
				b.highest[key] = sequence
			}
			first, second := a, b
			if begins == "the one that lacks" {
				first, second = b, a
			}
			for range 300 {
				if len(b.objects) == wanted {
					return
				}
				exchange(t, first, second)
			}
			t.Errorf("%d of %d records arrived", len(b.objects), wanted)
		})
	}
}

func TestListMustAscend(t *testing.T) {
	list := func(ranges ...[2]uint64) []byte {
		var b []byte
		for _, r := range ranges {
			b = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, r[0]), r[1])
			b = append(b, 0)
		}
		return b
	}
	tests := []struct {
		name   string
		ranges [][2]uint64
		ok     bool
	}{
		{"ascending", [][2]uint64{{0, 5}, {6, 6}, {9, math.MaxUint64}}, true},
		{"the same again", [][2]uint64{{0, math.MaxUint64}, {0, math.MaxUint64}}, false},
		{"overlapping", [][2]uint64{{0, 5}, {5, 9}}, false},
		{"backwards", [][2]uint64{{5, 0}}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := parseRanges(list(tt.ranges...)); (err == nil) != tt.ok {
				t.Errorf("got %v, want ok %v", err, tt.ok)
			}
		})
	}
}

// largeStore returns a store with a thousand records.
func largeStore(b *testing.B) *store {
	s := newStore()
	for n := range 1000 {
		r := testRecord(n, 1)
		r.Key = [32]byte{1}
		s.put(mustDecode(b, signRecord(b, n, r)))
	}
	return s
}

// BenchmarkCompare measures the cost of the largest list that fits into one packet.
func BenchmarkCompare(b *testing.B) {
	s := largeStore(b)
	list := s.listDifferences(make([]byte, 8*buckets))[0]
	for b.Loop() {
		if _, _, err := s.answer(list); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkViewAndRemember(b *testing.B) {
	now := time.Unix(1700000000, 0)
	g := idle(b, &now)
	g.store = largeStore(b)
	b.Run("view", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			g.View()
		}
	})
	b.Run("remember", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			g.Remember()
		}
	})
}
