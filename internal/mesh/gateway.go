// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
)

// gatewayVerdicts returns for each node the verdict on it as a gateway that counts: the
// highest epoch's, and of one epoch the lowest author's. Only a node itself can say that
// it is up or draining, and a verdict that presupposes a record of its subject waits for
// it. Until then the highest of the others counts.
func (l *layout) gatewayVerdicts() map[ID]*Verdict {
	type ranked struct {
		*Verdict
		author ID
	}
	best := make(map[ID]ranked)
	for i := range l.Verdicts {
		v := ranked{&l.Verdicts[i], IDOf(l.Verdicts[i].Author)}
		if v.Role != RoleGateway || !l.counts(v.Verdict, v.author) {
			continue
		}
		o, ok := best[v.Subject]
		if !ok || cmp.Or(cmp.Compare(o.Epoch, v.Epoch), v.author.Compare(o.author), cmp.Compare(v.State, o.State)) < 0 {
			best[v.Subject] = v
		}
	}
	out := make(map[ID]*Verdict, len(best))
	for id, v := range best {
		out[id] = v.Verdict
	}
	return out
}

// EpochStep is how far others' verdicts on a gateway may be ahead of its own. In honest
// hands they are one ahead.
const EpochStep = 1 << 16

// WithinStep returns the verdicts without those of others on a gateway whose epoch is too
// far ahead of its own verdict's. Without it, a single verdict with the highest epoch
// there is would keep a gateway down for good.
func WithinStep(verdicts []Verdict) []Verdict {
	own := make(map[ID]uint64)
	for _, v := range verdicts {
		if v.Role == RoleGateway && v.Subject == IDOf(v.Author) {
			own[v.Subject] = max(own[v.Subject], v.Epoch)
		}
	}
	return slices.DeleteFunc(slices.Clone(verdicts), func(v Verdict) bool {
		return v.Role == RoleGateway && v.Epoch > own[v.Subject]+EpochStep
	})
}

func (l *layout) counts(v *Verdict, author ID) bool {
	if author != v.Subject {
		return v.State == HealthDown
	}
	subject := l.find(author)
	return v.Record == 0 || subject != nil && v.Record <= subject.Sequence
}

// appoint chooses a location's gateways and who hangs on which of them.
func (l *layout) appoint(location string, members []*member, verdicts map[ID]*Verdict) {
	var candidates []*member
	for _, m := range members {
		m.health = HealthUp
		if v := verdicts[m.id]; v != nil {
			m.health = v.State
		}
		if m.mayServe() {
			candidates = append(candidates, m)
		}
	}
	if len(candidates) == 0 {
		l.report(ProblemGateway, members[0].Name, fmt.Sprintf("location %s has no gateway: none of its nodes may be one and has addresses", location),
			fmt.Sprintf("set node.gateway to auto on one of %s", names(members)))
		return
	}
	k := max(1, l.Cluster.Gateways)
	serving := choose(candidates, k)
	if serving[0].health == HealthDown {
		serving = serving[:1]
		l.report(ProblemGateway, serving[0].Name, fmt.Sprintf("all gateways of location %s are down: %s", location, names(candidates)),
			fmt.Sprintf("see meshd status on %s, which goes on as the gateway", serving[0].Name))
	}
	seats := takeSeats(serving, k)
	for i, m := range seats {
		if m != nil {
			m.via, m.seat = m, i
		}
	}
	// Who was relieved keeps its own tunnels until it lays down its office: what is on
	// the way through it arrives.
	for _, m := range candidates {
		if m.Office.Since > 0 && m.health != HealthDown {
			m.via = m
		}
	}
	for _, m := range members {
		if m.via == nil {
			m.via = hang(m, seats)
		}
	}
}

// mayServe says whether a node may be a gateway.
func (m *member) mayServe() bool { return m.Gateway != GatewayNever && !m.mute && m.slot != None }

// choose takes the best k of those that may be gateways. Who is well relieves who is not,
// even if fewer than k serve then. If nobody is well, the best one goes on: the verdicts
// may be wrong, and silence is not better.
func choose(candidates []*member, k int) []*member {
	best := slices.MinFunc(candidates, compareCandidates)
	serving := []*member{best}
	for len(serving) < k {
		var next *member
		for _, m := range candidates {
			if m.health == best.health && compareCandidates(serving[len(serving)-1], m) < 0 && (next == nil || compareCandidates(m, next) < 0) {
				next = m
			}
		}
		if next == nil {
			break
		}
		serving = append(serving, next)
	}
	return serving
}

// compareCandidates orders those that may be gateways of a location.
func compareCandidates(a, b *member) int {
	if c := cmp.Compare(rank(a.health), rank(b.health)); c != 0 {
		return c
	}
	if c := first(a.Gateway == GatewayPrefer, b.Gateway == GatewayPrefer); c != 0 {
		return c
	}
	if c := first(len(a.Endpoints) > 0, len(b.Endpoints) > 0); c != 0 {
		return c
	}
	return compareOffices(a, b)
}

// compareOffices orders by seniority: in office before not, then the older office, then
// who has been replaced less often, then the older claim. Of two that come back in turn
// and serve only some of the others, neither is to keep a third one waiting. Epochs would
// not do as a count: anybody can raise them.
func compareOffices(a, b *member) int {
	if c := first(a.Office.Since > 0, b.Office.Since > 0); c != 0 {
		return c
	}
	if c := cmp.Or(cmp.Compare(a.Office.Since, b.Office.Since), cmp.Compare(a.Replaced, b.Replaced)); c != 0 {
		return c
	}
	return compareClaims(a.node, b.node)
}

// first orders what is true before what is not.
func first(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

// rank orders health, the best first.
func rank(h Health) int {
	switch h {
	case HealthUp:
		return 0
	case HealthDraining:
		return 1
	}
	return 2
}

// takeSeats gives each gateway one of k seats. Who is in office keeps its own, so that
// nobody moves but those who hung on a gateway that is gone.
func takeSeats(gateways []*member, k int) []*member {
	seats := make([]*member, k)
	var rest []*member
	for _, m := range slices.SortedFunc(slices.Values(gateways), compareOffices) {
		if s := m.Office.Seat; m.Office.Since > 0 && s >= 0 && s < k && seats[s] == nil {
			seats[s] = m
		}
	}
	for _, m := range gateways {
		if !slices.Contains(seats, m) {
			rest = append(rest, m)
		}
	}
	for i := range seats {
		if seats[i] == nil && len(rest) > 0 {
			seats[i], rest = rest[0], rest[1:]
		}
	}
	return seats
}

// hang chooses one of the occupied seats by rendezvous hashing: when a seat falls empty,
// only those who hung there move.
func hang(m *member, seats []*member) *member {
	var best *member
	var highest uint64
	for i, g := range seats {
		if g == nil {
			continue
		}
		if w := mix(low(m.id) + uint64(i)); best == nil || w > highest {
			best, highest = g, w
		}
	}
	return best
}

// low is a number out of a fingerprint, which is uniform already.
func low(id ID) uint64 { return binary.BigEndian.Uint64(id[:]) }

// mix spreads a number over all bits, the same in every version and on every machine (the
// finalizer of SplitMix64, Steele, Lea and Flood 2014).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// names lists nodes for a person, not more than a line takes.
func names(ms []*member) string {
	s := ""
	for i, m := range ms[:min(len(ms), 5)] {
		if i > 0 {
			s += ", "
		}
		s += m.Name
	}
	if len(ms) > 5 {
		s += fmt.Sprintf(" and %d more", len(ms)-5)
	}
	return s
}
