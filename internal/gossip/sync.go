// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
)

// Two stores are compared in at most four steps. Each step is one packet, and is answered
// from the packet and the store alone, so that no node keeps state about an exchange.
//
//	A                      B
//	stepRoot    ────────►        equal: it ends here, which is the rule
//	            ◄────────  stepBuckets
//	stepList    ────────►        what A has in the buckets that differ
//	            ◄────────  stepWant and objects that A lacks
//	objects     ────────►
const (
	stepRoot    = 1 // digest.root
	stepBuckets = 2 // digest
	stepList    = 3 // ranges, each with entries
	stepWant    = 4 // hashes of keys
)

// Limits of the work that one packet causes. What remains is done the next time.
const (
	maxListPackets = 8
	maxReplyBytes  = 16 * maxPayload
)

// entry is an object in a list: the hash of its key, its sequence, and the first bytes of
// its own hash in case two have the same sequence.
type entry struct {
	key      uint64
	sequence uint64
	sum      uint32
}

const (
	entrySize  = 8 + 8 + 4
	rangeSize  = 8 + 8 + 1 // first key, last key, number of entries
	maxEntries = (maxPayload - 1 - rangeSize) / entrySize
)

func entryOf(o object) entry {
	return entry{o.place, o.body.sequence(), binary.BigEndian.Uint32(o.sum[:])}
}

// newer reports whether e counts instead of o.
func (e entry) newer(o entry) bool {
	return e.sequence > o.sequence || e.sequence == o.sequence && e.sum < o.sum
}

// rootMessage returns the first step of a comparison.
func (s *store) rootMessage() []byte { return append([]byte{stepRoot}, s.digest.root()...) }

// answer returns the reply to a step: further steps, and objects.
func (s *store) answer(message []byte) (steps, objects [][]byte, err error) {
	if len(message) == 0 {
		return nil, nil, fmt.Errorf("read step: %w", errShort)
	}
	content := message[1:]
	switch message[0] {
	case stepRoot:
		if len(content) != rootSize {
			return nil, nil, fmt.Errorf("read root: %d bytes", len(content))
		}
		if !bytes.Equal(content, s.digest.root()) {
			steps = [][]byte{append([]byte{stepBuckets}, s.digest.bytes()...)}
		}
		return steps, nil, nil
	case stepBuckets:
		if len(content) != 8*buckets {
			return nil, nil, fmt.Errorf("read buckets: %d bytes", len(content))
		}
		return s.listDifferences(content), nil, nil
	case stepList:
		return s.compare(content)
	case stepWant:
		objects, err = s.wanted(content)
		return nil, objects, err
	}
	return nil, nil, fmt.Errorf("read step: unknown step %d", message[0])
}

// listDifferences lists our objects in the buckets that differ from theirs. It starts at
// a random bucket, so that a lasting difference, as between full stores, never hides the
// buckets behind it for ever.
func (s *store) listDifferences(theirs []byte) [][]byte {
	begin := rand.IntN(buckets)
	messages := append(s.listBuckets(theirs, begin, buckets), s.listBuckets(theirs, 0, begin)...)
	return messages[:min(len(messages), maxListPackets)]
}

// listBuckets does this for the buckets from first up to, but not including, end.
func (s *store) listBuckets(theirs []byte, first, end int) (messages [][]byte) {
	for b := first; b < end && len(messages) <= maxListPackets; b++ {
		if binary.BigEndian.Uint64(theirs[8*b:]) != s.digest[b] {
			lo, hi := uint64(b)<<58, uint64(b)<<58|math.MaxUint64>>6
			messages = appendRanges(messages, s.within(lo, hi), lo, hi)
		}
	}
	return messages
}

// appendRanges appends a range of keys with all our objects in it. A range that does not
// fit into one packet is split into several consecutive ones.
func appendRanges(messages [][]byte, objects []object, first, last uint64) [][]byte {
	for {
		n := min(len(objects), maxEntries)
		end := last
		if n < len(objects) {
			end = objects[n-1].place
		}
		need := rangeSize + n*entrySize
		if len(messages) == 0 || len(messages[len(messages)-1])+need > maxPayload {
			messages = append(messages, []byte{stepList})
		}
		m := messages[len(messages)-1]
		m = binary.BigEndian.AppendUint64(m, first)
		m = binary.BigEndian.AppendUint64(m, end)
		m = append(m, byte(n))
		for _, o := range objects[:n] {
			e := entryOf(o)
			m = binary.BigEndian.AppendUint64(m, e.key)
			m = binary.BigEndian.AppendUint64(m, e.sequence)
			m = binary.BigEndian.AppendUint32(m, e.sum)
		}
		messages[len(messages)-1] = m
		if end == last {
			return messages
		}
		objects, first = objects[n:], end+1
	}
}

// keyRange is a range of keys with all objects that the other side has in it.
type keyRange struct {
	first, last uint64
	entries     []entry
}

func parseRanges(b []byte) ([]keyRange, error) {
	var ranges []keyRange
	for len(b) > 0 {
		if len(b) < rangeSize || len(b) < rangeSize+int(b[16])*entrySize {
			return nil, fmt.Errorf("read list: %w", errShort)
		}
		r := keyRange{first: binary.BigEndian.Uint64(b), last: binary.BigEndian.Uint64(b[8:])}
		n := int(b[16])
		b = b[rangeSize:]
		for range n {
			e := entry{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint32(b[16:])}
			r.entries, b = append(r.entries, e), b[entrySize:]
		}
		if len(ranges) > 0 && r.first <= ranges[len(ranges)-1].last || r.first > r.last {
			return nil, errors.New("read list: its ranges do not ascend") // so that each object is compared only once
		}
		ranges = append(ranges, r)
	}
	return ranges, nil
}

// compare returns the objects that the other side lacks, and a request for those that we
// lack.
func (s *store) compare(list []byte) (steps, objects [][]byte, err error) {
	ranges, err := parseRanges(list)
	if err != nil {
		return nil, nil, err
	}
	want := []byte{stepWant}
	var reply reply
	for _, r := range ranges {
		theirs := make(map[uint64]entry, len(r.entries))
		for _, e := range r.entries {
			theirs[e.key] = e
			if our := s.within(e.key, e.key); (len(our) == 0 || e.newer(entryOf(our[0]))) && len(want)+8 <= maxPayload {
				want = binary.BigEndian.AppendUint64(want, e.key)
			}
		}
		for _, o := range s.within(r.first, r.last) {
			if their, ok := theirs[o.place]; !ok || entryOf(o).newer(their) {
				reply.add(o)
			}
		}
	}
	if len(want) > 1 {
		steps = [][]byte{want}
	}
	return steps, reply.objects, nil
}

// wanted returns the objects that were asked for.
func (s *store) wanted(b []byte) ([][]byte, error) {
	if len(b)%8 != 0 || len(b) > maxPayload {
		return nil, fmt.Errorf("read wanted keys: %d bytes", len(b))
	}
	var reply reply
	for ; len(b) > 0; b = b[8:] {
		key := binary.BigEndian.Uint64(b)
		for _, o := range s.within(key, key) {
			reply.add(o)
		}
	}
	return reply.objects, nil
}

// reply collects objects, as many as one packet may cause to be sent.
type reply struct {
	objects [][]byte
	size    int
}

func (r *reply) add(o object) {
	if r.size+len(o.raw) <= maxReplyBytes {
		r.objects, r.size = append(r.objects, o.raw), r.size+len(o.raw)
	}
}
