// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/netcfg"
)

// Sessions holds when each peer's last handshake was, by a clock that does not jump.
// WireGuard tells it in the system's time, and that may be set by hours while a session
// lives: a small computer without a battery starts in the past.
//
// It also holds where each peer was. When somebody deletes the device, a peer behind NAT
// would stay without an endpoint until it notices that its session is gone, which takes
// it 15 s and a packet to send.
//
// The zero value knows of no sessions. A value does not change.
type Sessions struct {
	observed time.Time // when the device was observed last
	peers    map[wgtypes.Key]session
}

// session is a handshake as WireGuard told it, when it really was, and where the peer was
// when the device was observed last.
type session struct {
	told, at time.Time
	endpoint netip.AddrPort
}

// Correct returns the observed state with the times at which the handshakes really were,
// as seen from now, which must have a monotonic reading; and the sessions as known then.
func (s Sessions) Correct(observed netcfg.State, now time.Time) (Sessions, netcfg.State) {
	next := Sessions{observed: now, peers: make(map[wgtypes.Key]session, len(observed.Peers))}
	for key, known := range s.peers {
		if now.Sub(known.at) < netcfg.HandshakeFresh {
			next.peers[key] = known // whether it is still there or not
		}
	}
	observed.Peers = slices.Clone(observed.Peers)
	for i := range observed.Peers {
		p := &observed.Peers[i]
		if p.LastHandshake.IsZero() {
			continue
		}
		known, ok := s.peers[p.Key]
		if !ok || !known.told.Equal(p.LastHandshake) {
			known = session{told: p.LastHandshake, at: now.Add(-s.age(p.LastHandshake, now))}
		}
		known.endpoint = p.Endpoint
		next.peers[p.Key] = known
		p.LastHandshake = now.Add(-now.Sub(known.at))
	}
	return next, observed
}

// endpoints returns where peers were that may still have a session with us.
func (s Sessions) endpoints() map[wgtypes.Key]netip.AddrPort {
	endpoints := make(map[wgtypes.Key]netip.AddrPort, len(s.peers))
	for key, known := range s.peers {
		endpoints[key] = known.endpoint
	}
	return endpoints
}

// age returns the age of a handshake that is new to us. It happened after the device was
// observed last; the first time, there is only the system's time to go by.
func (s Sessions) age(told, now time.Time) time.Duration {
	age := max(now.Round(0).Sub(told), 0)
	if !s.observed.IsZero() {
		age = min(age, now.Sub(s.observed))
	}
	return age
}
