// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// Nearby is what a host must reach without the mesh. No other node may announce it to
// that host: the host would be cut off, or accept packets from the tunnel as those of a
// neighbor.
type Nearby struct {
	Attached  []AttachedNetwork
	Routers   []netip.Addr // next hops of the host's routes
	Resolvers []netip.Addr // name servers that the host asks
}

// AttachedNetwork is a network that a host reaches without the mesh.
type AttachedNetwork struct {
	Prefix netip.Prefix
	Link   string // "" if there are several
	// LAN means that the link is a network card, or part of what a card is part of.
	LAN bool
	// Containers means that the link leads to containers of this host.
	Containers bool
	// Routed means that a router leads there, and the host has no address in it.
	Routed bool
	// Down means that the link carries nothing now: it is down, or its other end is.
	Down bool
}

// Ways reports whether a host has ways of its own to a network, or to a part of it, that work, and ways
// that don't.
func (n Nearby) Ways(p netip.Prefix) (working, broken bool) {
	for _, a := range n.Attached {
		if a.Prefix.Overlaps(p) {
			working, broken = working || !a.Down, broken || a.Down
		}
	}
	return working, broken
}

// Prefixes returns the attached networks.
func (n Nearby) Prefixes() []netip.Prefix {
	var out []netip.Prefix
	for _, a := range n.Attached {
		out = append(out, a.Prefix)
	}
	return out
}

// String names a network for messages.
func (a AttachedNetwork) String() string {
	how := "to which this host is attached by"
	if a.Routed {
		how = "to which this host has a route by"
	}
	return fmt.Sprintf("%v, %s %s", a.Prefix, how, cmp.Or(a.Link, "several links"))
}

// holds reports whether a network of another node would take this one over, or a part of it.
// The host's own route to a network that is more specific stays in effect. But on a LAN, and
// on other networks whose hosts the tunnel could imitate, a wider one is refused, too: the
// packets that it would bring from there would pass for those of a neighbor.
func (a AttachedNetwork) holds(p netip.Prefix) bool {
	return ContainsPrefix(a.Prefix, p) || !a.Containers && !a.Routed && !a.Prefix.IsSingleIP() && a.Prefix.Overlaps(p)
}

// leaves reports whether a host leaves a part of an attached network to another node: it serves
// the network itself, and more specific wins. But what a host is attached to it leaves to nodes of
// its own location only.
func (r *Record) leaves(p netip.Prefix, of AttachedNetwork, to *Record) bool {
	partOf := func(n netip.Prefix) bool { return n != p && ContainsPrefix(n, p) }
	return (of.Routed || r.SameLocation(to)) && partOf(of.Prefix) && slices.ContainsFunc(r.networks(), partOf)
}

// conflict returns which of the host's own networks, routers or resolvers a network of
// another node would take over; "" for none.
func (n Nearby) conflict(p netip.Prefix, own, other *Record) string {
	for _, a := range n.Attached {
		if a.holds(p) && !own.leaves(p, a, other) {
			return a.String()
		}
	}
	// An address on an attached network has a more specific route.
	lost := func(a netip.Addr) bool {
		return p.Contains(a) && !slices.ContainsFunc(n.Attached, func(n AttachedNetwork) bool { return n.Prefix.Contains(a) && ContainsPrefix(p, n.Prefix) })
	}
	if i := slices.IndexFunc(n.Routers, lost); i >= 0 {
		return fmt.Sprintf("this host's router %v", n.Routers[i])
	}
	if i := slices.IndexFunc(n.Resolvers, lost); i >= 0 {
		return fmt.Sprintf("this host's resolver %v", n.Resolvers[i])
	}
	return ""
}
