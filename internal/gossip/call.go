// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// Two nodes behind NAT that want to reach each other have to agree on the moment at which
// both begin. What they say about that is a call. It goes to the other node itself and, if
// that does not surely get there, through nodes that may reach both: those send it on, once.
// It is sealed for its receiver, so that a node on the way can't read or change it. Questions
// and answers, see [Gossip.Ask], and orders of package rotation go the same way. All four are letters.

// Call is what another node has sent with SendCall or SendOrder.
type Call struct {
	From   mesh.ID // as long as Sealed does not show it, this is only a claim
	Sealed []byte
}

const (
	letterHeader = 2 * len(mesh.ID{})
	// maxCall limits what is sealed, in bytes.
	maxCall = 200
	// maxCalls is how many calls wait to be read.
	maxCalls = 256
	// maxOrders is how many orders wait to be read. They are rare.
	maxOrders = 16
	// callForwarders is how many other nodes are asked to send a call on: should one of
	// them fail, the two nodes would try again only after half a minute.
	callForwarders = 3
)

// maxLetter limits the content of letters, in bytes.
var maxLetter = map[packetKind]int{kindCall: maxCall, kindQuestion: questionLen, kindAnswer: maxPayload - letterHeader, kindOrder: maxCall}

// In each second, a node accepts this many letters of each sender and of all together. When a
// mesh with a single node outside of NATs starts, all calls go through that one.
const (
	callsPerSender = 128
	callsPerSecond = 1024
)

// SendCall sends a sealed datagram of at most 200 bytes to another node. It may get lost, or
// arrive several times. A node without a record gets none.
func (g *Gossip) SendCall(to mesh.ID, sealed []byte) error {
	if err := g.sendLetter(kindCall, to, sealed); err != nil {
		return fmt.Errorf("call %w", err)
	}
	return nil
}

// SendOrder sends an order of package rotation, with the limits of SendCall.
func (g *Gossip) SendOrder(to mesh.ID, sealed []byte) error {
	if err := g.sendLetter(kindOrder, to, sealed); err != nil {
		return fmt.Errorf("order %w", err)
	}
	return nil
}

// sendLetter sends a packet to another node and, if it does not surely get there, through nodes that may
// reach both:
//
//	author 16 | receiver 16 | content
func (g *Gossip) sendLetter(kind packetKind, to mesh.ID, content []byte) error {
	switch limit := maxLetter[kind]; {
	case len(content) == 0 || len(content) > limit:
		return fmt.Errorf("%v: %d bytes, want 1 to %d", to, len(content), limit)
	case to == g.self || !g.isKnown(to):
		return fmt.Errorf("%v: it is not another node with a record", to)
	}
	payload := slices.Concat(g.self[:], to[:], content)
	g.transport.send(to, kind, payload)
	if !g.transport.reaches(to) {
		for _, id := range g.forwarders(to) {
			g.transport.send(id, kind, payload)
		}
	}
	return nil
}

// Calls delivers the calls of other nodes, also those that come twice. What is not read in
// time is dropped.
func (g *Gossip) Calls() <-chan Call { return g.calls }

// Orders delivers the orders of other nodes as Calls does calls.
func (g *Gossip) Orders() <-chan Call { return g.orders }

// isKnown reports whether a node has a record, so that it is not forgotten.
func (g *Gossip) isKnown(id mesh.ID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, ok := g.store.objects[recordKey(id)]
	return ok
}

// isPresent reports whether a node is alive, or has just been heard: where most nodes are
// behind NAT, memberlist takes some for dead that only a few others reach.
func (g *Gossip) isPresent(id mesh.ID) bool {
	return g.members.isAlive(id) || g.transport.hears(id)
}

// forwarders returns the present nodes that most likely reach a node: first its relays, then
// those that are not behind NAT, of each those first that we reach ourselves, and in random
// order otherwise.
func (g *Gossip) forwarders(to mesh.ID) []mesh.ID {
	type candidate struct {
		id   mesh.ID
		rank int
	}
	var all []candidate
	g.mu.Lock()
	path, _ := g.store.objects[pathKey(to)].body.(pathBody)
	for _, r := range g.store.records() {
		id, rank := r.ID(), 0
		if id == g.self || id == to {
			continue
		}
		if !slices.Contains(path.Relays, id) {
			rank += 2
			if r.NAT && len(r.Endpoints) == 0 {
				rank += 2
			}
		}
		all = append(all, candidate{id, rank})
	}
	g.mu.Unlock()
	all = slices.DeleteFunc(all, func(c candidate) bool { return !g.isPresent(c.id) })
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for i, c := range all {
		if !g.transport.reaches(c.id) {
			all[i].rank++
		}
	}
	slices.SortStableFunc(all, func(a, b candidate) int { return cmp.Compare(a.rank, b.rank) })
	var ids []mesh.ID
	for _, c := range firstN(all, callForwarders) {
		ids = append(ids, c.id)
	}
	return ids
}

// handleLetter delivers a letter for this node. One for another node that is present it sends on if
// it came from its author: so a letter is sent on once.
func (g *Gossip) handleLetter(m message) {
	if len(m.payload) <= letterHeader || len(m.payload) > letterHeader+maxLetter[m.kind] {
		g.counters.add("packet-content")
		return
	}
	from, to := mesh.ID(m.payload), mesh.ID(m.payload[len(mesh.ID{}):])
	switch {
	case from == g.self || !g.isKnown(from) || !g.isKnown(m.from):
		g.counters.add("call-stranger")
	case !g.callPace.allow(m.from, g.now()):
		g.counters.add("call-limit")
	case to == g.self:
		g.deliver(m.kind, from, m.payload[letterHeader:])
	case from == m.from && g.isPresent(to) && g.isKnown(to):
		g.transport.send(to, m.kind, m.payload)
	default:
		g.counters.add("call-stray")
	}
}

// deliver takes a letter for this node.
func (g *Gossip) deliver(kind packetKind, from mesh.ID, content []byte) {
	delivered := true
	switch kind {
	case kindCall:
		delivered = trySend(g.calls, Call{from, content})
	case kindQuestion:
		delivered = len(content) != questionLen || trySend(g.questions, Question{from, [questionLen]byte(content)})
	case kindAnswer:
		g.takeAnswer(from, content)
	case kindOrder:
		delivered = trySend(g.orders, Call{from, content})
	}
	if !delivered {
		g.counters.add("call-overload")
	}
}

// callPace limits how many calls are accepted. It has no lock of its own.
type callPace struct {
	since    time.Time
	bySender map[mesh.ID]int // calls since then
	total    int
}

func (p *callPace) allow(from mesh.ID, now time.Time) bool {
	if now.Sub(p.since) >= time.Second {
		p.since, p.bySender, p.total = now, make(map[mesh.ID]int), 0
	}
	if p.total >= callsPerSecond || p.bySender[from] >= callsPerSender {
		return false
	}
	p.bySender[from]++
	p.total++
	return true
}
