// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"net/netip"
	"slices"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// layout is the part of the result that is the same on every node with the same records
// and verdicts: which nodes form a location, which node carries whose traffic to other
// locations, and which nodes can carry clients' traffic for those that strangers don't
// reach.
type layout struct {
	Input
	all             []*member // sorted by ID
	groups          []*group  // sorted by their first member's ID
	owners          map[int]*node
	keys            map[wgtypes.Key]*node
	duplicateIPs    map[netip.Addr]bool // internal IPs that several nodes have
	endpointAddrs   []netip.Addr        // the addresses of all endpoints, sorted
	clusterFamilies families            // the families of the cluster's addresses

	guarded  []netip.Prefix
	reserved []netip.Prefix // the cluster's ranges: overlay, pods and Services

	carriers []carrier      // the nodes that can be one
	clients  []*Client      // those that count, by address
	nodes    []netip.Prefix // where nodes have addresses, if there are clients
	problems []Problem

	allowed map[string][]Allowance // cache of allowances, by the list as text
}

// group is a set of nodes that share a LAN: those of one segment of a location, or a single
// node.
type group struct {
	location    string
	members     []*member      // sorted by ID
	outerFamily families       // the family that all of them have on the LAN, if there is one
	merged      []netip.Prefix // cache of networks
}

// member is a node and its part in the layout.
type member struct {
	*node
	group        *group
	index        int             // in layout.all
	slot         int             // None unless the node owns it
	standalone   bool            // has no gateway, and is not one for others
	keyConflict  bool            // has another node's WireGuard key: no tunnels
	prefixOwners []*prefixOwner  // owners of its internal IPs, then of its allowed-location-ips
	lan          [2]netip.Prefix // internal IPs with their networks, IPv4 and IPv6

	// via is the node whose tunnels carry this node's traffic to other groups: itself,
	// its gateway, or nil.
	via         *member
	carries     []*member // nodes whose via is this one, sorted by slot
	viaFamilies families  // families that travel between it and its via
	seat        int       // its seat as a gateway, else None
	health      Health    // its health as a gateway, as a carrier, and as the server of a network
}

// isTunnelEnd reports whether the node has tunnels of its own.
func (m *member) isTunnelEnd() bool { return m.via == m }

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
		l.clusterFamilies |= familyOf(p.Addr())
	}
	ns := nodes(in.Records)
	l.owners = claimOwners(ns)
	l.keys = make(map[wgtypes.Key]*node, len(ns))
	for _, n := range ns {
		if o, ok := l.keys[n.Key]; !ok || compareClaims(n, o) < 0 {
			l.keys[n.Key] = n
		}
	}
	l.groupNodes(ns)
	l.findHealth()
	l.findPrefixOwners()
	for _, g := range l.groups {
		if len(g.members) > 1 {
			l.findLANAddresses(g)
		}
	}
	l.collectEndpoints()
	l.assignGateways()
	l.findCarriers()
	l.selectClients()
	return l
}

// groupNodes puts nodes into groups.
func (l *layout) groupNodes(ns []*node) {
	slab := make([]member, len(ns))
	alone := make([]group, 0, len(ns))
	l.all = make([]*member, len(ns))
	type segment struct {
		location string
		id       ID
	}
	located := make(map[segment]*group)
	copies := len(l.keys) < len(ns)
	for i, n := range ns {
		m := &slab[i]
		*m = member{node: n, index: i, slot: None, seat: None, keyConflict: copies && l.keys[n.Key] != n}
		l.all[i] = m
		if s := n.Claim.Slot; s != None && s < l.Cluster.Slots() && l.owners[s] == n {
			m.slot = s
		}
		of := segment{n.Location, n.Segment}
		if m.group = located[of]; m.group != nil && n.Location != "" {
			m.group.members = append(m.group.members, m)
			continue
		}
		alone = append(alone, group{location: n.Location, members: l.all[i : i+1 : i+1]})
		m.group = &alone[len(alone)-1]
		l.groups = append(l.groups, m.group)
		located[of] = m.group
	}
}

// findHealth finds what the verdicts say of each node.
func (l *layout) findHealth() {
	verdicts := GatewayVerdicts(l.Verdicts, l.Records)
	for _, m := range l.all {
		m.health = verdicts[m.id].State
	}
}

// assignGateways decides which node carries whose traffic between groups.
func (l *layout) assignGateways() {
	for _, g := range l.groups {
		members := l.sharing(g)
		for _, m := range g.members {
			if m.standalone = len(members) < 2 || m.Encrypted; m.standalone && !m.keyConflict {
				m.via, m.viaFamilies, m.carries = m, family4|family6, l.all[m.index:m.index+1:m.index+1]
			}
		}
		if len(members) < 2 {
			continue
		}
		l.chooseGateways(g.location, members)
		for _, m := range members {
			if m.via != nil {
				m.via.carries = append(m.via.carries, m)
				m.viaFamilies = l.viaFamilies(m)
			}
		}
		for _, m := range members {
			slices.SortFunc(m.carries, compareSlots)
		}
	}
}

// sharing returns the members of a group that share gateways. There are none in the modes
// full and cross, and nodes that want to be encrypted on the LAN too are never among
// them.
func (l *layout) sharing(g *group) []*member {
	if l.Cluster.Mode != ModeLocation {
		return nil
	}
	if !slices.ContainsFunc(g.members, func(m *member) bool { return m.Encrypted }) {
		return g.members
	}
	return slices.DeleteFunc(slices.Clone(g.members), func(m *member) bool { return m.Encrypted })
}

// compareSlots orders members by slot, so that the prefixes that follow from slots are
// sorted.
func compareSlots(a, b *member) int {
	return cmp.Or(cmp.Compare(a.slot, b.slot), cmp.Compare(a.index, b.index))
}

// tunnelled reports whether two nodes, as tunnel ends, reach each other through tunnels
// and not over a LAN.
func (l *layout) tunnelled(a, b *member) bool {
	return a.group != b.group || l.Cluster.Mode == ModeFull || a.Encrypted || b.Encrypted
}

// find returns the member with the given ID, nil if it has no record.
func (l *layout) find(id ID) *member {
	i, ok := slices.BinarySearchFunc(l.all, id, func(m *member, id ID) int { return m.id.Compare(id) })
	if !ok {
		return nil
	}
	return l.all[i]
}

// viaFamilies returns the families in which a node's traffic reaches the end of its
// tunnels.
func (l *layout) viaFamilies(m *member) families {
	if m.isTunnelEnd() {
		return family4 | family6
	}
	return l.link(m, m.via).families
}

func (l *layout) report(kind ProblemKind, node, text, advice string) {
	l.problems = append(l.problems, Problem{Kind: kind, Node: node, Text: text, Advice: advice})
}
