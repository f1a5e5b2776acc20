// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"slices"
	"sort"

	"github.com/meshd/meshd/internal/mesh"
)

// outcome says what became of an object that was given to the store.
type outcome int

const (
	fresh    outcome = iota // it is new and counts
	known                   // it was there
	stale                   // a later version was seen
	buried                  // a tombstone covers it
	conflict                // another object has its sequence; the lower hash counts
	full                    // there is no room
)

// store holds the objects that count. What it holds depends on the set of
// objects that it was given, not on their order or number, so that stores which
// have exchanged everything are equal. It has no lock of its own.
type store struct {
	objects map[objectKey]object
	rest    map[objectKey]object           // those that are no records: few, and looked through in every turn
	sums    map[[sha256.Size]byte]struct{} // of objects, to know a copy without checking its signature
	highest map[objectKey]uint64           // also of what is gone, against replay
	buried  map[mesh.ID]uint64             // by target, the highest sequence of its tombstones
	digest  digest
	order   []object      // what sorted returned; nil after a change
	counted []mesh.Record // what records returned; nil after a change
}

func newStore() *store {
	return &store{
		objects: make(map[objectKey]object),
		rest:    make(map[objectKey]object),
		sums:    make(map[[sha256.Size]byte]struct{}),
		highest: make(map[objectKey]uint64),
		buried:  make(map[mesh.ID]uint64),
	}
}

// has says whether exactly these bytes are held.
func (s *store) has(raw []byte) bool {
	_, ok := s.sums[sha256.Sum256(raw)]
	return ok
}

// put takes in a checked object.
func (s *store) put(o object) outcome {
	sequence, highest := o.body.sequence(), s.highest[o.key]
	held, holds := s.objects[o.key]
	switch {
	case holds && held.sum == o.sum:
		return known
	case sequence < highest:
		return stale
	case o.body.covered(s.buried):
		return buried
	case holds && sequence == held.body.sequence():
		if bytes.Compare(o.sum[:], held.sum[:]) < 0 {
			s.replace(o)
		}
		return conflict
	case highest == 0 && len(s.highest) >= maxObjects && !s.frees(o):
		return full
	}
	s.highest[o.key] = sequence
	s.replace(o)
	if t, ok := o.body.(tombstone); ok {
		s.bury(t)
	}
	return fresh
}

// bury drops what a tombstone covers, the record and what goes with it, and
// what was remembered of it: from now on the tombstone refuses it. So a node
// that is forgotten takes one place, not two.
func (s *store) bury(t tombstone) {
	s.buried[t.target] = max(s.buried[t.target], t.upTo)
	s.counted = nil
	for key, o := range s.objects {
		if o.body.covered(s.buried) {
			s.drop(o)
			delete(s.highest, key)
		}
	}
	if key := recordKey(t.target); s.highest[key] <= t.upTo {
		delete(s.highest, key)
	}
}

// frees says whether an object makes as much room as it takes. It is how a
// store that is full becomes useful again.
func (s *store) frees(o object) bool {
	t, ok := o.body.(tombstone)
	if !ok {
		return false
	}
	highest := s.highest[recordKey(t.target)]
	return highest > 0 && highest <= t.upTo || slices.ContainsFunc(s.sorted(), func(o object) bool {
		return o.key.kind == kindClient && o.key.subject == t.target
	})
}

func (s *store) replace(o object) {
	if old, ok := s.objects[o.key]; ok {
		s.drop(old)
	}
	s.objects[o.key] = o
	if o.key.kind != kindRecord {
		s.rest[o.key] = o
	}
	s.order, s.counted = nil, nil
	s.sums[o.sum] = struct{}{}
	s.digest.toggle(o)
}

func (s *store) drop(o object) {
	delete(s.objects, o.key)
	delete(s.rest, o.key)
	s.order, s.counted = nil, nil
	delete(s.sums, o.sum)
	s.digest.toggle(o)
}

// raise lifts the sequence below which a key's objects don't count, to what
// was seen before a restart.
func (s *store) raise(key objectKey, sequence uint64) {
	if _, ok := s.highest[key]; ok || len(s.highest) < maxObjects {
		s.highest[key] = max(s.highest[key], sequence)
	}
}

// records returns the records that count, by fingerprint. They are not to be
// changed.
func (s *store) records() []mesh.Record {
	if s.counted != nil {
		return s.counted
	}
	objects := slices.SortedFunc(maps.Values(s.objects), func(a, b object) int { return a.key.author.Compare(b.key.author) })
	s.counted = make([]mesh.Record, 0, len(objects)) // not nil, even if there are none
	for _, o := range objects {
		if r, ok := o.body.(recordBody); ok {
			// A claim is forgotten with the record that made it.
			if up := s.buried[o.key.author]; up > 0 && r.Claim.Since <= up {
				r.Claim = mesh.Claim{Slot: mesh.None}
			}
			s.counted = append(s.counted, r.Record)
		}
	}
	return s.counted
}

// raws returns all objects, by key, so that equal stores return the same.
func (s *store) raws() [][]byte {
	var all [][]byte
	for _, o := range s.sorted() {
		all = append(all, o.raw)
	}
	return all
}

// sorted returns all objects in the order of their keys' hashes.
func (s *store) sorted() []object {
	if s.order == nil {
		s.order = slices.SortedFunc(maps.Values(s.objects), func(a, b object) int {
			return cmp.Or(cmp.Compare(a.place, b.place), bytes.Compare(a.sum[:], b.sum[:]))
		})
	}
	return s.order
}

// within returns the objects whose keys' hashes lie between two, both included.
func (s *store) within(first, last uint64) []object {
	all := s.sorted()
	lo := sort.Search(len(all), func(i int) bool { return all[i].place >= first })
	hi := lo + sort.Search(len(all)-lo, func(i int) bool { return all[lo+i].place > last })
	return all[lo:hi]
}

// buckets is the number of parts in which two stores are compared: their
// digests fit one packet.
const buckets = 64

// digest is a store's content in short: for each bucket of keys, the hashes of
// its objects, each XORed in and out as it comes and goes.
type digest [buckets]uint64

func bucketOf(keyHash uint64) int { return int(keyHash >> 58) }

func (d *digest) toggle(o object) {
	d[bucketOf(o.place)] ^= binary.BigEndian.Uint64(o.sum[:])
}

func (d *digest) bytes() []byte {
	b := make([]byte, 0, 8*buckets)
	for _, sum := range d {
		b = binary.BigEndian.AppendUint64(b, sum)
	}
	return b
}

const rootSize = 16

// root is the digest of the digest.
func (d *digest) root() []byte {
	sum := sha256.Sum256(d.bytes())
	return sum[:rootSize]
}
