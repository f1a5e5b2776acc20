// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"hash/fnv"
	"slices"
)

// carrier is a node that can decrypt for clients what they exchange with nodes that
// strangers don't reach, with what it is chosen by. For a gateway that is its seat: its
// successor has the same, so only the clients' paths through the lost gateway move.
type carrier struct {
	*member
	key uint64
}

// MaxCarriers bounds who is considered for each node. Who has the stronger claims comes
// first, so that newcomers push nobody out.
const MaxCarriers = 64

// findCarriers collects the ends of tunnels that strangers reach.
func (l *layout) findCarriers() {
	for _, m := range l.all {
		switch {
		case !m.isHome() || m.Gateway == GatewayNever:
		case m.seat != None:
			h := fnv.New64a()
			h.Write([]byte(m.Location))
			l.carriers = append(l.carriers, carrier{m, mix(h.Sum64() + uint64(m.seat))})
		case m.standalone:
			l.carriers = append(l.carriers, carrier{m, mix(low64(m.id))})
		}
	}
	if len(l.carriers) > MaxCarriers {
		slices.SortFunc(l.carriers, func(a, b carrier) int { return compareClaims(a.node, b.node) })
		l.carriers = l.carriers[:MaxCarriers]
		slices.SortFunc(l.carriers, func(a, b carrier) int { return a.id.Compare(b.id) })
	}
}

// carrierFor returns the node through which clients reach a tunnel end that strangers
// don't reach, nil if there is none. As with gateways, a healthy one goes before one on
// which there is a verdict, which is still better than none. Then a node of the same
// location goes before others, and rendezvous hashing decides, so that all nodes choose
// the same one.
func (l *layout) carrierFor(end *member) *member {
	var best *carrier
	compare := func(a, b *carrier) int {
		return cmp.Or(
			cmp.Compare(healthRank(a.health), healthRank(b.health)),
			compareTrueFirst(a.group == end.group, b.group == end.group),
			cmp.Compare(mix(low64(end.id)+b.key), mix(low64(end.id)+a.key)),
		)
	}
	for i := range l.carriers {
		c := &l.carriers[i]
		if !l.tunnelled(c.member, end) && l.link(end, c.member).families == noFamily {
			continue
		}
		if best == nil || compare(c, best) < 0 {
			best = c
		}
	}
	if best == nil {
		return nil
	}
	return best.member
}
