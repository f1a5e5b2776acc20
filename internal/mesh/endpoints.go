// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// endpointsOf returns the addresses at which n's WireGuard socket may be reached from
// here, best first: over the LAN in the same segment, then those in its record, then over a
// LAN that may be the same one.
// Addresses inside the mesh, and those that mean this host, are never endpoints, even if
// a name resolves to them. Neither is an address on a LAN that may be the same one if it is
// routed into a tunnel, as part of a network behind another location: then that LAN is not
// this host's, and a tunnel can't run through another one.
func (d *deriver) endpointsOf(n *member, inside []netip.Prefix) []netip.AddrPort {
	es := make([]netip.AddrPort, 0, len(n.Endpoints))
	add := func(a netip.Addr, port uint16) {
		if a = a.Unmap(); port == 0 || !d.hasFamily(a) || !d.Cluster.Outside(a) {
			return
		}
		if e := netip.AddrPortFrom(a, port); !slices.Contains(es, e) {
			es = append(es, e)
		}
	}
	if n.group == d.self.group {
		for _, ip := range n.InternalIPs {
			add(ip.Addr(), n.ListenPort)
		}
	}
	for _, e := range n.Endpoints {
		for _, a := range e.Addresses(d.Resolved) {
			add(a, e.Port)
		}
	}
	if n.SameLocation(d.self.Record) {
		for _, ip := range n.InternalIPs {
			if _, routed := overlapping(inside, single(ip.Addr())); !routed {
				add(ip.Addr(), n.ListenPort)
			}
		}
	}
	return es
}

// GossipEndpoint returns host and port of GossipAddr; no host if there is none.
func (r Record) GossipEndpoint() Endpoint {
	host, port, ok := cutLast(r.GossipAddr, ":")
	p, err := strconv.ParseUint(port, 10, 16)
	if !ok || err != nil {
		return Endpoint{}
	}
	return Endpoint{Host: strings.TrimSuffix(strings.TrimPrefix(host, "["), "]"), Port: uint16(p)}
}

// cutLast is strings.Cut at the last separator.
func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// collectEndpoints collects the addresses of all nodes' endpoints, including those to
// which this node has no tunnel, because all nodes on the way of a packet must route
// alike.
func (l *layout) collectEndpoints() {
	l.endpointAddrs = make([]netip.Addr, 0, len(l.all))
	add := func(a netip.Addr) {
		if a = a.Unmap(); l.Cluster.Outside(a) {
			l.endpointAddrs = append(l.endpointAddrs, a)
		}
	}
	for _, m := range l.all {
		for _, e := range m.Endpoints {
			for _, a := range e.Addresses(l.Resolved) {
				add(a)
			}
		}
	}
	slices.SortFunc(l.endpointAddrs, netip.Addr.Compare)
}

// Addresses returns the addresses of an endpoint, of a name those to which it has been resolved.
func (e Endpoint) Addresses(resolved map[string][]netip.Addr) []netip.Addr {
	if a, err := netip.ParseAddr(e.Host); err == nil {
		return []netip.Addr{a}
	}
	return resolved[e.Host]
}

// hasFamily reports whether this host has an address of a's family.
func (d *deriver) hasFamily(a netip.Addr) bool {
	return len(d.Underlay) == 0 || slices.ContainsFunc(d.Underlay, func(u netip.Addr) bool { return u.Is4() == a.Is4() })
}

// EndpointInput is what a node knows about the addresses at which its own WireGuard
// socket may be reached.
type EndpointInput struct {
	Cluster    Cluster
	Configured Endpoint         // Host "" for none
	Own        []netip.Addr     // the host's addresses outside the mesh
	Seen       []netip.AddrPort // where peers see the socket, one for each peer and family, and where strangers have reached it
	Mapped     []netip.AddrPort // where the host's router maps the port to it, as it says
	ListenPort uint16

	// Last are the endpoints of the last record, and LastNAT its NAT flag. They count as long
	// as no peer sees the socket at a public address.
	Last    []Endpoint
	LastNAT bool
}

// OwnEndpoints returns a node's endpoints, best first, and whether it is behind NAT, which
// means that most peers see it at a public address that it does not have itself.
//
// A configured endpoint is the only one. Else they are the host's public addresses, those at
// which its router maps the port and strangers have reached it, and in each family the public
// address at which most peers see it with the port on which it listens, as behind a 1:1 NAT or
// a port forward. Whether others get in there is for them to find out. A host without any of these may be in a private network where others reach
// it at its private addresses, if they see it there.
func OwnEndpoints(in EndpointInput) (endpoints []Endpoint, nat bool) {
	s := in.countSightings()
	if in.Configured.Host != "" {
		return []Endpoint{in.Configured}, s.nat
	}
	add := func(a netip.Addr, source EndpointSource) {
		if len(endpoints) < MaxEndpoints {
			endpoints = append(endpoints, Endpoint{Host: a.String(), Port: in.ListenPort, Source: source})
		}
	}
	for _, a := range in.Own {
		if !isPrivate(a) && len(endpoints) < MaxEndpoints/2 {
			add(a, EndpointOwn)
		}
	}
	known := func(a netip.Addr) bool {
		return slices.ContainsFunc(endpoints, func(e Endpoint) bool { return e.Host == a.String() })
	}
	for _, a := range in.Mapped {
		if slices.Contains(in.Seen, a) && !known(a.Addr()) && len(endpoints) < MaxEndpoints {
			endpoints = append(endpoints, Endpoint{Host: a.Addr().String(), Port: a.Port(), Source: EndpointObserved})
		}
	}
	for _, a := range s.mapped {
		if !known(a) {
			add(a, EndpointObserved)
		}
	}
	if len(endpoints) == 0 && !s.nat {
		for _, a := range s.private {
			add(a, EndpointObserved)
		}
	}
	return endpoints, s.nat
}

// sightings sums up where peers see a node.
type sightings struct {
	mapped  []netip.Addr // public addresses that it does not have, seen with its own port; at most one a family
	private []netip.Addr // its own private addresses
	nat     bool
}

func (in EndpointInput) countSightings() (s sightings) {
	last := in.lastObserved()
	own, others := make(map[bool]int), make(map[bool]int) // by family: how many peers see an own address, or another one
	votes := make(map[netip.Addr]int)
	for _, seen := range in.Seen {
		a := seen.Addr().Unmap()
		switch {
		case slices.Contains(in.Own, a) && isPrivate(a): // there may be a NAT towards other peers
			s.private = append(s.private, a)
		case slices.Contains(in.Own, a):
			own[a.Is4()]++
		case IsPublic(a) && in.Cluster.Outside(a):
			others[a.Is4()]++
			if seen.Port() == in.ListenPort {
				votes[a]++
			}
		}
	}
	if len(own)+len(others) == 0 {
		for _, a := range last {
			if slices.Contains(in.Own, a) {
				s.private = append(s.private, a)
			} else {
				votes[a]++
			}
		}
	}
	slices.SortFunc(s.private, netip.Addr.Compare)
	s.private = slices.Compact(s.private)
	for _, four := range []bool{true, false} {
		s.nat = s.nat || others[four] > own[four] || len(own)+len(others) == 0 && in.LastNAT
		var best netip.Addr
		for a, n := range votes {
			better := cmp.Or(cmp.Compare(n, votes[best]), compareTrueFirst(slices.Contains(last, best), slices.Contains(last, a)), best.Compare(a)) > 0
			if a.Is4() == four && better {
				best = a
			}
		}
		if best.IsValid() && votes[best] > own[four] {
			s.mapped = append(s.mapped, best)
		}
	}
	return s
}

// lastObserved returns the addresses of the last record at which others saw the node.
func (in EndpointInput) lastObserved() (addrs []netip.Addr) {
	for _, e := range in.Last {
		if a, err := netip.ParseAddr(e.Host); err == nil && e.Source == EndpointObserved && e.Port == in.ListenPort {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// isPrivate reports whether an address is used on private networks only: RFC 1918, unique
// local (RFC 4193), shared space (RFC 6598), link-local, loopback.
func isPrivate(a netip.Addr) bool {
	return a.IsPrivate() || a.IsLinkLocalUnicast() || a.IsLoopback() || IsShared(a)
}

// IsShared reports whether an address is in the shared space (RFC 6598), from which carriers
// number their customers: not reserved as private, but used as private.
func IsShared(a netip.Addr) bool {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, 0, 0}), 10).Contains(a)
}

// IsPublic reports whether an address means the same host everywhere on the internet.
func IsPublic(a netip.Addr) bool {
	a = a.Unmap()
	return CheckHost(a) == nil && !isPrivate(a) && !IsSpecial(a)
}
