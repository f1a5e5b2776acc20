// SPDX-License-Identifier: Apache-2.0

package path

import (
	"net/netip"

	"github.com/meshd/meshd/internal/mesh"
)

// streamZone marks the addresses of StreamAddr. Addresses of datagrams have a zone only if
// they are link-local, and then it is the name of a link, which has no blank.
const streamZone = "a stream"

// StreamAddr is what stands for a node that has come to a relay by stream, where a Relay has
// the address of one that comes by UDP. No datagram comes from such an address.
func StreamAddr(id mesh.ID) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(id).WithZone(streamZone), 0)
}

// StreamNode returns the node of a StreamAddr.
func StreamNode(a netip.AddrPort) (mesh.ID, bool) {
	return a.Addr().As16(), a.Addr().Zone() == streamZone
}
