// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"net/netip"
	"time"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

const (
	// speakSecond is how long the node with the higher key gives the other one
	// to speak first; see tunnels.
	speakSecond = 200 * time.Millisecond
	// speakAgain is how soon a node speaks again to a living peer that has not
	// answered: WireGuard itself tries every 5 s once it has something to send.
	speakAgain = 5 * time.Second
	// tryNext is how long an endpoint has to bring a handshake about before the
	// peer's next one is tried.
	tryNext = 8 * time.Second
)

// tunnels remembers what was tried to get a handshake with each peer.
//
// WireGuard drops a handshake's first message when it comes from a key that it
// does not know, and sends the next one only 5 s later. So whoever adds a peer
// last has to speak, and since nobody knows who is last, both do. But two first
// messages that cross each other on the way are both in vain: each side answers
// the other's and thereby forgets its own, so no answer finds the state it
// belongs to. Therefore the node with the lower key speaks at once, and the
// other one only when that has not helped after speakSecond.
type tunnels struct {
	peers map[mesh.ID]*attempt
}

// attempt is the state of one peer that has no handshake yet.
type attempt struct {
	speakAt  time.Time // when to speak next
	endpoint int       // index of the endpoint in use
	tried    time.Time // since when
}

func newTunnels() tunnels { return tunnels{peers: make(map[mesh.ID]*attempt)} }

// pick says which of each peer's endpoints to use, counted round its list.
func (t tunnels) pick() map[mesh.ID]int {
	pick := make(map[mesh.ID]int, len(t.peers))
	for id, a := range t.peers {
		pick[id] = a.endpoint
	}
	return pick
}

// next says to which addresses to send something now, and how soon to ask again
// (0 for not before something happens). It takes into account the peers that
// the device has, who of them has answered, and who is alive.
func (t tunnels) next(turn turn, self wgtypes.Key) (speak []netip.Addr, again time.Duration) {
	now := turn.now
	handshakes := make(map[wgtypes.Key]time.Time, len(turn.observed.Peers))
	for _, p := range turn.observed.Peers {
		handshakes[p.Key] = p.LastHandshake
	}
	wanted := make(map[mesh.ID]bool, len(turn.topology.Peers))
	for _, p := range turn.topology.Peers {
		wanted[p.ID] = true
		handshake, there := handshakes[p.Key]
		if !there || !handshake.IsZero() && now.Sub(handshake) < netcfg.HandshakeFresh {
			// Not ours to speak to yet, or not any more: a peer that comes back
			// begins anew.
			if a, ok := t.peers[p.ID]; ok {
				a.speakAt, a.tried = time.Time{}, time.Time{}
			}
			continue
		}
		if !turn.view.Alive[p.ID] {
			continue
		}
		a := t.attempt(p, self, now)
		if now.Sub(a.tried) >= tryNext {
			a.endpoint, a.tried = a.endpoint+1, now
		}
		if !now.Before(a.speakAt) {
			a.speakAt = now.Add(speakAgain)
			speak = append(speak, anyAddress(p)...)
		}
		if wait := a.speakAt.Sub(now); again == 0 || wait < again {
			again = wait
		}
	}
	for id := range t.peers {
		if !wanted[id] {
			delete(t.peers, id)
		}
	}
	return speak, again
}

// attempt returns the peer's state, a fresh one when it has none.
func (t tunnels) attempt(p mesh.Peer, self wgtypes.Key, now time.Time) *attempt {
	a, ok := t.peers[p.ID]
	if !ok {
		a = &attempt{}
		t.peers[p.ID] = a
	}
	if a.speakAt.IsZero() {
		a.speakAt, a.tried = now, now
		if bytes.Compare(self[:], p.Key[:]) > 0 {
			a.speakAt = now.Add(speakSecond)
		}
	}
	return a
}

// anyAddress returns one address at the far end of the peer's tunnel, or none.
func anyAddress(p mesh.Peer) []netip.Addr {
	for _, prefix := range p.AllowedIPs {
		if prefix.IsSingleIP() {
			return []netip.Addr{prefix.Addr()}
		}
	}
	return nil
}
