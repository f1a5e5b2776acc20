// SPDX-License-Identifier: Apache-2.0

package path

// windowSize is how many counters below the highest one are still told apart. Probes of
// one peer travel over several paths at once, so they overtake each other; a few
// hundred are sent in the time that the slowest path takes.
const windowSize = 1024

const (
	wordBits    = 64
	windowWords = windowSize/wordBits + 1 // one more, so that advancing never clears what still counts
)

// Window remembers which counters were seen, as RFC 6479 does: a ring of bits that
// advances by whole words. The zero value has seen nothing.
type Window struct {
	highest uint64
	bits    [windowWords]uint64
}

// Accept reports whether a counter is new, and remembers it. A counter that is too old
// to be known is not new. Counters begin at 1.
func (w *Window) Accept(counter uint64) bool {
	if counter == 0 || counter+windowSize <= w.highest {
		return false
	}
	word := counter / wordBits
	if counter > w.highest {
		for i := range min(word-w.highest/wordBits, windowWords) {
			w.bits[(word-i)%windowWords] = 0
		}
		w.highest = counter
	}
	bit := uint64(1) << (counter % wordBits)
	if w.bits[word%windowWords]&bit != 0 {
		return false
	}
	w.bits[word%windowWords] |= bit
	return true
}
