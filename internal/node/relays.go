// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/path"
)

// maxRelayAddrs bounds at how many addresses a relay is tried: each that does not answer costs
// some seconds, see path.Binder.
const maxRelayAddrs = 4

// relayPatience is how long some peer that lives may not be reached without a relay before this
// node stays bound to relays, although strangers say that they reach it. A path is found, and a
// dead node is noticed, sooner.
const relayPatience = 5 * time.Second

// Relay is a node through which others are reached that this one does not reach itself.
type Relay struct {
	ID      mesh.ID
	PathKey [32]byte         // X25519
	Addrs   []netip.AddrPort // at which it forwards, in the order in which they are tried
	// Preferred means that it is to be used before others, however far it is.
	Preferred bool
}

// BoundRelay is a relay to which this node is bound.
type BoundRelay struct {
	ID   mesh.ID
	Kept bool // whether or not this node has anything to send
}

// NoteUnreached notes whether each peer that lives is reached without a relay. It returns how
// long it takes until this node needs relays itself, 0 if that is not to be expected.
func (m *Memory) NoteUnreached(in Input) time.Duration {
	unreached := false
	for id := range in.Paths.InUse {
		unreached = unreached || in.View.Alive[id] && in.isSilent(id)
	}
	if m.unreached = begun(unreached, m.unreached, in.Now); !unreached {
		return 0
	}
	return max(relayPatience-in.Now.Sub(m.unreached), 0)
}

// isOpen reports whether strangers reach this node, as far as is known.
func (m *Memory) isOpen(in Input) bool {
	return mesh.PathRecord{Candidates: m.OwnCandidates(in)}.IsOpen()
}

// isPartlyReached reports whether strangers reach this node, but not all of its peers do.
func (m *Memory) isPartlyReached(now time.Time) bool {
	return !m.unreached.IsZero() && now.Sub(m.unreached) >= relayPatience
}

// Relays returns the relays there are, in the order in which they are tried until it is known how far
// they are, and to how many of them this node
// stays bound, so that others reach it there: to none if all reach it anyway. While UDP is
// blocked, nobody does, and relays are tried over streams. A relay to
// which it is bound works, whatever gossip says.
func (m *Memory) Relays(in Input, c Configuration) (relays []Relay, keep int) {
	self := in.Self.ID()
	usable := func(id mesh.ID) bool {
		bound := slices.ContainsFunc(in.Paths.Bound, func(b BoundRelay) bool { return b.ID == id })
		return id != self && (in.View.Alive[id] || bound)
	}
	records := in.recordsByID()
	w := pathFilter{in: in, seen: in.seen(), routes: c.Desired.Routes}
	for _, p := range in.View.Paths {
		if !p.IsRelay() || !usable(p.Author) {
			continue
		}
		addrs := w.relayAddrs(records[p.Author], p, m.sharesLAN(w, records[p.Author], p))
		if at := m.relayStream(in, p.Author); at.IsValid() {
			addrs = []netip.AddrPort{at}
		}
		if len(addrs) > 0 {
			relays = append(relays, Relay{p.Author, p.Key, addrs, p.Relay == mesh.RelayPrefer})
		}
	}
	rank := func(r Relay) (n int) {
		if in.isSilent(r.ID) {
			n += 2
		}
		if !r.Preferred {
			n++
		}
		return n
	}
	slices.SortFunc(relays, func(a, b Relay) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(mesh.Weight(b.ID, self), mesh.Weight(a.ID, self)), a.ID.Compare(b.ID))
	})
	if m.isOpen(in) && m.udp.blocked.IsZero() && !m.isPartlyReached(in.Now) {
		return relays, 0
	}
	return relays, mesh.MaxPathRelays
}

// isSilent reports whether a peer does not answer directly.
func (in Input) isSilent(id mesh.ID) bool {
	p, isPeer := in.Paths.InUse[id]
	_, proved := in.Paths.Proved[id]
	return isPeer && (!proved || p.Kind == path.Relayed)
}

// OwnRelays returns the relays at which others reach this node, for its path record.
func (in Input) OwnRelays() []mesh.ID {
	var ids []mesh.ID
	for _, b := range in.Paths.Bound {
		if b.Kept && len(ids) < mesh.MaxPathRelays {
			ids = append(ids, b.ID)
		}
	}
	slices.SortFunc(ids, mesh.ID.Compare)
	return ids
}

// relaysTo returns through which relays a peer is tried: where it is bound, and where this node
// is. If strangers reach both, neither is bound anywhere, and they still may not reach each other:
// then both choose the same relays without asking.
func (in Input) relaysTo(peer mesh.PathRecord, all []Relay) []mesh.ID {
	self := in.Self.ID()
	isEnd := func(id mesh.ID) bool { return id == self || id == peer.Author }
	ids := slices.DeleteFunc(slices.Concat(peer.Relays, in.OwnRelays()), isEnd)
	if len(ids) == 0 {
		for _, r := range all {
			if !isEnd(r.ID) {
				ids = append(ids, r.ID)
			}
		}
		slices.SortFunc(ids, func(a, b mesh.ID) int {
			return cmp.Or(cmp.Compare(mesh.Weight(b, self, peer.Author), mesh.Weight(a, self, peer.Author)), a.Compare(b))
		})
		ids = ids[:min(len(ids), mesh.MaxPathRelays)]
	}
	slices.SortFunc(ids, mesh.ID.Compare)
	return slices.Compact(ids)
}

// relayAddrs returns the addresses at which a node forwards: that is where others reach its gossip.
// Its private ones come first, but not while nobody outside has seen this node: at its public
// ones, the relay sees from where this node's packets come. Nobody else may tell a node that has
// tunnels to none.
func (w pathFilter) relayAddrs(r mesh.Record, said mesh.PathRecord, sharesLAN bool) []netip.AddrPort {
	var all []netip.AddrPort
	add := func(addrs ...netip.AddrPort) {
		for _, a := range addrs {
			if len(all) < maxRelayAddrs && a.Port() != 0 && w.isUnderlay(a.Addr()) && !slices.Contains(all, a) {
				all = append(all, a)
			}
		}
	}
	if e := r.GossipEndpoint(); e.Host != "" {
		add(w.in.resolve(e)...)
	}
	var near, far []netip.AddrPort
	for _, c := range said.Candidates {
		a := netip.AddrPortFrom(c.Addr.Addr().Unmap(), r.GossipPort)
		switch {
		case c.Kind == mesh.CandidateLAN && sharesLAN:
			near = append(near, a)
		case c.Kind != mesh.CandidateLAN && c.Open:
			far = append(far, a)
		}
	}
	if len(w.seen) == 0 {
		near, far = far, near
	}
	add(near...)
	add(far...)
	return all
}

// RelayNode is a node that may use this one as a relay.
type RelayNode struct {
	ID      mesh.ID
	Key     wgtypes.Key
	PathKey [32]byte // X25519; zero while unknown, as just after a start
}

// RelayService is what this node does as a relay.
type RelayService struct {
	Serves bool
	Never  bool // as the node is configured
	Nodes  []RelayNode
	// Proved are the addresses of nodes that strangers reach, as they say, and at which they
	// answer this node: they need not be bound to receive a probe.
	Proved map[mesh.ID]netip.AddrPort
}

// mayServe reports whether others may use this node as a relay. One that strangers reach only
// because its router maps a port is at somebody's home, where the line is slow: it is a relay
// only if it is to be preferred, and its router maps the port of relays, too.
func (m *Memory) mayServe(in Input) bool {
	if in.Config.Relay == mesh.RelayNever {
		return false
	}
	all := m.OwnCandidates(in)
	isMapped := func(c mesh.PathCandidate) bool { return c.Kind == mesh.CandidateMapped }
	if (mesh.PathRecord{Candidates: slices.DeleteFunc(slices.Clone(all), isMapped)}).IsOpen() {
		return true
	}
	// Others take a relay's port from its record.
	forwards := func(a netip.AddrPort) bool { return a.Port() == in.Config.GossipPort }
	return in.Config.Relay == mesh.RelayPrefer && mesh.PathRecord{Candidates: all}.IsOpen() && slices.ContainsFunc(in.mapped(in.Config.GossipPort), forwards)
}

// RelayService returns whether and whom this node serves as a relay: all, if it may and
// strangers reach it.
func (m *Memory) RelayService(in Input) RelayService {
	if !m.mayServe(in) {
		return RelayService{Never: in.Config.Relay == mesh.RelayNever}
	}
	s := RelayService{Serves: true, Proved: make(map[mesh.ID]netip.AddrPort)}
	said := in.pathsByAuthor()
	for _, r := range in.View.Records {
		id := r.ID()
		if id == in.Self.ID() {
			continue
		}
		s.Nodes = append(s.Nodes, RelayNode{id, r.Key, said[id].Key})
		at := in.Paths.Proved[id]
		if slices.ContainsFunc(said[id].Candidates, func(c mesh.PathCandidate) bool { return c.Open && c.Addr == at }) {
			s.Proved[id] = at
		}
	}
	return s
}

func (in Input) pathsByAuthor() map[mesh.ID]mesh.PathRecord {
	said := make(map[mesh.ID]mesh.PathRecord, len(in.View.Paths))
	for _, p := range in.View.Paths {
		said[p.Author] = p
	}
	return said
}

func (in Input) recordsByID() map[mesh.ID]mesh.Record {
	records := make(map[mesh.ID]mesh.Record, len(in.View.Records))
	for _, r := range in.View.Records {
		records[r.ID()] = r
	}
	return records
}
