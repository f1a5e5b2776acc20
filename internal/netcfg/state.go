// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"net/netip"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg/filter"
)

// State is everything that meshd owns on a host, as one plain value. The desired state
// (Desired) and the observed state (package host) have the same type, so that their
// difference is exactly what has to be done. Every list is sorted.
type State struct {
	Device     *Device         // nil for none
	Peers      []Peer          // by Key
	VXLAN      *VXLAN          // the device for traffic to neighbors; nil for none
	Forwarding []FDBEntry      // of the VXLAN device, by MAC
	Neighbors  []NeighborEntry // on the VXLAN device, by Addr
	Addresses  []netip.Prefix  // on the device, /32 and /128
	Backstops  []netip.Prefix  // ranges with a blackhole route, used when no other route is left
	Policies   []Policy        // by Priority, IPv4 first
	Routes     []Route         // with our route protocol
	Firewall   Firewall        // our nft table; zero for none
	Sysctls    []Sysctl        // by Key
	Accepts    []Accept        // rules that other programs' tables may need; only in desired states
	OwnPorts   []OwnPort       // ports that only meshd may answer on; only in desired states
	Covered    []Route         // what wider ones in Routes lead to as well; only in desired states

	// Observed states only.
	Filters   []filter.Table // of other programs
	FilterErr error          // why Filters is not known

	// SysctlErrs tells why parameters could not be set, by key. Package host doesn't fill
	// it, but who applied a plan.
	SysctlErrs map[string]error
}

// Device is the WireGuard device. Its private key is in no exported field and is never
// printed.
type Device struct {
	Name           string
	Implementation Implementation
	PublicKey      wgtypes.Key
	ListenPort     int
	MTU            int
	Up             bool
	Mark           uint32 // of WireGuard's own packets; 0 in a desired state for any

	privateKey wgtypes.Key
}

// PrivateKey returns the private key. It is zero in an observed device.
func (d Device) PrivateKey() wgtypes.Key { return d.privateKey }

// Implementation is the implementation of WireGuard that a device uses.
type Implementation string

// The implementations. Auto appears in desired states only.
const (
	Auto      Implementation = "auto"
	Kernel    Implementation = "kernel"
	Userspace Implementation = "userspace"
)

// Peer is a WireGuard peer.
type Peer struct {
	Key        wgtypes.Key
	Name       string         // of the node or client; only in desired states
	Endpoint   netip.AddrPort // invalid for none
	AllowedIPs []netip.Prefix
	Keepalive  time.Duration
	Guessed    bool // of a desired peer: see Keepalive

	// PresharedKey is zero for none. It is never printed.
	PresharedKey mesh.PresharedKey

	// Observed states only.
	LastHandshake time.Time // zero for never
	Received      int64     // bytes
	Sent          int64     // bytes
}

// Route is a route that meshd owns. Default routes are in the table InternetTable, all others in
// the main one; the same goes for backstops.
type Route struct {
	Destination netip.Prefix
	Via         netip.Addr // next hop; invalid for none
	OnLink      bool       // the next hop is on the link, even if no address of the link covers it
	Link        string     // name of the outgoing device
	Source      netip.Addr // preferred source: our overlay address
	MTU         int        // 0 for the MTU of the device
}

// leadsAs reports whether two routes differ in their destinations only.
func (r Route) leadsAs(o Route) bool {
	r.Destination = o.Destination
	return r == o
}

// Firewall is our nft table: chains with rules, and the sets they refer to.
type Firewall struct {
	Sets   []Set   // by Name
	Chains []Chain // by Name
}

// Set is a set of prefixes.
type Set struct {
	Name     string
	Type     string // ipv4_addr | ipv6_addr
	Elements []netip.Prefix
}

// Chain is a base chain.
type Chain struct {
	Name     string
	Type     string // filter | nat
	Hook     string
	Priority int
	Rules    []Rule
}

// Rule is one rule in nft's syntax. In the kernel its comment is a hash of its text.
// Rules are compared by this hash, because nft prints a rule in its own form, which
// changes between versions.
type Rule struct {
	Text string
	Hash string
}

// Sysctl is a kernel parameter. Its key is written with dots: net.ipv4.ip_forward.
type Sysctl struct {
	Key   string
	Value string
}
