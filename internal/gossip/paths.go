// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"net/netip"
	"slices"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// paths knows over which addresses each node may be reached, and which of them
// to try. It does no I/O and reads no clock.
//
// The rule: the address from which something authenticated came within
// freshPath; else the candidates in turn, beginning with the one that worked
// last. A packet that has gone unanswered for pathPatience moves the turn on.
type paths struct {
	nodes map[mesh.ID]*nodePaths
	// overlay are the mesh's own ranges. An address in them leads through the
	// tunnels: good for gossip, but nothing to build tunnels on.
	overlay []netip.Prefix
}

// nodePaths is what is known of one node.
type nodePaths struct {
	candidates []netip.AddrPort // set by the daemon, best first
	guess      netip.AddrPort   // where an inbound stream lets it be supposed

	heard   netip.AddrPort // where something came from last
	heardAt time.Time
	seen    netip.AddrPort // the same, outside of the mesh
	seenAt  time.Time

	turn    netip.AddrPort // whose turn it is
	waiting time.Time      // when the first unanswered packet went there; zero for none
}

func newPaths(overlay []netip.Prefix) *paths {
	return &paths{nodes: make(map[mesh.ID]*nodePaths), overlay: overlay}
}

// set replaces the candidates of all nodes.
func (p *paths) set(candidates map[mesh.ID][]netip.AddrPort) {
	for id, n := range p.nodes {
		if _, ok := candidates[id]; !ok {
			n.candidates = nil
		}
	}
	for id, addrs := range candidates {
		n := p.node(id)
		n.candidates = n.candidates[:0]
		for _, a := range addrs {
			if a = unmapped(a); a.IsValid() && !slices.Contains(n.candidates, a) {
				n.candidates = append(n.candidates, a)
			}
		}
	}
}

// hear notes that something authenticated came from a node.
func (p *paths) hear(id mesh.ID, from netip.AddrPort, now time.Time) {
	n := p.node(id)
	n.heard, n.heardAt = from, now
	if !p.inside(from.Addr()) {
		n.seen, n.seenAt = from, now
	}
	n.turn, n.waiting = from, time.Time{}
}

// suppose notes an address at which a node may listen.
func (p *paths) suppose(id mesh.ID, addr netip.AddrPort) { p.node(id).guess = addr }

// next returns the address for the next packet to a node, and whether to ask
// for a sign of life because that address is not known to work.
func (p *paths) next(id mesh.ID, now time.Time) (addr netip.AddrPort, want, ok bool) {
	n := p.nodes[id]
	if n == nil {
		return netip.AddrPort{}, false, false
	}
	if n.fresh(now) {
		return n.heard, false, true
	}
	all := n.all(now)
	if len(all) == 0 {
		return netip.AddrPort{}, false, false
	}
	at := max(slices.Index(all, n.turn), 0)
	switch {
	case n.waiting.IsZero():
		n.waiting = now
	case now.Sub(n.waiting) >= pathPatience:
		at = (at + 1) % len(all)
		n.waiting = now
	}
	n.turn = all[at]
	return n.turn, true, true
}

// fail notes that the system refused to send to an address: there is no use
// in waiting for an answer.
func (p *paths) fail(id mesh.ID, addr netip.AddrPort) {
	n := p.nodes[id]
	if n == nil {
		return
	}
	if n.heard == addr {
		n.heardAt = time.Time{}
	}
	if n.turn == addr {
		n.waiting = time.Unix(0, 1) // long ago
	}
}

// order returns all addresses of a node in the order in which to dial them.
func (p *paths) order(id mesh.ID, now time.Time) []netip.AddrPort {
	n := p.nodes[id]
	if n == nil {
		return nil
	}
	all := n.all(now)
	at := max(slices.Index(all, n.turn), 0)
	return append(slices.Clone(all[at:]), all[:at]...)
}

// underlay returns where a node was last seen outside of the mesh.
func (p *paths) underlay(id mesh.ID, now time.Time) (netip.AddrPort, time.Time) {
	n := p.nodes[id]
	if n == nil || now.Sub(n.seenAt) > pathMemory {
		return netip.AddrPort{}, time.Time{}
	}
	return n.seen, n.seenAt
}

func (p *paths) inside(a netip.Addr) bool {
	return slices.ContainsFunc(p.overlay, func(r netip.Prefix) bool { return r.Contains(a) })
}

func (n *nodePaths) fresh(now time.Time) bool {
	return n.heard.IsValid() && now.Sub(n.heardAt) <= freshPath
}

// all returns the candidates, then where the node was seen, then the guess.
func (n *nodePaths) all(now time.Time) []netip.AddrPort {
	all := slices.Clone(n.candidates)
	add := func(a netip.AddrPort) {
		if a.IsValid() && !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	if now.Sub(n.heardAt) <= pathMemory {
		add(n.heard)
	}
	if now.Sub(n.seenAt) <= pathMemory {
		add(n.seen)
	}
	add(n.guess)
	return all
}

// node returns a node's entry, and makes room for it if need be.
func (p *paths) node(id mesh.ID) *nodePaths {
	n := p.nodes[id]
	if n == nil {
		if len(p.nodes) >= maxSenders {
			p.evict()
		}
		n = &nodePaths{}
		p.nodes[id] = n
	}
	return n
}

// evict forgets the node that has been silent for longest, if possible one of
// which the daemon knows nothing.
func (p *paths) evict() {
	var victim mesh.ID
	var worst *nodePaths
	for id, n := range p.nodes {
		if worst == nil || (len(n.candidates) == 0) && len(worst.candidates) > 0 ||
			(len(n.candidates) == 0) == (len(worst.candidates) == 0) && n.heardAt.Before(worst.heardAt) {
			victim, worst = id, n
		}
	}
	delete(p.nodes, victim)
}
