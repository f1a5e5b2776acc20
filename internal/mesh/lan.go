// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// joinLAN works out where the members of a group are on their LAN. An address that two of
// them claim is that of the older claim.
func (l *layout) joinLAN(g *group) {
	g.outer = family4 | family6
	first := l.holders(g)
	for _, m := range g.members {
		for _, p := range m.InternalIPs {
			i := familyOf(p.Addr()) - 1
			if o := cmp.Or(first[p.Addr()], m); o != m {
				l.report(ProblemAddress, m.Name, fmt.Sprintf("nodes %s and %s of location %s both have the internal IP %v", m.Name, o.Name, g.location, p.Addr()),
					fmt.Sprintf("set node.internal-ip on %s; or, if it is in another network, another node.location", m.Name))
			} else if !m.lan[i].IsValid() {
				m.lan[i] = p
			}
		}
		g.outer &= m.present()
	}
	if g.outer&family4 != 0 {
		g.outer = family4
	}
}

// holders are the members of a group whose the internal IPs are that several nodes claim.
func (l *layout) holders(g *group) map[netip.Addr]*member {
	first := make(map[netip.Addr]*member)
	for _, m := range g.members {
		for _, p := range m.InternalIPs {
			if a := p.Addr(); l.doubled[a] && (first[a] == nil || compareClaims(m.node, first[a].node) < 0) {
				first[a] = m
			}
		}
	}
	return first
}

// present is in which families a node is on its LAN.
func (m *member) present() families {
	f := noFamily
	for i, p := range m.lan {
		if p.IsValid() {
			f |= 1 << i
		}
	}
	return f
}

// link is how two members of a group reach each other on the LAN. It is the same from
// both sides but for the addresses, which are the second one's.
type link struct {
	families     families     // that can travel; none if they don't reach each other
	encapsulated bool         // in vxlan
	outer        netip.Addr   // where the other one is
	hops         []netip.Addr // without encapsulation: its address in each family
}

// link works out how x reaches y. With crosssubnet it is plain only where all families
// can be: LANs with IPv6 among the pods, but not on the wire, are common.
func (l *layout) link(x, y *member) link {
	var plain link
	if l.Cluster.Encapsulation != EncapsulationNever && l.Cluster.Encapsulation != EncapsulationCrossSubnet {
		return l.encapsulate(x, y)
	}
	for i, p := range y.lan {
		if q := x.lan[i]; p.IsValid() && q.IsValid() && p.Contains(q.Addr()) && q.Contains(p.Addr()) {
			plain.families |= 1 << i & l.inner
			plain.hops = append(plain.hops, p.Addr())
		}
	}
	if len(plain.hops) > 0 {
		plain.outer = plain.hops[0]
	}
	if l.Cluster.Encapsulation == EncapsulationNever || plain.families == l.inner {
		return plain
	}
	return l.encapsulate(x, y)
}

// encapsulate makes a link in vxlan.
func (l *layout) encapsulate(x, y *member) link {
	outer := x.group.outer
	if outer == noFamily {
		outer = x.present() & y.present()
	}
	switch {
	case outer&family4 != 0:
		return link{families: l.inner, encapsulated: true, outer: y.lan[0].Addr()}
	case outer&family6 != 0:
		return link{families: l.inner, encapsulated: true, outer: y.lan[1].Addr()}
	}
	return link{}
}

// checkLink reports what can't travel between two members of a group.
func (l *layout) checkLink(x, y *member) {
	lost := l.inner &^ l.link(x, y).families
	if lost == noFamily {
		return
	}
	if y.id.Compare(x.id) < 0 {
		x, y = y, x // one text, whoever reports it
	}
	what := "each other"
	switch {
	case lost == l.inner:
	case lost == family4:
		what += " with IPv4"
	case lost == family6:
		what += " with IPv6"
	}
	text := fmt.Sprintf("nodes %s and %s of location %s don't reach %s on the LAN: ", x.Name, y.Name, x.group.location, what)
	needed := lost
	if l.Cluster.Encapsulation != EncapsulationNever {
		needed = family4 | family6
	}
	acts := y
	if x.present()&needed == noFamily {
		acts = x
	}
	switch {
	case acts.present()&needed == noFamily:
		l.report(ProblemNeighbor, acts.Name, text+fmt.Sprintf("%s has no internal IP of its own for that", acts.Name),
			fmt.Sprintf("set node.internal-ip on %s to its address in that network, with the network's length%s", acts.Name, l.orEncapsulate()))
	case l.Cluster.Encapsulation == EncapsulationNever:
		l.report(ProblemNeighbor, acts.Name, text+fmt.Sprintf("%v and %v are not in one subnet, and cluster.encapsulation is never", onLAN(x), onLAN(y)),
			"set cluster.encapsulation to crosssubnet or always")
	default:
		l.report(ProblemNeighbor, acts.Name, text+fmt.Sprintf("%v and %v are of different families", onLAN(x), onLAN(y)),
			fmt.Sprintf("set node.internal-ip on both to addresses of one family; %s is in that network with %v", x.Name, onLAN(x)))
	}
}

func (l *layout) orEncapsulate() string {
	if l.Cluster.Encapsulation == EncapsulationNever {
		return "; or set cluster.encapsulation to crosssubnet or always"
	}
	return ""
}

func onLAN(m *member) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(m.lan[:]), func(p netip.Prefix) bool { return !p.IsValid() })
}

// neighbors are the nodes of the own location that are reached on the LAN. What is beyond
// goes to the neighbor that has the tunnels.
func (d *deriver) neighbors() []Neighbor {
	var ns []Neighbor
	for _, m := range d.self.group.members {
		if m == d.self || d.tunnelled(d.self, m) {
			continue
		}
		d.checkLink(d.self, m)
		k := d.link(d.self, m)
		if k.families == noFamily {
			continue
		}
		n := Neighbor{
			ID: m.id, Name: m.Name,
			InternalIP: k.outer, NextHops: k.hops, Encapsulated: k.encapsulated,
			Prefixes: d.slotPrefixes(nil, []*member{m}, func(*member) families { return k.families }),
			MTU:      min(m.MTU, d.self.MTU),
		}
		if m.slot != None && m.slot != d.self.Claim.Slot {
			n.Overlay = d.Cluster.Overlays(m.slot)
		}
		if m == d.self.via {
			own := len(n.Prefixes)
			n.Prefixes = mergeSorted(append(n.Prefixes, d.beyond(d.ways)...), own)
		}
		ns = append(ns, n)
	}
	return ns
}

// reportSilent reports nodes that this one reaches through their gateway, and that don't
// reach it.
func (d *deriver) reportSilent() {
	for _, m := range d.all {
		if m.via != nil && (m.group != d.self.group || d.self.Encrypted) && d.inner&^m.passing != noFamily {
			d.checkLink(m, m.via)
		}
	}
}

// networks are the internal networks of a group's members, merged.
func (g *group) networks() []netip.Prefix {
	if g.merged != nil {
		return g.merged
	}
	ps := []netip.Prefix{}
	for _, m := range g.members {
		for _, p := range m.InternalIPs {
			ps = append(ps, p.Masked())
		}
	}
	g.merged = MergePrefixes(ps)
	return g.merged
}

// String names a group for a person.
func (g *group) String() string {
	if g.location == "" {
		return "node " + g.members[0].Name
	}
	return "location " + g.location
}
