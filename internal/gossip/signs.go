// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"net/netip"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// LastHeard returns when something authenticated came from each node last, outside
// of the mesh. Whoever judges a way through the mesh has to know whether the
// node at its end can be reached by another one.
func (g *Gossip) LastHeard() map[mesh.ID]time.Time {
	t := g.transport
	t.mu.Lock()
	defer t.mu.Unlock()
	heard := make(map[mesh.ID]time.Time, len(t.addresses.nodes))
	for id, n := range t.addresses.nodes {
		if !n.seenAt.IsZero() {
			heard[id] = n.seenAt
		}
	}
	return heard
}

// RequestSigns asks nodes for a sign of life, at each address outside of the mesh that is
// known of them. It does not wait for it; Heard has it a round trip later.
func (g *Gossip) RequestSigns(ids []mesh.ID) {
	for _, id := range ids {
		g.transport.ask(id)
	}
}

func (t *transport) ask(to mesh.ID) {
	var addrs []netip.AddrPort
	t.mu.Lock()
	now := t.now()
	for _, a := range t.addresses.order(to, now) {
		if !t.addresses.inside(a.Addr()) {
			addrs = append(addrs, a)
		}
	}
	t.mu.Unlock()
	for _, addr := range addrs {
		t.sendVia(to, addr, packet{kind: kindAsk, want: true})
	}
}
