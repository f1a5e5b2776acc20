// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

const (
	// routerSilence is after how long a client of which nothing comes counts as down: three of the
	// keepalives that its configuration asks for.
	routerSilence = 15 * time.Second
	// routerSteady is how long a client must be heard without such a pause until it counts as up again.
	routerSteady = 30 * time.Second
	// routerPoll is how often to look what has come from clients that share a network.
	routerPoll = 3 * time.Second
)

// Routers holds which clients are heard that share a network behind them with another client.
//
// WireGuard has room for a network at one peer only, and drops what comes from it through another
// one. So the homes of clients should agree on which of them it is: that which was added first of
// those that are heard. Each home listens for itself. Behind it two routers settle the same among
// themselves, as by VRRP, and should prefer the same one.
type Routers struct {
	// Down are the clients that are not heard. It is kept on disk, so that a restart moves nothing.
	Down map[wgtypes.Key]bool

	heard map[wgtypes.Key]heardFrom
}

// heardFrom is what has come from a client.
type heardFrom struct {
	received int64     // bytes, as the device counts them
	last     time.Time // when that grew last, or when this daemon looked first
	since    time.Time // the beginning of the time without a pause
}

// assign leaves each network to one client.
func (r *Routers) assign(clients []mesh.ClientTunnel) {
	best := make(map[netip.Prefix]int)
	for i, c := range clients {
		for _, p := range c.Networks {
			if first, ok := best[p]; !ok || r.compare(c, clients[first]) < 0 {
				best[p] = i
			}
		}
	}
	for i := range clients {
		clients[i].Networks = slices.DeleteFunc(slices.Clone(clients[i].Networks), func(p netip.Prefix) bool { return best[p] != i })
	}
}

// compare orders clients by who is to have a network that both have.
func (r *Routers) compare(a, b mesh.ClientTunnel) int {
	down := func(c mesh.ClientTunnel) int {
		if r.Down[c.Key] {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(down(a), down(b)), cmp.Compare(a.Added, b.Added), a.ID.Compare(b.ID))
}

// sharing returns the clients that have a network which another one has, too.
func sharing(clients []mesh.Client) map[wgtypes.Key]bool {
	first := make(map[netip.Prefix]wgtypes.Key)
	out := make(map[wgtypes.Key]bool)
	for _, c := range clients {
		for _, p := range c.Networks {
			if other, ok := first[p]; ok {
				out[other], out[c.Key] = true, true
			}
			first[p] = c.Key
		}
	}
	return out
}

// observe notes what has come from clients that share networks, and returns how soon to take
// another turn, 0 for no wish. What has changed counts from that on.
func (r *Routers) observe(sharing map[wgtypes.Key]bool, peers []netcfg.Peer, now time.Time) (recheckAfter time.Duration) {
	heard, down := make(map[wgtypes.Key]heardFrom), make(map[wgtypes.Key]bool)
	for _, p := range peers {
		if !sharing[p.Key] {
			continue
		}
		h, known := r.heard[p.Key]
		switch {
		case !known:
			h = heardFrom{received: p.Received, last: now, since: now}
		case h.received != p.Received:
			if now.Sub(h.last) >= routerSilence {
				h.since = now
			}
			h.received, h.last = p.Received, now
		}
		heard[p.Key] = h
		if now.Sub(h.last) >= routerSilence || r.Down[p.Key] && now.Sub(h.since) < routerSteady {
			down[p.Key] = true
		}
	}
	if len(heard) > 0 {
		recheckAfter = routerPoll
	}
	if !maps.Equal(down, r.Down) {
		recheckAfter = soon
	}
	r.heard, r.Down = heard, down
	return recheckAfter
}
