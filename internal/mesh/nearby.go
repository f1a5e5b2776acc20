// SPDX-License-Identifier: Apache-2.0

package mesh

import (
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

// AttachedNetwork is a network that a host reaches on a link, without a router.
type AttachedNetwork struct {
	Prefix netip.Prefix
	Link   string
	// Containers means that the link belongs to containers of this host. Others may
	// announce a wider network, such as 172.16.0.0/12, because the host's own route is
	// more specific.
	Containers bool
}

// conflict returns which of the host's own networks, routers or resolvers a network of
// another node would take over; "" for none.
func (n Nearby) conflict(p netip.Prefix) string {
	for _, a := range n.Attached {
		within := a.Prefix.Contains(p.Addr()) && a.Prefix.Bits() <= p.Bits()
		// A route to one address is not a network whose hosts the tunnel could imitate.
		if within || !a.Containers && !a.Prefix.IsSingleIP() && a.Prefix.Overlaps(p) {
			return fmt.Sprintf("%v, to which this host is attached by %s", a.Prefix, a.Link)
		}
	}
	// An address on an attached network has a more specific route.
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
