// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"net"
	"net/netip"
	"slices"

	"github.com/meshd/meshd/internal/mesh"
)

// gossipAddresses are the addresses under which each node's gossip port may be reached.
// The underlay comes first, also where the tunnel works: a node learns from its
// peers under which address they see it, and through the tunnel they don't. For
// the same reason an internal IP counts in its own location only: elsewhere it
// is reached through the tunnel, and would pass for an endpoint. Overlay addresses
// come last, and only once this host has routes to them.
func (d *daemon) gossipAddresses(t turn, through bool) map[mesh.ID][]netip.AddrPort {
	paths := make(map[mesh.ID][]netip.AddrPort, len(t.view.Records))
	for _, r := range t.view.Records {
		id := r.ID()
		if id == d.self.ID() {
			continue
		}
		var list []netip.AddrPort
		if host, port, err := net.SplitHostPort(r.GossipAddr); err == nil {
			if p, err := net.LookupPort("udp", port); err == nil {
				list = append(list, at(addrsOf(host, t.wanted.Input.Resolved), uint16(p))...)
			}
		}
		if r.Location != "" && r.Location == d.memory.Own.Location {
			list = append(list, lan(r)...)
		}
		for _, e := range r.Endpoints {
			list = append(list, at(addrsOf(e.Host, t.wanted.Input.Resolved), r.GossipPort)...)
		}
		// What names resolve to is others' word, too.
		list = slices.DeleteFunc(list, func(a netip.AddrPort) bool { return !d.cfg.Cluster.Outside(a.Addr()) })
		if through && r.Claim.Slot != mesh.None && r.Claim.Slot < d.cfg.Cluster.Slots() {
			list = append(list, at(d.cfg.Cluster.Overlays(r.Claim.Slot), r.GossipPort)...)
		}
		paths[id] = list
	}
	return paths
}

// lan are the gossip addresses of a node on its private network.
func lan(r mesh.Record) []netip.AddrPort {
	var list []netip.AddrPort
	for _, ip := range r.InternalIPs {
		list = append(list, netip.AddrPortFrom(ip.Addr(), r.GossipPort))
	}
	return list
}

func at(addrs []netip.Addr, port uint16) []netip.AddrPort {
	list := make([]netip.AddrPort, 0, len(addrs))
	for _, a := range addrs {
		list = append(list, netip.AddrPortFrom(a, port))
	}
	return list
}

// addrsOf returns the addresses of a host that is an address or a name.
func addrsOf(host string, resolved map[string][]netip.Addr) []netip.Addr {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}
	}
	return resolved[host]
}
