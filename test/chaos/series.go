// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// options are the parameters of a series.
type options struct {
	seed         uint64
	clock, netem bool
}

// event is one fault: it begins at some time of its round, and ends.
type event struct {
	kind    kind
	at      time.Duration // since the round began
	lasts   time.Duration
	targets []int // of the town's nodes
	amount  int   // its meaning depends on the kind
}

func (e event) String() string {
	return fmt.Sprintf("%s (%d) of %s after %v for %v", e.kind, e.amount, strings.Trim(fmt.Sprint(e.targets), "[]"), e.at, e.lasts)
}

// kind names a kind of fault.
type kind string

// The kinds of faults.
const (
	kill       kind = "daemon killed"
	restart    kind = "daemon restarted"
	power      kind = "host without power"
	unplugged  kind = "host cut off"
	noLAN      kind = "host cut from its LAN"
	noWAN      kind = "host cut from the internet"
	pair       kind = "pair cut"
	sites      kind = "locations cut"
	deaf       kind = "one-way cut"
	noUDP      kind = "UDP blocked"
	deafUDP    kind = "UDP blocked one way"
	noRelay    kind = "relay killed"
	loss       kind = "loss"
	delay      kind = "delay"
	noRoutes   kind = "routes deleted"
	noRules    kind = "rules deleted"
	noDevice   kind = "device deleted"
	fullDisk   kind = "disk full"
	newSecret  kind = "secret rolled"
	otherMode  kind = "mode changed"
	newcomer   kind = "node joins and leaves"
	clockMoved kind = "clock moved"
)

// everyNode is the number of targets of a kind that can't be in a round with others which have some.
const everyNode = 8

// Requirements of a kind.
var kinds = []struct {
	kind    kind
	targets int
	alone   string // at most one of those with the same word per round
	amounts int
	needs   func(options) bool
}{
	{kind: kill, targets: 1},
	{kind: restart, targets: 1},
	{kind: power, targets: 1},
	{kind: unplugged, targets: 1},
	{kind: noLAN, targets: 1},
	{kind: noWAN, targets: 1},
	{kind: pair, targets: 2, alone: "partition"},
	{kind: sites, targets: 2, alone: "partition"},
	{kind: deaf, targets: 2},
	{kind: noUDP, targets: 2, alone: "partition", amounts: 2},
	{kind: deafUDP, targets: 2, alone: "partition", amounts: 2},
	{kind: noRelay, targets: everyNode, alone: "partition"}, // it may kill any of them
	{kind: loss, targets: 1, amounts: 30, needs: func(o options) bool { return o.netem }},
	{kind: delay, targets: 1, amounts: 300, needs: func(o options) bool { return o.netem }},
	{kind: noRoutes, targets: 1},
	{kind: noRules, targets: 1},
	{kind: noDevice, targets: 1},
	{kind: fullDisk, targets: 1},
	{kind: newSecret, alone: "files"},
	{kind: otherMode, targets: 1, alone: "files", amounts: 3},
	{kind: newcomer, targets: 1, alone: "newcomer"},
	{kind: clockMoved, alone: "clock", amounts: 7200, needs: func(o options) bool { return o.clock }},
}

// atOnce is how many faults a round has at most.
const atOnce = 4

// series is the rounds of one seed.
type series struct {
	options
	rand  *rand.Rand
	names []string
}

func newSeries(o options, names []string) *series {
	return &series{options: o, rand: rand.New(rand.NewPCG(o.seed, 0)), names: names}
}

// next returns the faults of the next round. No node has two of them.
func (s *series) next() []event {
	free := s.rand.Perm(len(s.names))
	taken := make(map[string]bool)
	var out []event
	for range 1 + s.rand.IntN(atOnce) {
		k := kinds[s.rand.IntN(len(kinds))]
		if k.needs != nil && !k.needs(s.options) || k.alone != "" && taken[k.alone] || k.targets > len(free) {
			continue
		}
		taken[k.alone] = true
		e := event{
			kind:    k.kind,
			at:      time.Duration(s.rand.IntN(50)) * 100 * time.Millisecond,
			lasts:   time.Duration(1+s.rand.IntN(150)) * 100 * time.Millisecond,
			targets: free[:k.targets:k.targets],
		}
		free = free[k.targets:]
		if k.amounts > 0 {
			e.amount = 1 + s.rand.IntN(k.amounts)
		}
		out = append(out, e)
	}
	return out
}
