// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"net/netip"
	"slices"

	"github.com/meshd/meshd/internal/mesh"
)

// Facts are what the daemon needs to know about its host, besides the State.
type Facts struct {
	// Addresses are the host's permanent unicast addresses, sorted. They exclude
	// addresses of the mesh and of containers, and link-local addresses.
	Addresses []netip.Addr
	// Uplinks are the links to the internet, at most one per family, IPv4 first.
	Uplinks []Uplink
	// InternalIPs are the private source addresses of the uplinks, with the prefix length
	// of their network.
	InternalIPs []netip.Prefix
	// Attached are all permanent addresses that meshd does not own, with their links.
	// Sorted.
	Attached []LAN
	// MTU is the lowest MTU of the uplinks, in bytes; 0 without an uplink.
	MTU int
	// Nearby is what the host must be able to reach without the mesh.
	Nearby mesh.Nearby
}

// Uplink is the link of the default route of a family.
type Uplink struct {
	Link   string
	Source netip.Prefix // the source of outgoing connections, with the prefix length of its network
	MTU    int          // of the link, bytes
}

// LANs returns the links that have the internal IPs. An internal IP that no link has is
// left out.
func (f Facts) LANs(internalIPs []netip.Prefix) []LAN {
	var out []LAN
	for _, ip := range internalIPs {
		i := slices.IndexFunc(f.Attached, func(l LAN) bool { return l.Address.Addr() == ip.Addr().Unmap() })
		if i >= 0 {
			out = append(out, f.Attached[i])
		}
	}
	return out
}
