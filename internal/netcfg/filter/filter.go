// SPDX-License-Identifier: Apache-2.0

// Package filter evaluates what the packet filters of a host would do with a packet,
// without sending one.
//
// A [Table] represents the rules of nftables or iptables in one common form. [Parse]
// creates it from the output of `iptables -S`, and package host from the kernel's data.
// [Table.Evaluate] follows a [Packet] through a chain as the kernel would.
//
// No program can know every condition that a rule may have. Whether a packet meets an
// unknown condition is left open. If such a rule may have accepted a packet that is
// dropped later, the verdict is [Unsure]. If such a rule may drop, it is ignored, because
// these rules are mostly about special packets and rarely about ours.
//
// [Table.Redirected] does the same for DNAT: it finds the rule that would redirect a
// packet.
package filter

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Table is a table of packet filter rules.
type Table struct {
	Backend Backend
	Family  string // ip | ip6 | inet
	Name    string
	Chains  map[string]Chain

	// Program is the program that writes the table: iptables-nft, ip6tables-legacy. It is
	// "" if that is not installed, or if the table is not one of iptables.
	Program string
}

// Backend is the kind of program that wrote the rules.
type Backend string

// The backends.
const (
	NFT    Backend = "nft"
	XTNFT  Backend = "iptables"        // iptables whose rules are stored in nftables
	Legacy Backend = "iptables-legacy" // iptables whose rules are stored in ip_tables
)

// Program returns the name of the program that writes the backend's tables of a family.
// It is "" for nft.
func (b Backend) Program(family string) string {
	name := map[string]string{"ip": "iptables", "ip6": "ip6tables"}[family]
	switch {
	case name == "":
		return ""
	case b == XTNFT:
		return name + "-nft"
	case b == Legacy:
		return name + "-legacy"
	}
	return ""
}

// Chain is a chain of rules.
type Chain struct {
	Hook  string // input | forward | prerouting and output for NAT | others; "" for a chain that others jump to
	Drops bool   // the policy is to drop
	Rules []Rule
}

// Rule applies an action to the packets that meet all of its conditions.
type Rule struct {
	Conditions []Condition
	Action     Action
	Chain      string // the target of Jump and Goto
	To         string // the new destination of Translate, as far as it is known
	Comment    string // of iptables
}

// Action is what a rule does.
type Action string

// The actions. None has no influence on where a packet goes.
const (
	None   Action = ""
	Accept Action = "accept"
	Drop   Action = "drop"
	Return Action = "return"
	Jump   Action = "jump"
	Goto   Action = "goto"

	Translate Action = "translate" // replaces the destination: DNAT, REDIRECT
)

// Condition is met by a packet whose field has one of the values. With Not, it is met by
// all other packets.
type Condition struct {
	Field  Field
	Not    bool
	Values []string
}

// Field is the property of a packet that a condition tests.
type Field string

// The fields, with the form of their values. Unknown stands for a condition that is not
// understood.
const (
	In          Field = "in"          // link name; a * at its end matches any ending
	Out         Field = "out"         // as In
	Family      Field = "family"      // ip | ip6
	Protocol    Field = "protocol"    // tcp | udp | icmp | ipv6-icmp | a number
	Port        Field = "port"        // of the destination: 80, 80-90
	SourcePort  Field = "sourceport"  // as Port
	Source      Field = "source"      // prefix, or a range such as 10.0.0.5-10.0.0.9
	Destination Field = "destination" // as Source
	Type        Field = "type"        // of the destination's address: local | unicast | …
	State       Field = "state"       // of the connection in conntrack: new | established | …
	Mark        Field = "mark"        // number; sample packets always have 0
	Unknown     Field = "unknown"
)

// Packet is a sample packet.
type Packet struct {
	In          string // link on which it arrives
	Out         string // link by which it leaves; "" for a packet to the host itself
	Protocol    string // tcp | udp
	Port        uint16 // of the destination
	SourcePort  uint16
	Source      netip.Addr
	Destination netip.Addr
	Established bool // it belongs to a connection that was accepted before
}

// Verdict is the result for a packet.
type Verdict string

// The verdicts.
const (
	Accepted Verdict = "accepted"
	Dropped  Verdict = "dropped"
	Unsure   Verdict = "unsure" // dropped, unless a rule that is not understood accepts it first

	undecided Verdict = ""
)

// Evaluate returns the verdict of a base chain on a packet.
func (t Table) Evaluate(chain string, p Packet) Verdict {
	o := t.walk(p).through(chain)
	switch {
	case o.verdict == Accepted, o.verdict == undecided && !t.Chains[chain].Drops:
		return Accepted
	case o.maybe:
		return Unsure
	}
	return Dropped
}

// RuleVerdict returns the verdict of one rule on a packet: Accepted, Dropped, or "" if
// the next rules decide.
func (t Table) RuleVerdict(r Rule, p Packet) Verdict {
	if r.met(p) != yes {
		return undecided
	}
	return t.walk(p).follow(r).verdict
}

// Matches reports whether a packet certainly meets all conditions of a rule.
func (r Rule) Matches(p Packet) bool { return r.met(p) == yes }

// walk follows a packet through the chains of a table. The outcome of a chain doesn't
// depend on how the packet got there, so each chain is evaluated once.
type walk struct {
	Table
	packet Packet
	known  map[string]outcome
}

// outcome is the result of a chain. maybe is set if a rule that is not understood may
// have accepted the packet before. place is where the packet was dropped.
type outcome struct {
	verdict Verdict
	maybe   bool
	place   Place
}

// Place is a rule, or the policy of a base chain, that drops a packet.
type Place struct {
	Chain string
	Rule  Rule // zero for the policy
}

// DroppedAt returns where a base chain drops a packet.
func (t Table) DroppedAt(chain string, p Packet) Place {
	if o := t.walk(p).through(chain); o.verdict == Dropped {
		return o.place
	}
	return Place{Chain: chain}
}

func (t Table) walk(p Packet) walk { return walk{t, p, map[string]outcome{}} }

func (w walk) through(chain string) outcome {
	if o, ok := w.known[chain]; ok {
		return o
	}
	w.known[chain] = outcome{maybe: true} // ends loops of jumps, which the kernel would refuse
	o := w.rules(chain)
	w.known[chain] = o
	return o
}

func (w walk) rules(chain string) outcome {
	maybe := false
	for _, r := range w.Chains[chain].Rules {
		met := r.met(w.packet)
		if met == no || r.Action == None {
			continue
		}
		if r.Action == Return && met == yes {
			break
		}
		o := w.follow(r)
		if r.Action == Drop {
			o.place = Place{chain, r}
		}
		maybe = maybe || o.maybe || met == unknown && o.verdict == Accepted
		if met == yes && (o.verdict != undecided || r.Action == Goto) {
			o.maybe = maybe
			return o
		}
	}
	return outcome{maybe: maybe}
}

// follow returns the outcome of a rule's action.
func (w walk) follow(r Rule) outcome {
	switch r.Action {
	case Accept:
		return outcome{verdict: Accepted}
	case Drop:
		return outcome{verdict: Dropped}
	case Jump, Goto:
		return w.through(r.Chain)
	}
	return outcome{}
}

// answer tells whether a condition is met.
type answer int

const (
	no answer = iota
	unknown
	yes
)

// met tells whether a packet meets all conditions of a rule.
func (r Rule) met(p Packet) answer {
	all := yes
	for _, c := range r.Conditions {
		all = min(all, c.met(p))
	}
	return all
}

func (c Condition) met(p Packet) answer {
	if c.Field == Unknown {
		return unknown
	}
	if slices.ContainsFunc(c.Values, func(v string) bool { return p.has(c.Field, v) }) != c.Not {
		return yes
	}
	return no
}

func (p Packet) has(f Field, value string) bool {
	switch f {
	case In:
		return isLink(value, p.In)
	case Out:
		return isLink(value, p.Out)
	case Family:
		return (value == "ip6") == p.Destination.Is6()
	case Protocol:
		return value == p.Protocol
	case Port:
		return inRange(value, p.Port)
	case SourcePort:
		return inRange(value, p.SourcePort)
	case Source:
		return isIn(value, p.Source)
	case Destination:
		return isIn(value, p.Destination)
	case Mark:
		return value == "0"
	case Type:
		return value == "local" && p.Out == "" || value == "unicast" && p.Out != ""
	case State:
		return value == "established" && p.Established || value == "new" && !p.Established
	}
	return false
}

func isLink(pattern, name string) bool {
	start, wild := strings.CutSuffix(pattern, "*")
	return name != "" && (name == pattern || wild && strings.HasPrefix(name, start))
}

// inRange reports whether a port is in a range such as 80 or 80-90.
func inRange(ports string, port uint16) bool {
	from, to, ok := portBounds(ports)
	return ok && from <= port && port <= to
}

// portBounds returns the first and the last port of a range.
func portBounds(ports string) (from, to uint16, ok bool) {
	first, last, isRange := strings.Cut(ports, "-")
	if !isRange {
		last = first
	}
	low, err1 := strconv.ParseUint(first, 10, 16)
	high, err2 := strconv.ParseUint(last, 10, 16)
	return uint16(low), uint16(high), err1 == nil && err2 == nil
}

func isIn(addrs string, a netip.Addr) bool {
	from, to, ok := bounds(addrs)
	return ok && from.BitLen() == a.BitLen() && from.Compare(a) <= 0 && a.Compare(to) <= 0
}

// bounds returns the first and the last address of a prefix or range.
func bounds(addrs string) (from, to netip.Addr, ok bool) {
	if first, last, isRange := strings.Cut(addrs, "-"); isRange {
		from, err1 := netip.ParseAddr(first)
		to, err2 := netip.ParseAddr(last)
		return from, to, err1 == nil && err2 == nil
	}
	p, err := netip.ParsePrefix(addrs)
	if err != nil {
		return from, to, false
	}
	return p.Masked().Addr(), Last(p), true
}

// Last returns the last address of a prefix.
func Last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr
}
