// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"net/netip"
	"slices"
)

// compareServers orders the nodes that share a network, the best first.
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

// LinkedNetwork is a range of another cluster, to which a node has a link.
type LinkedNetwork struct {
	Network netip.Prefix
	Cluster string // its name
}

// LinkedTo returns of which other cluster a network behind a node is a range, "" for none.
func (r *Record) LinkedTo(network netip.Prefix) string {
	for _, l := range r.Linked {
		if l.Network == network {
			return l.Cluster
		}
	}
	return ""
}

// Shares reports whether two nodes mean the same network if both name it: they have links to the same other
// cluster, or neither has one and they are of one location. A network behind a link is not that of a
// location, even of the same one: otherwise a node could share it with two that are rivals.
func (r *Record) Shares(o *Record, network netip.Prefix) bool {
	if mine, theirs := r.LinkedTo(network), o.LinkedTo(network); mine != "" || theirs != "" {
		return mine == theirs
	}
	return r.SameLocation(o)
}

// ServesSince returns since when a node serves a network that other nodes could
// serve, too, 0 if it does not.
func (r *Record) ServesSince(network netip.Prefix) int64 {
	for _, t := range r.Serving {
		if t.Network == network {
			return t.Since
		}
	}
	return 0
}

// linked returns what comes by this host's links to other clusters.
func (d *deriver) linked() (l Linked) {
	for _, n := range d.self.Linked {
		l.Networks = append(l.Networks, n.Network)
	}
	if len(l.Networks) > 0 {
		slices.SortFunc(l.Networks, ComparePrefix)
		d.nodes = d.nodePrefixes()
		l.Allowed = d.allowances(d.LinkAccess)
	}
	return l
}

// sharedNetworks returns the networks of this node that other nodes share with it,
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
