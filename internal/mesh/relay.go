// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"hash/fnv"
	"slices"
)

// blame is what a node has against a relay.
type blame struct{ author, relay ID }

// relay is a node that can pass on packets, with what it is chosen by. For a
// gateway that is its seat: its successor has the same and nobody else's relay
// changes.
type relay struct {
	*member
	key uint64
}

// MaxRelays bounds who is considered for each pair. Who has the stronger claims comes
// first, so that newcomers push nobody out.
const MaxRelays = 64

// findRelays collects the ends of tunnels that everybody reaches, and what
// others have against them.
func (l *layout) findRelays() {
	for _, m := range l.all {
		switch {
		case !m.isTunnelEnd() || len(m.Endpoints) == 0 || m.Gateway == GatewayNever || m.slot == None:
		case m.seat != None:
			h := fnv.New64a()
			h.Write([]byte(m.Location))
			l.relays = append(l.relays, relay{m, mix(h.Sum64() + uint64(m.seat))})
		case m.standalone:
			l.relays = append(l.relays, relay{m, mix(low64(m.id))})
		}
	}
	if len(l.relays) > MaxRelays {
		slices.SortFunc(l.relays, func(a, b relay) int { return compareClaims(a.node, b.node) })
		l.relays = l.relays[:MaxRelays]
		slices.SortFunc(l.relays, func(a, b relay) int { return a.id.Compare(b.id) })
	}
	l.relayDown = make(map[blame]bool)
	epochs := make(map[blame]uint64)
	for i := range l.Verdicts {
		v := &l.Verdicts[i]
		if v.Role != RoleRelay {
			continue
		}
		b := blame{IDOf(v.Author), v.Subject}
		if e, ok := epochs[b]; !ok || v.Epoch > e {
			epochs[b], l.relayDown[b] = v.Epoch, false
		}
		if v.Epoch == epochs[b] {
			l.relayDown[b] = l.relayDown[b] || v.State == HealthDown
		}
	}
}

// route says to which peer of x go packets for the far end y of a tunnel: to y
// itself, to a relay, or, if it is nil, nowhere.
func (l *layout) route(x, y *member) *member {
	if x.keyConflict || y.keyConflict {
		return nil
	}
	onLAN := x.group == y.group && len(x.InternalIPs)+len(y.InternalIPs) > 0
	if behindNAT(x) && behindNAT(y) && !onLAN {
		return l.relayFor(x, y)
	}
	return y
}

// behindNAT reports whether a node has to speak first to whoever it talks to.
func behindNAT(m *member) bool { return m.NAT && len(m.Endpoints) == 0 }

// relayFor chooses who passes on packets between x and y, by rendezvous hashing, so
// that both come to the same without asking. The relay itself needs to know
// nothing of it: it has a tunnel to either.
func (l *layout) relayFor(x, y *member) *member {
	pair := low64(x.id) ^ low64(y.id) // in either order
	var best *member
	var highest uint64
	for _, r := range l.relays {
		if !l.tunnelled(r.member, x) || !l.tunnelled(r.member, y) {
			continue
		}
		w := mix(pair + r.key)
		if (best == nil || w > highest) && !l.relayDown[blame{x.id, r.id}] && !l.relayDown[blame{y.id, r.id}] {
			best, highest = r.member, w
		}
	}
	return best
}

// reportNoRelay words why two nodes have no way to each other.
func (l *layout) reportNoRelay(x, y *member) {
	if x.keyConflict || y.keyConflict {
		return // reported as a conflict of keys
	}
	if y.id.Compare(x.id) < 0 {
		x, y = y, x
	}
	text := fmt.Sprintf("nodes %s and %s are both behind NAT without an endpoint, and no node can pass on what they send each other", x.Name, y.Name)
	advice := fmt.Sprintf("set node.endpoint on %s or %s and forward its port there; or add a node that has an endpoint", x.Name, y.Name)
	if slices.ContainsFunc(l.relays, func(r relay) bool {
		return l.relayDown[blame{x.id, r.id}] || l.relayDown[blame{y.id, r.id}]
	}) {
		text += ": those that could are down"
		advice = "see which of them meshd status shows as down; or " + advice
	}
	l.report(ProblemRelay, x.Name, text, advice)
}
