// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"cmp"
	"slices"
)

// Redirect is a rule that translates a packet's destination.
type Redirect struct {
	Chain   string // the chain that contains the rule
	To      string // the new destination; "" if it is not known
	Comment string // of the rule, or else of the last rule on the way there that has one
}

// Redirected returns the first rule that would translate a packet's destination, starting
// from a base chain. If a rule on the way is not understood, the result counts only if a
// rule on the way matches the packet's port.
func (t Table) Redirected(chain string, p Packet) (Redirect, bool) {
	r, end := search{t, p, map[step]bool{}}.through(step{chain: chain, sure: true}, "")
	return r, end == redirected
}

// search looks for a rule that translates a packet's destination.
type search struct {
	Table
	packet Packet
	seen   map[step]bool
}

// step is a chain on the way, and what is known about the way to it.
type step struct {
	chain string
	sure  bool // all conditions on the way were met
	named bool // one of the conditions is the packet's port
}

// end is how the evaluation of a chain ends.
type end int

const (
	goesOn end = iota
	stops      // with the packet unchanged
	redirected
)

func (s search) through(at step, comment string) (Redirect, end) {
	if s.seen[at] {
		return Redirect{}, goesOn
	}
	s.seen[at] = true
	for _, r := range s.Chains[at.chain].Rules {
		met := r.met(s.packet)
		if met == no {
			continue
		}
		next := step{chain: r.Chain, sure: at.sure && met == yes, named: at.named || r.matchesPort(s.packet)}
		comment := cmp.Or(r.Comment, comment)
		switch r.Action {
		case Translate:
			if next.sure || next.named {
				return Redirect{Chain: at.chain, To: r.To, Comment: comment}, redirected
			}
		case Jump, Goto:
			found, how := s.through(next, comment)
			if how == redirected || met == yes && (how == stops || r.Action == Goto) {
				return found, how
			}
		case Return:
			if met == yes {
				return Redirect{}, goesOn
			}
		case Accept, Drop:
			if met == yes {
				return Redirect{}, stops
			}
		}
	}
	return Redirect{}, goesOn
}

// matchesPort reports whether a rule has a condition for the packet's port.
func (r Rule) matchesPort(p Packet) bool {
	return slices.ContainsFunc(r.Conditions, func(c Condition) bool { return c.Field == Port && !c.Not && c.met(p) == yes })
}
