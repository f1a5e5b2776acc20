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
	// renewFirst is how long the leading node waits for its first handshake
	// before it renews the peer; each time after that it waits twice as long, up
	// to speakAgain. A round trip of half a second delays a second.
	renewFirst = 400 * time.Millisecond
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
// belongs to. Therefore one of the two leads. It speaks at once, and the other
// one only when that has not helped after speakSecond. Since anybody's packet
// into the tunnel makes a node speak too, first messages cross and get lost all
// the same; so the leader does not wait out the 5 s, but renews the peer, which
// has no session to lose, and speaks again.
//
// Who can be reached leads not: a node without an endpoint does, since the other
// one can't speak to it. Between equals it is the one with the lower key.
type tunnels struct {
	peers map[mesh.ID]*attempt
}

// attempt is the state of one peer that has no handshake yet.
type attempt struct {
	speakAt  time.Time     // when to speak next
	wait     time.Duration // before speaking again
	spoken   bool
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

// outreach is what there is to do about peers without a handshake.
type outreach struct {
	renew map[wgtypes.Key]bool // peers to renew first
	speak []netip.Addr         // addresses to send something to
	again time.Duration        // how soon to ask again; 0 for not before something happens
}

// next says what to do now. It takes into account the peers that the device
// has, who of them has answered, and who is alive.
func (t tunnels) next(turn turn, self mesh.Record) outreach {
	now := turn.now
	out := outreach{renew: make(map[wgtypes.Key]bool)}
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
				*a = attempt{endpoint: a.endpoint}
			}
			continue
		}
		if !turn.view.Alive[p.ID] {
			continue
		}
		leads := leads(self, p)
		a := t.attempt(p, leads, now)
		if now.Sub(a.tried) >= tryNext {
			a.endpoint, a.tried = a.endpoint+1, now
		}
		if !now.Before(a.speakAt) {
			if leads && a.spoken && handshake.IsZero() {
				out.renew[p.Key] = true
			}
			out.speak = append(out.speak, anyAddress(p)...)
			a.spoken, a.speakAt, a.wait = true, now.Add(a.wait), min(2*a.wait, speakAgain)
		}
		if wait := a.speakAt.Sub(now); out.again == 0 || wait < out.again {
			out.again = wait
		}
	}
	for id := range t.peers {
		if !wanted[id] {
			delete(t.peers, id)
		}
	}
	return out
}

// leads says whether this node is the one of the two to speak first.
func leads(self mesh.Record, p mesh.Peer) bool {
	if reachable := len(self.Endpoints) > 0; reachable != (len(p.Endpoints) > 0) {
		return !reachable
	}
	return bytes.Compare(self.Key[:], p.Key[:]) < 0
}

// attempt returns the peer's state, a fresh one when it has none.
func (t tunnels) attempt(p mesh.Peer, leads bool, now time.Time) *attempt {
	a, ok := t.peers[p.ID]
	if !ok {
		a = &attempt{}
		t.peers[p.ID] = a
	}
	if a.speakAt.IsZero() {
		a.speakAt, a.tried, a.wait = now, now, renewFirst
		if !leads {
			a.speakAt, a.wait = now.Add(speakSecond), speakAgain
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
