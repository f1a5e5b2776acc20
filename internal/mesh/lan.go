// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// findLANAddresses decides which addresses the members of a group have on their LAN. If
// two claim the same address, the one with the stronger claim gets it.
func (l *layout) findLANAddresses(g *group) {
	g.outerFamily = family4 | family6
	first := l.duplicateOwners(g)
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
		g.outerFamily &= m.lanFamilies()
	}
	if g.outerFamily&family4 != 0 {
		g.outerFamily = family4
	}
}

// duplicateOwners returns, for each internal IP that several nodes claim, the group's
// member with the strongest claim.
func (l *layout) duplicateOwners(g *group) map[netip.Addr]*member {
	first := make(map[netip.Addr]*member)
	for _, m := range g.members {
		for _, p := range m.InternalIPs {
			if a := p.Addr(); l.duplicateIPs[a] && (first[a] == nil || compareClaims(m.node, first[a].node) < 0) {
				first[a] = m
			}
		}
	}
	return first
}

// lanFamilies returns the families in which a node has an address on its LAN.
func (m *member) lanFamilies() families {
	f := noFamily
	for i, p := range m.lan {
		if p.IsValid() {
			f |= 1 << i
		}
	}
	return f
}

// link is how two members of a group reach each other on the LAN. It is the same from
// both sides except for the addresses, which are the second member's.
type link struct {
	families     families     // of the packets that can be exchanged; none if they can't reach each other
	encapsulated bool         // in vxlan
	outer        netip.Addr   // the other one's address on the LAN
	hops         []netip.Addr // without encapsulation: its address in each family
}

// link returns how x reaches y. With crosssubnet it is plain only if all families can be
// plain: LANs without IPv6, in clusters whose pods have it, are common.
func (l *layout) link(x, y *member) link {
	var plain link
	if l.Cluster.Encapsulation != EncapsulationNever && l.Cluster.Encapsulation != EncapsulationCrossSubnet {
		return l.encapsulate(x, y)
	}
	for i, p := range y.lan {
		if q := x.lan[i]; p.IsValid() && q.IsValid() && p.Contains(q.Addr()) && q.Contains(p.Addr()) {
			plain.families |= 1 << i & l.clusterFamilies
			plain.hops = append(plain.hops, p.Addr())
		}
	}
	if len(plain.hops) > 0 {
		plain.outer = plain.hops[0]
	}
	if l.Cluster.Encapsulation == EncapsulationNever || plain.families == l.clusterFamilies {
		return plain
	}
	return l.encapsulate(x, y)
}

// encapsulate returns a link in VXLAN.
func (l *layout) encapsulate(x, y *member) link {
	outer := x.group.outerFamily
	if outer == noFamily {
		outer = x.lanFamilies() & y.lanFamilies()
	}
	switch {
	case outer&family4 != 0:
		return link{families: l.clusterFamilies, encapsulated: true, outer: y.lan[0].Addr()}
	case outer&family6 != 0:
		return link{families: l.clusterFamilies, encapsulated: true, outer: y.lan[1].Addr()}
	}
	return link{}
}

// checkLink reports the families that can't be exchanged between two members of a group.
func (l *layout) checkLink(x, y *member) {
	lost := l.clusterFamilies &^ l.link(x, y).families
	if lost == noFamily {
		return
	}
	if y.id.Compare(x.id) < 0 {
		x, y = y, x // the same text, whichever node reports it
	}
	what := "each other"
	switch {
	case lost == l.clusterFamilies:
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
	actor := y
	if x.lanFamilies()&needed == noFamily {
		actor = x
	}
	switch {
	case actor.lanFamilies()&needed == noFamily:
		l.report(ProblemNeighbor, actor.Name, text+fmt.Sprintf("%s has no internal IP of its own for that", actor.Name),
			fmt.Sprintf("set node.internal-ip on %s to its address in that network, with the network's length%s", actor.Name, l.orEncapsulate()))
	case l.Cluster.Encapsulation == EncapsulationNever:
		l.report(ProblemNeighbor, actor.Name, text+fmt.Sprintf("%v and %v are not in one subnet, and cluster.encapsulation is never", lanPrefixes(x), lanPrefixes(y)),
			"set cluster.encapsulation to crosssubnet or always")
	default:
		l.report(ProblemNeighbor, actor.Name, text+fmt.Sprintf("%v and %v are of different families", lanPrefixes(x), lanPrefixes(y)),
			fmt.Sprintf("set node.internal-ip on both to addresses of one family; %s is in that network with %v", x.Name, lanPrefixes(x)))
	}
}

func (l *layout) orEncapsulate() string {
	if l.Cluster.Encapsulation == EncapsulationNever {
		return "; or set cluster.encapsulation to crosssubnet or always"
	}
	return ""
}

func lanPrefixes(m *member) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(m.lan[:]), func(p netip.Prefix) bool { return !p.IsValid() })
}

// neighbors returns the nodes of the own location that are reached on the LAN. The
// prefixes of other locations go to the neighbor that has the tunnels.
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
		n.Prefixes = append(n.Prefixes, d.networksOnLAN(m, k.families)...)
		slices.SortFunc(n.Prefixes, ComparePrefix)
		if m == d.self.via {
			own := len(n.Prefixes)
			n.Prefixes = mergeSorted(append(n.Prefixes, d.prefixesBehind(d.farEnds)...), own)
		}
		ns = append(ns, n)
	}
	return ns
}

// reportOneWay reports nodes that this one reaches through their gateway, but that can't
// reach it.
func (d *deriver) reportOneWay() {
	for _, m := range d.all {
		if m.via != nil && (m.group != d.self.group || d.self.Encrypted) && d.clusterFamilies&^m.viaFamilies != noFamily {
			d.checkLink(m, m.via)
		}
	}
}

// networks returns the internal networks of a group's members, merged.
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
	g.merged = mergePrefixes(ps)
	return g.merged
}

// String returns a group's name for messages.
func (g *group) String() string {
	if g.location == "" {
		return "node " + g.members[0].Name
	}
	return "location " + g.location
}
