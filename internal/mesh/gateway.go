// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
)

// GatewayVerdicts returns for each node the verdict on it as a gateway, or whatever else it carries, that counts: the
// one with the highest epoch, and of one epoch that of the lowest author. Only a node
// itself can say that it is up or draining. Its verdict counts once its record has the
// sequence that the verdict names; until then the highest of the others counts.
func GatewayVerdicts(verdicts []Verdict, records []Record) map[ID]Verdict {
	sequences := make(map[ID]uint64, len(records))
	for i := range records {
		sequences[records[i].ID()] = records[i].Sequence
	}
	best := make(map[ID]Verdict)
	for _, v := range verdicts {
		author := IDOf(v.Author)
		counts := v.State == HealthDown
		if author == v.Subject {
			sequence, known := sequences[author]
			counts = v.Record == 0 || known && v.Record <= sequence
		}
		if !counts {
			continue
		}
		o, ok := best[v.Subject]
		if !ok || cmp.Or(cmp.Compare(o.Epoch, v.Epoch), author.Compare(IDOf(o.Author)), cmp.Compare(v.State, o.State)) < 0 {
			best[v.Subject] = v
		}
	}
	return best
}

// EpochStep is how far the epoch of others' verdicts on a gateway may be ahead of its own
// verdict. Among honest nodes it is one ahead.
const EpochStep = 1 << 16

// WithinEpochStep returns the verdicts without those of others on a gateway whose epoch is too
// far ahead of its own verdict. Otherwise a single verdict with the maximum epoch would
// keep a gateway down for good.
func WithinEpochStep(verdicts []Verdict) []Verdict {
	own := make(map[ID]uint64)
	for _, v := range verdicts {
		if v.Subject == IDOf(v.Author) {
			own[v.Subject] = max(own[v.Subject], v.Epoch)
		}
	}
	return slices.DeleteFunc(slices.Clone(verdicts), func(v Verdict) bool {
		return v.Epoch > own[v.Subject]+EpochStep
	})
}

// chooseGateways chooses a location's gateways and assigns its nodes to them.
func (l *layout) chooseGateways(location string, members []*member) {
	var candidates []*member
	for _, m := range members {
		if m.canBeGateway() {
			candidates = append(candidates, m)
		}
	}
	if len(candidates) == 0 {
		l.report(ProblemGateway, members[0].Name, fmt.Sprintf("location %s has no gateway: none of its nodes that may be a gateway has addresses", location),
			fmt.Sprintf("set node.gateway to auto on one of %s", names(members)))
		return
	}
	k := max(1, l.Cluster.Gateways)
	serving := bestCandidates(candidates, k)
	switch serving[0].health {
	case HealthDraining:
		l.report(ProblemGateway, serving[0].Name, fmt.Sprintf("all gateways of location %s are draining or down: %s", location, names(candidates)),
			fmt.Sprintf("before %s stops, run meshd drain --undo on another one, or set node.gateway to auto on a further node of %s", names(serving), location))
	case HealthDown:
		serving = serving[:1]
		l.report(ProblemGateway, serving[0].Name, fmt.Sprintf("all gateways of location %s are down: %s", location, names(candidates)),
			fmt.Sprintf("see meshd status on %s, which stays the gateway", serving[0].Name))
	}
	seats := seatGateways(serving, k)
	for i, m := range seats {
		if m != nil {
			m.via, m.seat = m, i
		}
	}
	// A replaced gateway keeps its own tunnels until its term ends, so that packets on
	// their way through it arrive.
	for _, m := range candidates {
		if m.Term.Since > 0 && m.health != HealthDown {
			m.via = m
		}
	}
	for _, m := range members {
		if m.via == nil {
			m.via = assignSeat(m, seats)
		}
	}
}

// WithoutReplaced returns the input as it is once the terms of replaced gateways have ended, which
// takes some seconds: for what is written down and read later.
func WithoutReplaced(in Input) Input {
	replaced := make(map[ID]bool)
	for _, m := range newLayout(in).all {
		replaced[m.id] = m.seat == None
	}
	in.Records = slices.Clone(in.Records)
	for i := range in.Records {
		if replaced[in.Records[i].ID()] {
			in.Records[i].Term = GatewayTerm{}
		}
	}
	return in
}

// canBeGateway reports whether a node can be a gateway.
func (m *member) canBeGateway() bool {
	return m.Gateway != GatewayNever && !m.keyConflict && m.slot != None
}

// bestCandidates returns the best k candidates. Healthy nodes replace unhealthy ones,
// even if fewer than k serve then. If none is healthy, the best one stays a gateway: the
// verdicts may be wrong, and no gateway at all is not better.
func bestCandidates(candidates []*member, k int) []*member {
	best := slices.MinFunc(candidates, compareCandidates)
	serving := []*member{best}
	for len(serving) < k {
		var next *member
		for _, m := range candidates {
			if healthRank(m.health) == healthRank(best.health) && compareCandidates(serving[len(serving)-1], m) < 0 && (next == nil || compareCandidates(m, next) < 0) {
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

// compareCandidates orders the candidates for a location's gateways, the best first.
func compareCandidates(a, b *member) int {
	if c := cmp.Compare(healthRank(a.health), healthRank(b.health)); c != 0 {
		return c
	}
	if c := compareTrueFirst(a.Gateway == GatewayPrefer, b.Gateway == GatewayPrefer); c != 0 {
		return c
	}
	if c := compareTrueFirst(a.IsOpen(), b.IsOpen()); c != 0 {
		return c
	}
	return compareTerms(a, b)
}

// compareTerms orders by seniority: nodes that are gateways first, then the older term,
// then the node that was replaced less often, then the stronger claim. Without the count of
// replacements, two nodes that return in turn and serve only some of the others would
// keep a third one from ever being chosen. Epochs can't be that count, because any node
// can raise them.
func compareTerms(a, b *member) int {
	if c := compareTrueFirst(a.Term.Since > 0, b.Term.Since > 0); c != 0 {
		return c
	}
	if c := cmp.Or(cmp.Compare(a.Term.Since, b.Term.Since), cmp.Compare(a.Replaced, b.Replaced)); c != 0 {
		return c
	}
	return compareClaims(a.node, b.node)
}

// compareTrueFirst orders true before false.
func compareTrueFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

// healthRank orders health, the best first.
func healthRank(h Health) int {
	switch h {
	case HealthUp, "": // without a verdict a node counts as up
		return 0
	case HealthDraining:
		return 1
	}
	return 2
}

// seatGateways gives each gateway one of k seats. A node that already is a gateway keeps
// its seat, so that only the nodes of a lost gateway move.
func seatGateways(gateways []*member, k int) []*member {
	seats := make([]*member, k)
	var rest []*member
	for _, m := range slices.SortedFunc(slices.Values(gateways), compareTerms) {
		if s := m.Term.Seat; m.Term.Since > 0 && s >= 0 && s < k && seats[s] == nil {
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

// assignSeat assigns m to one of the occupied seats by rendezvous hashing: when a seat
// becomes empty, only the nodes that were assigned to it move.
func assignSeat(m *member, seats []*member) *member {
	var best *member
	var highest uint64
	for i, g := range seats {
		if g == nil {
			continue
		}
		if w := mix(low64(m.id) + uint64(i)); best == nil || w > highest {
			best, highest = g, w
		}
	}
	return best
}

// low64 returns the first 64 bits of a fingerprint, which are uniformly distributed.
func low64(id ID) uint64 { return binary.BigEndian.Uint64(id[:]) }

// mix spreads a number over all 64 bits, the same in every version and on every machine
// (the finalizer of SplitMix64, Steele, Lea and Flood 2014).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// names lists some nodes by name, for messages.
func names(ms []*member) string {
	all := make([]string, len(ms))
	for i, m := range ms {
		all[i] = m.Name
	}
	return Some(all, namesShown)
}
