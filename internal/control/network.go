// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"net/http"
	"net/netip"
)

// Network is what the networks between this node and the others let pass, as far as is known.
type Network struct {
	Node         string        `json:"node"`
	Port         int           `json:"port"`  // WireGuard's, UDP
	Alive        int           `json:"alive"` // other nodes
	UDP          Answer        `json:"udp"`   // another node answers over UDP, beyond the private network
	Families     []Family      `json:"families"`
	Hairpin      Answer        `json:"hairpin"`      // the router passes back what this host sends to its own public address of IPv4
	PortMappings []PortMapping `json:"portMappings"` // by this host's router
	MTU          int           `json:"mtuBytes"`     // of the device
	Narrow       []NarrowPath  `json:"narrow"`       // paths that carry less than their tunnel's MTU, sorted by name
	Relays       []NearbyRelay `json:"relays"`       // that are alive, the nearest first
}

// Answer is what is known of something.
type Answer string

// The answers.
const (
	Unknown Answer = "unknown"
	Yes     Answer = "yes"
	No      Answer = "no"
)

// Family is what is known of one family of addresses. Those that the host does not have are left
// out.
type Family struct {
	Name string `json:"name"` // IPv4 or IPv6
	// Seen is where other nodes see this node's WireGuard socket, beyond the private network: first
	// what most of them say.
	Seen []netip.AddrPort `json:"seen"`
	NAT  NAT              `json:"nat"`
	// Reached is Yes if other nodes reach the socket without having been spoken to, and No if they
	// have tried.
	Reached Answer `json:"reached"`
}

// NAT is what becomes of the source of packets on the way to other nodes: the mapping of RFC 4787,
// section 4.1.
type NAT string

// The kinds of NAT.
const (
	NATUnknown  NAT = "unknown"   // no other node has said where it sees this one
	NATNone     NAT = "none"      // the others see an address of this host
	NATOneNode  NAT = "one-node"  // only one node has said where it sees this one: there is NAT, of whatever kind
	NATSamePort NAT = "same-port" // all see the same address and port
	NATPorts    NAT = "ports"     // others see others
)

// NarrowPath is a path that carries less than the tunnel's MTU.
type NarrowPath struct {
	Node string `json:"node"`
	MTU  int    `json:"mtuBytes"` // inside the tunnel
}

// NearbyRelay is a node that forwards packets for others.
type NearbyRelay struct {
	Name string       `json:"name"`
	RTT  Milliseconds `json:"rttMilliseconds,omitzero"` // absent if not known
}

// Network returns what is known of the networks between this node and the others.
func (c *Client) Network(ctx context.Context) (Network, error) {
	var n Network
	return n, c.do(ctx, http.MethodGet, "/v1/network", &n)
}

func handleNetwork(mux *http.ServeMux, d Daemon) {
	mux.HandleFunc("GET /v1/network", func(w http.ResponseWriter, r *http.Request) {
		network, err := d.Network(r.Context())
		reply(w, network, err)
	})
}
