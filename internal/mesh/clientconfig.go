// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

const (
	// clientKeepalive keeps the mappings of most NATs open.
	clientKeepalive = 25 * time.Second
	// routerKeepalive tells homes soon that a client with networks is gone, see node.Routers.
	routerKeepalive = 5 * time.Second
	// clientMTU is WireGuard's MTU on an Ethernet link: the MTU of the client's own link
	// is not known.
	clientMTU = 1420
	// clientStandbys is how many gateways of one location may fail in succession before a
	// client has learned of it.
	clientStandbys = 2
)

// ClientConfig is what a client needs to know to reach the cluster.
type ClientConfig struct {
	Client
	Addresses []netip.Addr // its own, one per family
	Resolver  netip.Addr   // the cluster's; invalid if the client may not reach it, or is a router, which has its own
	Search    []string     // domains
	MTU       int
	Keepalive time.Duration
	Peers     []ClientPeer // by name
	Standbys  []ClientPeer // the nodes that take over when a peer fails, in each location the next one first
	// Ranges are all addresses that it may ever reach: nodes' overlay addresses, the
	// allowed part of the cluster's ranges, and the networks of its access list. Sorted.
	Ranges []netip.Prefix
	// Unserved are the entries of its access list to which no node has a route.
	Unserved []Access
}

// ClientPeer is a node to which a client has a tunnel.
type ClientPeer struct {
	ID             ID
	Name           string
	Key            wgtypes.Key
	Overlay        []netip.Addr // its own, one per family; among AllowedIPs whatever the client may reach
	Endpoints      []Endpoint   // best first, at least one
	AllowedIPs     []netip.Prefix
	ServiceGateway bool // the client's traffic to Services goes through it
}

// ClientConfigOf returns a client's configuration: one peer for each node to which clients have
// tunnels, with the prefixes that are reached through it and that the client may reach.
// The nodes' own addresses are always included, because there the client asks for its
// configuration. Services go through the node that the client names, if it is alive, else
// through one of the live ones; a nil map means that all are alive. A client that may reach
// the internet gets default routes of both families.
func ClientConfigOf(in Input, c Client, alive map[ID]bool) ClientConfig {
	l := newLayout(in)
	l.nodes = l.nodePrefixes() // also for a client that does not count
	allowed := l.allowances(c.Access)
	out := ClientConfig{
		Client: c, Addresses: in.Cluster.ClientAddresses(c.Index),
		MTU: clientMTU, Keepalive: clientKeepalive,
	}
	through := allowed
	if len(c.Networks) > 0 {
		out.Keepalive = routerKeepalive
		// Its WireGuard drops what comes from other sources, and nodes and pods speak to what is behind it.
		through = append(slices.Clone(allowed), Allowance{Destinations: mergePrefixes(slices.Concat(in.Cluster.nodeRanges(), in.Cluster.Pods))})
	}
	defaults := make(map[*member][]netip.Prefix)
	if mayReachInternet(allowed) {
		for _, p := range defaultRoutes() {
			if m := l.exit(c, alive, p); m != nil {
				defaults[m] = append(defaults[m], p)
			}
		}
	}
	services := l.serviceGateway(c, alive, defaults)
	reached := l.nodesByHome()
	for _, h := range l.all {
		if !h.isHome() {
			continue
		}
		p := ClientPeer{ID: h.id, Name: h.Name, Key: h.Key, Overlay: in.Cluster.Overlays(h.slot), Endpoints: h.Endpoints, ServiceGateway: h == services}
		p.AllowedIPs = append(singles(p.Overlay), reachablePrefixes(l.prefixesThrough(h, reached[h], !c.NoInternalIPs), through)...)
		if p.ServiceGateway {
			p.AllowedIPs = append(p.AllowedIPs, reachablePrefixes(slices.Concat(in.Cluster.Services, l.networksBehindOthers(c.ID)), allowed)...)
		}
		// Keep the other prefixes beside a default route: they lead into the tunnel also where
		// the client has a route to a wider network.
		p.AllowedIPs = merge(defaults[h], mergePrefixes(p.AllowedIPs))
		out.Peers = append(out.Peers, p)
		out.MTU = min(out.MTU, cmp.Or(h.MTU, clientMTU))
	}
	for _, g := range l.groups {
		for _, m := range g.standbys() {
			own := in.Cluster.Overlays(m.slot)
			out.Standbys = append(out.Standbys, ClientPeer{ID: m.id, Name: m.Name, Key: m.Key, Overlay: own, Endpoints: m.Endpoints, AllowedIPs: singles(own)})
		}
	}
	out.Ranges, out.Unserved = l.accessRanges(c.Access, through), l.unserved(c.Access, out.Peers)
	slices.SortFunc(out.Peers, func(a, b ClientPeer) int { return cmp.Or(strings.Compare(a.Name, b.Name), a.ID.Compare(b.ID)) })
	if dns := in.Cluster.DNS; dns.Address.IsValid() && len(c.Networks) == 0 && allows(allowed, "udp", 53, dns.Address) {
		out.Resolver = dns.Address
		if dns.Domain != "" {
			out.Search = []string{"default.svc." + dns.Domain, "svc." + dns.Domain, dns.Domain}
		}
	}
	return out
}

// accessRanges returns the ranges that a client may reach, whether or not any address
// there is in use now.
func (l *layout) accessRanges(list []Access, allowed []Allowance) []netip.Prefix {
	ps := slices.Concat(l.Cluster.nodeRanges(), reachablePrefixes(slices.Concat(l.Cluster.Pods, l.Cluster.Services), allowed))
	for _, a := range list {
		if a.Target == "" && a.Prefix.Bits() >= minAccessBits {
			ps = append(ps, a.Prefix)
		}
	}
	ps = mergePrefixes(ps)
	if mayReachInternet(allowed) {
		defaults := defaultRoutes()
		ps = merge(defaults[:], ps)
	}
	return ps
}

// unserved returns the entries of an access list of which no part is behind any of the
// peers.
func (l *layout) unserved(list []Access, peers []ClientPeer) []Access {
	var out []Access
	for _, a := range list {
		to := []Allowance{{Destinations: l.destinations(a)}}
		serves := func(p ClientPeer) bool { return len(reachablePrefixes(p.AllowedIPs, to)) > 0 }
		if a.Target == AccessInternet {
			serves = func(p ClientPeer) bool { return slices.ContainsFunc(p.AllowedIPs, IsDefaultRoute) }
		}
		if !slices.ContainsFunc(peers, serves) {
			out = append(out, a)
		}
	}
	return out
}

// standbys returns the nodes that would become clients' homes if they became gateways,
// best first.
func (g *group) standbys() []*member {
	var ms []*member
	for _, m := range g.members {
		if m.canBeGateway() && m.IsOpen() && !m.isHome() {
			ms = append(ms, m)
		}
	}
	slices.SortFunc(ms, compareCandidates)
	return ms[:min(len(ms), clientStandbys)]
}

// nodesByHome groups nodes by their home.
func (l *layout) nodesByHome() map[*member][]*member {
	out := make(map[*member][]*member)
	for _, m := range l.all {
		if h := l.home(m); h != nil {
			out[h] = append(out[h], m)
		}
	}
	return out
}

// prefixesThrough returns the prefixes of the nodes whose home is h, with or without their internal IPs.
func (l *layout) prefixesThrough(h *member, ms []*member, internalIPs bool) []netip.Prefix {
	d := &deriver{layout: l, self: h, ranges: l.Cluster.ranges()}
	var ps []netip.Prefix
	for _, m := range ms {
		reached, from := m.viaFamilies, h.group
		if m.group == h.group {
			from = nil // h is on their LAN
			if m != h && !l.tunnelled(m, h) {
				reached = l.link(h, m).families
			}
		}
		if m.slot != None {
			ps = d.appendSlotPrefixes(ps, m, reached)
		}
		if internalIPs {
			ps = d.appendInternalIPs(ps, m, reached, from)
		}
		if slices.ContainsFunc(m.networks(), func(p netip.Prefix) bool { return m.LinkedTo(p) != "" && h.Shares(m.Record, p) }) {
			from = nil // h has a way of its own
		}
		ps = d.appendNetworks(ps, m, reached, from)
	}
	return mergePrefixes(ps)
}

// appendSlotPrefixes appends the prefixes that follow from a node's slot, in the given
// families.
func (d *deriver) appendSlotPrefixes(ps []netip.Prefix, m *member, f families) []netip.Prefix {
	for _, p := range slices.Concat(singles(d.Cluster.Overlays(m.slot)), d.Cluster.PodCIDRs(m.slot)) {
		if familyOf(p.Addr())&f != 0 {
			ps = append(ps, p)
		}
	}
	return ps
}

// serviceGateway chooses the node that carries Services for a client: the one that it names, else
// one of its exits, if there are any: the client asks that node all the time, and so finds out
// that its exit is gone.
func (l *layout) serviceGateway(c Client, alive map[ID]bool, defaults map[*member][]netip.Prefix) *member {
	isItsExit := func(m *member) bool { return len(defaults[m]) > 0 }
	return l.chooseHome(c, alive, (*member).isHome, c.names, isItsExit)
}

// names reports whether a client names a node as its service gateway.
func (c Client) names(m *member) bool { return m.id == c.ServiceGateway }

// chooseHome chooses one of the homes that can do something for a client: a live one, if there
// is one, then by the preferences, the most important first, then one that wants to be a
// gateway, and by rendezvous hashing, so that clients are spread over them.
func (l *layout) chooseHome(c Client, alive map[ID]bool, can func(*member) bool, preferences ...func(*member) bool) *member {
	var best *member
	var rank int
	var highest uint64
	preferences = append(preferences, func(m *member) bool { return m.Gateway == GatewayPrefer })
	for _, h := range l.all {
		if !can(h) {
			continue
		}
		r := 0
		if alive == nil || alive[h.id] {
			r = 1
		}
		for _, prefer := range preferences {
			r *= 2
			if prefer(h) {
				r++
			}
		}
		if w := mix(low64(c.ID) ^ low64(h.id)); best == nil || r > rank || r == rank && w > highest {
			best, rank, highest = h, r, w
		}
	}
	return best
}
