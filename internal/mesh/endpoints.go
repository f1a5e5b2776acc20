// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"net/netip"
	"slices"
)

// endpointsOf returns the addresses at which n's WireGuard socket may be reached from
// here, best first: over the LAN in the same location, then those in its record.
// Addresses inside the mesh, and those that mean this host, are never endpoints, even if
// a name resolves to them.
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
			if a, err := netip.ParseAddr(e.Host); err == nil {
				add(a)
				continue
			}
			for _, a := range l.Resolved[e.Host] {
				add(a)
			}
		}
	}
	slices.SortFunc(l.endpointAddrs, netip.Addr.Compare)
}

// hasFamily reports whether this host has an address of a's family.
func (d *deriver) hasFamily(a netip.Addr) bool {
	return len(d.Underlay) == 0 || slices.ContainsFunc(d.Underlay, func(u netip.Addr) bool { return u.Is4() == a.Is4() })
}

// EndpointInput is what a node knows about the addresses at which its own WireGuard
// socket may be reached.
type EndpointInput struct {
	Cluster    Cluster
	Configured Endpoint       // Host "" for none
	Own        []netip.Addr   // the host's addresses outside the mesh
	OnLink     []netip.Prefix // its private networks
	Observed   []Observation  // what other nodes see
	ListenPort uint16

	// Last are the endpoints of the last record, and LastNAT its NAT flag.
	Last    []Endpoint
	LastNAT bool
	// RequiredObservers is how many nodes must agree to change what the last record says. It is more
	// than one until most nodes have reported.
	RequiredObservers int
}

// OwnEndpoints returns a node's endpoints, best first, and whether it is behind NAT,
// which means that others see it at an address that it does not have itself.
//
// A NAT that forwards the gossip port from anywhere (a cloud's 1:1 NAT, a port forward)
// also forwards the WireGuard port, so its public address is an endpoint. A NAT that
// accepts only replies, as at home, has no address that others could use: such a node has
// no endpoint and sends the first packet itself.
//
// Other nodes may lie. One observation is enough for an own address. Another address is
// an endpoint if two nodes could connect there, or the only one that reports. The node is
// behind NAT, or no longer, if most of the nodes that can know say so. A tie changes
// nothing, and no single node can remove an endpoint at which others can connect.
//
// A configured endpoint comes first. Public addresses that others see follow it, for
// peers that can't resolve its name.
func OwnEndpoints(in EndpointInput) (endpoints []Endpoint, nat bool) {
	c := in.countObservations()
	nat = in.behindNAT(c)
	votes := c.own
	for a, n := range c.open {
		if n >= min(2, max(len(c.outside), in.RequiredObservers)) {
			votes[a] = n
		}
	}
	for _, a := range in.lastObserved() {
		// It stays as long as the address is ours, or another node can connect there, or only
		// neighbors are left, who can't know: when a location is cut off, all have to find it
		// again where it was.
		if slices.Contains(in.Own, a) || c.open[a] > 0 || len(c.outside) == 0 || in.RequiredObservers > 1 {
			votes[a] = max(votes[a], c.open[a], 1)
		}
	}
	var addrs []netip.Addr
	for a := range votes {
		addrs = append(addrs, a)
	}
	slices.SortFunc(addrs, func(a, b netip.Addr) int { return cmp.Or(votes[b]-votes[a], a.Compare(b)) })
	others := 0
	addrs = slices.DeleteFunc(addrs, func(a netip.Addr) bool {
		if !slices.Contains(in.Own, a) {
			others++
		}
		return others > MaxEndpoints/2 // the rest is for the host's own addresses
	})
	configured := in.Configured.Host != ""
	public := false
	for _, a := range in.Own {
		public = public || !isPrivate(a)
		if votes[a] == 0 && !isPrivate(a) && !configured {
			addrs = append(addrs, a)
		}
	}
	// Behind NAT, a private address is useful only on the own LAN, where it is known as
	// an internal IP.
	if configured || nat || public {
		addrs = slices.DeleteFunc(addrs, isPrivate)
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

// viewpoint is the kind of network from which another node sees us. What one kind sees
// need not hold for another: a home has NAT for IPv4 and none for IPv6, and an office
// behind a VPN sees an address that the internet does not.
type viewpoint struct{ four, private bool }

// sightings counts the observations from one viewpoint: how many nodes see us at one of
// our own addresses, and how many at another address.
type sightings struct{ own, other int }

// observationCounts is the sum of what other nodes observe.
type observationCounts struct {
	own       map[netip.Addr]int // for each own address, how many nodes see us there
	open      map[netip.Addr]int // for each other address, how many nodes could connect there
	outside   map[ID]bool        // nodes that could notice a NAT
	sightings map[viewpoint]sightings
}

func (in EndpointInput) countObservations() observationCounts {
	c := observationCounts{make(map[netip.Addr]int), make(map[netip.Addr]int), make(map[ID]bool), make(map[viewpoint]sightings)}
	for _, o := range in.Observed {
		a := o.Addr.Unmap()
		if !in.Cluster.Outside(a) {
			continue // seen through the mesh, or not an address of a host
		}
		own := slices.Contains(in.Own, a)
		if own {
			c.own[a]++
		}
		// There is no NAT between us and a neighbor on our link, whatever it reports.
		if contains(in.OnLink, o.From.Unmap()) {
			continue
		}
		c.outside[o.By] = true
		v := viewpoint{a.Is4(), isPrivate(o.From.Unmap())}
		b := c.sightings[v]
		switch {
		case own:
			b.own++
		case o.Open:
			c.open[a]++
			b.other++
		default:
			b.other++
		}
		c.sightings[v] = b
	}
	return c
}

// behindNAT decides by majority, separately for each viewpoint.
func (in EndpointInput) behindNAT(c observationCounts) bool {
	least := max(in.RequiredObservers, 1)
	notBehindNAT, tied := false, false
	for _, b := range c.sightings {
		switch {
		case b.other > b.own && b.other >= least:
			return true
		case b.own > b.other && b.own >= least:
			notBehindNAT = true
		default:
			tied = true
		}
	}
	return in.LastNAT && (tied || !notBehindNAT)
}

// lastObserved returns the addresses of the last record at which others saw us.
func (in EndpointInput) lastObserved() (addrs []netip.Addr) {
	for _, e := range in.Last {
		if a, err := netip.ParseAddr(e.Host); err == nil && e.Source == EndpointObserved {
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
