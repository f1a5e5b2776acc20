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

// outcome is the result of adding an object to the store.
type outcome int

const (
	fresh    outcome = iota // new, and counts
	known                   // already stored
	stale                   // a later version was seen
	covered                 // a tombstone covers it
	conflict                // another object has its sequence; the lower hash counts
	full                    // there is no room
)

// store holds the objects that count. As long as there is room, its content depends only
// on the set of objects that were added, not on their order or number, so that stores
// which have exchanged everything are equal. When the shared part of a budget is used up,
// the objects that came first stay; even then, what is within each author's own room is
// equal everywhere. It has no lock of its own.
type store struct {
	self          mesh.ID            // its own objects always find room
	hasMet        func(mesh.ID) bool // whether a node has proved its identity to us in a stream
	objects       map[objectKey]object
	nonRecords    map[objectKey]object           // the objects that are not records: iterated often
	sums          map[[sha256.Size]byte]struct{} // of objects, to recognize copies without checking their signatures
	highest       map[objectKey]uint64           // also of dropped objects, to detect replays
	forgottenUpTo map[mesh.ID]uint64             // the highest sequence of the tombstones of each target that count
	usage
	digest       digest
	sortedCache  []object      // cache of sorted; nil after a change
	recordsCache []mesh.Record // cache of records; nil after a change
}

func newStore() *store {
	return &store{
		hasMet:        func(mesh.ID) bool { return true }, // unknown for objects that are read from disk
		objects:       make(map[objectKey]object),
		nonRecords:    make(map[objectKey]object),
		sums:          make(map[[sha256.Size]byte]struct{}),
		highest:       make(map[objectKey]uint64),
		forgottenUpTo: make(map[mesh.ID]uint64),
		usage:         newUsage(),
	}
}

// has reports whether exactly these bytes are stored.
func (s *store) has(raw []byte) bool {
	_, ok := s.sums[sha256.Sum256(raw)]
	return ok
}

// precheck returns what put would return because of an object's sequence alone: stale or
// covered, or fresh if put has to decide. It does not need the signature.
func (s *store) precheck(o object) outcome {
	switch {
	case o.body.sequence() < s.highest[o.key]:
		return stale
	case s.covers(o):
		return covered
	}
	return fresh
}

// put adds a checked object.
func (s *store) put(o object) outcome {
	sequence := o.body.sequence()
	held, holds := s.objects[o.key]
	if holds && held.sum == o.sum {
		return known
	}
	if result := s.precheck(o); result != fresh {
		return result
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
		s.applyTombstone(t)
	}
	return fresh
}

// covers reports whether an object does not count because of a tombstone. Objects of a
// revoked author don't count, but its revocations stay: who is revoked follows from all
// of them, and stores that drop some as others arrive would never agree.
func (s *store) covers(o object) bool {
	if s.forgottenUpTo[o.key.author] != mesh.Forever {
		return o.body.covered(s.forgottenUpTo)
	}
	return o.class() != classRevocation
}

// applyTombstone applies a tombstone that was just added.
func (s *store) applyTombstone(t tombstone) {
	if t.upTo == mesh.Forever {
		made := len(s.held[holder{t.target, classRevocation}]) + len(s.held[holder{t.target, class(kindTombstone)}])
		if made > 0 || s.forgottenUpTo[mesh.IDOf(t.identity)] == mesh.Forever {
			s.reapplyTombstones()
			return
		}
	}
	s.forgottenUpTo[t.target] = max(s.forgottenUpTo[t.target], t.upTo)
	s.recordsCache = nil
	if key := recordKey(t.target); s.highest[key] <= t.upTo {
		delete(s.highest, key)
	}
	if s.mentions[t.target] > 0 {
		s.dropCovered()
	}
}

// reapplyTombstones determines again which tombstones count. A node that only a revoked
// author has forgotten can return.
func (s *store) reapplyTombstones() {
	revoked := s.revocations().revoked()
	for s.trimRevocations(revoked) {
		revoked = s.revocations().revoked()
	}
	s.forgottenUpTo = make(map[mesh.ID]uint64)
	s.recordsCache = nil
	for _, o := range s.nonRecords {
		if t, ok := o.body.(tombstone); ok && !revoked[o.key.author] && t.upTo != mesh.Forever {
			s.forgottenUpTo[t.target] = max(s.forgottenUpTo[t.target], t.upTo)
		}
	}
	for id := range revoked {
		s.forgottenUpTo[id] = mesh.Forever
	}
	s.dropCovered()
}

// trimRevocations leaves revoked authors only their own room for revocations, and reports
// whether any had more. Those with the lowest places stay, so that all nodes keep the same
// ones.
func (s *store) trimRevocations(revoked map[mesh.ID]bool) (trimmed bool) {
	for author := range revoked {
		for h := (holder{author, classRevocation}); len(s.held[h]) > budgets[classRevocation].own; trimmed = true {
			s.erase(s.leastNeeded(h))
		}
	}
	return trimmed
}

// dropCovered drops what tombstones cover, and its highest sequences: from now on the
// tombstone refuses it.
func (s *store) dropCovered() {
	before := len(s.objects)
	for _, o := range s.objects {
		if s.covers(o) {
			s.erase(o)
		}
	}
	if len(s.objects) < before/2 {
		s.objects, s.nonRecords = compacted(s.objects), compacted(s.nonRecords)
		s.sums, s.highest = compacted(s.sums), compacted(s.highest)
	}
}

// compacted returns a copy of a map that takes no more memory than its entries need: maps don't shrink, and
// whoever was revoked may have filled them.
func compacted[K comparable, V any](m map[K]V) map[K]V {
	out := make(map[K]V, len(m))
	maps.Copy(out, m)
	return out
}

// erase drops an object as if it had never come.
func (s *store) erase(o object) {
	s.drop(o)
	delete(s.highest, o.key)
}

func (s *store) replace(o object) {
	if old, ok := s.objects[o.key]; ok {
		s.drop(old)
	}
	s.objects[o.key] = o
	if o.key.kind != kindRecord {
		s.nonRecords[o.key] = o
	}
	s.sortedCache, s.recordsCache = nil, nil
	s.add(o)
	s.sums[o.sum] = struct{}{}
	s.digest.toggle(o)
}

func (s *store) drop(o object) {
	delete(s.objects, o.key)
	delete(s.nonRecords, o.key)
	s.sortedCache, s.recordsCache = nil, nil
	s.remove(o)
	delete(s.sums, o.sum)
	s.digest.toggle(o)
}

// raise restores the highest sequence of a key that was seen before a restart. Tombstones
// and clients don't need it: their set only grows.
func (s *store) raise(key objectKey, sequence uint64) {
	if key.kind != kindTombstone && key.kind != kindClient && len(s.highest) < maxRaised {
		s.highest[key] = max(s.highest[key], sequence)
	}
}

// pruneHighest ends the restoring of highest sequences: of objects that are not stored,
// it keeps only those of records, for at most as many nodes as may be known.
func (s *store) pruneHighest() {
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

// records returns the records that count, by fingerprint. They must not be changed.
func (s *store) records() []mesh.Record {
	if s.recordsCache != nil {
		return s.recordsCache
	}
	objects := slices.SortedFunc(maps.Values(s.objects), func(a, b object) int { return a.key.author.Compare(b.key.author) })
	s.recordsCache = make([]mesh.Record, 0, len(objects)) // not nil, even if there are none
	for _, o := range objects {
		if r, ok := o.body.(recordBody); ok {
			// A claim is forgotten with the record that made it.
			if up := s.forgottenUpTo[o.key.author]; up > 0 && r.Claim.Since <= up {
				r.Claim = mesh.Claim{Slot: mesh.None}
			}
			s.recordsCache = append(s.recordsCache, r.Record)
		}
	}
	return s.recordsCache
}

// sorted returns all objects in the order of their keys' hashes.
func (s *store) sorted() []object {
	if s.sortedCache == nil {
		s.sortedCache = slices.SortedFunc(maps.Values(s.objects), func(a, b object) int {
			return cmp.Or(cmp.Compare(a.place, b.place), bytes.Compare(a.sum[:], b.sum[:]))
		})
	}
	return s.sortedCache
}

// within returns the objects whose keys' hashes are between first and last, inclusive.
func (s *store) within(first, last uint64) []object {
	all := s.sorted()
	lo := sort.Search(len(all), func(i int) bool { return all[i].place >= first })
	hi := lo + sort.Search(len(all)-lo, func(i int) bool { return all[lo+i].place > last })
	return all[lo:hi]
}

// buckets is the number of parts in which two stores are compared: their digests fit into
// one packet.
const buckets = 64

// digest summarizes a store: for each bucket of keys, the XOR of its objects' hashes.
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

// root returns the hash of the digest.
func (d *digest) root() []byte {
	sum := sha256.Sum256(d.bytes())
	return sum[:rootSize]
}
