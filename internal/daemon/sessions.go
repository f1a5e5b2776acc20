// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"net/netip"
	"sync"
	"time"

	"github.com/meshd/meshd/internal/netcfg"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// sessions remembers when each peer's last handshake was, by a clock that does
// not jump. WireGuard tells it in the system's time, and that may be set by hours
// while a session lives: a small computer without a battery starts in the past.
//
// It also remembers where each peer was. When somebody deletes the device, a peer
// behind NAT would stay without an endpoint until it notices that its session is
// gone, which takes it 15 s and a packet to send.
type sessions struct {
	mu     sync.Mutex
	looked time.Time // when it was looked last
	peers  map[wgtypes.Key]session
}

// session is a handshake as it was told, when it really was, and where the peer was
// when it was looked last.
type session struct {
	told, at time.Time
	endpoint netip.AddrPort
}

// correct puts into the observed state when the handshakes really were, as seen
// from now, which must have a monotonic reading.
func (s *sessions) correct(observed *netcfg.State, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	peers := make(map[wgtypes.Key]session, len(observed.Peers))
	for key, known := range s.peers {
		if now.Sub(known.at) < netcfg.HandshakeFresh {
			peers[key] = known // whether it is still there or not
		}
	}
	for i := range observed.Peers {
		p := &observed.Peers[i]
		if p.LastHandshake.IsZero() {
			continue
		}
		known, ok := s.peers[p.Key]
		if !ok || !known.told.Equal(p.LastHandshake) {
			known = session{told: p.LastHandshake, at: now.Add(-s.ageOf(p.LastHandshake, now))}
		}
		known.endpoint = p.Endpoint
		peers[p.Key] = known
		p.LastHandshake = now.Add(-now.Sub(known.at))
	}
	s.peers, s.looked = peers, now
}

// heard returns where peers were that may still have a session with us.
func (s *sessions) heard() map[wgtypes.Key]netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[wgtypes.Key]netip.AddrPort, len(s.peers))
	for key, known := range s.peers {
		out[key] = known.endpoint
	}
	return out
}

// ageOf returns the age of a handshake that is new to us. It was no longer ago
// than our last look; at the first one there is only the system's time to go by.
func (s *sessions) ageOf(told, now time.Time) time.Duration {
	age := max(now.Round(0).Sub(told), 0)
	if !s.looked.IsZero() {
		age = min(age, now.Sub(s.looked))
	}
	return age
}
