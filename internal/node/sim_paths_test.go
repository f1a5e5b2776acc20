// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/internal/path"
)

// What package path finds out, without its messages: a path is proved when both daemons
// probe each other's host where datagrams get there and back.

// paths returns what a turn reads of the paths.
func (h *host) paths() node.Paths {
	p := node.Paths{Seen: make(map[mesh.ID][]netip.AddrPort), Proved: make(map[mesh.ID]netip.AddrPort)}
	for id, at := range h.proved {
		p.Proved[id] = at
		p.Seen[id] = []netip.AddrPort{h.addressFor(h.byID(id))}
	}
	p.Met = maps.Clone(h.met)
	for t, trial := range h.trials {
		if reached, known := trial.Reached(); known {
			t.Reached = reached
			p.Tried = append(p.Tried, t)
		}
	}
	slices.SortFunc(p.Tried, mesh.Tried.Compare)
	return p
}

// addressFor returns where another host meets this one.
func (h *host) addressFor(o *host) netip.AddrPort {
	if h.onLAN(o) {
		return netip.AddrPortFrom(h.internal.Addr(), wireguardPort)
	}
	return h.mapped()
}

// findPaths probes all peers. What is found takes two round trips.
func (h *host) findPaths() {
	probes := make(map[mesh.ID]bool)
	for _, p := range h.kernel.Peers {
		for _, o := range h.hosts {
			if o.deviceKey() == p.Key {
				probes[o.id] = true
			}
		}
	}
	h.probes = probes
	for id := range h.proved {
		if !probes[id] {
			delete(h.proved, id)
		}
	}
	for _, o := range h.hosts {
		if !probes[o.id] {
			continue
		}
		h.later(2*(h.flight(o)+o.flight(h)), func() {
			if h.meetsByProbes(o) {
				h.prove(o)
				o.prove(h)
			}
		})
	}
}

// findProofs meets the nodes of the own location, and tries to reach others as a stranger.
func (h *host) findProofs() {
	for _, p := range h.memory.PathPeers(h.input(), h.wanted, nil) {
		o := h.byID(p.ID)
		if slices.Contains(p.Private, netip.AddrPortFrom(o.internal.Addr(), wireguardPort)) {
			h.later(2*simLAN, func() {
				if h.linked(o) && h.onLAN(o) {
					h.met[o.id], o.met[h.id] = h.now, h.now
				}
			})
		}
		for _, at := range p.Try {
			t := mesh.Tried{Subject: o.id, Addr: at}
			if h.trials[t] == nil {
				h.trials[t] = &path.Trial{}
			}
			if trial := h.trials[t]; !h.now.Before(trial.Due()) {
				trial.Postpone(h.now)
				h.later(2*simTunnel, func() { trial.Done(h.now, h.linked(o) && o.place.underlay != home && at == o.mapped()) })
			}
		}
	}
	h.later(3*simTunnel, func() { h.sayPaths(h.input()) })
}

// sayPaths tells the others what this node has found out.
func (h *host) sayPaths(in node.Input) {
	known := h.peers.store
	own := mesh.PathRecord{Author: h.id, Key: [32]byte(h.deviceKey()), Candidates: h.memory.OwnCandidates(in)}
	if own.Sequence = known.paths[h.id].Sequence; !reflect.DeepEqual(own, known.paths[h.id]) {
		own.Sequence = max(own.Sequence, h.disk.instance<<32) + 1
		h.publish(object{path: &own})
	}
	membership := h.memory.Membership(in)
	membership.Author, membership.Sequence = h.id, known.memberships[h.id].Sequence
	if !reflect.DeepEqual(membership, known.memberships[h.id]) {
		membership.Sequence = max(membership.Sequence, h.disk.instance<<32) + 1
		h.publish(object{membership: &membership})
		h.tell()
	}
	reach := in.Reach()
	reach.Author, reach.Sequence = h.id, known.reaches[h.id].Sequence
	if !reflect.DeepEqual(reach, known.reaches[h.id]) {
		reach.Sequence = max(reach.Sequence, h.disk.instance<<32) + 1
		h.publish(object{reach: &reach})
		h.tell()
	}
}

// meetsByProbes reports whether two daemons answer each other's probes.
func (h *host) meetsByProbes(o *host) bool {
	if !h.running || !o.running || !h.probes[o.id] || !o.probes[h.id] {
		return false
	}
	there, _ := h.deliver(o.addressFor(h))
	back, _ := o.deliver(h.addressFor(o))
	return there == o && back == h
}

// prove notes where a peer answers, and has WireGuard send there, unless the peer is to send
// the first handshake.
func (h *host) prove(o *host) {
	at := o.addressFor(h)
	before := h.proved[o.id]
	h.proved[o.id] = at
	awaited := h.wanted.Settings.Awaited[o.id]
	if i := h.peer(o.deviceKey()); i >= 0 && !awaited && h.kernel.Peers[i].Endpoint != at {
		h.kernel.Peers = append([]netcfg.Peer(nil), h.kernel.Peers...)
		h.kernel.Peers[i].Endpoint = at
	}
	if before != at && h.memory.NeedsTurn(h.input()) {
		h.tellUrgently()
	}
}
