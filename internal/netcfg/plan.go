// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"net/netip"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
)

// Plan is what has to be done on a host. Its fields are applied in the order in
// which they stand here, each one whole before the next one begins:
//
//   - The firewall comes first. It names links and needs none of them, so the
//     guard holds before the device carries a packet, and a flow's first packet,
//     which decides about its NAT, already meets the right rules. With it goes
//     what keeps others' firewalls from closing our ports.
//   - The backstops come next, before the device and its addresses: from the moment
//     on at which the host has an address of the mesh, its kernel answers pings to
//     it, and until there are routes the answer would take the default route.
//   - The devices, and after them the kernel parameters, some of which belong to them.
//   - Addresses before the routes that name them as their source.
//   - Entries of the VXLAN device before the routes that lead there. Among the
//     routes those without next hop come first: in IPv6 a next hop must not be
//     routed by another link (ip6_route_check_nh_onlink).
//   - Routes before peers: a packet for which there is a route and no peer yet is
//     refused by WireGuard, one for which there is a peer and no route leaves by
//     the default route, in clear text. But a route that led elsewhere until now
//     moves to the device after the peers: no packet is refused then.
//   - Only then is anything taken away, the routes before the addresses, because
//     the kernel drops routes together with their source address, and the
//     backstops and the firewall last of all.
//
// Everything in a plan may be applied twice: setting what is set and removing
// what is gone succeed.
type Plan struct {
	Firewall    *Firewall       // the whole table, in one transaction; nil to leave it
	OwnPorts    []OwnPort       // that the firewall keeps for the host
	Backstops   []netip.Prefix  // to add
	Accepts     []AcceptChange  // to tables of others, in this order
	Device      *DeviceChange   // nil to leave it
	VXLAN       *VXLANChange    // nil to leave it
	Sysctls     []Sysctl        // to set
	Addresses   []netip.Prefix  // to add to the device
	Forwarding  []FDBEntry      // to add or to replace
	Neighbors   []NeighborEntry // to add or to replace
	Routes      []RouteChange   // to add or to replace
	Peers       []PeerChange    // in this order, by one ConfigureDevice
	MovedRoutes []RouteChange   // to replace

	StaleRoutes     []Route         // to delete
	StaleNeighbors  []NeighborEntry // to delete
	StaleForwarding []FDBEntry      // to delete
	StaleVXLAN      string          // name of the VXLAN device to delete, with all that is on it; "" for none
	StaleAddresses  []netip.Prefix  // to delete from the device
	StaleDevice     string          // name of the device to delete, with all that is on it; "" for none
	StaleBackstops  []netip.Prefix  // to delete
	StaleFirewall   bool            // delete the table

	link      string // name of the device, for String
	vxlanLink string // and of the VXLAN device
}

// DeviceChange says what to do to the device.
type DeviceChange struct {
	Device  Device // as it is to be
	Replace bool   // first delete the device of this name: it is of the wrong implementation
	Create  bool   // make the device; the fields below are then all set

	SetKey  bool
	SetPort bool
	SetMTU  bool
	SetUp   bool
}

// RouteChange is a route to add, or to put in the place of the one to the same
// destination, in one step (NLM_F_REPLACE).
type RouteChange struct {
	Route Route
	Old   *Route // what it replaces; nil if there is none
}

// PeerChange says what to do to one peer. What is zero stays as it is.
type PeerChange struct {
	Key        wgtypes.Key
	Name       string         // of the node or client, if it is known
	Add        bool           // the device does not have this peer yet
	Remove     bool           // nothing else is set then
	Endpoint   netip.AddrPort // invalid to leave it
	Keepalive  *time.Duration // nil to leave it, 0 to switch it off
	AllowedIPs []netip.Prefix // to add; the kernel takes each from the peer that has it

	PresharedKey *mesh.PresharedKey // nil to leave it, zero for none
}

// Empty reports whether there is nothing to do.
func (p Plan) Empty() bool {
	return p.Firewall == nil && len(p.Backstops) == 0 && len(p.Accepts) == 0 && p.Device == nil && p.VXLAN == nil && len(p.Sysctls) == 0 &&
		len(p.Addresses) == 0 && len(p.Forwarding) == 0 && len(p.Neighbors) == 0 &&
		len(p.Routes) == 0 && len(p.Peers) == 0 && len(p.MovedRoutes) == 0 &&
		len(p.StaleRoutes) == 0 && len(p.StaleNeighbors) == 0 && len(p.StaleForwarding) == 0 &&
		p.StaleVXLAN == "" && len(p.StaleAddresses) == 0 &&
		p.StaleDevice == "" && len(p.StaleBackstops) == 0 && !p.StaleFirewall
}
