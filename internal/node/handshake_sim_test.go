// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

// end is one end of a tunnel: the schedule under test, and as much of WireGuard
// as matters to it. See Noise's IK in the WireGuard paper, and noise.c: a peer has
// room for one handshake, so that who answers one forgets its own.
type end struct {
	self, peer mesh.Record
	schedule   Handshakes
	addAt      time.Duration // when the daemon learns that there is a peer

	there     bool
	refuses   bool          // WireGuard has had a handshake of a later time
	endpoint  bool          // WireGuard knows where the peer is
	begun     int           // the own handshake under way; 0 for none
	last      time.Duration // when it was begun
	responded bool          // a session that waits for its first packet
	session   time.Duration // when it was there; 0 for none
	wake      time.Duration // the daemon's next turn
}

// wire carries messages between two ends.
type wire struct {
	now    time.Duration
	delay  time.Duration
	number int
	queue  map[time.Duration][]func()
}

func (w *wire) send(f func()) { w.queue[w.now+w.delay] = append(w.queue[w.now+w.delay], f) }

// initiate begins a handshake, as often as WireGuard does.
func (e *end) initiate(w *wire, to *end) {
	if !e.there || !e.endpoint || e.last > 0 && w.now-e.last < 5*time.Second {
		return
	}
	w.number++
	number := w.number
	e.begun, e.last = number, w.now
	w.send(func() {
		if !to.there || to.refuses {
			return
		}
		to.endpoint, to.begun, to.responded = true, 0, true
		w.send(func() {
			if e.begun != number {
				return
			}
			e.begun, e.session = 0, w.now
			w.send(func() {
				if to.responded {
					to.session = w.now
				}
			})
		})
	})
}

// turn does what the daemon does.
func (e *end) turn(w *wire, to *end) {
	if w.now < e.addAt || w.now < e.wake {
		return
	}
	start := time.Unix(1000, 0)
	peer := mesh.Peer{ID: mesh.ID{e.peer.Key[0]}, Key: e.peer.Key, AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.4.0.5/32")}}
	for range e.peer.Endpoints {
		peer.Endpoints = append(peer.Endpoints, netip.MustParseAddrPort("203.0.113.5:1"))
	}
	in := handshakeInput{Now: start.Add(w.now), Self: e.self, Topology: mesh.Topology{Addresses: []netip.Addr{netip.MustParseAddr("10.4.0.1")}, Peers: []mesh.Peer{peer}}}
	in.Alive = map[mesh.ID]bool{peer.ID: true}
	e.there = true
	if e.schedule.pick(in.Topology.Peers, e.self)[peer.ID] >= 0 && len(peer.Endpoints) > 0 {
		e.endpoint = true
	}
	onDevice := netcfg.Peer{Key: peer.Key}
	if e.session > 0 {
		onDevice.LastHandshake = start.Add(e.session)
	}
	in.Observed.Peers = []netcfg.Peer{onDevice}
	out := e.schedule.next(in)
	if len(out.Renew) > 0 && (e.session == 0 || w.now-e.session >= netcfg.HandshakeFresh) {
		e.begun, e.last, e.responded, e.session, e.refuses = 0, 0, false, 0, false
	}
	if len(out.Initiate) > 0 {
		e.initiate(w, to)
	}
	e.wake = w.now + max(out.RecheckAfter, endpointDelay)
}

// TestTunnelsOfANewGateway lets two nodes learn at different times that they
// are peers, as when a gateway takes over, and measures how long after the later
// one the tunnel works for both.
func TestTunnelsOfANewGateway(t *testing.T) {
	reachable := []mesh.Endpoint{{Host: "203.0.113.1", Port: 51820}}
	for _, tt := range []struct {
		name      string
		low, high []mesh.Endpoint
	}{
		{"both can be reached", reachable, reachable},
		{"only the lower key", reachable, nil},
		{"only the higher key", nil, reachable},
	} {
		for _, delay := range []time.Duration{5 * time.Millisecond, 25 * time.Millisecond, 75 * time.Millisecond, 150 * time.Millisecond} {
			var worst, when time.Duration
			for apart := -200 * time.Millisecond; apart <= 200*time.Millisecond; apart += 10 * time.Millisecond {
				if took := meet(tt.low, tt.high, delay, apart); took > worst {
					worst, when = took, apart
				}
			}
			t.Logf("%s, %v one way: %v at the most", tt.name, delay, worst)
			if most := 300*time.Millisecond + 2*delay; worst > most {
				t.Errorf("%s, %v one way: got %v when %v apart, want %v at the most", tt.name, delay, worst, when, most)
			}
		}
	}
}

// meet returns how long after the later of two ends has added its peer both have
// a session.
func meet(low, high []mesh.Endpoint, delay, apart time.Duration) time.Duration {
	w := &wire{delay: delay, queue: make(map[time.Duration][]func())}
	a := &end{schedule: NewHandshakes(nil), addAt: time.Second + max(-apart, 0)}
	b := &end{schedule: NewHandshakes(nil), addAt: time.Second + max(apart, 0)}
	a.self = mesh.Record{Key: wgtypes.Key{1}, Endpoints: low}
	b.self = mesh.Record{Key: wgtypes.Key{2}, Endpoints: high}
	a.peer, b.peer = b.self, a.self
	for ; w.now < time.Minute; w.now += 5 * time.Millisecond {
		for _, f := range w.queue[w.now] {
			f()
		}
		delete(w.queue, w.now)
		a.turn(w, b)
		b.turn(w, a)
		if a.session > 0 && b.session > 0 {
			return w.now - max(a.addAt, b.addAt)
		}
	}
	return w.now
}

// TestTunnelsOfClocksSetBack has two nodes whose session runs out while each
// refuses the other's handshakes, because they carry an earlier time than the last
// one did.
func TestTunnelsOfClocksSetBack(t *testing.T) {
	w := &wire{delay: 25 * time.Millisecond, queue: make(map[time.Duration][]func())}
	var ends [2]*end
	for i := range ends {
		self, peer := mesh.Record{Key: wgtypes.Key{byte(1 + i)}}, mesh.Record{Key: wgtypes.Key{byte(2 - i)}}
		self.Endpoints, peer.Endpoints = make([]mesh.Endpoint, 1), make([]mesh.Endpoint, 1)
		ends[i] = &end{self: self, peer: peer, schedule: NewHandshakes([]mesh.Record{peer}), refuses: true, session: time.Second}
		ends[i].schedule.peers[mesh.ID{peer.Key[0]}] = &attempt{firstDone: true}
	}
	limit := netcfg.HandshakeFresh + time.Minute
	for w.now = time.Second; w.now < limit; w.now += 5 * time.Millisecond {
		for _, f := range w.queue[w.now] {
			f()
		}
		delete(w.queue, w.now)
		ends[0].turn(w, ends[1])
		ends[1].turn(w, ends[0])
		if ends[0].session > netcfg.HandshakeFresh && ends[1].session > netcfg.HandshakeFresh {
			t.Logf("%v without a session", w.now-netcfg.HandshakeFresh-time.Second)
			return
		}
	}
	t.Error("no session any more")
}
