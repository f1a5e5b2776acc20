// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg/filter"
)

// Barrier is a base chain that keeps packets of the mesh back, as it would be
// without our rules.
type Barrier struct {
	Table   filter.Table
	Chain   string
	Accepts []Accept // what would let them through
	Sure    bool     // false if a rule that is not understood may let them through
}

// Barriers returns those of a host, for the rules that are wanted.
func Barriers(tables []filter.Table, accepts []Accept) []Barrier {
	var out []Barrier
	for _, t := range tables {
		bare := withoutOurs(t)
		for _, name := range slices.Sorted(maps.Keys(t.Chains)) {
			if hook := t.Chains[name].Hook; hook == "input" || hook == "forward" {
				b := Barrier{Table: t, Chain: name}
				for _, a := range accepts {
					b.judge(bare, a)
				}
				if b.Accepts != nil {
					out = append(out, b)
				}
			}
		}
	}
	return out
}

func (b *Barrier) judge(t filter.Table, a Accept) {
	if a.Hook != t.Chains[b.Chain].Hook || t.Family != "inet" && t.Family != a.Family {
		return
	}
	needed := false
	for _, p := range a.Packets {
		v := t.Judge(b.Chain, p)
		needed = needed || v != filter.Accepted
		b.Sure = b.Sure || v == filter.Dropped
	}
	if needed {
		b.Accepts = append(b.Accepts, a)
	}
}

// isOurs says whether a rule in a table of others is ours.
func isOurs(r filter.Rule) bool { return strings.HasPrefix(r.Comment, acceptMark) }

// withoutOurs returns a table whose rules of ours do nothing.
func withoutOurs(t filter.Table) filter.Table {
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

// AcceptChange is a rule to put into a chain of iptables or to take out of it.
type AcceptChange struct {
	Program string // that writes the table, of package filter
	Chain   string
	Remove  bool   // the rule with the comment
	Before  int    // number of the rule to put it before, from 1; 0 for the end
	Match   string // "" with Remove
	Comment string
}

// Arguments are those of the command that adds the rule.
func (c AcceptChange) Arguments() []string {
	args := []string{"-A", c.Chain}
	if c.Before != 0 {
		args = []string{"-I", c.Chain, strconv.Itoa(c.Before)}
	}
	args = append(args, strings.Fields(c.Match)...)
	return append(args, "-m", "comment", "--comment", c.Comment, "-j", "ACCEPT")
}

// String returns the change as one line, an added rule as its command.
func (c AcceptChange) String() string {
	if c.Remove {
		return fmt.Sprintf("- %s rule %s in %s", c.Program, c.Comment, c.Chain)
	}
	return fmt.Sprintf("+ %s %s", c.Program, strings.Join(c.Arguments(), " "))
}

// diffAccepts returns the changes to tables of iptables. A rule stands as far
// back as it can: behind whatever its owner decides before the packet would be
// dropped, such as NetworkPolicy. One that has come to stand behind that is moved.
func diffAccepts(tables []filter.Table, accepts []Accept, prune bool) []AcceptChange {
	var out []AcceptChange
	barriers := Barriers(tables, accepts)
	for _, t := range tables {
		if t.Program == "" {
			continue
		}
		e := edit{table: clone(t), wanted: map[place]bool{}}
		for _, b := range barriers {
			if b.Table.Program == t.Program {
				e.open(b)
			}
		}
		if prune {
			e.prune()
		}
		out = append(out, e.changes...)
	}
	return out
}

// edit makes changes to a table and keeps a copy as it is after them.
type edit struct {
	table   filter.Table
	wanted  map[place]bool
	changes []AcceptChange
}

// place is a rule of ours in a chain.
type place struct{ chain, comment string }

// dockerUser is the chain that Docker leaves to others and asks first.
const dockerUser = "DOCKER-USER"

// open puts the rules in place that a base chain needs.
func (e *edit) open(b Barrier) {
	for _, a := range b.Accepts {
		chain := e.target(b.Chain, a)
		comment := a.Comment()
		e.wanted[place{chain, comment}] = true
		have := slices.IndexFunc(e.table.Chains[chain].Rules, func(r filter.Rule) bool { return r.Comment == comment })
		if have >= 0 && e.passes(b.Chain, a) {
			continue
		}
		if have >= 0 {
			if have < e.position(chain, a) {
				continue // it stands where it has to
			}
			e.remove(chain, have)
		}
		e.add(chain, a)
	}
}

// target is the chain for a rule: Docker's, if packets get there.
func (e *edit) target(base string, a Accept) string {
	if _, ok := e.table.Chains[dockerUser]; !ok || a.Hook != "forward" {
		return base
	}
	for i, r := range e.table.Chains[base].Rules {
		if r.Chain == dockerUser && r.Action == filter.Jump {
			return dockerUser
		}
		if e.stops(base, i, a) {
			break
		}
	}
	return base
}

// passes says whether all of a rule's packets get through as the table is.
func (e *edit) passes(base string, a Accept) bool {
	return !slices.ContainsFunc(a.Packets, func(p filter.Packet) bool { return e.table.Judge(base, p) != filter.Accepted })
}

// position is the index of the first rule behind which a rule would come too
// late; the chain's length if there is none.
func (e *edit) position(chain string, a Accept) int {
	for i := range e.table.Chains[chain].Rules {
		if e.stops(chain, i, a) {
			return i
		}
	}
	return len(e.table.Chains[chain].Rules)
}

// stops says whether one of a rule's packets gets no further than to the rule at
// an index. Out of a chain of Docker's, back to where it is dropped, counts too.
func (e *edit) stops(chain string, index int, a Accept) bool {
	r := e.table.Chains[chain].Rules[index]
	return slices.ContainsFunc(a.Packets, func(p filter.Packet) bool {
		returns := r.Action == filter.Return && r.Meets(p)
		return returns || e.table.Decides(r, p) == filter.Dropped
	})
}

func (e *edit) add(chain string, a Accept) {
	c := AcceptChange{Program: e.table.Program, Chain: chain, Match: a.Match(), Comment: a.Comment()}
	at := e.position(chain, a)
	rules := e.table.Chains[chain].Rules
	if at < len(rules) {
		c.Before = at + 1
	}
	// What follows must see it as the kernel will have it.
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

// prune removes those of our rules that are not wanted, or there twice.
func (e *edit) prune() {
	for _, chain := range slices.Sorted(maps.Keys(e.table.Chains)) {
		seen := map[string]bool{}
		for i := 0; i < len(e.table.Chains[chain].Rules); i++ {
			r := e.table.Chains[chain].Rules[i]
			if !isOurs(r) {
				continue
			}
			if e.wanted[place{chain, r.Comment}] && !seen[r.Comment] {
				seen[r.Comment] = true
				continue
			}
			e.remove(chain, i)
			i--
		}
	}
}

// ProblemFirewall is the kind of problem that a firewall which meshd doesn't
// write to keeps packets of the mesh back.
const ProblemFirewall mesh.ProblemKind = "firewall"

// Problems are the firewalls that keep packets of the mesh back and that meshd
// can't open by itself.
func Problems(observed, desired State) []mesh.Problem {
	var out []mesh.Problem
	if observed.FilterErr != nil {
		out = append(out, mesh.Problem{
			Kind: ProblemFirewall, Text: fmt.Sprintf("this host's firewall can't be looked at: %v", observed.FilterErr),
			Advice: "see what iptables-nft -S and iptables-legacy -S say; if forwarding or input is dropped there, packets of the mesh are lost",
		})
	}
	for _, b := range Barriers(observed.Filters, desired.Accepts) {
		if b.Sure && b.Table.Program == "" {
			out = append(out, mesh.Problem{Kind: ProblemFirewall, Text: b.Text(), Advice: b.Advice()})
		}
	}
	return append(out, takerProblems(observed, desired)...)
}

// Text says what a barrier does.
func (b Barrier) Text() string {
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
	return fmt.Sprintf("the chain %s of %s %s packets %s", b.Chain, b.owner(), drops, strings.Join(names, ", "))
}

// owner names whose table it is.
func (b Barrier) owner() string {
	switch {
	case b.isFirewalld():
		return "firewalld"
	case b.Table.Backend == filter.NFT:
		return fmt.Sprintf("nft table %s %s", b.Table.Family, b.Table.Name)
	}
	return cmp.Or(b.Table.Program, b.Table.Backend.Program(b.Table.Family))
}

func (b Barrier) isFirewalld() bool {
	return b.Table.Backend == filter.NFT && b.Table.Name == "firewalld"
}

// Advice is what a person can do about it: commands, and how to make them last.
func (b Barrier) Advice() string {
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
		return fmt.Sprintf("install %s, with which meshd adds the rules itself (apt install iptables); or %s", b.owner(), run)
	}
	return run + " (and add it to what sets up your firewall at boot)"
}

// commands let a rule's packets through.
func (b Barrier) commands(a Accept) []string {
	switch {
	case b.isFirewalld() && a.Protocol != "":
		return []string{fmt.Sprintf("firewall-cmd --permanent --add-port=%d/%s", a.Port, a.Protocol)}
	case b.isFirewalld() && a.In+a.Out == "":
		return nil // it lets answers through by itself, and neighbors by their zone
	case b.isFirewalld():
		return []string{"firewall-cmd --permanent --zone=trusted --add-interface=" + cmp.Or(a.In, a.Out)}
	case b.Table.Backend != filter.NFT:
		return []string{fmt.Sprintf("%s -I %s %s -j ACCEPT", b.owner(), b.Chain, a.Match())}
	}
	var out []string
	for _, match := range a.NFT() {
		out = append(out, fmt.Sprintf("nft insert rule %s %s %s %s accept", b.Table.Family, b.Table.Name, b.Chain, match))
	}
	return out
}
