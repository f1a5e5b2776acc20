// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/meshd/meshd/internal/mesh"
)

// Inside a location packets travel from node to node over the LAN, without
// WireGuard. Where the LAN is to see none of the mesh's addresses, because
// clouds drop packets with sources that they don't know, they travel in VXLAN.
// Nobody learns or asks anything on that device: a node's MAC follows from its
// ID, so all entries are known beforehand and written down as permanent ones.

// VXLAN is the device to the neighbors.
type VXLAN struct {
	Name     string
	ID       int        // the VXLAN network identifier
	Port     int        // UDP
	Local    netip.Addr // source of the outer packets: our internal IP
	Learning bool       // takes forwarding entries from what arrives; never wanted
	MAC      MAC
	MTU      int
	Up       bool
}

// MAC is an Ethernet address.
type MAC [6]byte

// String returns the usual form, 02:00:5e:00:53:01.
func (m MAC) String() string { return strings.ReplaceAll(fmt.Sprintf("% x", m[:]), " ", ":") }

// FDBEntry says where on the LAN the node with a MAC is.
type FDBEntry struct {
	MAC MAC
	To  netip.Addr // internal IP
}

// NeighborEntry says which MAC an overlay address has.
type NeighborEntry struct {
	Addr netip.Addr
	MAC  MAC
}

// LAN is a link with one of this host's internal IPs.
type LAN struct {
	Link    string
	Address netip.Prefix // with the network's length
	MTU     int          // of the link, bytes
}

// VXLANName returns the name of the VXLAN device that belongs to a WireGuard
// device: with -vx at its end, or a hash if there is no room for that.
func VXLANName(iface string) string {
	if name := iface + "-vx"; len(name) <= maxLinkName {
		return name
	}
	sum := sha256.Sum256([]byte(iface))
	return fmt.Sprintf("vx-%x", sum[:6])
}

// lan returns where the host is on the network of a neighbor's internal IP; a
// zero LAN if it is on none of that family.
func (s Settings) lan(internal netip.Addr) LAN {
	var same LAN
	for _, l := range s.LANs {
		switch {
		case l.Address.Addr().Is4() != internal.Unmap().Is4():
		case l.Address.Contains(internal.Unmap()):
			return l
		case same == LAN{}:
			same = l
		}
	}
	return same
}

// vxlan returns the device to the encapsulated neighbors, nil if there are none.
// All of a location use one family outside. There is no device either if none
// of the host's links has the internal IP that its record tells: outer packets
// could not come from it, and the others would drop them.
func (s Settings) vxlan(t mesh.Topology) *VXLAN {
	for _, n := range t.Neighbors {
		lan := s.lan(n.InternalIP)
		if !n.Encapsulated || lan.Link == "" {
			continue
		}
		overhead := vxlanOverhead4
		if lan.Address.Addr().Is6() {
			overhead = vxlanOverhead6
		}
		mtu := min(s.MTU, lan.MTU-overhead)
		if usesIPv6(t) {
			mtu = max(mtu, minIPv6MTU)
		}
		return &VXLAN{
			Name: VXLANName(s.Interface), ID: VXLANID, Port: VXLANPort,
			Local: lan.Address.Addr(), MAC: mesh.MAC(s.ID), MTU: mtu, Up: true,
		}
	}
	return nil
}

// vxlanEntries returns the entries of the VXLAN device for all neighbors.
func vxlanEntries(t mesh.Topology) (forwarding []FDBEntry, neighbors []NeighborEntry) {
	for _, n := range t.Neighbors {
		if !n.Encapsulated {
			continue
		}
		mac := MAC(mesh.MAC(n.ID))
		forwarding = append(forwarding, FDBEntry{MAC: mac, To: n.InternalIP.Unmap()})
		for _, a := range n.Overlay {
			neighbors = append(neighbors, NeighborEntry{Addr: a.Unmap(), MAC: mac})
		}
	}
	slices.SortFunc(forwarding, FDBEntry.Compare)
	slices.SortFunc(neighbors, NeighborEntry.Compare)
	// The kernel has one destination for a MAC, so two would take turns.
	forwarding = slices.CompactFunc(forwarding, func(a, b FDBEntry) bool { return a.MAC == b.MAC })
	return forwarding, neighbors
}

// neighborRoutes returns the routes to a neighbor and to what is behind it. In
// VXLAN its overlay address is on the link, and the next hop of the rest.
// Without, its internal IPs are the next hops, and what is of another family than
// these has no route: it ends at the WireGuard device, as what belongs to nobody.
func (s Settings) neighborRoutes(n mesh.Neighbor, vx *VXLAN) []Route {
	var out []Route
	if n.Encapsulated {
		if vx == nil {
			return nil
		}
		for _, dst := range hostPrefixes(n.Overlay) {
			out = append(out, Route{Destination: dst, Link: vx.Name, MTU: routeMTU(n.MTU, vx.MTU)})
		}
		for _, dst := range normalize(n.Prefixes) {
			if via := sourceFor(dst.Addr(), n.Overlay); via.IsValid() && dst != netip.PrefixFrom(via, via.BitLen()) {
				out = append(out, Route{Destination: dst, Via: via, OnLink: true, Link: vx.Name, MTU: routeMTU(n.MTU, vx.MTU)})
			}
		}
		return out
	}
	for _, dst := range normalize(slices.Concat(hostPrefixes(n.Overlay), n.Prefixes)) {
		via := sourceFor(dst.Addr(), n.NextHops)
		if lan := s.lan(via); via.IsValid() && lan.Link != "" {
			out = append(out, Route{Destination: dst, Via: via, Link: lan.Link, MTU: routeMTU(n.MTU, lan.MTU)})
		}
	}
	return out
}

// routeMTU returns the MTU to set on a route: 0 if the MTU of the link is low enough.
func routeMTU(mtu, link int) int {
	if mtu >= link {
		return 0
	}
	return mtu
}

// vxlanSysctls returns the kernel parameters of the VXLAN device. They are those
// of the WireGuard device, for the same reasons. Nobody sends router
// advertisements there, and nobody is to begin.
//
// No parameter of the LAN's link is touched, though without VXLAN it carries
// the mesh's packets. A strict rp_filter asks no more than our guard does. And
// the redirects that a gateway may send there, when it passes a packet on to the
// next gateway, reach nodes that forward themselves: the kernel doesn't listen to
// redirects then (IN_DEV_RX_REDIRECTS, rt6_do_redirect).
func (b builder) vxlanSysctls() []Sysctl {
	name := strings.ReplaceAll(VXLANName(b.Interface), ".", "/")
	out := []Sysctl{
		{"net.ipv4.conf." + name + ".rp_filter", "2"},
		{"net.ipv4.conf." + name + ".send_redirects", "0"},
	}
	if usesIPv6(b.t) {
		out = append(out,
			Sysctl{"net.ipv6.conf." + name + ".accept_ra", "0"},
			Sysctl{"net.ipv6.conf." + name + ".disable_ipv6", "0"})
	}
	return out
}

// Compare orders entries by MAC.
func (e FDBEntry) Compare(o FDBEntry) int {
	return cmp.Or(slices.Compare(e.MAC[:], o.MAC[:]), e.To.Compare(o.To))
}

// Compare orders entries by address.
func (e NeighborEntry) Compare(o NeighborEntry) int {
	return cmp.Or(e.Addr.Compare(o.Addr), slices.Compare(e.MAC[:], o.MAC[:]))
}
