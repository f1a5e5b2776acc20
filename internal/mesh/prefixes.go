// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// prefixOwner is the node that owns a prefix outside the cluster's ranges.
type prefixOwner struct {
	node   *member
	rival  *member // a node elsewhere that has it, too; nil if there is none
	shared bool    // it is a network that several nodes share
}

// findPrefixOwners decides which node owns each internal IP and each allowed-location-ip.
// If several nodes of one location have the same internal IP, the one with the strongest claim owns it;
// if they share a network, see compareServers.
func (l *layout) findPrefixOwners() {
	claims := make(map[netip.Prefix]*prefixOwner, len(l.all))
	slab := make([]prefixOwner, 0, len(l.all)) // pointers into it stay valid when it grows
	all := make([]*prefixOwner, 0, len(l.all))
	claim := func(p netip.Prefix, m *member) *prefixOwner {
		c, ok := claims[p]
		if !ok {
			slab = append(slab, prefixOwner{node: m})
			c = &slab[len(slab)-1]
			claims[p] = c
		}
		all = append(all, c)
		if c.node != m && p.IsSingleIP() {
			if l.duplicateIPs == nil {
				l.duplicateIPs = make(map[netip.Addr]bool)
			}
			l.duplicateIPs[p.Addr()] = true
		}
		return c
	}
	own := func(c *prefixOwner, p netip.Prefix, m *member, compared int) {
		elsewhere := c.node != m && !m.Shares(c.node.Record, p)
		if elsewhere {
			c.rival = m
		}
		if compared < 0 {
			if elsewhere {
				c.rival = c.node
			}
			c.node = m
		}
	}
	for _, m := range l.all {
		first := len(all)
		for _, ip := range m.InternalIPs {
			p := single(ip.Addr())
			c := claim(p, m)
			own(c, p, m, compareClaims(m.node, c.node.node))
		}
		for _, p := range m.networks() {
			c := claim(p, m)
			if c.node != m && m.Shares(c.node.Record, p) && slices.Contains(c.node.networks(), p) {
				c.shared = true
				own(c, p, m, compareServers(m, c.node, p))
			} else {
				own(c, p, m, compareClaims(m.node, c.node.node))
			}
		}
		m.prefixOwners = all[first:]
	}
}

// slotPrefixes appends the prefixes that follow from the nodes' slots, sorted by slot, in
// the families in which each node is reached.
func (d *deriver) slotPrefixes(ps []netip.Prefix, ms []*member, reached func(*member) families) []netip.Prefix {
	for _, r := range d.ranges {
		f := familyOf(r.prefix.Addr())
		for _, m := range ms {
			switch {
			case m.slot == None || m.slot == d.self.Claim.Slot || reached(m)&f == 0:
			case r.bits == 0:
				ps = append(ps, single(overlayAt(r.prefix, m.slot)))
			default:
				ps = append(ps, podCIDRAt(r.prefix, r.bits, m.slot))
			}
		}
	}
	return ps
}

// clusterRange is an overlay range, or a pod range with the length of a node's pod CIDR.
type clusterRange struct {
	prefix netip.Prefix
	bits   int
}

// ranges returns the cluster's overlay and pod ranges, sorted by address.
func (c Cluster) ranges() []clusterRange {
	var out []clusterRange
	for _, p := range c.Overlay {
		out = append(out, clusterRange{prefix: p})
	}
	for i, p := range c.Pods {
		out = append(out, clusterRange{p, c.PodPrefix[i]})
	}
	slices.SortFunc(out, func(a, b clusterRange) int { return ComparePrefix(a.prefix, b.prefix) })
	return out
}

// locationPrefixes appends the internal IPs of the nodes whose tunnels end at the given
// one, and the networks behind them. Internal IPs of its own location a host expects on its
// own network, and takes no other way there.
func (d *deriver) locationPrefixes(ps []netip.Prefix, end *member) []netip.Prefix {
	for _, m := range end.carries {
		f := m.viaFamilies & d.self.viaFamilies
		if !d.self.SameLocation(m.Record) {
			ps = d.appendInternalIPs(ps, m, f, d.self.group)
		}
		ps = d.appendNetworks(ps, m, f, d.self.group)
	}
	return ps
}

// appendInternalIPs appends one node's internal IPs in the given families, unless they overlap
// the networks of the group from which they are reached; nil for the node's own.
func (d *deriver) appendInternalIPs(ps []netip.Prefix, m *member, f families, from *group) []netip.Prefix {
	for i, ip := range m.InternalIPs {
		p := single(ip.Addr())
		if f&familyOf(p.Addr()) != 0 && !d.containsEndpoint(p) && d.checkRoute(m, m.prefixOwners[i], p, "internal IP", from) {
			ps = append(ps, p)
		}
	}
	return ps
}

// appendNetworks is appendInternalIPs for the networks behind a node. Those that the host shares, and
// those of its own location to which it has a way of its own, are left out.
func (d *deriver) appendNetworks(ps []netip.Prefix, m *member, f families, from *group) []netip.Prefix {
	near := from != nil && d.self.SameLocation(m.Record)
	for i, p := range m.networks() {
		switch {
		case f&familyOf(p.Addr()) == 0:
		case from != nil && d.self.Shares(m.Record, p) && slices.Contains(d.self.networks(), p):
		case near && d.ownWay(m.Record, p, from).network != "":
		case d.checkRoute(m, m.prefixOwners[len(m.InternalIPs)+i], p, "allowed-location-ips", from) && d.checkEndpoints(m, p):
			ps = append(ps, p)
		}
	}
	return ps
}

// checkRoute reports whether a prefix of n outside the cluster's ranges may be routed
// to it. If not, it adds a problem.
func (d *deriver) checkRoute(n *member, c *prefixOwner, p netip.Prefix, what string, from *group) bool {
	if why := d.whyReserved(p); why != "" {
		return d.reportUnreachable(n, p, what, why, "choose cluster ranges that no host's network uses")
	}
	if c.rival != nil {
		other := c.node
		if n == c.node || n.Shares(c.node.Record, p) {
			other = c.rival
		}
		return d.reportUnreachable(n, p, what, fmt.Sprintf("node %s has it, too", other.Name),
			"give one of the networks other addresses, or, if it is one network, give its nodes the same node.location")
	} else if c.node != n {
		return false // another node of n's location owns it
	}
	if way := d.ownWay(n.Record, p, from); way.network != "" {
		return d.reportUnreachable(n, p, what, "it overlaps "+way.network, way.advice)
	}
	return true
}

// ownWay is a network that a host reaches without the mesh, and what to do if another node has it too.
type ownWay struct{ network, advice string }

// whyReserved returns why nobody outside of the cluster can have a prefix, "" if somebody can.
func (l *layout) whyReserved(p netip.Prefix) string {
	for _, g := range l.reserved {
		if g.Overlaps(p) {
			return fmt.Sprintf("it overlaps the cluster's range %v", g)
		}
	}
	return ""
}

// ownWay returns which network of the group from which a prefix of another node is reached, or of this
// host, the prefix would take over.
func (d *deriver) ownWay(other *Record, p netip.Prefix, from *group) ownWay {
	if from != nil {
		if o, ok := overlapping(from.networks(), p); ok {
			return ownWay{
				fmt.Sprintf("%v's own network %v", from, o),
				"if both are in one private network, give them the same node.location; else give one of the networks other addresses",
			}
		}
	}
	return ownWay{
		d.nearby.conflict(p, d.self.Record, other),
		"if that host is in the same private network, give both nodes the same node.location; else name smaller networks there, or use other addresses here",
	}
}

// overlapping returns the first of ps that overlaps p. The prefixes are sorted and don't
// overlap each other, so only the two next to p in that order have to be compared.
func overlapping(ps []netip.Prefix, p netip.Prefix) (netip.Prefix, bool) {
	i, _ := slices.BinarySearchFunc(ps, p, ComparePrefix)
	for _, o := range ps[max(i-1, 0):min(i+1, len(ps))] {
		if o.Overlaps(p) {
			return o, true
		}
	}
	return netip.Prefix{}, false
}

// holdsEndpoints is why a network is not routed into the mesh.
const holdsEndpoints = "endpoints of WireGuard peers lie in it, and a tunnel can't run through itself"

// checkEndpoints reports whether no endpoint lies in a network. If one does, it adds a
// problem.
func (d *deriver) checkEndpoints(n *member, p netip.Prefix) bool {
	return !d.containsEndpoint(p) ||
		d.reportUnreachable(n, p, "allowed-location-ips", holdsEndpoints, "name a smaller network in node.allowed-location-ips")
}

// unreachable returns what it is that a network of this node is not reachable through the mesh. A private
// address of a node without a location is not needed by the mesh, and half of all homes have the same one:
// it is a note.
func (r *Record) unreachable(p netip.Prefix) ProblemKind {
	isAddress := slices.ContainsFunc(r.InternalIPs, func(ip netip.Prefix) bool { return single(ip.Addr()) == p })
	if r.Location == "" && isAddress && p.Addr().IsPrivate() && !slices.Contains(r.networks(), p) {
		return ProblemNote
	}
	return ProblemAddress
}

func (d *deriver) reportUnreachable(n *member, p netip.Prefix, what, why, advice string) bool {
	kind := n.unreachable(p)
	if kind == ProblemNote {
		advice = fmt.Sprintf("if nobody is to reach %s by that address, set node.internal-ip to none there; %s", n.Name, advice)
	}
	d.report(kind, n.Name, fmt.Sprintf("%s %v of node %s is not reachable through the mesh: %s", what, p, n.Name, why), advice)
	return false
}

// containsEndpoint reports whether any node's endpoint lies in the prefix.
func (l *layout) containsEndpoint(p netip.Prefix) bool {
	i, _ := slices.BinarySearchFunc(l.endpointAddrs, p.Addr(), netip.Addr.Compare)
	return i < len(l.endpointAddrs) && p.Contains(l.endpointAddrs[i])
}

// servedNetworks returns what this node reaches on its LAN for others: the networks behind it and
// behind the nodes that use it as their gateway, and those nodes' internal IPs. Such a
// node drops packets from the mesh that arrive over the LAN with their original source,
// and accepts them with this node's own address as the source. The same holds for nodes
// of the own location that clients reach only through this one. What is routed to such a node
// is among them, too, and not reached on the LAN.
func (d *deriver) servedNetworks() []netip.Prefix {
	ps := d.self.networks()
	for _, m := range slices.Concat(d.self.carries, d.reachedByClientsViaUs()) {
		if m != d.self {
			ps = append(ps, m.announced()...)
		}
	}
	slices.SortFunc(ps, ComparePrefix)
	return slices.Compact(ps)
}

// ownNetworks returns the networks to which this host has ways of its own.
func (d *deriver) ownNetworks() []netip.Prefix {
	ps := d.self.networks()
	for _, a := range d.nearby.Attached {
		ps = append(ps, a.Prefix)
	}
	return ps
}

// networksOnLAN returns the networks behind a neighbor that are routed to it, in the given families.
func (d *deriver) networksOnLAN(m *member, f families) []netip.Prefix {
	ps := d.appendNetworks(nil, m, f, d.self.group)
	d.routed = append(d.routed, ps...)
	return ps
}

// reachedByClientsViaUs returns the other nodes of the own location that clients reach
// through this one.
func (d *deriver) reachedByClientsViaUs() []*member {
	if _, own := d.clientNextHop(); !own {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(d.self.group.members), func(m *member) bool { return m == d.self || d.home(m) != d.self })
}

// mergeSorted sorts a list whose first n elements are sorted and whose other elements are
// sorted.
func mergeSorted(ps []netip.Prefix, n int) []netip.Prefix {
	if n == 0 || n == len(ps) || ComparePrefix(ps[n-1], ps[n]) <= 0 {
		return ps
	}
	rest := slices.Clone(ps[n:])
	i, j := n-1, len(rest)-1
	for k := len(ps) - 1; j >= 0; k-- {
		if i >= 0 && ComparePrefix(ps[i], rest[j]) > 0 {
			ps[k], i = ps[i], i-1
		} else {
			ps[k], j = rest[j], j-1
		}
	}
	return ps
}

// contains reports whether one of the prefixes contains the address.
func contains(ps []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.Contains(a) })
}

// ContainsPrefix reports whether all addresses of inner are in outer.
func ContainsPrefix(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// single returns the prefix that contains only one address.
func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func singles(as []netip.Addr) []netip.Prefix {
	ps := make([]netip.Prefix, len(as))
	for i, a := range as {
		ps[i] = single(a)
	}
	return ps
}

// mergePrefixes sorts prefixes and removes those that others contain, in place.
func mergePrefixes(ps []netip.Prefix) []netip.Prefix {
	slices.SortFunc(ps, ComparePrefix)
	out := ps[:0]
	for _, p := range ps {
		if len(out) == 0 || !out[len(out)-1].Contains(p.Addr()) {
			out = append(out, p)
		}
	}
	return out
}

// FormatPrefixes prints prefixes for a person.
func FormatPrefixes(ps []netip.Prefix) string {
	s := make([]string, len(ps))
	for i, p := range ps {
		s[i] = p.String()
	}
	return strings.Join(s, ", ")
}
