// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/meshd/meshd/internal/mesh"
)

// maxHeld is how many punched paths are held open although nothing is sent, at 5 bytes a second each way,
// with headers. A router of a home may have room for some thousand mappings of all its hosts.
const maxHeld = 16

// restPeers has the paths rest that were not used last, see path.Machine.SetRest. Both ends order alike
// those that were never used, so that they choose the same ones, as far as they can.
func (a *Agent) restPeers() {
	var held []*peer
	for _, p := range a.peers {
		if p.machine != nil && p.machine.Holds() {
			held = append(held, p)
		}
	}
	weight := func(p *peer) uint64 { return mesh.Weight(mesh.ID{}, a.o.Self, p.ID) }
	slices.SortFunc(held, func(p, q *peer) int {
		return cmp.Or(q.machine.Used().Compare(p.machine.Used()), cmp.Compare(weight(q), weight(p)), bytes.Compare(p.ID[:], q.ID[:]))
	})
	for i, p := range held {
		p.machine.SetRest(i >= maxHeld)
	}
}
