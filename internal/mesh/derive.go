// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"net/netip"
	"slices"
)

// Input is all that Derive depends on. The order of its lists does not matter.
type Input struct {
	Cluster Cluster
	Self    ID
	Records []Record // valid ones, of all nodes, including the own one
	// Verdicts on gateways, on nodes that carry traffic for clients, and on servers of networks, valid ones.
	// Which nodes these are follows from the verdicts and the records alone.
	Verdicts []Verdict
	Clients  []Client // valid ones

	// Resolved holds the addresses of endpoint hosts that are names.
	Resolved map[string][]netip.Addr
	// Underlay are this host's own addresses outside the mesh. An endpoint of a family
	// that is not among them can't be reached; empty means unknown.
	Underlay []netip.Addr
	// Nearby is what this host must keep reaching without the mesh.
	Nearby Nearby
	// LinkAccess is what other clusters may reach through this host's links to them.
	LinkAccess []Access
}

// Derive returns what this node needs to reach every other one: WireGuard peers and
// neighbors on the LAN, each with the prefixes that are sent to it and accepted from it.
// Conflicts between records are returned as problems, and all nodes that have the same
// records resolve them alike.
//
// Derive first computes what is the same on all nodes, the layout: the groups of nodes
// that share a LAN, and the nodes whose tunnels connect the groups. Then it computes this
// node's part. Any two tunnel ends of different groups are peers: how WireGuard's packets
// get from one to the other is the concern of package path. A packet travels through the
// own tunnel end and the far one; replies take the same way back, because WireGuard
// checks the source address.
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
	d.findFarEnds()
	t.Peers = d.peers()
	t.Neighbors = d.neighbors()
	t.Routes = d.routes()
	d.clientNetworks = d.reachedClientNetworks()
	t.Inside = mergePrefixes(append(without(slices.Concat(d.routed, d.clientNetworks), d.ownNetworks()), d.guarded...))
	for i, end := range d.farEnds[:len(t.Peers)] {
		t.Peers[i].Endpoints = d.endpointsOf(end, t.Inside)
	}
	t.ServedNetworks = d.servedNetworks()
	t.Shared = d.sharedNetworks()
	t.Linked = d.linked()
	d.routeToClients(&t)
	t.Internet = d.internet(t)
	t.leaveOut(in.Nearby.kept(in.Cluster))
	d.reportRanges()
	d.reportWithheld()
	d.reportNames()
	d.reportSlots()
	d.reportKeys()
	d.reportOneWay()
	d.reportUnreachableByClients()
	d.reportExit()
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

	farEnds []*member      // to which the own tunnel end has tunnels; sorted by ID
	routed  []netip.Prefix // internal IPs and networks that are reached through tunnels

	clientNetworks []netip.Prefix // behind clients, as far as they are reached; sorted
}

// findFarEnds finds to which other nodes the own tunnel end has tunnels.
func (d *deriver) findFarEnds() {
	near := d.self.via
	if near == nil {
		return
	}
	for _, end := range d.all {
		if end != near && d.haveTunnel(near, end) {
			d.farEnds = append(d.farEnds, end)
		}
	}
}

// haveTunnel reports whether two nodes are WireGuard peers of each other.
func (l *layout) haveTunnel(a, b *member) bool {
	return a.isTunnelEnd() && b.isTunnelEnd() && l.tunnelled(a, b)
}

// peers returns the tunnel ends to which this node has a tunnel of its own, without their
// endpoints: which of them can be used depends on what is routed to all peers.
func (d *deriver) peers() []Peer {
	if !d.self.isTunnelEnd() {
		return nil
	}
	peers := make([]Peer, 0, len(d.farEnds))
	for i, end := range d.farEnds {
		peers = append(peers, Peer{
			ID:         end.id,
			Name:       end.Name,
			Key:        end.Key,
			AllowedIPs: d.prefixesBehind(d.farEnds[i : i+1]),
			MTU:        min(end.MTU, d.self.MTU),
		})
	}
	return peers
}

// prefixesBehind returns the prefixes of all nodes whose tunnels end at the given ones,
// sorted.
func (d *deriver) prefixesBehind(ends []*member) []netip.Prefix {
	var ms []*member
	n := 0
	for _, end := range ends {
		n += len(end.carries)
		for _, m := range end.carries {
			n += len(m.AllowedLocationIPs)
		}
	}
	if len(ends) == 1 {
		ms = ends[0].carries
	} else {
		for _, end := range ends {
			ms = append(ms, end.carries...)
		}
		slices.SortFunc(ms, compareSlots)
	}
	ps := make([]netip.Prefix, 0, n*(len(d.ranges)+1))
	ps = d.slotPrefixes(ps, ms, func(m *member) families { return m.viaFamilies & d.self.viaFamilies })
	slots := len(ps)
	for _, end := range ends {
		ps = d.locationPrefixes(ps, end)
	}
	location := ps[slots:]
	slices.SortFunc(location, ComparePrefix)
	location = slices.Compact(location)
	d.routed = append(d.routed, location...)
	return mergeSorted(ps[:slots+len(location)], slots)
}
