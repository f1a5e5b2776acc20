// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"net/netip"
	"slices"

	"github.com/meshd/meshd/internal/mesh"
)

// gossipAddresses returns the addresses at which each node's gossip port may be reached,
// the best first. Addresses of the underlay come first, even where the tunnel works: gossip
// has to work without it. For the same reason an internal IP is used in its own location
// only: elsewhere it is reached through the tunnel. Overlay addresses come last, and only
// once this host has routes to them.
func (d *daemon) gossipAddresses(t turn, hasRoutes bool) map[mesh.ID][]netip.AddrPort {
	addresses := make(map[mesh.ID][]netip.AddrPort, len(t.view.Records))
	for _, r := range t.view.Records {
		id := r.ID()
		if id == d.self.ID() {
			continue
		}
		var list []netip.AddrPort
		if e := r.GossipEndpoint(); e.Host != "" {
			list = append(list, withPort(e.Addresses(t.wanted.Input.Resolved), e.Port)...)
		}
		if r.Location != "" && r.Location == d.memory.Own.Location {
			list = append(list, lanAddresses(r)...)
		}
		for _, e := range r.Endpoints {
			list = append(list, withPort(e.Addresses(t.wanted.Input.Resolved), r.GossipPort)...)
		}
		// A name may resolve to an address of the mesh, too.
		list = slices.DeleteFunc(list, func(a netip.AddrPort) bool { return !d.cfg.Cluster.Outside(a.Addr()) })
		if hasRoutes && r.Claim.Slot != mesh.None && r.Claim.Slot < d.cfg.Cluster.Slots() {
			list = append(list, withPort(d.cfg.Cluster.Overlays(r.Claim.Slot), r.GossipPort)...)
		}
		addresses[id] = list
	}
	return addresses
}

// streamEndpoints returns where nodes accept streams over TLS, besides their gossip port. This
// follows from their records, which are on disk, so a host that gets out by HTTPS alone finds
// them after a restart. Names are included, because a proxy may look up what this host can't.
func (d *daemon) streamEndpoints(t turn) map[mesh.ID][]mesh.Endpoint {
	endpoints := make(map[mesh.ID][]mesh.Endpoint)
	for _, r := range t.view.Records {
		id := r.ID()
		if id == d.self.ID() || !mesh.IsTLSPort(r.StreamPort) {
			continue
		}
		for _, e := range r.Endpoints {
			if isName(e.Host) {
				endpoints[id] = append(endpoints[id], mesh.Endpoint{Host: e.Host, Port: r.StreamPort})
			}
			for _, a := range e.Addresses(t.wanted.Input.Resolved) {
				if d.cfg.Cluster.Outside(a) {
					endpoints[id] = append(endpoints[id], mesh.Endpoint{Host: a.String(), Port: r.StreamPort})
				}
			}
		}
	}
	return endpoints
}

// lanAddresses returns the gossip addresses of a node in its private network.
func lanAddresses(r mesh.Record) []netip.AddrPort {
	var list []netip.AddrPort
	for _, ip := range r.InternalIPs {
		list = append(list, netip.AddrPortFrom(ip.Addr(), r.GossipPort))
	}
	return list
}

func withPort(addrs []netip.Addr, port uint16) []netip.AddrPort {
	list := make([]netip.AddrPort, 0, len(addrs))
	for _, a := range addrs {
		list = append(list, netip.AddrPortFrom(a, port))
	}
	return list
}
