// SPDX-License-Identifier: Apache-2.0

package gossip

import "github.com/meshd/meshd/internal/mesh"

// windowSize is how far a packet may be behind later ones and still be accepted.
const windowSize = 1024

// window remembers which packets of one sender were received. A sender counts its packets
// from each start, and its starts on disk, so (boot, counter) never repeats. The bits are
// a ring (RFC 6479).
type window struct {
	boot, top uint64
	seen      [windowSize / 64]uint64
	used      uint64 // when a packet was last accepted, by the count of accepted packets
	replaced  uint64 // the highest boot that resume replaced; up to it, only resume changes boot
}

// admit reports whether a packet is new, and remembers it.
func (w *window) admit(boot, counter uint64) bool {
	switch {
	case boot < w.boot, boot > w.boot && boot <= w.replaced:
		return false
	case boot > w.boot:
		*w = window{boot: boot, top: counter}
	case counter > w.top:
		w.advance(counter)
	case w.top-counter >= windowSize:
		return false
	}
	word, bit := counter/64%uint64(len(w.seen)), uint64(1)<<(counter%64)
	if w.seen[word]&bit != 0 {
		return false
	}
	w.seen[word] |= bit
	return true
}

// advance raises top, and clears the bits of the counters in between.
func (w *window) advance(counter uint64) {
	if counter-w.top >= windowSize {
		clear(w.seen[:])
	} else {
		for n := w.top + 1; n <= counter; n++ {
			w.seen[n/64%uint64(len(w.seen))] &^= 1 << (n % 64)
		}
	}
	w.top = counter
}

// replays holds the windows of all senders, at most maxSenders of them.
type replays struct {
	windows map[mesh.ID]*window
	clock   uint64
}

func (r *replays) admit(from mesh.ID, boot, counter uint64) bool {
	w := r.windows[from]
	if w == nil {
		if len(r.windows) >= maxSenders {
			r.evict()
		}
		w = &window{boot: boot, top: counter}
		r.windows[from] = w
	}
	ok := w.admit(boot, counter)
	if ok {
		r.clock++
		w.used = r.clock
	}
	return ok
}

// resume sets a sender's boot and counter to those that it sent in a handshake that has
// proved its identity. A node whose disk was restored to an earlier state starts again
// with a lower boot. Another node may also have sent a boot that is too high in its name.
// Without this, all its packets would count as replays as long as we run.
func (r *replays) resume(from mesh.ID, boot, counter uint64) {
	w := r.windows[from]
	switch {
	case w == nil:
		return
	case boot > w.boot && boot > w.replaced:
		return // its packets will show that themselves
	case boot == w.boot && (counter >= w.top || w.top-counter < windowSize):
		return
	}
	w.replaced = max(w.replaced, w.boot)
	w.boot, w.top = boot, counter
	for i := range w.seen { // all earlier counters stay refused
		w.seen[i] = ^uint64(0)
	}
}

// evict forgets the sender that has been silent for the longest time.
func (r *replays) evict() {
	var oldest mesh.ID
	least := ^uint64(0)
	for id, w := range r.windows {
		if w.used < least {
			oldest, least = id, w.used
		}
	}
	delete(r.windows, oldest)
}
