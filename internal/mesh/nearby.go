// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"net/netip"
	"slices"
)

// Nearby is what a host needs to reach without the mesh. No node may give it away
// to that host, or the host would be cut off, or take packets from the tunnel for
// those of a neighbour.
type Nearby struct {
	Attached  []AttachedNetwork
	Routers   []netip.Addr // next hops of the host's routes
	Resolvers []netip.Addr // name servers that the host asks
}

// AttachedNetwork is a network that a host reaches on a link, without a router.
type AttachedNetwork struct {
	Prefix netip.Prefix
	Link   string
	// Containers says that the link belongs to containers of this host. Others may
	// give away a wider network, as 172.16.0.0/12, because the host's own route is
	// the more specific one.
	Containers bool
}

// conflict returns what of the host's surroundings a network of another node would
// take away, "" for nothing.
func (n Nearby) conflict(p netip.Prefix) string {
	for _, a := range n.Attached {
		within := a.Prefix.Contains(p.Addr()) && a.Prefix.Bits() <= p.Bits()
		// A route to one address is no network whose hosts the tunnel could imitate.
		if within || !a.Containers && !a.Prefix.IsSingleIP() && a.Prefix.Overlaps(p) {
			return fmt.Sprintf("%v, to which this host is attached by %s", a.Prefix, a.Link)
		}
	}
	// Who is on an attached network is reached by a more specific route.
	lost := func(a netip.Addr) bool {
		return p.Contains(a) && !slices.ContainsFunc(n.Attached, func(n AttachedNetwork) bool { return n.Prefix.Contains(a) })
	}
	if i := slices.IndexFunc(n.Routers, lost); i >= 0 {
		return fmt.Sprintf("this host's router %v", n.Routers[i])
	}
	if i := slices.IndexFunc(n.Resolvers, lost); i >= 0 {
		return fmt.Sprintf("this host's resolver %v", n.Resolvers[i])
	}
	return ""
}
