// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"encoding/binary"
	"sync"
	"time"
)

// queue holds the frames that wait to be sent. It is safe for concurrent use.
type queue struct {
	ready chan struct{} // fires after a put

	mu      sync.Mutex
	gossip  ring // also keepalives; sent first
	rest    ring
	dropped uint64
}

func newQueue() *queue {
	return &queue{ready: make(chan struct{}, 1), gossip: newRing(maxQueuedGossip), rest: newRing(maxQueued)}
}

// put appends frames, at the cost of the oldest ones if there is no room. It returns how many
// were appended: all but those whose payload is too long for a frame.
func (q *queue) put(kind frameKind, payloads ...[]byte) (count int) {
	r := &q.rest
	if kind == frameGossip || kind == frameKeepalive {
		r = &q.gossip
	}
	q.mu.Lock()
	now := time.Now()
	for _, payload := range payloads {
		if len(payload) <= maxDatagram {
			q.dropped += r.push(now, kind, payload)
			count++
		}
	}
	q.mu.Unlock()
	select {
	case q.ready <- struct{}{}:
	default:
	}
	return count
}

// take moves as many frames as fit to b, and returns their length. It drops those that have
// waited for too long.
func (q *queue) take(b []byte) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	q.dropped += q.gossip.expire(now) + q.rest.expire(now)
	n := q.gossip.take(b)
	return n + q.rest.take(b[n:])
}

// clear drops all frames.
func (q *queue) clear() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.gossip.clear()
	q.rest.clear()
}

func (q *queue) drops() uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.dropped
}

// ring holds frames, each after the time at which it came, in a buffer that grows to a limit.
type ring struct {
	most int
	buf  []byte
	head int // where the oldest frame's time begins
	size int
}

// stamp is the length of the time before a frame, in nanoseconds.
const stamp = 8

func newRing(most int) ring { return ring{most: most} }

// push appends a frame, which must not be longer than the limit, and returns how many it has
// dropped to make room.
func (r *ring) push(now time.Time, kind frameKind, payload []byte) (dropped uint64) {
	need := stamp + frameHeader + len(payload)
	for r.size+need > len(r.buf) && len(r.buf) < r.most {
		buf := make([]byte, min(max(2*len(r.buf), maxDatagram), r.most))
		r.peek(buf[:r.size], 0)
		r.buf, r.head = buf, 0
	}
	for ; r.size+need > len(r.buf); dropped++ {
		r.skip(stamp + r.first())
	}
	var header [stamp + frameHeader]byte
	r.write(appendHeader(binary.BigEndian.AppendUint64(header[:0], uint64(now.UnixNano())), kind, len(payload)))
	r.write(payload)
	return dropped
}

// expire drops what is older than maxAge, and returns how many frames that were.
func (r *ring) expire(now time.Time) (dropped uint64) {
	oldest := uint64(now.Add(-maxAge).UnixNano())
	for ; r.size > 0; dropped++ {
		var came [stamp]byte
		r.peek(came[:], 0)
		if binary.BigEndian.Uint64(came[:]) >= oldest {
			break
		}
		r.skip(stamp + r.first())
	}
	return dropped
}

// take moves as many frames as fit to b, and returns their length.
func (r *ring) take(b []byte) (n int) {
	for r.size > 0 && r.first() <= len(b)-n {
		frame := b[n : n+r.first()]
		r.peek(frame, stamp)
		r.skip(stamp + len(frame))
		n += len(frame)
	}
	return n
}

// first returns the length of the oldest frame.
func (r *ring) first() int {
	var length [2]byte
	r.peek(length[:], stamp)
	return frameHeader + int(binary.BigEndian.Uint16(length[:]))
}

// peek copies bytes from an offset behind the head.
func (r *ring) peek(b []byte, offset int) {
	if len(b) == 0 {
		return
	}
	n := copy(b, r.buf[(r.head+offset)%len(r.buf):])
	copy(b[n:], r.buf)
}

func (r *ring) skip(n int) {
	r.head = (r.head + n) % len(r.buf)
	r.size -= n
}

func (r *ring) write(b []byte) {
	n := copy(r.buf[(r.head+r.size)%len(r.buf):], b)
	copy(r.buf, b[n:])
	r.size += len(b)
}

// clear drops all frames, and the buffer.
func (r *ring) clear() { *r = newRing(r.most) }
