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
	Configured Endpoint       // Host "" for none
	Own        []netip.Addr   // the host's addresses outside the mesh
	OnLink     []netip.Prefix // its private networks
	Observed   []Observation  // what other nodes see
	ListenPort uint16

	// Last are the endpoints of the last record, and LastNAT its NAT flag.
	Last    []Endpoint
	LastNAT bool
	// Voices is how many nodes it takes to change what the last record says. It is
	// more than one while most have yet to speak.
	Voices int
}

// OwnEndpoints works out a node's endpoints, best first, and whether it sits
// behind NAT, which is when others see it under an address that it has not.
//
// A NAT that lets strangers in at the gossip port (a cloud's 1:1 NAT, a port
// forwarded as it is) does so with the WireGuard port too, so that address is an
// endpoint. One that is open only to who was spoken to, as at home, has no address
// that a stranger could use: such a node has no endpoint, and speaks first.
//
// What others say may be a lie. One voice is enough for an own address. One of
// another host's is an endpoint if two nodes got in there, or the only one that
// speaks; and a node is behind NAT, or not any more, if most of those say so who can
// know. A tie leaves everything as it was, and no voice takes an endpoint away that
// others get in at.
//
// A configured endpoint goes before all others. Public addresses that others
// see follow it, for peers that can't resolve its name.
func OwnEndpoints(in EndpointInput) (endpoints []Endpoint, nat bool) {
	c := in.count()
	nat = in.behindNAT(c)
	votes := c.own
	for a, n := range c.open {
		if n >= min(2, max(len(c.outside), in.Voices)) {
			votes[a] = n
		}
	}
	for _, a := range in.lastObserved() {
		// It stays as long as it is ours, or somebody gets in there.
		if slices.Contains(in.Own, a) || c.open[a] > 0 || in.Voices > 1 {
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
		return others > MaxEndpoints/2 // the rest is for what the host has itself
	})
	configured := in.Configured.Host != ""
	public := false
	for _, a := range in.Own {
		public = public || !Private(a)
		if votes[a] == 0 && !Private(a) && !configured {
			addrs = append(addrs, a)
		}
	}
	// Behind NAT, a private address is for the own LAN, where it is known as an
	// internal IP.
	if configured || nat || public {
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

// vantage is from where somebody looks at us. What is true of one need not be of
// another: a home has NAT for IPv4 and none for IPv6, and an office behind a VPN sees
// an address that the internet does not.
type vantage struct{ four, private bool }

// ballot is what is said from one vantage: how many nodes see us at an address of
// ours, and how many at another one.
type ballot struct{ own, other int }

// counted is what others say, counted.
type counted struct {
	own     map[netip.Addr]int // for each own address, who sees us there
	open    map[netip.Addr]int // for each other one, who got in there
	outside map[ID]bool        // who can know of a NAT
	ballots map[vantage]ballot
}

func (in EndpointInput) count() counted {
	c := counted{make(map[netip.Addr]int), make(map[netip.Addr]int), make(map[ID]bool), make(map[vantage]ballot)}
	for _, o := range in.Observed {
		a := o.Addr.Unmap()
		if !in.Cluster.Outside(a) {
			continue // seen through the mesh, or nowhere where a host can be
		}
		own := slices.Contains(in.Own, a)
		if own {
			c.own[a]++
		}
		// Between us and a neighbor on our link there is no NAT, whatever it says.
		if contains(in.OnLink, o.From.Unmap()) {
			continue
		}
		c.outside[o.By] = true
		v := vantage{a.Is4(), Private(o.From.Unmap())}
		b := c.ballots[v]
		switch {
		case own:
			b.own++
		case o.Open:
			c.open[a]++
			b.other++
		default:
			b.other++
		}
		c.ballots[v] = b
	}
	return c
}

// behindNAT decides by majority, from each vantage.
func (in EndpointInput) behindNAT(c counted) bool {
	least := max(in.Voices, 1)
	denied, tied := false, false
	for _, b := range c.ballots {
		switch {
		case b.other > b.own && b.other >= least:
			return true
		case b.own > b.other && b.own >= least:
			denied = true
		default:
			tied = true
		}
	}
	return in.LastNAT && (tied || !denied)
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

// Private says whether an address is used on private networks only: RFC 1918,
// unique local (RFC 4193), shared space (RFC 6598), link-local, loopback.
func Private(a netip.Addr) bool {
	// For carriers' NAT: public in form, private in use.
	shared := netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, 0, 0}), 10)
	return a.IsPrivate() || a.IsLinkLocalUnicast() || a.IsLoopback() || shared.Contains(a)
}
