// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"net/netip"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg/filter"
)

// State is everything of ours on a host, as one plain value. What is wanted
// (Desired) and what is there (package host) have the same type, so that the
// difference of the two is all there is to do. Every list is sorted.
type State struct {
	Device     *Device         // nil for none
	Peers      []Peer          // by Key
	VXLAN      *VXLAN          // the device to the neighbors; nil for none
	Forwarding []FDBEntry      // of the VXLAN device, by MAC
	Neighbors  []NeighborEntry // on the VXLAN device, by Addr
	Addresses  []netip.Prefix  // on the device, /32 and /128
	Backstops  []netip.Prefix  // ranges with a blackhole route for when all others are gone
	Routes     []Route         // of our route protocol
	Firewall   Firewall        // our nft table; zero for none
	Sysctls    []Sysctl        // by Key
	Accepts    []Accept        // rules that tables of others may need; only in desired states
	OwnPorts   []OwnPort       // on which nobody else may answer; only in desired states

	// Observed states only.
	Filters   []filter.Table // of others
	FilterErr error          // why these are not known
}

// Device is the WireGuard device. Its private key is in no exported field and
// is never printed.
type Device struct {
	Name           string
	Implementation Implementation
	PublicKey      wgtypes.Key
	ListenPort     int
	MTU            int
	Up             bool

	privateKey wgtypes.Key
}

// PrivateKey returns the private key; zero for an observed device.
func (d Device) PrivateKey() wgtypes.Key { return d.privateKey }

// Implementation says who speaks WireGuard.
type Implementation string

// The implementations. Auto is only a wish, never observed.
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

	// PresharedKey is zero for none. It is never printed.
	PresharedKey mesh.PresharedKey

	// Observed states only.
	LastHandshake time.Time // zero for never
	Received      int64     // bytes
	Sent          int64     // bytes
}

// Route is a route of ours.
type Route struct {
	Destination netip.Prefix
	Via         netip.Addr // next hop; invalid for none
	OnLink      bool       // the next hop is on the link, whatever addresses the link has
	Link        string     // name of the device it points to
	Source      netip.Addr // preferred source: our overlay address
	MTU         int        // 0 for the device's
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

// Rule is one rule in nft's syntax. In the kernel it carries a hash of its text
// as a comment, by which an observed rule is compared with a wanted one: nft
// prints rules in a form of its own, which changes between versions.
type Rule struct {
	Text string
	Hash string
}

// Sysctl is a kernel parameter, with dots: net.ipv4.ip_forward.
type Sysctl struct {
	Key   string
	Value string
}
