// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"net/netip"
	"slices"
)

// compareServers orders the nodes of one location that name the same network, the best first.
// One with an address goes before one without, one whose host has a way there before one that has lost it,
// a healthy one before one on which there is a verdict, and the one that serves the network before the others,
// so that a server that works keeps it when one with a stronger claim returns. If none is healthy, the best one serves all the same.
func compareServers(a, b *member, network netip.Prefix) int {
	if c := compareTrueFirst(a.slot != None && !a.keyConflict, b.slot != None && !b.keyConflict); c != 0 {
		return c
	}
	if c := compareTrueFirst(!slices.Contains(a.Unserved, network), !slices.Contains(b.Unserved, network)); c != 0 {
		return c
	}
	if c := cmp.Compare(healthRank(a.health), healthRank(b.health)); c != 0 {
		return c
	}
	x, y := a.ServesSince(network), b.ServesSince(network)
	if c := compareTrueFirst(x > 0, y > 0); c != 0 {
		return c
	}
	return cmp.Or(cmp.Compare(x, y), compareClaims(a.node, b.node))
}

// ServesSince returns since when a node serves a network that other nodes of its location could
// serve, 0 if it does not.
func (r *Record) ServesSince(network netip.Prefix) int64 {
	for _, t := range r.Serving {
		if t.Network == network {
			return t.Since
		}
	}
	return 0
}

// sharedNetworks returns the networks of this node that other nodes of its location name, too,
// without those that nobody is sent to because a node elsewhere has them.
func (d *deriver) sharedNetworks() []SharedNetwork {
	var out []SharedNetwork
	for i, p := range d.self.networks() {
		if c := d.self.prefixOwners[len(d.self.InternalIPs)+i]; c.shared && c.rival == nil {
			out = append(out, SharedNetwork{p, c.node.id})
		}
	}
	slices.SortFunc(out, func(a, b SharedNetwork) int { return ComparePrefix(a.Network, b.Network) })
	return slices.Compact(out)
}
