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

// How many nodes of each kind are watched: enough that one that fails by itself
// misleads nobody, few enough that the gateway of 200 nodes does not feel it.
const (
	maxBeside = 2
	maxBeyond = 3
	maxRelays = 8
	maxPeers  = 2
	maxPlain  = 2
)

// Around is what Choose looks at.
type Around struct {
	Cluster  mesh.Cluster
	Self     mesh.ID
	Records  []mesh.Record // of all nodes, the own one among them
	Topology mesh.Topology
	Alive    map[mesh.ID]bool // as gossip sees it
	// Blamed are relays that this node has found down. They are watched until
	// they answer again.
	Blamed []mesh.ID
}

// Watch is whom this node watches.
type Watch struct {
	Gateway mesh.ID    // on which this node hangs; zero for none, or none that anybody could relieve
	Beside  []mesh.ID  // other nodes of the LAN
	Beyond  []mesh.ID  // nodes whose tunnels end at the gateway
	Outside []mesh.ID  // nodes that are not of this location, heard by gossip alone
	Relays  []mesh.ID  // that this node or its clients talk through, or did
	Peers   []mesh.ID  // nodes at the end of own tunnels, to compare relays with
	Plain   []Neighbor // nodes of the LAN that are reached without encapsulation

	addrs map[mesh.ID][]netip.Addr
	own   []netip.Addr
}

// Neighbor is a node to which the LAN must carry overlay addresses as they are.
type Neighbor struct {
	ID       mesh.ID
	Internal netip.Addr
}

// chooser holds what the steps of one Choose share.
type chooser struct {
	Around
	records map[mesh.ID]mesh.Record
	own     mesh.Record
}

// Choose says whom to watch. The same nodes stay chosen as long as they live.
func Choose(a Around) Watch {
	c := chooser{Around: a, records: make(map[mesh.ID]mesh.Record, len(a.Records))}
	for _, r := range a.Records {
		c.records[r.ID()] = r
	}
	c.own = c.records[a.Self]
	w := Watch{own: a.Topology.Addresses}
	if len(w.own) == 0 {
		return w
	}
	c.gateway(&w)
	c.relays(&w)
	c.plain(&w)
	w.addrs = make(map[mesh.ID][]netip.Addr)
	for _, id := range slices.Concat([]mesh.ID{w.Gateway}, w.Beside, w.Beyond, w.Relays, w.Peers) {
		w.addrs[id] = c.overlay(id)
	}
	for _, n := range w.Plain {
		w.addrs[n.ID] = c.overlay(n.ID)
	}
	return w
}

// gateway chooses whom to watch about the gateway that this node hangs on.
func (c chooser) gateway(w *Watch) {
	i := slices.IndexFunc(c.Topology.Paths, func(p mesh.Path) bool { return p.Kind == mesh.PathLAN && len(p.Hops) > 0 })
	if i < 0 || !c.replaceable() {
		return
	}
	w.Gateway = c.Topology.Paths[i].Hops[0]
	var beside, beyond, outside []mesh.ID
	for _, p := range c.Topology.Paths {
		switch {
		case p.Kind == mesh.PathLAN && len(p.Hops) == 0 && p.ID != w.Gateway:
			beside = append(beside, p.ID)
		case p.Kind == mesh.PathLAN && slices.Equal(p.Hops, []mesh.ID{w.Gateway}):
			beyond = append(beyond, p.ID)
		}
		if r := c.records[p.ID]; c.Alive[p.ID] && (r.Location == "" || r.Location != c.own.Location) {
			outside = append(outside, p.ID)
		}
	}
	c.rank(beside)
	c.rank(outside)
	w.Beside = beside[:min(len(beside), maxBeside)]
	w.Beyond = c.spread(beyond)
	w.Outside = outside[:min(len(outside), maxBeyond)]
}

// replaceable says whether anybody but the gateway could be it.
func (c chooser) replaceable() bool {
	n := 0
	for _, r := range c.records {
		if r.Location == c.own.Location && !r.Encrypted && r.Gateway != mesh.GatewayNever && len(r.InternalIPs) > 0 && r.Claim.Slot != mesh.None {
			n++
		}
	}
	return n >= 2
}

// spread takes nodes of as many locations as there are. A node that stands
// alone is a location of its own.
func (c chooser) spread(ids []mesh.ID) []mesh.ID {
	c.rank(ids)
	seen := make(map[string]bool)
	var first, rest []mesh.ID
	for _, id := range ids {
		if l := c.records[id].Location; l == "" || !seen[l] {
			seen[l] = true
			first = append(first, id)
		} else {
			rest = append(rest, id)
		}
	}
	all := slices.Concat(first, rest)
	return all[:min(len(all), maxBeyond)]
}

// relays chooses the relays to watch. Another peer that answers tells a relay's
// silence from our own.
func (c chooser) relays(w *Watch) {
	relays := slices.Clone(c.Blamed)
	var peers []mesh.ID
	for _, p := range c.Topology.Paths {
		if p.Kind != mesh.PathTunnel {
			continue
		}
		if len(p.Hops) == 0 {
			peers = append(peers, p.ID)
		} else if c.isRelay(p) {
			relays = append(relays, p.Hops[0])
		}
	}
	if home := c.Topology.ClientHome; home != (mesh.ID{}) {
		relays = append(relays, home)
	}
	slices.SortFunc(relays, mesh.ID.Compare)
	relays = slices.Compact(relays)
	if len(relays) == 0 {
		return
	}
	c.rank(relays)
	w.Relays = relays[:min(len(relays), maxRelays)]
	peers = slices.DeleteFunc(peers, func(id mesh.ID) bool { return slices.Contains(w.Relays, id) })
	c.rank(peers)
	w.Peers = peers[:min(len(peers), maxPeers)]
}

// isRelay says whether a tunnel's end passes packets on as a relay: in mode
// location it may also be the gateway of the node that they go to.
func (c chooser) isRelay(p mesh.Path) bool {
	l := c.records[p.ID].Location
	return c.Cluster.Mode != mesh.ModeLocation || l == "" || c.records[p.Hops[0]].Location != l
}

// plain chooses neighbors that are reached without encapsulation.
func (c chooser) plain(w *Watch) {
	internal := make(map[mesh.ID]netip.Addr)
	var ids []mesh.ID
	for _, n := range c.Topology.Neighbors {
		if !n.Encapsulated && n.InternalIP.IsValid() && len(n.Overlay) > 0 {
			internal[n.ID] = n.InternalIP
			ids = append(ids, n.ID)
		}
	}
	c.rank(ids)
	for _, id := range ids[:min(len(ids), maxPlain)] {
		w.Plain = append(w.Plain, Neighbor{id, internal[id]})
	}
}

// rank sorts nodes by who is to be chosen first: the living, then those that
// may be gateways, then in an order of this node's own, so that not everybody
// probes the same ones (rendezvous hashing).
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

// targets returns a node's addresses as targets, each from the own address of
// the same family.
func (w Watch) targets(id, via mesh.ID) []Target {
	var out []Target
	for _, a := range w.addrs[id] {
		i := slices.IndexFunc(w.own, func(o netip.Addr) bool { return o.Is4() == a.Is4() })
		if i >= 0 {
			out = append(out, Target{Addr: a, Source: w.own[i], Via: via})
		}
	}
	return out
}

// plainTargets returns how a neighbor is reached under its overlay addresses
// and, to compare, under the address that the LAN knows.
func (w Watch) plainTargets(n Neighbor) (overlay []Target, internal Target) {
	return w.targets(n.ID, mesh.ID{}), Target{Addr: n.Internal}
}

// Aims returns what to send to.
func (w Watch) Aims() []Aim {
	var out []Aim
	add := func(slow bool, ts ...Target) {
		for _, t := range ts {
			out = append(out, Aim{t, slow})
		}
	}
	if w.Gateway != (mesh.ID{}) {
		for _, id := range append([]mesh.ID{w.Gateway}, w.Beside...) {
			add(false, w.targets(id, mesh.ID{})...)
		}
		for _, id := range w.Beyond {
			add(false, w.targets(id, w.Gateway)...)
		}
	}
	for _, id := range slices.Concat(w.Relays, w.Peers) {
		add(false, w.targets(id, mesh.ID{})...)
	}
	for _, n := range w.Plain {
		overlay, internal := w.plainTargets(n)
		add(true, append(overlay, internal)...)
	}
	return out
}
