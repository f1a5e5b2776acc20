// SPDX-License-Identifier: Apache-2.0

// Package filter says what the packet filters of a host would do with a packet,
// without sending one.
//
// A [Table] is the rules of nftables or of iptables in one form. [Parse] makes it
// from what `iptables -S` prints, package host from what the kernel says over
// netlink. [Table.Judge] walks a [Packet] through a chain as the kernel would.
//
// Nobody could know every condition that a rule may have. One that is not
// understood is neither met nor not met, and what follows from it is only
// possible: the verdict on a packet that may have been accepted on its way to be
// dropped is [Unsure]. A rule that may drop and is not understood is passed by,
// because such rules are about special packets far more often than about ours.
//
// [Table.Redirected] does the same for DNAT: it finds the rule that would lead a
// packet elsewhere.
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

	// Program writes the table: iptables-nft, ip6tables-legacy. "" if that is not
	// installed, or the table is not one of iptables.
	Program string
}

// Backend is the program whose rules these are.
type Backend string

// The backends.
const (
	NFT    Backend = "nft"
	XTNFT  Backend = "iptables"        // iptables, kept in the kernel by nftables
	Legacy Backend = "iptables-legacy" // iptables of old, kept by ip_tables
)

// Program returns the name of the program that writes the backend's tables of a
// family; "" for nft, which has no program for each.
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
	Hook  string // input | forward, prerouting | output of NAT; another; "" for one that others jump to
	Drops bool   // what no rule decides on is dropped
	Rules []Rule
}

// Rule does something with the packets that meet all of its conditions.
type Rule struct {
	Conditions []Condition
	Action     Action
	Chain      string // of Jump and Goto
	To         string // of Translate: where packets go then, as far as it is known
	Comment    string // of iptables
}

// Action is what a rule does.
type Action string

// The actions. None is what changes nothing about where a packet goes.
const (
	None   Action = ""
	Accept Action = "accept"
	Drop   Action = "drop"
	Return Action = "return"
	Jump   Action = "jump"
	Goto   Action = "goto"

	Translate Action = "translate" // replaces the destination: DNAT, REDIRECT
)

// Condition is met by a packet whose field has one of the values, or with Not
// none of them.
type Condition struct {
	Field  Field
	Not    bool
	Values []string
}

// Field is what a condition asks for.
type Field string

// The fields, with the form of their values. Unknown is a condition that is not
// understood.
const (
	In          Field = "in"          // link, with * at the end for any ending
	Out         Field = "out"         // as In
	Family      Field = "family"      // ip | ip6
	Protocol    Field = "protocol"    // tcp | udp | icmp | ipv6-icmp | a number
	Port        Field = "port"        // of the destination: 80, 80-90
	Source      Field = "source"      // prefix
	Destination Field = "destination" // prefix
	Type        Field = "type"        // of the destination's address: local | unicast | …
	State       Field = "state"       // of the connection: new | established | …
	Mark        Field = "mark"        // number; the packets that are judged have none, 0
	Unknown     Field = "unknown"
)

// Packet is a packet to be judged.
type Packet struct {
	In          string // link by which it comes
	Out         string // link by which it leaves; "" for one to the host itself
	Protocol    string // tcp | udp
	Port        uint16 // of the destination
	Source      netip.Addr
	Destination netip.Addr
	Established bool // it belongs to a connection that was let through before
}

// Verdict is what becomes of a packet.
type Verdict string

// The verdicts.
const (
	Accepted Verdict = "accepted"
	Dropped  Verdict = "dropped"
	Unsure   Verdict = "unsure" // dropped, unless a rule that is not understood accepts it

	undecided Verdict = ""
)

// Judge returns what becomes of a packet in a base chain.
func (t Table) Judge(chain string, p Packet) Verdict {
	o := walk{t, p, map[string]outcome{}}.through(chain)
	switch {
	case o.verdict == Accepted, o.verdict == undecided && !t.Chains[chain].Drops:
		return Accepted
	case o.maybe:
		return Unsure
	}
	return Dropped
}

// Decides returns what a rule by itself does with a packet: Accepted, Dropped, or
// "" if the rules behind it decide.
func (t Table) Decides(r Rule, p Packet) Verdict {
	if r.met(p) != yes {
		return undecided
	}
	return walk{t, p, map[string]outcome{}}.follow(r).verdict
}

// Meets says whether a packet meets all of a rule's conditions for sure.
func (r Rule) Meets(p Packet) bool { return r.met(p) == yes }

// walk takes a packet through the chains of a table. What becomes of it in a
// chain doesn't depend on how it got there, so each is walked once.
type walk struct {
	Table
	packet Packet
	known  map[string]outcome
}

// outcome is what comes of a chain, and whether a rule that is not understood may
// have accepted the packet on the way.
type outcome struct {
	verdict Verdict
	maybe   bool
}

func (w walk) through(chain string) outcome {
	if o, ok := w.known[chain]; ok {
		return o
	}
	w.known[chain] = outcome{maybe: true} // for chains that jump in a circle, which no kernel takes
	o := w.rules(w.Chains[chain].Rules)
	w.known[chain] = o
	return o
}

func (w walk) rules(rules []Rule) outcome {
	maybe := false
	for _, r := range rules {
		met := r.met(w.packet)
		if met == no || r.Action == None {
			continue
		}
		if r.Action == Return && met == yes {
			break
		}
		o := w.follow(r)
		maybe = maybe || o.maybe || met == unknown && o.verdict == Accepted
		if met == yes && (o.verdict != undecided || r.Action == Goto) {
			return outcome{o.verdict, maybe}
		}
	}
	return outcome{undecided, maybe}
}

// follow does what a rule says.
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

// answer is whether a condition is met.
type answer int

const (
	no answer = iota
	unknown
	yes
)

// met says whether a packet meets all conditions of a rule.
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

// inRange says whether a port is in a range such as 80 or 80-90.
func inRange(ports string, port uint16) bool {
	first, last, ok := strings.Cut(ports, "-")
	if !ok {
		last = first
	}
	from, err1 := strconv.ParseUint(first, 10, 16)
	to, err2 := strconv.ParseUint(last, 10, 16)
	return err1 == nil && err2 == nil && from <= uint64(port) && uint64(port) <= to
}

func isIn(prefix string, a netip.Addr) bool {
	p, err := netip.ParsePrefix(prefix)
	return err == nil && p.Contains(a)
}
