// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"net/netip"
	"slices"

	"github.com/meshd/meshd/internal/mesh"
)

// How many nodes of each kind are watched: enough that the failure of a single one does
// not mislead, few enough that 200 nodes put no load on their gateway.
const (
	maxLAN       = 2
	maxRemote    = 3
	maxPeers     = 2
	maxNeighbors = 2
)

// ChooseInput is the input of Choose.
type ChooseInput struct {
	Cluster  mesh.Cluster
	Self     mesh.ID
	Records  []mesh.Record // of all nodes, including this one
	Topology mesh.Topology
	Alive    map[mesh.ID]bool // according to gossip
}

// Watch is the set of nodes that this node watches.
type Watch struct {
	Gateway   mesh.ID    // of this node; zero if it has none, or one that no other node could replace
	LAN       []mesh.ID  // other nodes of the LAN
	Remote    []mesh.ID  // remote nodes whose tunnels end at the gateway
	Unprobed  []mesh.ID  // nodes of other locations, which are not probed: gossip hears them
	Carrier   mesh.ID    // that carries clients' traffic for this node; zero if it has none
	Peers     []mesh.ID  // other nodes with a tunnel, to compare the carrier with
	Servers   []mesh.ID  // that serve networks which this node could serve, too
	Others    []mesh.ID  // neither servers nor probed: while gossip hears one of them, this node is not cut off
	Neighbors []Neighbor // nodes of the LAN, to see whether it lets the mesh's packets through

	addrs map[mesh.ID][]netip.Addr // overlay addresses of the nodes above
	own   []netip.Addr             // overlay addresses of this node
}

// Neighbor is a node of the LAN. If packets to it are not encapsulated, the LAN must carry
// overlay addresses, else the port of VXLAN.
type Neighbor struct {
	ID           mesh.ID
	Internal     netip.Addr
	Encapsulated bool
}

// chooser holds the values that the steps of Choose share.
type chooser struct {
	ChooseInput
	records map[mesh.ID]mesh.Record
	own     mesh.Record
}

// Choose decides whom to watch. A node stays chosen as long as it is alive.
func Choose(a ChooseInput) Watch {
	c := chooser{ChooseInput: a, records: make(map[mesh.ID]mesh.Record, len(a.Records))}
	for _, r := range a.Records {
		c.records[r.ID()] = r
	}
	c.own = c.records[a.Self]
	w := Watch{own: a.Topology.Addresses}
	if len(w.own) == 0 {
		return w
	}
	c.gateway(&w)
	c.carrier(&w)
	c.servers(&w)
	c.neighbors(&w)
	w.addrs = make(map[mesh.ID][]netip.Addr)
	for _, id := range slices.Concat([]mesh.ID{w.Gateway, w.Carrier}, w.LAN, w.Remote, w.Peers, w.Servers) {
		w.addrs[id] = c.overlay(id)
	}
	for _, n := range w.Neighbors {
		w.addrs[n.ID] = c.overlay(n.ID)
	}
	return w
}

// gateway sets this node's gateway and the nodes that show whether it works.
func (c chooser) gateway(w *Watch) {
	i := slices.IndexFunc(c.Topology.Routes, func(p mesh.Route) bool { return p.Kind == mesh.RouteLAN && len(p.Hops) > 0 })
	if i < 0 || !c.replaceable() {
		return
	}
	w.Gateway = c.Topology.Routes[i].Hops[0]
	var beside, beyond, outside []mesh.ID
	for _, p := range c.Topology.Routes {
		switch {
		case p.Kind == mesh.RouteLAN && len(p.Hops) == 0 && p.ID != w.Gateway:
			beside = append(beside, p.ID)
		case p.Kind == mesh.RouteLAN && slices.Equal(p.Hops, []mesh.ID{w.Gateway}):
			beyond = append(beyond, p.ID)
		}
		if r := c.records[p.ID]; c.Alive[p.ID] && !r.SameLAN(&c.own) {
			outside = append(outside, p.ID)
		}
	}
	c.rank(beside)
	c.rank(outside)
	w.LAN = beside[:min(len(beside), maxLAN)]
	w.Remote = c.spread(beyond)
	w.Unprobed = outside[:min(len(outside), maxRemote)]
}

// replaceable reports whether another node of the location could be the gateway.
func (c chooser) replaceable() bool {
	n := 0
	for _, r := range c.records {
		if r.SameLAN(&c.own) && !r.Encrypted && r.Gateway != mesh.GatewayNever && len(r.InternalIPs) > 0 && r.Claim.Slot != mesh.None {
			n++
		}
	}
	return n >= 2
}

// segment is nodes to which a gateway has one tunnel: a location, each segment of one, or a node without a
// location.
type segment struct {
	location string
	id       mesh.ID
}

func segmentOf(id mesh.ID, r mesh.Record) segment {
	if r.Location == "" {
		return segment{"", id}
	}
	return segment{r.Location, r.Segment}
}

// spread chooses up to maxRemote nodes from as many segments as possible.
func (c chooser) spread(ids []mesh.ID) []mesh.ID {
	c.rank(ids)
	seen := make(map[segment]bool)
	var first, rest []mesh.ID
	for _, id := range ids {
		if l := segmentOf(id, c.records[id]); !seen[l] {
			seen[l] = true
			first = append(first, id)
		} else {
			rest = append(rest, id)
		}
	}
	all := slices.Concat(first, rest)
	return all[:min(len(all), maxRemote)]
}

// carrier sets the carrier, and other peers: if one of them answers, a silent carrier is
// dead; if none does, this node is cut off.
func (c chooser) carrier(w *Watch) {
	if w.Carrier = c.Topology.ClientHome; w.Carrier == (mesh.ID{}) {
		return
	}
	var peers []mesh.ID
	for _, p := range c.Topology.Peers {
		if p.ID != w.Carrier {
			peers = append(peers, p.ID)
		}
	}
	c.rank(peers)
	w.Peers = peers[:min(len(peers), maxPeers)]
}

// servers sets the servers of networks that this node could serve, too, and the nodes that it must
// hear before it calls one of them dead: those of other networks, if there are any alive.
func (c chooser) servers(w *Watch) {
	for _, s := range c.Topology.Shared {
		if s.Server != c.Self && !slices.Contains(w.Servers, s.Server) {
			w.Servers = append(w.Servers, s.Server)
		}
	}
	if len(w.Servers) == 0 {
		return
	}
	var outside, beside []mesh.ID
	for id, r := range c.records {
		switch {
		case id == c.Self || !c.Alive[id] || slices.Contains(w.Servers, id):
		case r.SameLAN(&c.own):
			beside = append(beside, id)
		default:
			outside = append(outside, id)
		}
	}
	if w.Others = outside; len(outside) == 0 {
		w.Others = beside
	}
	c.rank(w.Others)
	w.Others = w.Others[:min(len(w.Others), maxRemote)]
}

// neighbors sets the watched neighbors.
func (c chooser) neighbors(w *Watch) {
	all := make(map[mesh.ID]Neighbor)
	var ids []mesh.ID
	for _, n := range c.Topology.Neighbors {
		if n.InternalIP.IsValid() && len(n.Overlay) > 0 {
			all[n.ID] = Neighbor{n.ID, n.InternalIP, n.Encapsulated}
			ids = append(ids, n.ID)
		}
	}
	c.rank(ids)
	for _, id := range ids[:min(len(ids), maxNeighbors)] {
		w.Neighbors = append(w.Neighbors, all[id])
	}
}

// rank sorts nodes by priority: alive ones first, then those that may be gateways, then
// in an order that differs from node to node (rendezvous hashing), so that not all nodes
// probe the same ones.
func (c chooser) rank(ids []mesh.ID) {
	weight := make(map[mesh.ID][sha256.Size]byte, len(ids))
	for _, id := range ids {
		weight[id] = sha256.Sum256(slices.Concat(c.Self[:], id[:]))
	}
	last := func(b bool) int {
		if b {
			return 1
		}
		return 0
	}
	slices.SortFunc(ids, func(a, b mesh.ID) int {
		wa, wb := weight[a], weight[b]
		return cmp.Or(
			cmp.Compare(last(!c.Alive[a]), last(!c.Alive[b])),
			cmp.Compare(last(c.records[a].Gateway == mesh.GatewayNever), last(c.records[b].Gateway == mesh.GatewayNever)),
			bytes.Compare(wa[:], wb[:]),
		)
	})
}

// overlay returns a node's overlay addresses.
func (c chooser) overlay(id mesh.ID) []netip.Addr {
	slot := c.records[id].Claim.Slot
	if c.records[id].Identity == nil || slot == mesh.None || slot >= c.Cluster.Slots() {
		return nil
	}
	return c.Cluster.Overlays(slot)
}

// targets returns a node's addresses as targets, each with this node's address of the
// same family as source.
func (w Watch) targetsOf(id, via mesh.ID) []Target {
	var out []Target
	for _, a := range w.addrs[id] {
		i := slices.IndexFunc(w.own, func(o netip.Addr) bool { return o.Is4() == a.Is4() })
		if i >= 0 {
			out = append(out, Target{Addr: a, Source: w.own[i], Via: via})
		}
	}
	return out
}

// neighborTargets returns one of a neighbor's overlay addresses as a target and, for comparison,
// its internal IP.
func (w Watch) neighborTargets(n Neighbor) (overlay []Target, internal Target) {
	overlay = w.targetsOf(n.ID, mesh.ID{})
	return overlay[:min(len(overlay), 1)], Target{Addr: n.Internal}
}

// Targets returns the targets of all watched nodes.
func (w Watch) Targets() []ScheduledTarget {
	var out []ScheduledTarget
	add := func(slow bool, ts ...Target) {
		for _, t := range ts {
			out = append(out, ScheduledTarget{t, slow})
		}
	}
	if w.Gateway != (mesh.ID{}) {
		for _, id := range append([]mesh.ID{w.Gateway}, w.LAN...) {
			add(false, w.targetsOf(id, mesh.ID{})...)
		}
		for _, id := range w.Remote {
			add(false, w.targetsOf(id, w.Gateway)...)
		}
	}
	if w.Carrier != (mesh.ID{}) {
		for _, id := range append([]mesh.ID{w.Carrier}, w.Peers...) {
			add(false, w.targetsOf(id, mesh.ID{})...)
		}
	}
	for _, id := range w.Servers {
		add(false, w.targetsOf(id, mesh.ID{})...)
	}
	for _, n := range w.Neighbors {
		overlay, internal := w.neighborTargets(n)
		add(true, append(overlay, internal)...)
	}
	return out
}
