// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"net/netip"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
)

// Plan is what has to be done on a host. Its fields are applied in the order in which
// they are declared. Each field is applied completely before the next one:
//
//   - The firewall comes first. It refers to links by name, so they need not exist. The
//     guard chain is thus active before the device carries a packet, and the first packet
//     of a flow, which decides on its NAT, already meets the right rules. In the same
//     step, connections that were redirected away from our ports are deleted.
//   - The backstops come before the device and its addresses. As soon as the host has an
//     address of the mesh, its kernel answers pings to it. Until there are routes, the
//     reply would take the default route. The policies come next: from then on nothing takes
//     the default route past the tunnel.
//   - Rules in other programs' packet filters come before the device too, so that its
//     first packets are not dropped there.
//   - Then come the devices, and after them the kernel parameters, because some belong to
//     a device.
//   - Addresses come before the routes that use them as source.
//   - Entries of the VXLAN device come before the routes through it. Routes without next
//     hop come before those with one: IPv6 refuses a next hop that is routed by another
//     link (ip6_route_check_nh_onlink).
//   - Routes come before peers. If a packet has a route but no peer yet, WireGuard
//     rejects it. If it has a peer but no route, it leaves unencrypted by the default
//     route. The exception is a route that moves from another link to the device: it is
//     moved after the peers, so that no packet is rejected.
//   - Removals come last. Routes are removed before addresses, because the kernel deletes
//     routes together with their source address. The backstops and the firewall are
//     removed at the very end.
//
// Everything in a plan may be applied twice: it is not an error to set what is already
// set, or to remove what is already removed.
type Plan struct {
	Firewall    *Firewall       // the whole table, in one transaction; nil for no change
	OwnPorts    []OwnPort       // ports that the firewall reserves for meshd from now on
	Sets        []Set           // of the firewall: with the elements of these it is as it should be; empty if that is not enough
	Backstops   []netip.Prefix  // to add
	Policies    []Policy        // to add
	Accepts     []AcceptChange  // to other programs' tables, in this order
	Device      *DeviceChange   // nil for no change
	VXLAN       *VXLANChange    // nil for no change
	Sysctls     []Sysctl        // to set
	Addresses   []netip.Prefix  // to add to the device
	Forwarding  []FDBEntry      // to add or to replace
	Neighbors   []NeighborEntry // to add or to replace
	Routes      []RouteChange   // to add or to replace
	Peers       []PeerChange    // in this order
	MovedRoutes []RouteChange   // to replace

	StaleRoutes     []Route         // to delete
	Forgotten       []netip.Prefix  // connections there are forgotten; what leads there is stale too
	StaleNeighbors  []NeighborEntry // to delete
	StaleForwarding []FDBEntry      // to delete
	StaleVXLAN      string          // name of the VXLAN device to delete, with everything on it; "" for none
	StaleAddresses  []netip.Prefix  // to delete from the device
	StaleDevice     string          // name of the device to delete, with everything on it; "" for none
	StalePolicies   []Policy        // to delete
	StaleBackstops  []netip.Prefix  // to delete
	StaleFirewall   bool            // delete the table

	link      string // name of the device, for String
	vxlanLink string // name of the VXLAN device, for String
}

// DeviceChange is a change to the device.
type DeviceChange struct {
	Device  Device // the desired device
	Replace bool   // first delete the device of this name: it has the wrong implementation
	Create  bool   // create the device; the fields below are then all true, but for SetMark

	SetKey  bool
	SetPort bool
	SetMTU  bool
	SetUp   bool
	SetMark bool
}

// RouteChange is a route to add, or one that replaces the route to the same destination
// in one step (NLM_F_REPLACE).
type RouteChange struct {
	Route Route
	Old   *Route // the route to replace; nil if there is none
}

// PeerChange is a change to one peer. Fields that are zero change nothing.
type PeerChange struct {
	Key        wgtypes.Key
	Name       string         // of the node or client, if known
	Add        bool           // the device does not have this peer yet
	Remove     bool           // then no other change is set
	Endpoint   netip.AddrPort // invalid for no change
	Keepalive  *time.Duration // nil for no change, 0 to turn it off
	AllowedIPs []netip.Prefix // to add; the kernel removes each from the peer that has it

	PresharedKey *mesh.PresharedKey // nil for no change, zero for none
}

// Empty reports whether there is nothing to do.
func (p Plan) Empty() bool {
	return p.Firewall == nil && len(p.Backstops) == 0 && len(p.Policies) == 0 && len(p.Accepts) == 0 && p.Device == nil && p.VXLAN == nil && len(p.Sysctls) == 0 &&
		len(p.Addresses) == 0 && len(p.Forwarding) == 0 && len(p.Neighbors) == 0 &&
		len(p.Routes) == 0 && len(p.Peers) == 0 && len(p.MovedRoutes) == 0 &&
		len(p.StaleRoutes) == 0 && len(p.StaleNeighbors) == 0 && len(p.StaleForwarding) == 0 &&
		p.StaleVXLAN == "" && len(p.StaleAddresses) == 0 &&
		p.StaleDevice == "" && len(p.StaleBackstops) == 0 && len(p.StalePolicies) == 0 && !p.StaleFirewall
}
