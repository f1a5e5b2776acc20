// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"net/netip"
	"slices"
	"time"
)

// Input is all that Derive depends on. The order of its lists does not matter.
type Input struct {
	Cluster Cluster
	Self    ID
	Records []Record // valid ones, of all nodes, including the own one
	// Verdicts on gateways and relays, valid ones. Which nodes are gateways follows from
	// these and the records alone.
	Verdicts []Verdict
	Clients  []Client // valid ones

	// Resolved holds the addresses of endpoint hosts that are names.
	Resolved map[string][]netip.Addr
	// Underlay are this host's own addresses outside the mesh. An endpoint of a family
	// that is not among them can't be reached; empty means unknown.
	Underlay []netip.Addr
	// Nearby is what this host must keep reaching without the mesh.
	Nearby Nearby
	// Keepalive is the interval at which this node sends a packet to each peer, 0 for
	// never.
	Keepalive time.Duration
}

// Derive returns what this node needs to reach every other one: WireGuard peers and
// neighbors on the LAN, each with the prefixes that are sent to it and accepted from it.
// Conflicts between records are returned as problems, and all nodes that have the same
// records resolve them alike.
//
// Derive first computes what is the same on all nodes, the layout: the groups of nodes
// that share a LAN, and the nodes whose tunnels connect the groups. Then it computes this
// node's part. A packet travels through the own tunnel end, perhaps a relay, and the far
// tunnel end; replies take the same way back, because WireGuard checks the source
// address.
func Derive(in Input) Topology {
	l := newLayout(in)
	t := Topology{
		Guarded: l.guarded, Seat: None,
		PodsAndClients: in.Cluster.podAndClientRanges(), PodRanges: in.Cluster.podRanges(), Hosts: l.hosts(),
	}
	self := l.find(in.Self)
	if self == nil {
		return t
	}
	d := &deriver{layout: l, self: self, ranges: in.Cluster.ranges(), nearby: in.Nearby}
	if slot := self.Claim.Slot; slot != None && slot < in.Cluster.Slots() {
		t.Addresses = in.Cluster.Overlays(slot)
		t.PodCIDRs = in.Cluster.PodCIDRs(slot)
	}
	t.Seat = self.seat
	d.findTunnelRoutes()
	t.Peers = d.peers()
	t.Neighbors = d.neighbors()
	t.Routes = d.routes()
	t.Inside = mergePrefixes(append(d.routed, d.guarded...))
	t.ServedNetworks = d.servedNetworks()
	d.routeToClients(&t)
	t.leaveOut(in.Nearby.kept(in.Cluster))
	d.reportRanges()
	d.reportWithheld()
	d.reportNames()
	d.reportSlots()
	d.reportKeys()
	d.reportOneWay()
	d.reportUnreachableByClients()
	slices.SortFunc(d.problems, Problem.Compare)
	t.Problems = slices.Compact(d.problems)
	return t
}

// deriver holds what the steps of one call of Derive share.
type deriver struct {
	*layout
	self   *member
	ranges []clusterRange
	nearby Nearby // of this host; empty if another host's routes are derived

	tunnelRoutes []tunnelRoute  // from the own tunnel end; sorted by the far end's ID
	routed       []netip.Prefix // internal IPs and networks that are reached through tunnels
}

// tunnelRoute leads from this node's tunnel end to another one.
type tunnelRoute struct {
	end *member // the far tunnel end
	hop *member // the WireGuard peer: the far end, or a relay
}

// findTunnelRoutes finds how the own tunnel end reaches every other one.
func (d *deriver) findTunnelRoutes() {
	near := d.self.via
	if near == nil {
		return
	}
	for _, end := range d.all {
		if !end.isTunnelEnd() || end == near || !d.tunnelled(near, end) {
			continue
		}
		if hop := d.route(near, end); hop != nil {
			d.tunnelRoutes = append(d.tunnelRoutes, tunnelRoute{end, hop})
		} else {
			d.reportNoRelay(near, end)
		}
	}
}

// peers returns the tunnel ends to which this node has a tunnel of its own.
func (d *deriver) peers() []Peer {
	if !d.self.isTunnelEnd() {
		return nil
	}
	relayed := make(map[*member][]tunnelRoute)
	for _, w := range d.tunnelRoutes {
		if w.hop != w.end {
			relayed[w.hop] = append(relayed[w.hop], w)
		}
	}
	peers := make([]Peer, 0, len(d.tunnelRoutes))
	for i, w := range d.tunnelRoutes {
		if w.hop != w.end {
			continue
		}
		through := d.tunnelRoutes[i : i+1]
		if more := relayed[w.end]; len(more) > 0 {
			through = append(more, w)
		}
		peers = append(peers, Peer{
			ID:         w.end.id,
			Name:       w.end.Name,
			Key:        w.end.Key,
			Endpoints:  d.endpointsOf(w.end),
			AllowedIPs: d.prefixesBehind(through),
			Keepalive:  d.Keepalive,
			MTU:        min(w.end.MTU, d.self.MTU),
		})
	}
	return peers
}

// prefixesBehind returns the prefixes of all nodes that routes lead to, sorted.
func (d *deriver) prefixesBehind(routes []tunnelRoute) []netip.Prefix {
	var ms []*member
	n := 0
	for _, w := range routes {
		n += len(w.end.carries)
		for _, m := range w.end.carries {
			n += len(m.AllowedLocationIPs)
		}
	}
	if len(routes) == 1 {
		ms = routes[0].end.carries
	} else {
		for _, w := range routes {
			ms = append(ms, w.end.carries...)
		}
		slices.SortFunc(ms, compareSlots)
	}
	ps := make([]netip.Prefix, 0, n*(len(d.ranges)+1))
	ps = d.slotPrefixes(ps, ms, func(m *member) families { return m.viaFamilies & d.self.viaFamilies })
	slots := len(ps)
	for _, w := range routes {
		if w.end.group != d.self.group { // the own location's LAN addresses are reached on the LAN
			ps = d.locationPrefixes(ps, w)
		}
	}
	location := ps[slots:]
	slices.SortFunc(location, ComparePrefix)
	location = slices.Compact(location)
	d.routed = append(d.routed, location...)
	return mergeSorted(ps[:slots+len(location)], slots)
}
