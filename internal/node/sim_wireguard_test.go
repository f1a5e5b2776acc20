// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/netcfg"
)

// As much of WireGuard as matters to who speaks when and to what is lost: see Noise's IK in
// the WireGuard paper, and noise.c. A peer has room for one handshake, so that who answers
// one forgets its own.

const (
	rekeyTimeout   = 5 * time.Second // between two initiations
	rekeyJitter    = 334 * time.Millisecond
	rekeyAfter     = 120 * time.Second // the initiator makes a new session
	rejectAfter    = 180 * time.Second // a session is of no use any more
	rekeyAttempts  = 18                // for 90 s
	noAnswerFor    = 15 * time.Second  // a peer that is spoken to and says nothing has no session
	maxWaiting     = 128               // packets for a peer without a session
	wireguardPort  = 51820
	firstOfNATPort = 40000
)

// tunnel is what a device knows of a peer.
type tunnel struct {
	begun      int       // the own handshake under way; 0 for none
	last       time.Time // when it was begun
	attempts   int
	greatest   time.Time // that a handshake of the peer has carried
	next       *session  // as its responder, until its first packet
	current    *session
	previous   *session
	handshake  time.Time // as the system's clock tells it
	unanswered time.Time // since when what is sent has no answer
	waiting    []waiting
}

// waiting is a packet that waits for a session. It is lost with the peer.
type waiting struct{ send, lose func() }

// session is one that two devices share.
type session struct {
	at    time.Time
	first *host // the initiator
}

func (t *tunnel) lastHandshake() time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.handshake
}

// usable returns the session by which to send, or nil.
func (t *tunnel) usable(now time.Time) *session {
	if t.current == nil || now.Sub(t.current.at) >= rejectAfter {
		return nil
	}
	return t.current
}

// onLAN reports whether two hosts share a private network.
func (h *host) onLAN(o *host) bool { return h.place.site > 0 && h.place.site == o.place.site }

// flight is how long a datagram takes to another host.
func (h *host) flight(to *host) time.Duration {
	if h.onLAN(to) {
		return simLAN
	}
	return h.packetDelay(h, to)
}

// deliver returns the host that a datagram to an endpoint gets to, or nil, and its source
// as that one sees it.
func (h *host) deliver(to netip.AddrPort) (*host, netip.AddrPort) {
	for _, o := range h.hosts {
		var seen netip.AddrPort
		switch {
		case o == h:
			continue
		case h.onLAN(o) && to == netip.AddrPortFrom(o.internal.Addr(), wireguardPort):
			seen = netip.AddrPortFrom(h.internal.Addr(), wireguardPort)
		case o.place.underlay == home && to == o.mapped() && o.hasSpokenTo(h), o.place.underlay != home && to == o.mapped():
			seen = h.mapped()
		default:
			continue
		}
		if !h.powered || !o.powered || h.cut[[2]int{h.number, o.number}] {
			return nil, seen
		}
		return o, seen
	}
	return nil, netip.AddrPort{}
}

// mapped is where the internet sees a host's WireGuard socket.
func (h *host) mapped() netip.AddrPort {
	if h.place.underlay == home {
		return netip.AddrPortFrom(h.public, uint16(firstOfNATPort+h.number))
	}
	return netip.AddrPortFrom(h.public, wireguardPort)
}

// hasSpokenTo reports whether a NAT lets packets of another host in, which probes or
// WireGuard have spoken to. Keepalives see to it that it goes on doing so.
func (h *host) hasSpokenTo(o *host) bool {
	if h.probes[o.id] {
		return true
	}
	return slices.ContainsFunc(h.kernel.Peers, func(p netcfg.Peer) bool {
		t := h.tunnels[p.Key]
		return p.Endpoint == o.mapped() && t != nil && (!t.last.IsZero() || t.current != nil)
	})
}

// peer returns the index of a peer of the device, or a negative number.
func (h *host) peer(key wgtypes.Key) int {
	if h.kernel.Device == nil || !h.kernel.Device.Up {
		return -1
	}
	return slices.IndexFunc(h.kernel.Peers, func(p netcfg.Peer) bool { return p.Key == key })
}

// devicePublicKey returns the key of the device, or zero.
func (h *host) deviceKey() wgtypes.Key {
	if h.kernel.Device == nil {
		return wgtypes.Key{}
	}
	return h.kernel.Device.PublicKey
}

// roam notes where a peer was heard.
func (h *host) roam(key wgtypes.Key, at netip.AddrPort) {
	if i := h.peer(key); i >= 0 && h.kernel.Peers[i].Endpoint != at {
		h.kernel.Peers = slices.Clone(h.kernel.Peers)
		h.kernel.Peers[i].Endpoint = at
	}
}

// initiate begins a handshake, as often as WireGuard does.
func (h *host) initiate(key wgtypes.Key) {
	i, t := h.peer(key), h.tunnels[key]
	if i < 0 || t == nil || !h.kernel.Peers[i].Endpoint.IsValid() || !t.last.IsZero() && h.now.Sub(t.last) < rekeyTimeout {
		return
	}
	h.count++
	number := h.count
	t.begun, t.last = number, h.now
	to, seen := h.deliver(h.kernel.Peers[i].Endpoint)
	h.after(rekeyTimeout+time.Duration(h.rng.Int64N(int64(rekeyJitter))), func() { // no answer: again
		if h.tunnels[key] == t && t.begun == number && t.attempts < rekeyAttempts {
			t.attempts++
			h.initiate(key)
		}
	})
	if to == nil {
		return
	}
	stamp := h.now.Add(h.clock)
	h.after(h.flight(to), func() { to.respond(h, key, seen, stamp, number) })
}

// respond answers the first message of a handshake.
func (h *host) respond(from *host, key wgtypes.Key, seen netip.AddrPort, stamp time.Time, number int) {
	peer := from.deviceKey()
	t := h.tunnels[peer]
	if !h.powered || h.deviceKey() != key || h.peer(peer) < 0 || t == nil || !stamp.After(t.greatest) {
		return
	}
	t.greatest, t.begun, t.next = stamp, 0, &session{h.now, from}
	made := t.next
	h.roam(peer, seen)
	to, back := h.deliver(seen)
	if to == nil {
		return
	}
	h.after(h.flight(to), func() { to.begin(h, key, back, made, number) })
}

// begin takes the answer to a handshake in, and confirms it with a packet.
func (h *host) begin(peer *host, key wgtypes.Key, seen netip.AddrPort, made *session, number int) {
	t := h.tunnels[key]
	if t == nil || t.begun != number {
		return
	}
	t.begun, t.attempts = 0, 0
	t.previous, t.current, t.handshake, t.unanswered = t.current, made, h.now.Add(h.clock), time.Time{}
	h.roam(key, seen)
	h.sendWaiting(t)
	to, own := h.deliver(seen)
	if to != nil {
		h.after(h.flight(to), func() { to.receive(h.deviceKey(), own, made) })
	}
}

func (h *host) sendWaiting(t *tunnel) {
	waiting := t.waiting
	t.waiting = nil
	for _, p := range waiting {
		h.after(0, p.send)
	}
}

// removed forgets a peer that the device has no more.
func (h *host) removed(key wgtypes.Key) {
	t := h.tunnels[key]
	delete(h.tunnels, key)
	if t == nil {
		return
	}
	for _, p := range t.waiting {
		h.after(0, p.lose)
	}
}

// receive takes a packet of a session in, and reports whether the device does.
func (h *host) receive(from wgtypes.Key, seen netip.AddrPort, by *session) bool {
	t := h.tunnels[from]
	if !h.powered || h.peer(from) < 0 || t == nil || h.now.Sub(by.at) >= rejectAfter {
		return false
	}
	switch by {
	case t.next:
		t.previous, t.current, t.next = t.current, t.next, nil
		t.handshake = h.now.Add(h.clock)
		h.sendWaiting(t)
	case t.current, t.previous:
	default:
		return false
	}
	t.unanswered = time.Time{}
	h.roam(from, seen)
	return true
}

// transmit sends a packet to a peer, and returns the host that takes it in, or nil. Without
// a session it begins a handshake, and the packet waits.
func (h *host) transmit(p netcfg.Peer) (to *host, waits *tunnel) {
	t := h.tunnels[p.Key]
	if t == nil || !p.Endpoint.IsValid() {
		return nil, nil
	}
	by := t.usable(h.now)
	if by == nil {
		h.initiate(p.Key)
		return nil, t
	}
	if by.first == h && h.now.Sub(by.at) >= rekeyAfter {
		h.initiate(p.Key)
	}
	if t.unanswered.IsZero() {
		since := h.now
		t.unanswered = since
		h.after(noAnswerFor, func() {
			if h.tunnels[p.Key] == t && t.unanswered.Equal(since) {
				h.initiate(p.Key)
			}
		})
	}
	to, seen := h.deliver(p.Endpoint)
	if to == nil || to.deviceKey() != p.Key || !to.receive(h.deviceKey(), seen, by) {
		return nil, nil
	}
	t.unanswered = time.Time{} // whoever gets something says something, within ten seconds
	return to, nil
}
