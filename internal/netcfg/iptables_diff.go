// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg/filter"
)

// BlockingChain is a base chain that blocks packets of the mesh, or would do so without our
// rules.
type BlockingChain struct {
	Table   filter.Table
	Chain   string
	Accepts []Accept // the rules that would accept them
	Sure    bool     // false if a rule that is not understood may accept them

	packet filter.Packet // the first one that is blocked
	place  filter.Place  // where
}

// BlockingChains returns the base chains of a host that block packets of the mesh, for the accept rules that are desired.
func BlockingChains(tables []filter.Table, accepts []Accept) []BlockingChain {
	var out []BlockingChain
	var sources []netip.Prefix // of our rules, which tell packets apart too
	for _, a := range accepts {
		if a.Source.IsValid() {
			sources = append(sources, a.Source)
		}
	}
	for _, t := range tables {
		bare := withoutOurRules(t)
		distinct := filter.NewDistinct(bare, sources)
		for _, name := range slices.Sorted(maps.Keys(t.Chains)) {
			if hook := t.Chains[name].Hook; hook == "input" || hook == "forward" {
				b := BlockingChain{Table: t, Chain: name}
				for _, a := range accepts {
					b.addIfBlocked(bare, a, distinct)
				}
				if b.Accepts != nil {
					out = append(out, b)
				}
			}
		}
	}
	return out
}

func (b *BlockingChain) addIfBlocked(t filter.Table, a Accept, distinct filter.Distinct) {
	if a.Hook != t.Chains[b.Chain].Hook || t.Family != "inet" && t.Family != a.Family {
		return
	}
	needed := false
	a.Packets = distinct.Of(a.Packets)
	for _, p := range a.Packets {
		v := t.Evaluate(b.Chain, p)
		if v == filter.Accepted {
			continue
		}
		if !needed && b.Accepts == nil {
			b.packet, b.place = p, t.DroppedAt(b.Chain, p)
		}
		needed = true
		b.Sure = b.Sure || v == filter.Dropped
	}
	if needed {
		b.Accepts = append(b.Accepts, a)
	}
}

// isOurs reports whether a rule in another program's table is ours.
func isOurs(r filter.Rule) bool { return strings.HasPrefix(r.Comment, acceptMark) }

// withoutOurRules returns a copy of a table in which our rules do nothing.
func withoutOurRules(t filter.Table) filter.Table {
	t = clone(t)
	for _, chain := range t.Chains {
		for i, r := range chain.Rules {
			if isOurs(r) {
				chain.Rules[i].Action = filter.None
			}
		}
	}
	return t
}

// clone copies a table and its lists of rules.
func clone(t filter.Table) filter.Table {
	t.Chains = maps.Clone(t.Chains)
	for name, chain := range t.Chains {
		chain.Rules = slices.Clone(chain.Rules)
		t.Chains[name] = chain
	}
	return t
}

// AcceptChange is a rule to add to a chain of iptables or to remove from it.
type AcceptChange struct {
	Program string // the program that writes the table, see filter.Table
	Chain   string
	Remove  bool   // remove the rule with the comment
	Before  int    // number of the rule to insert it before, from 1; 0 to append it
	Match   string // "" with Remove
	Comment string
}

// Arguments returns the arguments of the command that adds the rule.
func (c AcceptChange) Arguments() []string {
	args := []string{"-A", c.Chain}
	if c.Before != 0 {
		args = []string{"-I", c.Chain, strconv.Itoa(c.Before)}
	}
	args = append(args, strings.Fields(c.Match)...)
	return append(args, "-m", "comment", "--comment", c.Comment, "-j", "ACCEPT")
}

// String returns the change as one line. For an added rule, it is the command.
func (c AcceptChange) String() string {
	if c.Remove {
		return fmt.Sprintf("- %s rule %s in %s", c.Program, c.Comment, c.Chain)
	}
	return fmt.Sprintf("+ %s %s", c.Program, strings.Join(c.Arguments(), " "))
}

// diffAccepts returns the changes to tables of iptables. A rule is placed as late as
// possible in its chain: after all rules by which the owner decides, such as
// NetworkPolicy, but before the packet would be dropped. A rule of ours that is now
// behind the dropping rule is moved.
func diffAccepts(tables []filter.Table, accepts []Accept, prune bool) []AcceptChange {
	var out []AcceptChange
	barriers := BlockingChains(tables, accepts)
	for _, t := range tables {
		if t.Program == "" {
			continue
		}
		e := edit{table: clone(t), wanted: map[ruleKey]bool{}}
		for _, b := range barriers {
			if b.Table.Program == t.Program {
				e.addAccepts(b)
			}
		}
		if prune {
			e.prune()
		}
		out = append(out, e.changes...)
	}
	return out
}

// edit collects changes to a table and keeps a copy of the table with the changes made.
type edit struct {
	table   filter.Table
	wanted  map[ruleKey]bool
	changes []AcceptChange
}

// ruleKey identifies a rule of ours in a table.
type ruleKey struct{ chain, comment string }

// dockerUser is the chain that Docker reserves for rules of others and runs before its
// own.
const dockerUser = "DOCKER-USER"

// addAccepts adds the rules that a base chain needs.
func (e *edit) addAccepts(b BlockingChain) {
	for _, a := range b.Accepts {
		chain := e.targetChain(b.Chain, a)
		comment := a.comment()
		e.wanted[ruleKey{chain, comment}] = true
		have := slices.IndexFunc(e.table.Chains[chain].Rules, func(r filter.Rule) bool { return r.Comment == comment })
		if have >= 0 && e.passes(b.Chain, a) {
			continue
		}
		if have >= 0 {
			if have < e.position(chain, a) {
				continue // it is early enough
			}
			e.remove(chain, have)
		}
		e.add(chain, a)
	}
}

// targetChain returns the chain for a rule: Docker's, if packets reach it.
func (e *edit) targetChain(base string, a Accept) string {
	if _, ok := e.table.Chains[dockerUser]; !ok || a.Hook != "forward" {
		return base
	}
	for i, r := range e.table.Chains[base].Rules {
		if r.Chain == dockerUser && r.Action == filter.Jump {
			return dockerUser
		}
		if e.stopsAt(base, i, a) {
			break
		}
	}
	return base
}

// passes reports whether all sample packets of a rule are accepted by the table as it is.
func (e *edit) passes(base string, a Accept) bool {
	return !slices.ContainsFunc(a.Packets, func(p filter.Packet) bool { return e.table.Evaluate(base, p) != filter.Accepted })
}

// position returns the index of the first rule that must come after the accept rule, or
// the length of the chain.
func (e *edit) position(chain string, a Accept) int {
	for i := range e.table.Chains[chain].Rules {
		if e.stopsAt(chain, i, a) {
			return i
		}
	}
	return len(e.table.Chains[chain].Rules)
}

// stopsAt reports whether a sample packet of a rule gets no further than to the rule at
// an index. Returning from Docker's chain counts too: the calling chain then drops the
// packet.
func (e *edit) stopsAt(chain string, index int, a Accept) bool {
	r := e.table.Chains[chain].Rules[index]
	return slices.ContainsFunc(a.Packets, func(p filter.Packet) bool {
		returns := r.Action == filter.Return && r.Matches(p)
		return returns || e.table.RuleVerdict(r, p) == filter.Dropped
	})
}

func (e *edit) add(chain string, a Accept) {
	c := AcceptChange{Program: e.table.Program, Chain: chain, Match: a.Match(), Comment: a.comment()}
	at := e.position(chain, a)
	rules := e.table.Chains[chain].Rules
	if at < len(rules) {
		c.Before = at + 1
	}
	// Later decisions must see the rule as the kernel will have it.
	line := fmt.Sprintf("-A %s %s -m comment --comment %s -j ACCEPT", chain, c.Match, c.Comment)
	added := filter.Parse(e.table.Backend, e.table.Family, e.table.Name, line).Chains[chain].Rules
	e.set(chain, slices.Insert(rules, at, added...))
	e.changes = append(e.changes, c)
}

func (e *edit) remove(chain string, index int) {
	rules := e.table.Chains[chain].Rules
	e.changes = append(e.changes, AcceptChange{Program: e.table.Program, Chain: chain, Remove: true, Comment: rules[index].Comment})
	e.set(chain, slices.Delete(rules, index, index+1))
}

func (e *edit) set(chain string, rules []filter.Rule) {
	c := e.table.Chains[chain]
	c.Rules = rules
	e.table.Chains[chain] = c
}

// prune removes our rules that are not desired, and duplicates.
func (e *edit) prune() {
	for _, chain := range slices.Sorted(maps.Keys(e.table.Chains)) {
		seen := map[string]bool{}
		for i := 0; i < len(e.table.Chains[chain].Rules); i++ {
			r := e.table.Chains[chain].Rules[i]
			if !isOurs(r) {
				continue
			}
			if e.wanted[ruleKey{chain, r.Comment}] && !seen[r.Comment] {
				seen[r.Comment] = true
				continue
			}
			e.remove(chain, i)
			i--
		}
	}
}

// ProblemFirewall is the kind of problem for a firewall that blocks packets of the mesh
// and that meshd can't change.
const ProblemFirewall mesh.ProblemKind = "firewall"

// Problems returns the firewalls that block packets of the mesh and that meshd can't open
// by itself, and the rules of other programs that redirect our ports.
func Problems(observed, desired State) []mesh.Problem {
	var out []mesh.Problem
	if observed.FilterErr != nil {
		out = append(out, mesh.Problem{
			Kind: ProblemFirewall, Text: fmt.Sprintf("this host's firewall can't be read: %v", observed.FilterErr),
			Advice: "run iptables-nft -S and iptables-legacy -S; if a chain there drops input or forwarded packets, packets of the mesh may be lost",
		})
	}
	for _, b := range BlockingChains(observed.Filters, desired.Accepts) {
		if b.Sure && b.Table.Program == "" {
			out = append(out, mesh.Problem{Kind: ProblemFirewall, Text: b.Text(), Advice: b.Advice()})
		}
	}
	return append(out, portProblems(observed, desired)...)
}

// Text describes what the barrier does.
func (b BlockingChain) Text() string {
	var names []string
	for _, a := range b.Accepts {
		if !slices.Contains(names, a.What) {
			names = append(names, a.What)
		}
	}
	drops := "may drop"
	if b.Sure {
		drops = "drops"
	}
	return fmt.Sprintf("the chain %s of %s %s packets %s%s", b.Chain, b.owner(), drops, strings.Join(names, ", "), b.reason())
}

// reason names the rule that drops the first packet, unless it drops whatever nothing else
// has accepted.
func (b BlockingChain) reason() string {
	if len(b.place.Rule.Conditions) == 0 {
		return ""
	}
	on := ""
	if b.packet.In != "" {
		on = " on " + b.packet.In
	}
	return fmt.Sprintf(" (the rule %q of the chain %s drops those from %s to %s%s)", b.place.Rule.String(), b.place.Chain, b.packet.Source, b.packet.Destination, on)
}

// owner names the program or table that has the rules.
func (b BlockingChain) owner() string {
	switch {
	case b.isFirewalld():
		return "firewalld"
	case b.Table.Backend == filter.NFT:
		return fmt.Sprintf("nft table %s %s", b.Table.Family, b.Table.Name)
	}
	return cmp.Or(b.Table.Program, b.Table.Backend.Program(b.Table.Family))
}

func (b BlockingChain) isFirewalld() bool {
	return b.Table.Backend == filter.NFT && b.Table.Name == "firewalld"
}

// Advice tells a person which commands to run, and how to make their effect permanent.
func (b BlockingChain) Advice() string {
	var commands []string
	for _, a := range b.Accepts {
		for _, c := range b.commands(a) {
			if !slices.Contains(commands, c) {
				commands = append(commands, c)
			}
		}
	}
	run := "run: " + strings.Join(commands, "; ")
	switch {
	case b.isFirewalld():
		return run + "; firewall-cmd --reload"
	case b.Table.Backend != filter.NFT:
		return fmt.Sprintf("install %s (apt install iptables), so that meshd can add the rules itself; or %s", b.owner(), run)
	}
	return run + " (and add it to what sets up your firewall at boot)"
}

// commands returns the commands that let the packets of a rule through.
func (b BlockingChain) commands(a Accept) []string {
	switch {
	case b.isFirewalld() && a.Protocol != "":
		return []string{fmt.Sprintf("firewall-cmd --permanent --add-port=%d/%s", a.Port, a.Protocol)}
	case b.isFirewalld() && a.In+a.Out == "":
		return nil // it accepts replies by itself, and neighbors according to their zone
	case b.isFirewalld():
		return []string{"firewall-cmd --permanent --zone=trusted --add-interface=" + cmp.Or(a.In, a.Out)}
	case b.Table.Backend != filter.NFT:
		return []string{fmt.Sprintf("%s -I %s %s -j ACCEPT", b.owner(), b.Chain, a.Match())}
	}
	var out []string
	for _, match := range a.nft() {
		out = append(out, fmt.Sprintf("nft insert rule %s %s %s %s accept", b.Table.Family, b.Table.Name, b.Chain, match))
	}
	return out
}
