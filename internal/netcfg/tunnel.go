// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"net/netip"
	"slices"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Tunnel is the configuration of a client's host: a device, peers, and routes to the
// allowed IPs of the peers.
type Tunnel struct {
	Interface  string
	PrivateKey wgtypes.Key `json:"-"`
	ListenPort int
	MTU        int
	Addresses  []netip.Addr
	Peers      []Peer
}

// State returns the state that the tunnel asks for.
func (t Tunnel) State() State {
	s := Settings{Interface: t.Interface, Implementation: Auto, PrivateKey: t.PrivateKey, ListenPort: t.ListenPort, MTU: t.MTU}
	state := State{Device: s.device(), Addresses: hostPrefixes(t.Addresses)}
	for _, p := range t.Peers {
		p.AllowedIPs = normalize(p.AllowedIPs)
		state.Peers = append(state.Peers, p)
		for _, dst := range p.AllowedIPs {
			if source := sourceFor(dst.Addr(), t.Addresses); source.IsValid() {
				state.Routes = append(state.Routes, Route{Destination: dst, Link: t.Interface, Source: source})
			}
		}
	}
	slices.SortFunc(state.Peers, func(a, b Peer) int { return compareKeys(a.Key, b.Key) })
	slices.SortFunc(state.Routes, Route.Compare)
	return state
}
