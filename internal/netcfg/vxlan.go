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

// Inside a location packets go from node to node over the LAN, without WireGuard. They
// are encapsulated in VXLAN where the LAN must not see addresses of the mesh, because
// clouds drop packets with sources that they don't know. The VXLAN device neither learns
// nor resolves addresses: a node's MAC is derived from its ID, so all entries are known
// in advance and written as permanent ones.

// VXLAN is the device for traffic to neighbors.
type VXLAN struct {
	Name     string
	ID       int        // the VXLAN network identifier
	Port     int        // UDP
	Local    netip.Addr // source of the outer packets: our internal IP
	Learning bool       // learns forwarding entries from packets; always off in desired states
	MAC      MAC
	MTU      int
	Up       bool
}

// MAC is an Ethernet address.
type MAC [6]byte

// String returns the usual form: 02:00:5e:00:53:01.
func (m MAC) String() string { return strings.ReplaceAll(fmt.Sprintf("% x", m[:]), " ", ":") }

// FDBEntry maps the MAC of a node to its address on the LAN.
type FDBEntry struct {
	MAC MAC
	To  netip.Addr // internal IP
}

// NeighborEntry maps an overlay address to the MAC of its node.
type NeighborEntry struct {
	Addr netip.Addr
	MAC  MAC
}

// LAN is a link that has one of this host's internal IPs.
type LAN struct {
	Link    string
	Address netip.Prefix // with the prefix length of the network
	MTU     int          // of the link, bytes
}

// VXLANName returns the name of the VXLAN device that belongs to a WireGuard device: that
// device's name with the suffix -vx, or a hash of it if that is too long.
func VXLANName(iface string) string {
	if name := iface + "-vx"; len(name) <= maxLinkName {
		return name
	}
	sum := sha256.Sum256([]byte(iface))
	return fmt.Sprintf("vx-%x", sum[:6])
}

// lan returns the LAN whose network contains a neighbor's internal IP, else the first LAN
// of the same family, else the zero LAN.
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

// vxlan returns the device for traffic to encapsulated neighbors, or nil if there are
// none. All nodes of a location use the same family outside. It also returns nil if no
// link of the host has the internal IP in its record: outer packets could not have that
// source, and the other nodes would drop them.
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
			mtu = max(mtu, mesh.MinMTU6)
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
	// The kernel has one destination for a MAC, so two entries would replace each other
	// for ever.
	forwarding = slices.CompactFunc(forwarding, func(a, b FDBEntry) bool { return a.MAC == b.MAC })
	return forwarding, neighbors
}

// neighborRoutes returns the routes to a neighbor and to the networks behind it. With
// VXLAN its overlay address is on the link, and is the next hop for the other networks.
// Without VXLAN its internal IPs are the next hops. Destinations of a family in which it
// has no internal IP get no route: such packets go to the WireGuard device and are
// rejected, as for any address that belongs to no peer.
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

// routeMTU returns the MTU to set on a route, or 0 if the link's MTU is low enough.
func routeMTU(mtu, link int) int {
	if mtu >= link {
		return 0
	}
	return mtu
}

// vxlanSysctls returns the kernel parameters of the VXLAN device. They are those of the
// WireGuard device, for the same reasons. Router advertisements are ignored too: no node
// sends any on that device.
//
// The parameters of the LAN's link stay as they are, although it carries packets of the
// mesh if there is no VXLAN. A strict rp_filter demands no more than our guard chain
// does. And a gateway that forwards a packet to the next gateway may send redirects on
// that link, but all nodes forward packets themselves, and the kernel then ignores
// redirects (IN_DEV_RX_REDIRECTS, rt6_do_redirect).
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
