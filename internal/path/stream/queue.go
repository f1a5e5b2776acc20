// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"encoding/binary"
	"sync"
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

// put appends a frame, at the cost of the oldest ones if there is no room. It returns false
// if the payload is too long for a frame.
func (q *queue) put(kind frameKind, payload []byte) bool {
	if len(payload) > maxDatagram {
		return false
	}
	r := &q.rest
	if kind == frameGossip || kind == frameKeepalive {
		r = &q.gossip
	}
	q.mu.Lock()
	q.dropped += r.push(kind, payload)
	q.mu.Unlock()
	select {
	case q.ready <- struct{}{}:
	default:
	}
	return true
}

// take moves as many frames as fit to b, and returns their length.
func (q *queue) take(b []byte) int {
	q.mu.Lock()
	defer q.mu.Unlock()
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

// ring holds frames in a buffer of constant size.
type ring struct {
	buf  []byte
	head int // where the oldest frame begins
	size int
}

func newRing(size int) ring { return ring{buf: make([]byte, size)} }

// push appends a frame that is not longer than the buffer, and returns how many it has dropped
// to make room.
func (r *ring) push(kind frameKind, payload []byte) (dropped uint64) {
	for ; r.size+frameHeader+len(payload) > len(r.buf); dropped++ {
		r.skip(r.first())
	}
	var header [frameHeader]byte
	r.write(appendHeader(header[:0], kind, len(payload)))
	r.write(payload)
	return dropped
}

// take moves as many frames as fit to b, and returns their length.
func (r *ring) take(b []byte) (n int) {
	for r.size > 0 && r.first() <= len(b)-n {
		frame := b[n : n+r.first()]
		r.peek(frame)
		r.skip(len(frame))
		n += len(frame)
	}
	return n
}

// first returns the length of the oldest frame.
func (r *ring) first() int {
	var length [2]byte
	r.peek(length[:])
	return frameHeader + int(binary.BigEndian.Uint16(length[:]))
}

// peek copies the oldest bytes.
func (r *ring) peek(b []byte) {
	n := copy(b, r.buf[r.head:])
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

func (r *ring) clear() { r.head, r.size = 0, 0 }
