// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"net/netip"
	"slices"

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
	// Seen is where each peer sees this node's WireGuard socket, at most one address a family.
	Seen map[mesh.ID][]netip.AddrPort
	// Proved are the endpoints of the peers that answer probes.
	Proved map[mesh.ID]netip.AddrPort
}

// OwnCandidates returns the addresses at which others may reach this node's WireGuard socket:
// the configured ones, those of its private networks, its public ones, and where peers see
// it.
func (m *Memory) OwnCandidates(in Input) []mesh.PathCandidate {
	var all []mesh.PathCandidate
	port := in.Config.ListenPort
	// add adds some addresses of one kind, in an order that does not depend on who has said them.
	add := func(kind mesh.CandidateKind, addrs []netip.AddrPort, isOpen func(netip.AddrPort) bool) {
		slices.SortFunc(addrs, netip.AddrPort.Compare)
		for _, a := range addrs[:min(len(addrs), maxPerKind)] {
			known := slices.ContainsFunc(all, func(c mesh.PathCandidate) bool { return c.Addr == a })
			if !known && len(all) < mesh.MaxPathCandidates && in.View.Cluster.Outside(a.Addr()) {
				all = append(all, mesh.PathCandidate{Addr: a, Kind: kind, Open: isOpen(a)})
			}
		}
	}
	open := func(netip.AddrPort) bool { return true }
	add(mesh.CandidateConfigured, in.resolve(in.Config.Endpoint), open)
	var lan, public []netip.AddrPort
	for _, ip := range m.Own.InternalIPs {
		lan = append(lan, netip.AddrPortFrom(ip.Addr().Unmap(), port))
	}
	for _, a := range in.Facts.Addresses {
		if mesh.IsPublic(a) {
			public = append(public, netip.AddrPortFrom(a.Unmap(), port))
		}
	}
	add(mesh.CandidateLAN, lan, open)
	add(mesh.CandidateSeen, in.seen(), m.isForwarded)
	add(mesh.CandidatePublic, public, open)
	return all
}

// isForwarded reports whether strangers reach this node at an address that it does not have
// itself: if its NAT lets them in for gossip, it does so for WireGuard.
func (m *Memory) isForwarded(a netip.AddrPort) bool {
	return slices.ContainsFunc(m.Own.Endpoints, func(e mesh.Endpoint) bool { return e.Host == a.Addr().String() && e.Port == a.Port() })
}

// resolve returns the addresses of an endpoint.
func (in Input) resolve(e mesh.Endpoint) []netip.AddrPort {
	addrs := in.Resolved[e.Host]
	if a, err := netip.ParseAddr(e.Host); err == nil {
		addrs = []netip.Addr{a}
	}
	var out []netip.AddrPort
	for _, a := range addrs {
		out = append(out, netip.AddrPortFrom(a.Unmap(), e.Port))
	}
	return out
}

// seen returns the public addresses at which peers see this node and which it does not have
// itself, first those that most of them name.
func (in Input) seen() []netip.AddrPort {
	votes := make(map[netip.AddrPort]int)
	for _, seen := range in.Paths.Seen {
		for _, a := range seen {
			if mesh.IsPublic(a.Addr()) && !slices.Contains(in.Facts.Addresses, a.Addr()) {
				votes[a]++
			}
		}
	}
	var all []netip.AddrPort
	for a := range votes {
		all = append(all, a)
	}
	slices.SortFunc(all, func(a, b netip.AddrPort) int { return cmp.Or(votes[b]-votes[a], a.Compare(b)) })
	return all[:min(len(all), maxPerKind)]
}

// PathPeer is a WireGuard peer to which a path is to be found and kept.
type PathPeer struct {
	ID         mesh.ID
	Key        wgtypes.Key
	PathKey    [32]byte // X25519; zero while unknown
	Candidates []path.Candidate
	// Follows means that the peer is to send the first handshake: WireGuard gets no endpoint
	// yet.
	Follows bool
}

// PathPeers returns the peers of this node's device, with the paths to try: what a peer says
// of itself, and the endpoints of its record, whose names this host resolves by itself.
func (m *Memory) PathPeers(in Input, c Configuration) []PathPeer {
	said := make(map[mesh.ID]mesh.PathRecord, len(in.View.Paths))
	for _, p := range in.View.Paths {
		said[p.Author] = p
	}
	records := make(map[mesh.ID]mesh.Record, len(c.Input.Records))
	for _, r := range c.Input.Records {
		records[r.ID()] = r
	}
	w := pathFilter{in: in, seen: in.seen(), routes: c.Desired.Routes}
	peers := make([]PathPeer, 0, len(c.Topology.Peers))
	for _, p := range c.Topology.Peers {
		own := said[p.ID]
		sameLocation := m.Own.Location != "" && m.Own.Location == records[p.ID].Location
		peers = append(peers, PathPeer{
			ID: p.ID, Key: p.Key, PathKey: own.Key,
			Candidates: w.candidates(p, own, sameLocation || w.behindSameNAT(own), records[p.ID]),
			Follows:    c.Settings.EndpointIndex[p.ID] < 0,
		})
	}
	return peers
}

// behindSameNAT reports whether others see a node behind a public address behind which they see
// this node. Both may be in one private network then.
func (w pathFilter) behindSameNAT(other mesh.PathRecord) bool {
	return slices.ContainsFunc(other.Candidates, func(c mesh.PathCandidate) bool {
		return c.Kind == mesh.CandidateSeen && slices.ContainsFunc(w.seen, func(a netip.AddrPort) bool { return a.Addr() == c.Addr.Addr() })
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
