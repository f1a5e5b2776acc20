// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/path"
)

// maxPerKind bounds how many candidates of one kind a node names: a name may resolve to
// many addresses, a NAT may show each peer another port, and a card may have a whole subnet.
const maxPerKind = mesh.MaxPathCandidates / 3

// Paths is what this node knows of the paths beneath its tunnels.
type Paths struct {
	// Seen is where each peer or relay sees this node's WireGuard socket: at most one address a
	// family as a peer, and one as a relay.
	Seen map[mesh.ID][]netip.AddrPort
	// Proved are the endpoints of the peers that answer probes.
	Proved map[mesh.ID]netip.AddrPort
	Bound  []BoundRelay
	// Renew is when the session with a peer was to be begun anew, last: a relay does not know it.
	Renew map[mesh.ID]time.Time
	// InUse are the paths in use to the peers that are probed; a path without an address for none.
	InUse map[mesh.ID]path.Path
	// MTU is how long a packet inside the tunnel may be that passes on each of these paths, in bytes:
	// at most the tunnel's MTU. 0 while unknown.
	MTU map[mesh.ID]int
	// Received is when WireGuard received something last from each of them; zero for never.
	Received map[mesh.ID]time.Time
	// Streams are those that carry datagrams, those that this node has dialled first.
	Streams []Stream
	// Mapped are the ports that this host's router maps to it.
	Mapped []PortMapping
	// Met is when each node answered last on the private network, and Tried what has come of
	// tries to reach nodes as a stranger does.
	Met   map[mesh.ID]time.Time
	Tried []mesh.Tried
}

// sightings returns where living peers see this node's WireGuard socket, and where living strangers say
// that they have reached it, sorted. Of each node only what is newest counts: what a stranger has
// reached is up to ten minutes old. What a dead node saw may be an address that this one has no more.
func (in Input) sightings() []netip.AddrPort {
	var all []netip.AddrPort
	for id, seen := range in.Paths.Seen {
		if in.View.Alive[id] {
			all = append(all, seen...)
		}
	}
	for _, r := range in.View.Reaches {
		for _, t := range r.Tried {
			sees := func(a netip.AddrPort) bool { return a.Addr().Is4() == t.Addr.Addr().Is4() }
			if t.Subject == in.Self.ID() && t.Reached && in.View.Alive[r.Author] && !slices.ContainsFunc(in.Paths.Seen[r.Author], sees) {
				all = append(all, t.Addr)
			}
		}
	}
	slices.SortFunc(all, netip.AddrPort.Compare)
	return all
}

// OwnCandidates returns the addresses at which others may reach this node's WireGuard socket:
// the configured ones, those of its private networks, where its router maps a port to it, where
// peers see it, and its public ones. The last ones are where it accepts streams, besides gossip's port.
func (m *Memory) OwnCandidates(in Input) []mesh.PathCandidate {
	var all []mesh.PathCandidate
	port := in.Config.ListenPort
	// add adds some addresses of one kind, in an order that does not depend on who has said them.
	add := func(kind mesh.CandidateKind, addrs []netip.AddrPort, isOpen func(netip.AddrPort) bool) {
		slices.SortFunc(addrs, netip.AddrPort.Compare)
		for _, a := range addrs[:min(len(addrs), maxPerKind)] {
			known := slices.ContainsFunc(all, func(c mesh.PathCandidate) bool {
				return c.Addr == a && (c.Kind == mesh.CandidateStream) == (kind == mesh.CandidateStream)
			})
			c := mesh.PathCandidate{Addr: a, Kind: kind, Open: isOpen(a)}
			if !known && len(all) < mesh.MaxPathCandidates && in.View.Cluster.Outside(a.Addr()) && c.Check() == nil {
				all = append(all, c)
			}
		}
	}
	open := func(netip.AddrPort) bool { return true }
	believed := func(a netip.AddrPort) bool { // until others have tried
		reached, failed := in.triedAt(a)
		return reached > 0 || failed < enoughOthers
	}
	add(mesh.CandidateConfigured, in.resolve(in.Config.Endpoint), believed)
	var lan, public []netip.AddrPort
	for _, ip := range m.Own.InternalIPs {
		lan = append(lan, netip.AddrPortFrom(ip.Addr().Unmap(), port))
	}
	for _, a := range in.knownAddresses() {
		if mesh.IsPublic(a) {
			public = append(public, netip.AddrPortFrom(a.Unmap(), port))
		}
	}
	add(mesh.CandidateLAN, lan, open)
	proved := func(a netip.AddrPort) bool {
		reached, _ := in.triedAt(a)
		return reached > 0
	}
	add(mesh.CandidateMapped, in.mapped(port), proved)
	add(mesh.CandidateSeen, in.seen(), proved)
	add(mesh.CandidatePublic, public, believed)
	if in.Config.StreamPort != 0 {
		var streams []netip.AddrPort
		for _, c := range all {
			if c.Open && c.Kind != mesh.CandidateLAN {
				streams = append(streams, netip.AddrPortFrom(c.Addr.Addr(), in.Config.StreamPort))
			}
		}
		add(mesh.CandidateStream, streams, open)
	}
	return all
}

// resolve returns the addresses of an endpoint.
func (in Input) resolve(e mesh.Endpoint) []netip.AddrPort {
	var out []netip.AddrPort
	for _, a := range e.Addresses(in.Resolved) {
		out = append(out, netip.AddrPortFrom(a.Unmap(), e.Port))
	}
	return out
}

// seen returns the public addresses at which peers see this node and which it does not have
// itself, first those that most of them name.
func (in Input) seen() []netip.AddrPort {
	votes := make(map[netip.AddrPort]int)
	for _, a := range in.sightings() {
		if mesh.IsPublic(a.Addr()) && !slices.Contains(in.Facts.Addresses, a.Addr()) {
			votes[a]++
		}
	}
	var all []netip.AddrPort
	for a := range votes {
		all = append(all, a)
	}
	slices.SortFunc(all, func(a, b netip.AddrPort) int { return cmp.Or(votes[b]-votes[a], a.Compare(b)) })
	return all[:min(len(all), maxPerKind)]
}

// keepalives returns how often this node speaks to each of its peers, unless it is never. By
// default it does so where a NAT's mapping has to be held: where the peer sees it at another
// address than its own. As long as a peer has not said, what others say counts, for a new peer.
func (m *Memory) keepalives(in Input, peers []mesh.Peer) map[mesh.ID]netcfg.Keepalive {
	keepalives := make(map[mesh.ID]netcfg.Keepalive)
	for _, p := range peers {
		k, mapped := netcfg.Keepalive{}, m.Own.NAT
		if seen := in.Paths.Seen[p.ID]; len(seen) > 0 {
			mapped = slices.ContainsFunc(seen, func(a netip.AddrPort) bool { return !slices.Contains(in.Facts.Addresses, a.Addr()) })
		} else {
			k.Guessed = in.Config.Keepalive == nil
		}
		switch {
		case in.Config.Keepalive != nil:
			k.Interval = *in.Config.Keepalive
		case mapped:
			k.Interval = natKeepalive
		}
		keepalives[p.ID] = k
	}
	return keepalives
}

// PathPeer is a node with which probes are exchanged: a WireGuard peer to which a path is to be
// found and kept, or one without a tunnel that is asked for other proofs.
type PathPeer struct {
	ID         mesh.ID
	Key        wgtypes.Key
	PathKey    [32]byte         // X25519; zero while unknown
	Candidates []path.Candidate // but for those through relays
	Relays     []mesh.ID        // through which it is tried, too
	// Follows means that the peer is to send the first handshake: WireGuard gets no endpoint
	// yet.
	Follows bool
	MTU     int // of the tunnel, the lower of both ends; 0 while unknown

	NoTunnel bool
	Private  []netip.AddrPort // where to meet it on the private network
	Try      []netip.AddrPort // where to find out whether strangers reach it
}

// PathPeers returns the peers of this node's device, with the paths to try: what a peer says
// of itself, and the endpoints of its record, whose names this host resolves by itself. It also
// returns all other nodes, which may ask this one whether they reach it. Relays are those there
// are.
func (m *Memory) PathPeers(in Input, c Configuration, relays []Relay) []PathPeer {
	said, records := in.pathsByAuthor(), in.recordsByID()
	w := pathFilter{in: in, seen: in.seen(), routes: c.Desired.Routes}
	peers := make([]PathPeer, 0, len(c.Topology.Peers))
	for _, p := range c.Topology.Peers {
		own := said[p.ID]
		own.Author = p.ID
		peers = append(peers, PathPeer{
			ID: p.ID, Key: p.Key, PathKey: own.Key,
			Candidates: w.candidates(p, own, m.sharesLAN(w, records[p.ID], own), records[p.ID]),
			Relays:     in.relaysTo(own, relays),
			Follows:    c.Settings.Awaited[p.ID],
			MTU:        p.MTU,
		})
	}
	return m.withProofs(w, peers, said)
}

// withProofs adds the other nodes, and to all of them where to meet them and where to try to
// reach them.
func (m *Memory) withProofs(w pathFilter, peers []PathPeer, said map[mesh.ID]mesh.PathRecord) []PathPeer {
	duty := w.in.reachDuty()
	outside := func(a netip.AddrPort) bool { return !w.isUnderlay(a.Addr()) }
	for _, r := range w.in.View.Records {
		id := r.ID()
		key := said[id].Key
		if id == w.in.Self.ID() || key == [32]byte{} {
			continue
		}
		i := slices.IndexFunc(peers, func(p PathPeer) bool { return p.ID == id })
		if i < 0 {
			i = len(peers)
			peers = append(peers, PathPeer{ID: id, Key: r.Key, PathKey: key, NoTunnel: true})
		}
		peers[i].Try = slices.DeleteFunc(duty[id], outside)
		if r.SameLocation(&m.Own) {
			for _, ip := range r.InternalIPs {
				peers[i].Private = append(peers[i].Private, netip.AddrPortFrom(ip.Addr().Unmap(), r.ListenPort))
			}
			peers[i].Private = slices.DeleteFunc(peers[i].Private, outside)
		}
	}
	return peers
}

// sharesLAN reports whether another node may be in a private network of this one.
func (m *Memory) sharesLAN(w pathFilter, r mesh.Record, said mesh.PathRecord) bool {
	return r.SameLocation(&m.Own) || w.behindSameNAT(said)
}

// NeedsTurn reports whether paths that have changed lead to more than what is told of them: a
// peer without a session can be reached now, one with a session needs another one, or this node is
// seen elsewhere than its record says.
func (m *Memory) NeedsTurn(in Input) bool {
	next := nextRecord(in.Config, surroundings{in.Facts, in.knownAddresses(), m.Own.InternalIPs, in.sightings(), in.mapped(in.Config.ListenPort)}, m.Own)
	return m.Handshakes.foundPath(in.Paths.Proved) || m.Handshakes.isAsked(in.Paths.Renew) || next.NAT != m.Own.NAT || !slices.Equal(next.Endpoints, m.Own.Endpoints)
}

// behindSameNAT reports whether others see a node behind a public address behind which they see
// this node, or its router says that it has that address. Both may be in one private network then.
func (w pathFilter) behindSameNAT(other mesh.PathRecord) bool {
	return slices.ContainsFunc(other.Candidates, func(c mesh.PathCandidate) bool {
		return (c.Kind == mesh.CandidateSeen || c.Kind == mesh.CandidateMapped) && slices.ContainsFunc(w.seen, func(a netip.AddrPort) bool { return a.Addr() == c.Addr.Addr() })
	})
}

// pathFilter chooses which addresses are tried.
type pathFilter struct {
	in     Input
	seen   []netip.AddrPort // where others see this node
	routes []netcfg.Route   // of this host, into the mesh
}

// candidates returns the paths to try to a peer. Those of its private network are only tried if it may be
// this node's.
func (w pathFilter) candidates(p mesh.Peer, said mesh.PathRecord, sharesLAN bool, r mesh.Record) []path.Candidate {
	var all []path.Candidate
	add := func(kind path.Kind, a netip.AddrPort, open bool) {
		a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
		known := slices.ContainsFunc(all, func(c path.Candidate) bool { return c.Path.Addr == a })
		if !known && w.isUnderlay(a.Addr()) {
			all = append(all, path.Candidate{Path: path.Path{Kind: kind, Addr: a}, Open: open})
		}
	}
	for _, c := range said.Candidates {
		switch {
		case c.Kind == mesh.CandidateStream: // it is TCP
		case c.Kind != mesh.CandidateLAN:
			add(path.Direct, c.Addr, c.Open)
		case sharesLAN:
			add(path.LAN, c.Addr, true)
		}
	}
	for _, e := range p.Endpoints {
		kind := path.Direct
		if slices.ContainsFunc(r.InternalIPs, func(ip netip.Prefix) bool { return ip.Addr().Unmap() == e.Addr().Unmap() }) {
			kind = path.LAN
		}
		add(kind, e, true)
	}
	for _, s := range w.in.Paths.Streams {
		if s.Node == p.ID {
			all = append(all, path.Candidate{Path: path.At(s.Own), Open: true})
		}
	}
	// Where gossip meets it, WireGuard may be met, too: behind a 1:1 NAT nothing else is known
	// before the first probe.
	if at := w.in.View.MetAt[p.ID]; at.IsValid() && r.ListenPort != 0 {
		add(path.Direct, netip.AddrPortFrom(at, r.ListenPort), false)
	}
	slices.SortFunc(all, func(a, b path.Candidate) int { return a.Path.Compare(b.Path) })
	return all
}

// isUnderlay reports whether packets to an address leave this host beneath the mesh.
func (w pathFilter) isUnderlay(a netip.Addr) bool {
	if !w.in.View.Cluster.Outside(a) || slices.Contains(w.in.Facts.Addresses, a) {
		return false
	}
	if len(w.in.Facts.Addresses) > 0 && !slices.ContainsFunc(w.in.Facts.Addresses, func(own netip.Addr) bool { return own.Is4() == a.Is4() }) {
		return false // of a family that this host does not have
	}
	into, beside := -1, -1 // the most specific prefixes
	for _, r := range w.routes {
		if r.Destination.Contains(a) {
			into = max(into, r.Destination.Bits())
		}
	}
	for _, n := range w.in.Facts.Nearby.Attached {
		if n.Prefix.Contains(a) {
			beside = max(beside, n.Prefix.Bits())
		}
	}
	return into <= beside
}
