// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"net/netip"
	"slices"
)

// endpointsOf lists where n's WireGuard socket may be reached from here, best
// first: over the LAN in the same location, then what its record says.
// Addresses inside the mesh, and those that mean this host, are never endpoints,
// also where a name resolves to them.
func (d *deriver) endpointsOf(n *member) []netip.AddrPort {
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
		if a, err := netip.ParseAddr(e.Host); err == nil {
			add(a, e.Port)
		} else {
			for _, a := range d.Resolved[e.Host] {
				add(a, e.Port)
			}
		}
	}
	return es
}

// reachEndpoints collects the addresses of all nodes' endpoints, also of those
// that this node has no tunnel to: all nodes on a path have to route the same.
func (l *layout) reachEndpoints() {
	l.reached = make([]netip.Addr, 0, len(l.all))
	add := func(a netip.Addr) {
		if a = a.Unmap(); l.Cluster.Outside(a) {
			l.reached = append(l.reached, a)
		}
	}
	for _, m := range l.all {
		for _, e := range m.Endpoints {
			if a, err := netip.ParseAddr(e.Host); err == nil {
				add(a)
				continue
			}
			for _, a := range l.Resolved[e.Host] {
				add(a)
			}
		}
	}
	slices.SortFunc(l.reached, netip.Addr.Compare)
}

// hasFamily says whether this host has an address of a's family.
func (d *deriver) hasFamily(a netip.Addr) bool {
	return len(d.Underlay) == 0 || slices.ContainsFunc(d.Underlay, func(u netip.Addr) bool { return u.Is4() == a.Is4() })
}

// EndpointInput is what a node knows of the addresses under which its own
// WireGuard socket may be reached.
type EndpointInput struct {
	Cluster    Cluster
	Configured Endpoint      // Host "" for none
	Own        []netip.Addr  // the host's addresses outside the mesh
	Observed   []Observation // what other nodes see
	ListenPort uint16
	GossipPort uint16
}

// OwnEndpoints works out a node's endpoints, best first, and whether it sits
// behind NAT, which is when others see it under an address that it has not.
//
// A NAT that keeps the gossip port and lets strangers in (a cloud's 1:1 NAT, a port
// forwarded as it is) does so with the WireGuard port too, so that address is an
// endpoint. One that changes the port, or is open only to who was spoken to, as at
// home, has no address that a stranger could use: such a node has no endpoint, and
// speaks first.
//
// A configured endpoint goes before all others. Public addresses that others
// see follow it, for peers that can't resolve its name.
func OwnEndpoints(in EndpointInput) (endpoints []Endpoint, nat bool) {
	votes := make(map[netip.Addr]int)
	for _, o := range in.Observed {
		a := o.Addr.Addr().Unmap()
		if contains(in.Cluster.guarded(), a) || a.IsLoopback() {
			continue // seen through the mesh, or by itself
		}
		own := slices.Contains(in.Own, a)
		nat = nat || !own
		if own || o.Open && o.Addr.Port() == in.GossipPort {
			votes[a]++
		}
	}
	var addrs []netip.Addr
	for a := range votes {
		addrs = append(addrs, a)
	}
	slices.SortFunc(addrs, func(a, b netip.Addr) int { return cmp.Or(votes[b]-votes[a], a.Compare(b)) })
	configured := in.Configured.Host != ""
	for _, a := range in.Own {
		if votes[a] == 0 && !Private(a) && !configured {
			addrs = append(addrs, a)
		}
	}
	// Behind NAT, a private address is for the own LAN, where it is known as an
	// internal IP.
	if configured || nat || slices.ContainsFunc(addrs, func(a netip.Addr) bool { return !Private(a) }) {
		addrs = slices.DeleteFunc(addrs, Private)
	}
	if configured {
		endpoints = append(endpoints, in.Configured)
	}
	for _, a := range addrs {
		e := Endpoint{Host: a.String(), Port: in.ListenPort, Source: EndpointOwn}
		if votes[a] > 0 {
			e.Source = EndpointObserved
		}
		if e.Host != in.Configured.Host || e.Port != in.Configured.Port {
			endpoints = append(endpoints, e)
		}
	}
	return endpoints[:min(len(endpoints), MaxEndpoints)], nat
}

// Private says whether an address is used on private networks only: RFC 1918,
// unique local (RFC 4193), shared space (RFC 6598), link-local, loopback.
func Private(a netip.Addr) bool {
	// For carriers' NAT: public in form, private in use.
	shared := netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, 0, 0}), 10)
	return a.IsPrivate() || a.IsLinkLocalUnicast() || a.IsLoopback() || shared.Contains(a)
}
