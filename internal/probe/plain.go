// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"slices"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// plainPatience is how long a neighbor may answer under one address only before
// the LAN is to blame: one that has just started gets its overlay address within
// seconds.
const plainPatience = 10 * time.Second

// Filtered returns the neighbors which answer on the LAN under their internal IP
// and not under their overlay address. They live, as gossip says, so the network
// between drops what comes from addresses that it did not give out, as clouds do.
// A neighbor that is reached in vxlan is never among them.
func Filtered(w Watch, results map[Target]Result, alive map[mesh.ID]bool, now time.Time) []Neighbor {
	var out []Neighbor
	for _, n := range w.Plain {
		overlay, internal := w.plainTargets(n)
		silent := func(t Target) bool {
			r := results[t]
			return r.Misses > 0 && now.Sub(r.FirstMiss) >= plainPatience
		}
		plain := results[internal]
		if alive[n.ID] && plain.Misses == 0 && !plain.Answered.IsZero() && slices.ContainsFunc(overlay, silent) {
			out = append(out, n)
		}
	}
	return out
}

// Of returns the results of a node that is watched, one for each of its
// addresses.
func (w Watch) Of(id mesh.ID, results map[Target]Result) []Result {
	var via mesh.ID
	if slices.Contains(w.Beyond, id) {
		via = w.Gateway
	}
	var out []Result
	for _, t := range w.targets(id, via) {
		if r, ok := results[t]; ok {
			out = append(out, r)
		}
	}
	return out
}
