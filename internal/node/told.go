// SPDX-License-Identifier: Apache-2.0

package node

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

// tellAgain is how long after a client was told where this host is it is told again if it has made
// no handshake since. By then WireGuard has given up repeating what it was to send (Rekey-Attempt-Time
// in section 6.1 of its paper). Each further time it takes twice as long.
const tellAgain = 2 * time.Minute

// told is when a client was told last where this host is, and how long until it is told again.
type told struct {
	at   time.Time
	wait time.Duration
}

// tellClients has something sent to each client that may know this host at another address. The
// client's WireGuard keeps its endpoint, and looks up no name again, until a packet comes from
// elsewhere. A handshake shows that it has found this host.
func (h Handshakes) tellClients(in handshakeInput, out *HandshakePlan) {
	waiting := make(map[wgtypes.Key]bool)
	for _, c := range in.Topology.Clients {
		i := slices.IndexFunc(in.Observed.Peers, func(p netcfg.Peer) bool { return p.Key == c.Key })
		if i < 0 || len(c.Addresses) == 0 || !in.Observed.Peers[i].Endpoint.IsValid() || in.Observed.Peers[i].LastHandshake.After(in.Settled) {
			continue
		}
		waiting[c.Key] = true
		last := h.clients[c.Key]
		if last.at.Before(in.Settled) {
			last = told{}
		}
		if in.Now.Sub(last.at) >= last.wait {
			out.Initiate = append(out.Initiate, c.Addresses[0])
			last = told{at: in.Now, wait: max(2*last.wait, tellAgain)}
			h.clients[c.Key] = last
		}
		out.RecheckAfter = soonest(out.RecheckAfter, last.at.Add(last.wait).Sub(in.Now))
	}
	maps.DeleteFunc(h.clients, func(key wgtypes.Key, _ told) bool { return !waiting[key] })
}

// endpoints returns where peers were that may still have a session with this node, and where its clients were
// last, and notes the latter.
func (m *Memory) endpoints(all []mesh.Client, ending []mesh.ClientTunnel) map[wgtypes.Key]netip.AddrPort {
	endpoints := m.Sessions.endpoints()
	last := make(map[wgtypes.Key]netip.AddrPort, len(m.Clients))
	for _, c := range all { // another node may be the home of some until all nodes are heard
		if at, ok := m.Clients[c.Key]; ok {
			last[c.Key] = at
		}
	}
	for _, c := range ending {
		if at := endpoints[c.Key]; at.IsValid() {
			last[c.Key] = at
		}
		endpoints[c.Key] = last[c.Key]
	}
	m.Clients = last
	return endpoints
}
