// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"net/netip"
	"slices"
	"time"
)

// Input is all that Derive looks at. The order of its lists does not matter.
type Input struct {
	Cluster Cluster
	Self    ID
	Records []Record // valid ones, of all nodes, the own one among them
	// Verdicts on gateways and relays, valid ones; who is gateway follows from
	// these and the records alone.
	Verdicts []Verdict
	Clients  []Client // valid ones

	// Resolved has the addresses of those endpoint hosts that are names.
	Resolved map[string][]netip.Addr
	// Underlay has this host's own addresses outside the mesh. An endpoint of a
	// family that is not among them can't be reached; empty means not known.
	Underlay []netip.Addr
	// Nearby is what this host must go on reaching without the mesh.
	Nearby Nearby
	// Keepalive is how often this node speaks to each peer, 0 for never.
	Keepalive time.Duration
}

// Derive works out what this node needs so that it can talk to every other
// one: WireGuard peers and neighbors on the LAN, each with the prefixes that go
// to it and may come from it. Contradictions between records come back as
// problems, and every node that has the same records resolves them the same way.
//
// First comes what all nodes see alike: the layout, with groups of nodes that
// share a LAN and the nodes whose tunnels join the groups. Then this node's part
// in it. A packet's way is: the own tunnel end, perhaps a relay, the far
// tunnel end; it takes the same way back, as WireGuard's check of the source
// demands.
func Derive(in Input) Topology {
	l := newLayout(in)
	t := Topology{
		Guarded: l.guarded, Seat: None,
		Guests: in.Cluster.guests(), PodRanges: in.Cluster.podRanges(), Hosts: l.hosts(),
	}
	self := l.find(in.Self)
	if self == nil {
		return t
	}
	d := &deriver{layout: l, self: self, ranges: in.Cluster.spans(), nearby: in.Nearby}
	if slot := self.Claim.Slot; slot != None && slot < in.Cluster.Slots() {
		t.Addresses = in.Cluster.Overlays(slot)
		t.PodCIDRs = in.Cluster.PodCIDRs(slot)
	}
	t.Seat = self.seat
	d.findWays()
	t.Peers = d.peers()
	t.Neighbors = d.neighbors()
	t.Paths = d.paths()
	t.Inside = MergePrefixes(append(d.routed, d.guarded...))
	t.Serves = d.serves()
	d.sendClients(&t)
	d.reportNames()
	d.reportSlots()
	d.reportKeys()
	d.reportSilent()
	d.reportStranded()
	slices.SortFunc(d.problems, Problem.Compare)
	t.Problems = slices.Compact(d.problems)
	return t
}

// deriver holds what the steps of one Derive share.
type deriver struct {
	*layout
	self   *member
	ranges []span
	nearby Nearby // of this host; empty where its tables are not what is derived

	ways   []way          // from the own tunnel end, sorted by the far end's ID
	routed []netip.Prefix // internal IPs and networks that tunnels lead to
}

// way leads from this node's tunnel end to another one.
type way struct {
	end *member // the far one
	hop *member // the WireGuard peer on the way: the far end, or a relay
}

// findWays works out how the own end of the tunnels reaches every other one.
func (d *deriver) findWays() {
	near := d.self.via
	if near == nil {
		return
	}
	for _, end := range d.all {
		if !end.isEnd() || end == near || !d.tunnelled(near, end) {
			continue
		}
		if hop := d.route(near, end); hop != nil {
			d.ways = append(d.ways, way{end, hop})
		} else {
			d.reportNoRelay(near, end)
		}
	}
}

// peers are the tunnel ends to which this node has a tunnel of its own.
func (d *deriver) peers() []Peer {
	if !d.self.isEnd() {
		return nil
	}
	relayed := make(map[*member][]way)
	for _, w := range d.ways {
		if w.hop != w.end {
			relayed[w.hop] = append(relayed[w.hop], w)
		}
	}
	peers := make([]Peer, 0, len(d.ways))
	for i, w := range d.ways {
		if w.hop != w.end {
			continue
		}
		through := d.ways[i : i+1]
		if more := relayed[w.end]; len(more) > 0 {
			through = append(more, w)
		}
		peers = append(peers, Peer{
			ID:         w.end.id,
			Name:       w.end.Name,
			Key:        w.end.Key,
			Endpoints:  d.endpointsOf(w.end),
			AllowedIPs: d.beyond(through),
			Keepalive:  d.Keepalive,
			MTU:        min(w.end.MTU, d.self.MTU),
		})
	}
	return peers
}

// beyond returns the prefixes of all nodes that ways lead to, sorted.
func (d *deriver) beyond(ways []way) []netip.Prefix {
	var ms []*member
	n := 0
	for _, w := range ways {
		n += len(w.end.carries)
		for _, m := range w.end.carries {
			n += len(m.AllowedLocationIPs)
		}
	}
	if len(ways) == 1 {
		ms = ways[0].end.carries
	} else {
		for _, w := range ways {
			ms = append(ms, w.end.carries...)
		}
		slices.SortFunc(ms, compareSlots)
	}
	ps := make([]netip.Prefix, 0, n*(len(d.ranges)+1))
	ps = d.slotPrefixes(ps, ms, func(m *member) families { return m.passing & d.self.passing })
	slots := len(ps)
	for _, w := range ways {
		if w.end.group != d.self.group { // LAN addresses of the own location are reached on the LAN
			ps = d.locationPrefixes(ps, w)
		}
	}
	location := ps[slots:]
	slices.SortFunc(location, ComparePrefix)
	location = slices.Compact(location)
	d.routed = append(d.routed, location...)
	return mergeSorted(ps[:slots+len(location)], slots)
}
