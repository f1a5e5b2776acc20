// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"net/netip"
	"slices"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// layout is the cluster as every node sees it that has the same records and verdicts:
// which nodes form a location, who carries whose traffic to the others, and which nodes
// can pass on what others can't send each other.
type layout struct {
	Input
	all     []*member // sorted by ID
	groups  []*group  // sorted by their first member's ID
	owners  map[int]*node
	keys    map[wgtypes.Key]*node
	doubled map[netip.Addr]bool // internal IPs that several nodes claim
	reached []netip.Addr        // the addresses of all endpoints, sorted
	inner   families            // what the cluster gives out

	guarded  []netip.Prefix
	reserved []netip.Prefix // the cluster's ranges: overlay, pods and Services

	relays    []relay // those that can be one
	relayDown map[blame]bool
	clients   []*Client      // those that count, by address
	nodes     []netip.Prefix // where nodes have addresses, if there are clients
	problems  []Problem

	allowed map[string][]Allowance // what allowances returned, by the list as text
}

// group is the nodes that share a LAN: those of one location, or one node.
type group struct {
	location string
	members  []*member      // sorted by ID
	outer    families       // the one that all of them have on the LAN, if there is one
	merged   []netip.Prefix // what networks returned
}

// member is a node in its place.
type member struct {
	*node
	group  *group
	index  int             // in layout.all
	slot   int             // None unless the node owns it
	alone  bool            // hangs on nobody, and nobody on it
	mute   bool            // has somebody else's WireGuard key: no tunnels
	claims []*claimant     // of its internal IPs, then its allowed-location-ips
	lan    [2]netip.Prefix // internal IPs with their networks, IPv4 and IPv6

	// via is the end of the tunnels that carry what this node exchanges with other
	// groups: itself, its gateway, or nil.
	via     *member
	carries []*member // nodes whose via this is, sorted by slot
	passing families  // what gets from it to its via and back
	seat    int       // as a gateway, else None
	health  Health    // as a gateway
}

// isEnd says whether the node has tunnels of its own.
func (m *member) isEnd() bool { return m.via == m }

// families is a set of address families.
type families uint8

const (
	family4 families = 1 << iota
	family6
	noFamily families = 0
)

func familyOf(a netip.Addr) families {
	if a.Is4() {
		return family4
	}
	return family6
}

func newLayout(in Input) *layout {
	l := &layout{Input: in, guarded: in.Cluster.guarded()}
	l.reserved = slices.Concat(l.guarded, in.Cluster.Services)
	for _, p := range l.guarded {
		l.inner |= familyOf(p.Addr())
	}
	ns := nodes(in.Records)
	l.owners = claimOwners(ns)
	l.keys = make(map[wgtypes.Key]*node, len(ns))
	for _, n := range ns {
		if o, ok := l.keys[n.Key]; !ok || compareClaims(n, o) < 0 {
			l.keys[n.Key] = n
		}
	}
	l.gather(ns)
	l.claimPrefixes()
	for _, g := range l.groups {
		if len(g.members) > 1 {
			l.joinLAN(g)
		}
	}
	l.reachEndpoints()
	l.assign()
	l.findRelays()
	l.admitClients()
	return l
}

// gather puts nodes into groups.
func (l *layout) gather(ns []*node) {
	slab := make([]member, len(ns))
	alone := make([]group, 0, len(ns))
	l.all = make([]*member, len(ns))
	located := make(map[string]*group)
	copies := len(l.keys) < len(ns)
	for i, n := range ns {
		m := &slab[i]
		*m = member{node: n, index: i, slot: None, seat: None, mute: copies && l.keys[n.Key] != n}
		l.all[i] = m
		if s := n.Claim.Slot; s != None && s < l.Cluster.Slots() && l.owners[s] == n {
			m.slot = s
		}
		if m.group = located[n.Location]; m.group != nil {
			m.group.members = append(m.group.members, m)
			continue
		}
		alone = append(alone, group{location: n.Location, members: l.all[i : i+1 : i+1]})
		m.group = &alone[len(alone)-1]
		l.groups = append(l.groups, m.group)
		if n.Location != "" {
			located[n.Location] = m.group
		}
	}
}

// assign decides who carries whose traffic between groups.
func (l *layout) assign() {
	verdicts := l.gatewayVerdicts()
	for _, g := range l.groups {
		members := l.sharing(g)
		for _, m := range g.members {
			if m.alone = len(members) < 2 || m.Encrypted; m.alone && !m.mute {
				m.via, m.passing, m.carries = m, family4|family6, l.all[m.index:m.index+1:m.index+1]
			}
		}
		if len(members) < 2 {
			continue
		}
		l.appoint(g.location, members, verdicts)
		for _, m := range members {
			if m.via != nil {
				m.via.carries = append(m.via.carries, m)
				m.passing = l.passing(m)
			}
		}
		for _, m := range members {
			slices.SortFunc(m.carries, compareSlots)
		}
	}
}

// sharing returns the members of a group that share gateways. In the modes full and cross
// nobody does, and never who wants to be encrypted on the LAN, too.
func (l *layout) sharing(g *group) []*member {
	if l.Cluster.Mode != ModeLocation {
		return nil
	}
	if !slices.ContainsFunc(g.members, func(m *member) bool { return m.Encrypted }) {
		return g.members
	}
	return slices.DeleteFunc(slices.Clone(g.members), func(m *member) bool { return m.Encrypted })
}

// compareSlots makes prefixes that follow from slots come out in order.
func compareSlots(a, b *member) int {
	return cmp.Or(cmp.Compare(a.slot, b.slot), cmp.Compare(a.index, b.index))
}

// tunnelled reports whether two nodes talk through tunnels, as tunnel ends, and not over
// a LAN.
func (l *layout) tunnelled(a, b *member) bool {
	return a.group != b.group || l.Cluster.Mode == ModeFull || a.Encrypted || b.Encrypted
}

// find returns the member with an ID, nil if it has no record.
func (l *layout) find(id ID) *member {
	i, ok := slices.BinarySearchFunc(l.all, id, func(m *member, id ID) int { return m.id.Compare(id) })
	if !ok {
		return nil
	}
	return l.all[i]
}

// passing is in which families a node's traffic gets to the end of its tunnels.
func (l *layout) passing(m *member) families {
	if m.isEnd() {
		return family4 | family6
	}
	return l.link(m, m.via).families
}

func (l *layout) report(kind ProblemKind, node, text, advice string) {
	l.problems = append(l.problems, Problem{Kind: kind, Node: node, Text: text, Advice: advice})
}
