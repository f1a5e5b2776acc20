// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"slices"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// blockedAfter is how long a neighbor's overlay address must be silent before the LAN is
// blamed: a neighbor that has just started gets its overlay address within seconds.
const blockedAfter = 10 * time.Second

// Blocked returns the neighbors that answer on the LAN at their internal IP but not at
// their overlay address, although they are alive in gossip. There the network drops
// packets with addresses that it did not assign, as clouds do, or, where packets are
// encapsulated, the port of VXLAN.
func Blocked(w Watch, results map[Target]Result, alive map[mesh.ID]bool, now time.Time) []Neighbor {
	var out []Neighbor
	for _, n := range w.Neighbors {
		overlay, internal := w.neighborTargets(n)
		silent := func(t Target) bool {
			r := results[t]
			return r.Misses > 0 && now.Sub(r.FirstMiss) >= blockedAfter
		}
		plain := results[internal]
		if alive[n.ID] && plain.Misses == 0 && !plain.Answered.IsZero() && slices.ContainsFunc(overlay, silent) {
			out = append(out, n)
		}
	}
	return out
}

// Of returns the results of a watched node, one for each of its addresses.
func (w Watch) Of(id mesh.ID, results map[Target]Result) []Result {
	var via mesh.ID
	if slices.Contains(w.Remote, id) {
		via = w.Gateway
	}
	var out []Result
	for _, t := range w.targetsOf(id, via) {
		if r, ok := results[t]; ok {
			out = append(out, r)
		}
	}
	return out
}
