// SPDX-License-Identifier: Apache-2.0

package node

import "time"

// NextSequence numbers a record of ours. If somebody has shown one that we don't know to
// have made, our disk was lost or restored, or a duplicate of this node runs. Then the
// number goes beyond everything that can have been made until now. That tells the two
// apart: whoever replays our old records has none that goes beyond it.
func NextSequence(own, shown uint64, now time.Time) uint64 {
	next := max(own, shown) + 1
	if shown > own {
		next = max(next, uint64(max(now.UnixMilli(), 0)))
	}
	return next
}
