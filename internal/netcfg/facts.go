// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"net/netip"
	"slices"

	"github.com/meshd/meshd/internal/mesh"
)

// Facts is what the daemon has to know of the host it runs on, beyond what is
// ours there.
type Facts struct {
	// Addresses are the host's own lasting unicast addresses: none of the mesh,
	// of containers, or of a link alone. Sorted.
	Addresses []netip.Addr
	// Uplinks are the ways out to the internet, at most one a family, IPv4 first.
	Uplinks []Uplink
	// InternalIPs are the uplinks' sources that are private, with the length of
	// the network that they are in.
	InternalIPs []netip.Prefix
	// Attached are all lasting addresses but our own, with their links. Sorted.
	Attached []LAN
	// MTU is the lowest of the uplinks', in bytes; 0 without an uplink.
	MTU int
	// Nearby is what the host must go on reaching without the mesh.
	Nearby mesh.Nearby
}

// Uplink is where the default route of a family leads.
type Uplink struct {
	Link   string
	Source netip.Prefix // the address that connections come from, with its network's length
	MTU    int          // of the link, bytes
}

// LANs returns where the host has its internal IPs. One that it has on no link is
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
