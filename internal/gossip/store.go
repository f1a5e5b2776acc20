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

// store holds the objects that count. As long as there is room, what it holds
// depends on the set of objects that it was given, not on their order or number,
// so that stores which have exchanged everything are equal. When the shared part
// of a budget is used up, whatever came first stays; what is within its author's
// own room is equal everywhere even then. It has no lock of its own.
type store struct {
	self    mesh.ID            // always finds its own room
	met     func(mesh.ID) bool // whether a node has greeted us, which takes its key
	objects map[objectKey]object
	rest    map[objectKey]object           // those that are no records: few, and looked through in every turn
	sums    map[[sha256.Size]byte]struct{} // of objects, to know a copy without checking its signature
	highest map[objectKey]uint64           // also of what is gone, against replay
	buried  map[mesh.ID]uint64             // by target, the highest sequence of its tombstones that count
	speak   map[mesh.ID]bool               // whose revocations matter, see revocations.matter
	usage
	digest  digest
	order   []object      // what sorted returned; nil after a change
	counted []mesh.Record // what records returned; nil after a change
}

func newStore() *store {
	return &store{
		met:     func(mesh.ID) bool { return true }, // of what is on disk, it is not known any more
		objects: make(map[objectKey]object),
		rest:    make(map[objectKey]object),
		sums:    make(map[[sha256.Size]byte]struct{}),
		highest: make(map[objectKey]uint64),
		buried:  make(map[mesh.ID]uint64),
		speak:   make(map[mesh.ID]bool),
		usage:   newUsage(),
	}
}

// has says whether exactly these bytes are held.
func (s *store) has(raw []byte) bool {
	_, ok := s.sums[sha256.Sum256(raw)]
	return ok
}

// worth says what would become of an object by its sequence alone: stale, buried, or
// fresh, which put decides. It needs no signature.
func (s *store) worth(o object) outcome {
	switch {
	case o.body.sequence() < s.highest[o.key]:
		return stale
	case s.covers(o):
		return buried
	}
	return fresh
}

// put takes in a checked object.
func (s *store) put(o object) outcome {
	sequence := o.body.sequence()
	held, holds := s.objects[o.key]
	if holds && held.sum == o.sum {
		return known
	}
	if worth := s.worth(o); worth != fresh {
		return worth
	}
	switch {
	case holds && sequence == held.body.sequence():
		if bytes.Compare(o.sum[:], held.sum[:]) < 0 {
			s.replace(o)
		}
		return conflict
	case !holds || held.class() != o.class():
		if room := s.makeRoom(o); room != fresh {
			return room
		}
	}
	s.highest[o.key] = sequence
	s.replace(o)
	if t, ok := o.body.(tombstone); ok {
		s.bury(t)
	}
	return fresh
}

// covers reports whether an object does not count because of a tombstone. The
// word of a revoked author does not, except that its revocations of those who
// revoke are needed to see who is revoked.
func (s *store) covers(o object) bool {
	if s.buried[o.key.author] != Forever {
		return o.body.covered(s.buried)
	}
	return o.class() != classRevocation || !s.speak[o.key.subject]
}

// bury makes a tombstone count that was just taken in.
func (s *store) bury(t tombstone) {
	if t.upTo == Forever {
		author := mesh.IDOf(t.identity)
		if s.speak[t.target] || s.buried[author] == Forever || len(s.held[holder{t.target, class(kindTombstone)}]) > 0 {
			s.rebury()
			return
		}
		s.speak[author] = true
	}
	s.buried[t.target] = max(s.buried[t.target], t.upTo)
	s.counted = nil
	if key := recordKey(t.target); s.highest[key] <= t.upTo {
		delete(s.highest, key)
	}
	if s.mentions[t.target] > 0 {
		s.dropCovered()
	}
}

// rebury works out anew which tombstones count. Whom a revoked author has buried
// is free to come back.
func (s *store) rebury() {
	given := s.revocations()
	revoked := given.revoked()
	s.speak = given.matter(revoked)
	clear(s.buried)
	s.counted = nil
	for _, o := range s.rest {
		if t, ok := o.body.(tombstone); ok && !revoked[o.key.author] && t.upTo != Forever {
			s.buried[t.target] = max(s.buried[t.target], t.upTo)
		}
	}
	for id := range revoked {
		s.buried[id] = Forever
	}
	s.dropCovered()
}

// dropCovered drops what tombstones cover, and what was remembered of it: from
// now on the tombstone refuses it.
func (s *store) dropCovered() {
	for _, o := range s.objects {
		if s.covers(o) {
			s.forget(o)
		}
	}
}

// forget drops an object as if it had never come.
func (s *store) forget(o object) {
	s.drop(o)
	delete(s.highest, o.key)
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
	s.add(o)
	s.sums[o.sum] = struct{}{}
	s.digest.toggle(o)
}

func (s *store) drop(o object) {
	delete(s.objects, o.key)
	delete(s.rest, o.key)
	s.order, s.counted = nil, nil
	s.remove(o)
	delete(s.sums, o.sum)
	s.digest.toggle(o)
}

// raise lifts the sequence below which a key's objects don't count, to what
// was seen before a restart. Tombstones and clients need none: they only grow.
func (s *store) raise(key objectKey, sequence uint64) {
	if key.kind != kindTombstone && key.kind != kindClient && len(s.highest) < maxRaised {
		s.highest[key] = max(s.highest[key], sequence)
	}
}

// settle ends what raise began: of what is gone, only the sequences of records
// are kept, one for each of as many nodes as may be known.
func (s *store) settle() {
	gone := 0
	for key := range s.highest {
		if _, ok := s.objects[key]; ok {
			continue
		}
		if gone++; key.kind != kindRecord || gone > maxAuthors {
			delete(s.highest, key)
		}
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
