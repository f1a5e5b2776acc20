// SPDX-License-Identifier: Apache-2.0

package path

import "time"

// Gossip sends a few packets a minute to each peer, and many of them through the tunnel. They must not
// keep a path busy that nobody else uses. So what gossip has counted is taken off what WireGuard has.

const (
	// ownFor is how long gossip's packets may take until WireGuard counts them.
	ownFor = 2 * time.Second
	// readFor is how long WireGuard may have counted what gossip has not read yet.
	readFor = time.Second
)

// balance is what WireGuard has counted in one direction, less gossip's own. It is negative while
// WireGuard has not counted yet what gossip has.
type balance struct {
	bytes int64
	own   time.Time // when gossip counted something last
	since time.Time // since when bytes is above zero
}

// add takes by how much the two have grown.
func (b *balance) add(now time.Time, counted, own uint64) {
	if own != 0 {
		b.own = now
	} else if b.bytes < 0 && now.Sub(b.own) >= ownFor {
		b.bytes = 0 // it was lost on its way, or less than gossip had guessed
	}
	before := b.bytes
	b.bytes += int64(counted) - int64(own)
	if b.bytes > 0 && overhead(uint64(b.bytes)) {
		b.bytes = 0
	}
	if before <= 0 {
		b.since = now
	}
}

// take reports whether there was data that is not gossip's, which it has not read after a while, and
// forgets it.
func (b *balance) take(now time.Time, after time.Duration) bool {
	if b.bytes <= 0 || now.Sub(b.since) < after {
		return false
	}
	b.bytes = 0
	return true
}
