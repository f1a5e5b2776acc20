// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"net/netip"
	"slices"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// addressTable knows over which addresses each node may be reached, and which of them
// to try. It does no I/O and reads no clock.
//
// The rule: the address to which a question was answered within freshAddress; else
// the candidates in turn, beginning with the one that worked last. A packet that
// has gone unanswered for answerTimeout moves the turn on.
//
// That something comes from an address does not show that anything gets there.
// So a packet to an address that is not known to work is a question, and its answer
// names it: packets pass in both directions there. From then on, each
// packet of a node that hears us shows that this is still so.
type addressTable struct {
	nodes map[mesh.ID]*nodeAddresses
	known map[netip.Addr]bool // addresses of candidates
	// overlay are the mesh's own ranges. An address in them leads through the
	// tunnels: good for gossip, but nothing to build tunnels on.
	overlay []netip.Prefix
}

// nodeAddresses is what is known of one node.
type nodeAddresses struct {
	candidates []netip.AddrPort // set by the daemon, best first
	streams    []target         // set by the daemon: where it accepts streams over TLS, and no packets
	guess      netip.AddrPort   // where an inbound stream lets it be supposed

	works   netip.AddrPort // where a question was answered last
	worksAt time.Time      // when something last showed that it works
	heard   netip.AddrPort // where it was met last
	heardAt time.Time
	seen    netip.AddrPort // the same, outside of the mesh
	seenAt  time.Time

	turn    netip.AddrPort // whose turn it is
	waiting time.Time      // when the first unanswered packet went there; zero for none
	silent  time.Time      // when the first packet of all went that is not answered; zero for none
	probed  time.Time      // when an address that is not in use was last asked
	asking  time.Time      // since when it asks us without hearing our answers; zero for not at all

	questions [8]question // the last ones, a ring
	asked     int         // how many there were

	carried time.Time // when the last packet came by stream

	met bool // it has proved its identity in a greeting

	tunnelled tunnelled

	name target // where it was met last under a name; zero for nowhere
}

// question is a packet that asks for an answer.
type question struct {
	counter uint64
	addr    netip.AddrPort
}

func newAddressTable(overlay []netip.Prefix) *addressTable {
	return &addressTable{nodes: make(map[mesh.ID]*nodeAddresses), overlay: overlay}
}

// set replaces the candidates of all nodes.
func (p *addressTable) set(candidates map[mesh.ID][]netip.AddrPort) {
	p.known = make(map[netip.Addr]bool)
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
				p.known[a.Addr()] = true
			}
		}
		// Who has no endpoint comes from where it came before.
		if n.guess.IsValid() {
			p.known[n.guess.Addr()] = true
		}
	}
}

// setStreams replaces, for all nodes, where streams over TLS are accepted besides.
func (p *addressTable) setStreams(streams map[mesh.ID][]target) {
	for id, n := range p.nodes {
		if _, ok := streams[id]; !ok {
			n.streams = nil
		}
	}
	for id, targets := range streams {
		p.node(id).streams = targets
	}
}

// streams returns where a node accepts streams over TLS besides.
func (p *addressTable) streams(id mesh.ID) []target {
	if n := p.nodes[id]; n != nil {
		return n.streams
	}
	return nil
}

// isKnown reports whether a node is known to live at an address.
func (p *addressTable) isKnown(a netip.Addr) bool { return p.known[a] }

// heardFrom notes that something came from a node that hears us. It returns true if
// the node should be asked at that address, because it may be the better one:
// the node has moved, perhaps.
func (p *addressTable) heardFrom(id mesh.ID, from netip.AddrPort, now time.Time) (ask bool) {
	p.sawAt(id, from, now)
	n := p.node(id)
	n.silent, n.asking = time.Time{}, time.Time{}
	if !n.fresh(now) {
		return false
	}
	n.worksAt = now
	if n.works == from || now.Sub(n.probed) < answerTimeout {
		return false
	}
	n.probed = now
	return true
}

// sawAt notes an address that a node has been met at. Packets go there first,
// but for an address that works and for one that was just begun with.
func (p *addressTable) sawAt(id mesh.ID, at netip.AddrPort, now time.Time) {
	n := p.node(id)
	known := slices.Contains(n.all(now), at)
	n.heard, n.heardAt = at, now
	if !p.inside(at.Addr()) {
		n.seen, n.seenAt = at, now
	}
	if !n.fresh(now) && (n.waiting.IsZero() || !known) {
		n.turn, n.waiting = at, time.Time{}
	}
}

// noteQuestion notes that a question goes to an address.
func (p *addressTable) noteQuestion(id mesh.ID, counter uint64, addr netip.AddrPort) {
	n := p.node(id)
	n.questions[n.asked%len(n.questions)] = question{counter, addr}
	n.asked++
}

// noteAnswer notes that a question was answered.
func (p *addressTable) noteAnswer(id mesh.ID, counter uint64, now time.Time) {
	n := p.node(id)
	for _, q := range n.questions {
		if q.counter == counter && q.addr.IsValid() {
			n.works, n.worksAt = q.addr, now
			n.turn, n.waiting, n.silent = q.addr, time.Time{}, time.Time{}
		}
	}
}

// otherAddress returns at which address to answer a question besides the one that it
// came from: one that works, or the next one if our answers get lost.
func (p *addressTable) otherAddress(id mesh.ID, from netip.AddrPort, now time.Time) (addr netip.AddrPort, want bool) {
	n := p.node(id)
	if n.asking.IsZero() {
		n.asking = now
	}
	if n.fresh(now) || now.Sub(n.asking) >= answerTimeout {
		addr, want, _ = p.next(id, now)
	}
	if addr == from {
		return netip.AddrPort{}, false
	}
	return addr, want
}

// reaches reports whether something has just shown that packets to a node arrive.
func (p *addressTable) reaches(id mesh.ID, now time.Time) bool {
	n := p.nodes[id]
	return n != nil && n.fresh(now)
}

// hears reports whether something has come from a node within natMemory.
func (p *addressTable) hears(id mesh.ID, now time.Time) bool {
	n := p.nodes[id]
	return n != nil && now.Sub(n.heardAt) <= natMemory
}

// isSilent reports whether packets to a node go unanswered for longer than it
// takes to lose one.
func (p *addressTable) isSilent(id mesh.ID, now time.Time) bool {
	n := p.nodes[id]
	return n != nil && !n.silent.IsZero() && now.Sub(n.silent) >= 2*answerTimeout
}

// noteCarried notes that a packet of a node came by stream, which says nothing of addresses.
func (p *addressTable) noteCarried(id mesh.ID, now time.Time) { p.node(id).carried = now }

// isCarried reports whether packets of a node come by stream.
func (p *addressTable) isCarried(id mesh.ID, now time.Time) bool {
	n := p.nodes[id]
	return n != nil && now.Sub(n.carried) <= freshAddress
}

// setGuess notes an address at which a node may listen.
func (p *addressTable) setGuess(id mesh.ID, addr netip.AddrPort) { p.node(id).guess = addr }

// setNamed notes a target with a name at which a node was met.
func (p *addressTable) setNamed(id mesh.ID, at target) { p.node(id).name = at }

// named returns the target with a name at which a node was met last, zero for none.
func (p *addressTable) named(id mesh.ID) target {
	if n := p.nodes[id]; n != nil {
		return n.name
	}
	return target{}
}

// next returns the address for the next packet to a node, and whether to ask
// for a sign of life because that address is not known to work.
func (p *addressTable) next(id mesh.ID, now time.Time) (addr netip.AddrPort, want, ok bool) {
	n := p.nodes[id]
	if n == nil {
		return netip.AddrPort{}, false, false
	}
	if n.fresh(now) {
		return n.works, false, true
	}
	all := n.all(now)
	if len(all) == 0 {
		return netip.AddrPort{}, false, false
	}
	if n.silent.IsZero() {
		n.silent = now
	}
	at := max(slices.Index(all, n.turn), 0)
	switch {
	case n.waiting.IsZero():
		n.waiting = now
	case now.Sub(n.waiting) >= answerTimeout:
		at = (at + 1) % len(all)
		n.waiting = now
	}
	n.turn = all[at]
	return n.turn, true, true
}

// noteSendError notes that the system refused to send to an address: there is no use
// in waiting for an answer.
func (p *addressTable) noteSendError(id mesh.ID, addr netip.AddrPort) {
	n := p.nodes[id]
	if n == nil {
		return
	}
	if n.works == addr {
		n.worksAt = time.Time{}
	}
	if n.turn == addr {
		n.waiting = time.Unix(0, 1) // long ago
	}
}

// order returns all addresses of a node in the order in which to dial them.
func (p *addressTable) order(id mesh.ID, now time.Time) []netip.AddrPort {
	n := p.nodes[id]
	if n == nil {
		return nil
	}
	all := n.all(now)
	at := max(slices.Index(all, n.turn), 0)
	return append(slices.Clone(all[at:]), all[:at]...)
}

// inside reports whether an address is one of the mesh's own.
func (p *addressTable) inside(a netip.Addr) bool {
	return slices.ContainsFunc(p.overlay, func(r netip.Prefix) bool { return r.Contains(a) })
}

func (n *nodeAddresses) fresh(now time.Time) bool {
	return n.works.IsValid() && now.Sub(n.worksAt) <= freshAddress
}

// all returns the candidates, then where the node was seen, then the guess.
func (n *nodeAddresses) all(now time.Time) []netip.AddrPort {
	all := slices.Clone(n.candidates)
	add := func(a netip.AddrPort) {
		if a.IsValid() && !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	if now.Sub(n.worksAt) <= addressMemory {
		add(n.works)
	}
	if now.Sub(n.heardAt) <= addressMemory {
		add(n.heard)
	}
	if now.Sub(n.seenAt) <= addressMemory {
		add(n.seen)
	}
	add(n.guess)
	return all
}

// node returns a node's entry, and makes room for it if need be.
func (p *addressTable) node(id mesh.ID) *nodeAddresses {
	n := p.nodes[id]
	if n == nil {
		if len(p.nodes) >= maxSenders {
			p.evict()
		}
		n = &nodeAddresses{}
		p.nodes[id] = n
	}
	return n
}

// metAt returns where each node was met last outside of the mesh.
func (p *addressTable) metAt(now time.Time) map[mesh.ID]netip.Addr {
	at := make(map[mesh.ID]netip.Addr, len(p.nodes))
	for id, n := range p.nodes {
		if n.seen.IsValid() && now.Sub(n.seenAt) <= addressMemory {
			at[id] = n.seen.Addr()
		}
	}
	return at
}

// evict forgets the node that has been silent for longest, if possible one of
// which the daemon knows nothing.
func (p *addressTable) evict() {
	var victim mesh.ID
	var worst *nodeAddresses
	for id, n := range p.nodes {
		if worst == nil || (len(n.candidates) == 0) && len(worst.candidates) > 0 ||
			(len(n.candidates) == 0) == (len(worst.candidates) == 0) && n.heardAt.Before(worst.heardAt) {
			victim, worst = id, n
		}
	}
	delete(p.nodes, victim)
}
