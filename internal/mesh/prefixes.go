// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// claimant is whose a prefix outside the cluster's ranges is.
type claimant struct {
	node   *node
	shared bool // nodes of several locations have it
}

// claimPrefixes decides whose each internal IP and each allowed-location-ip is. A network
// that several nodes of one location serve is the first claim's.
func (l *layout) claimPrefixes() {
	claims := make(map[netip.Prefix]*claimant, len(l.all))
	slab := make([]claimant, 0, len(l.all)) // growing leaves the old ones where they are
	all := make([]*claimant, 0, len(l.all))
	claim := func(p netip.Prefix, n *node) {
		c, ok := claims[p]
		if !ok {
			slab = append(slab, claimant{node: n})
			c = &slab[len(slab)-1]
			claims[p] = c
		}
		all = append(all, c)
		if c.node != n && p.IsSingleIP() {
			if l.doubled == nil {
				l.doubled = make(map[netip.Addr]bool)
			}
			l.doubled[p.Addr()] = true
		}
		if c.node != n && (n.Location == "" || c.node.Location != n.Location) {
			c.shared = true
		}
		if compareClaims(n, c.node) < 0 {
			c.node = n
		}
	}
	for _, m := range l.all {
		first := len(all)
		for _, ip := range m.InternalIPs {
			claim(single(ip.Addr()), m.node)
		}
		for _, p := range m.AllowedLocationIPs {
			claim(p.Masked(), m.node)
		}
		m.claims = all[first:]
	}
}

// slotPrefixes appends what follows from the slots of nodes, sorted by slot, in the
// families that they are reached in.
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

// span is an overlay range, or a pod range with the bits of a node's part.
type span struct {
	prefix netip.Prefix
	bits   int
}

// spans returns the cluster's ranges in the order of their addresses.
func (c Cluster) spans() []span {
	var out []span
	for _, p := range c.Overlay {
		out = append(out, span{prefix: p})
	}
	for i, p := range c.Pods {
		out = append(out, span{p, c.PodPrefix[i]})
	}
	slices.SortFunc(out, func(a, b span) int { return ComparePrefix(a.prefix, b.prefix) })
	return out
}

// locationPrefixes appends the internal IPs of nodes and the networks behind them, as far
// as all that the packets pass on the way may route them.
func (d *deriver) locationPrefixes(ps []netip.Prefix, w way) []netip.Prefix {
	groups := []*group{d.self.group}
	if w.hop.group != w.end.group {
		groups = append(groups, w.hop.group)
	}
	for _, m := range w.end.carries {
		ps = d.networksOf(ps, m, m.passing&d.self.passing, groups)
	}
	return ps
}

// networksOf appends one node's internal IPs and the networks behind it, in the families
// that pass, unless they overlap the networks of groups on the way.
func (d *deriver) networksOf(ps []netip.Prefix, m *member, passing families, groups []*group) []netip.Prefix {
	for i, ip := range m.InternalIPs {
		p := single(ip.Addr())
		if passing&familyOf(p.Addr()) != 0 && !d.holdsEndpoint(p) && d.mayRoute(m, m.claims[i], p, "internal IP", groups) {
			ps = append(ps, p)
		}
	}
	for i, p := range m.AllowedLocationIPs {
		p, c := p.Masked(), m.claims[len(m.InternalIPs)+i]
		if passing&familyOf(p.Addr()) != 0 && d.mayRoute(m, c, p, "allowed-location-ips", groups) && d.clearOfEndpoints(m, p) {
			ps = append(ps, p)
		}
	}
	return ps
}

// mayRoute says whether a prefix of n that is not of the cluster's ranges may be routed
// into a tunnel, and reports why not.
func (d *deriver) mayRoute(n *member, c *claimant, p netip.Prefix, what string, own []*group) bool {
	for _, g := range d.reserved {
		if g.Overlaps(p) {
			return d.refuse(n, p, what, fmt.Sprintf("it overlaps the cluster's range %v", g), "choose cluster ranges that no host's network uses")
		}
	}
	if c.shared {
		return d.refuse(n, p, what, "nodes of several locations have it", "give one of the networks other addresses, or, if it is one network, give its nodes the same node.location")
	} else if c.node != n.node {
		return false // another node of n's location serves it
	}
	for _, g := range own {
		if o, ok := overlapping(g.networks(), p); ok {
			return d.refuse(n, p, what, fmt.Sprintf("it overlaps %v's own network %v", g, o),
				"if both are in one private network, give them the same node.location; else give one of the networks other addresses")
		}
	}
	if o := d.nearby.conflict(p); o != "" {
		return d.refuse(n, p, what, "it overlaps "+o,
			"if that host is in the same private network, give both nodes the same node.location; else name smaller networks there, or use other addresses here")
	}
	return true
}

// overlapping returns the first of some prefixes that shares addresses with one. They are
// sorted and share none with each other, so that two of them can be it.
func overlapping(ps []netip.Prefix, p netip.Prefix) (netip.Prefix, bool) {
	i, _ := slices.BinarySearchFunc(ps, p, ComparePrefix)
	for _, o := range ps[max(i-1, 0):min(i+1, len(ps))] {
		if o.Overlaps(p) {
			return o, true
		}
	}
	return netip.Prefix{}, false
}

// clearOfEndpoints says whether no endpoint lies in a network, and reports if one does.
func (d *deriver) clearOfEndpoints(n *member, p netip.Prefix) bool {
	return !d.holdsEndpoint(p) || d.refuse(n, p, "allowed-location-ips",
		"endpoints of WireGuard peers lie in it, and a tunnel can't run through itself", "name a smaller network in node.allowed-location-ips")
}

func (d *deriver) refuse(n *member, p netip.Prefix, what, why, advice string) bool {
	d.report(ProblemAddress, n.Name, fmt.Sprintf("%s %v of node %s is not reachable through the mesh: %s", what, p, n.Name, why), advice)
	return false
}

// holdsEndpoint says whether a node's endpoint lies in the prefix.
func (l *layout) holdsEndpoint(p netip.Prefix) bool {
	i, _ := slices.BinarySearchFunc(l.reached, p.Addr(), netip.Addr.Compare)
	return i < len(l.reached) && p.Contains(l.reached[i])
}

// serves lists what this node reaches on its LAN for others: the networks behind it and
// behind the nodes that hang on it, and those nodes' internal IPs. A node that hangs on
// it would drop a packet from the mesh that comes by the LAN as it is; one from this
// node's own address it answers. The same goes for nodes of the own location that others
// can only reach through this one.
func (d *deriver) serves() []netip.Prefix {
	var ps []netip.Prefix
	for _, m := range slices.Concat(d.self.carries, d.relayed(), d.lodgers()) {
		for _, p := range m.AllowedLocationIPs {
			ps = append(ps, p.Masked())
		}
		for _, ip := range m.InternalIPs {
			if m != d.self {
				ps = append(ps, single(ip.Addr()))
			}
		}
	}
	slices.SortFunc(ps, ComparePrefix)
	return slices.Compact(ps)
}

// relayed are the nodes of the own location that this node passes packets on to when
// nodes elsewhere choose it as a relay: tunnel ends, and who hangs on them.
func (d *deriver) relayed() []*member {
	if !slices.ContainsFunc(d.relays, func(r relay) bool { return r.member == d.self }) {
		return nil
	}
	var ms []*member
	for _, m := range d.self.group.members {
		if m != d.self && hidden(m) && d.tunnelled(d.self, m) {
			ms = append(ms, m.carries...)
		}
	}
	return ms
}

// lodgers are other nodes of the own location that clients reach through this one.
func (d *deriver) lodgers() []*member {
	if _, own := d.clientWay(); !own {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(d.self.group.members), func(m *member) bool { return m == d.self || d.home(m) != d.self })
}

// mergeSorted sorts a list of which the first n are sorted and the rest is.
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

// contains says whether one of the prefixes holds the address.
func contains(ps []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.Contains(a) })
}

// single is the prefix of one address.
func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func singles(as []netip.Addr) []netip.Prefix {
	ps := make([]netip.Prefix, len(as))
	for i, a := range as {
		ps[i] = single(a)
	}
	return ps
}

// MergePrefixes sorts prefixes and drops those that others contain, in place.
func MergePrefixes(ps []netip.Prefix) []netip.Prefix {
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
