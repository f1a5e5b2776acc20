// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/path/rawudp"
)

const addrX = "192.0.2.66:51820"

// outsider is somebody with an address of his own who sees all probes of two hosts.
type outsider struct {
	*wire
	addr netip.AddrPort
	sent int // bytes that he has sent, from whatever address
	got  int // bytes that came to him
}

// send sends a datagram from any address, after a while.
func (o *outsider) send(after time.Duration, b []byte, from, to netip.AddrPort) {
	h := o.at(to)
	if h == nil {
		return
	}
	o.sent += len(b)
	time.AfterFunc(after, func() { h.deliver(rawudp.Datagram{Payload: b, From: from, To: to.Addr(), Link: h.link}) })
}

// TestHostileOutsider has somebody who sees the probes of two hosts, and has no key, send them
// again in all ways, while packets pass between the two. No path changes, nothing is sent to him,
// and the two send no more than without him.
func TestHostileOutsider(t *testing.T) {
	later := 3 * travel // than the datagram itself
	without := 0
	for _, attack := range []struct {
		name string
		on   func(o *outsider, b []byte, from, to netip.AddrPort)
	}{
		{"none", func(*outsider, []byte, netip.AddrPort, netip.AddrPort) {}},
		{"replays", func(o *outsider, b []byte, _, to netip.AddrPort) { o.send(later, b, o.addr, to) }},
		{"replays from where it came", func(o *outsider, b []byte, from, to netip.AddrPort) { o.send(later, b, from, to) }},
		{"reflects", func(o *outsider, b []byte, from, _ netip.AddrPort) { o.send(0, b, o.addr, from) }},
		{"reflects from where it goes", func(o *outsider, b []byte, from, to netip.AddrPort) { o.send(0, b, to, from) }},
		{"forges", func(o *outsider, b []byte, from, to netip.AddrPort) {
			for n := range 20 {
				forged := slices.Clone(b)
				forged[20+n%8] ^= 1 // another counter
				forged[len(forged)-1-n]++
				o.send(0, forged, []netip.AddrPort{o.addr, from}[n%2], to)
			}
		}},
	} {
		t.Run(attack.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := two(t)
				o := &outsider{wire: a.wire, addr: netip.MustParseAddrPort(addrX)}
				sent := 0
				a.tap = func(p []byte, from, to netip.AddrPort) {
					sent += len(p)
					if to == o.addr {
						o.got += len(p)
						return
					}
					attack.on(o, p, from, to)
				}
				a.SetPeers([]Peer{b.peer(direct(addrB))})
				b.SetPeers([]Peer{a.peer(direct(addrA))})
				a.talk(t, b)
				b.talk(t, a)
				time.Sleep(30 * time.Second)
				a.wantPath(t, b, direct(addrB))
				b.wantPath(t, a, direct(addrA))
				fromA, fromB := b.received(a), a.received(b)
				time.Sleep(time.Second)
				if b.received(a) == fromA || a.received(b) == fromB {
					t.Error("nothing passes both ways")
				}
				a.mu.Lock()
				defer a.mu.Unlock()
				for _, h := range []*host{a, b} {
					if slices.Contains(h.writes, o.addr) {
						t.Errorf("%v has sent packets to the outsider", h.id)
					}
				}
				if o.got > 0 {
					t.Errorf("the outsider got %d bytes for %d, want none", o.got, o.sent)
				}
				t.Logf("the two have sent %d bytes, the outsider %d", sent, o.sent)
				if without == 0 {
					without = sent
				}
				if sent > without*5/4 {
					t.Errorf("the two have sent %d bytes of probes, want about %d as without an outsider", sent, without)
				}
			})
		})
	}
}

// TestHostileOvertakes has somebody send probes of two hosts from another address before they
// arrive, so that they count as sent from there. Packets stay on the path that they are on, and
// little more is sent there than he has sent.
func TestHostileOvertakes(t *testing.T) {
	for _, every := range []int{1, 3, 10} {
		t.Run(fmt.Sprintf("one of %d", every), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := two(t)
				a.SetPeers([]Peer{b.peer(direct(addrB))})
				b.SetPeers([]Peer{a.peer(direct(addrA))})
				a.talk(t, b)
				b.talk(t, a)
				time.Sleep(5 * time.Second)
				o := &outsider{wire: a.wire, addr: netip.MustParseAddrPort(addrX)}
				seen := 0
				a.mu.Lock()
				a.tap = func(p []byte, from, to netip.AddrPort) {
					if to == o.addr {
						o.got += len(p)
					} else if seen++; seen%every == 0 {
						o.send(0, p, o.addr, to)
					}
				}
				a.mu.Unlock()
				time.Sleep(time.Minute)
				for _, h := range []*host{a, b} {
					if slices.Contains(h.writes, o.addr) {
						t.Errorf("%v has sent packets to the outsider", h.id)
					}
				}
				if to, from := a.statusOf(t, b).Path, b.statusOf(t, a).Path; to != direct(addrB).Path || from != direct(addrA).Path {
					t.Errorf("got paths %v and %v, want those before", to, from)
				}
				fromA, fromB := b.received(a), a.received(b)
				time.Sleep(time.Second)
				if b.received(a) == fromA || a.received(b) == fromB {
					t.Error("nothing passes both ways")
				}
				t.Logf("the outsider has sent %d bytes and got %d", o.sent, o.got)
				// An answer and a probe for each, and what is sent in a search for better paths.
				const search = 2 * 11 * 90
				if most := 2*o.sent + search; o.sent == 0 || o.got > most {
					t.Errorf("the outsider got %d bytes for %d, want no more than %d", o.got, o.sent, most)
				}
			})
		})
	}
}

// TestHostileRelayTurns has the relay that two hosts use, and to which they are bound, no longer do what it
// is for. Packets pass through the other one a few seconds later.
func TestHostileRelayTurns(t *testing.T) {
	for _, tt := range []struct {
		name string
		turn func(r *wireRelay, a, b *host)
		stay bool // packets pass as before
	}{
		{"drops all", func(r *wireRelay, a, b *host) { r.lossy, r.deaf = true, []*host{a, b} }, false},
		{"drops packets and passes probes", func(r *wireRelay, a, b *host) { r.deaf = []*host{a, b} }, false},
		{"drops packets of the one that leads", func(r *wireRelay, a, _ *host) { r.deaf = []*host{a} }, false},
		{"drops packets of the other one", func(r *wireRelay, _, b *host) { r.deaf = []*host{b} }, false},
		{"drops probes and passes packets", func(r *wireRelay, _, _ *host) { r.lossy = true }, true},
		{"delays", func(r *wireRelay, _, _ *host) { r.delay = 2 * time.Second }, false},
		{"delays more and more", func(r *wireRelay, _, _ *host) {
			for n := range 20 {
				time.AfterFunc(time.Duration(n)*300*time.Millisecond, func() { r.mu.Lock(); defer r.mu.Unlock(); r.delay += 100 * time.Millisecond })
			}
		}, false},
		{"replays", func(r *wireRelay, _, _ *host) { r.copies = 5 }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b, r, s := twoWithRelays(t)
				a.set(addrA, true)
				a.set(addrB, true)
				time.Sleep(2 * time.Second)
				use := a.statusOf(t, b).Path
				rogue, other := r, s
				if use == s.by().Path {
					rogue, other = s, r
				}
				a.initiateThrough(rogue, b)
				b.initiateThrough(rogue, a)
				a.talk(t, b)
				b.talk(t, a)
				time.Sleep(10 * time.Second)
				a.wantPath(t, b, rogue.by())
				rogue.mu.Lock()
				tt.turn(rogue, a, b)
				a.sent = 0
				rogue.mu.Unlock()
				time.Sleep(10 * time.Second)
				rogue.mu.Lock()
				if rogue.copies > 0 && a.sent > 40 { // what is to be answered comes once a second, as before
					t.Errorf("%d datagrams were sent in 10 s, want the answers to new ones only", a.sent)
				}
				rogue.mu.Unlock()
				if use := a.statusOf(t, b).Path; use != other.by().Path && !tt.stay {
					t.Errorf("got %v, want the other relay", use)
				}
				fromA, fromB := b.received(a), a.received(b)
				time.Sleep(time.Second)
				if b.received(a) == fromA || a.received(b) == fromB {
					t.Error("nothing passes both ways")
				}
			})
		})
	}
}

// insider is a node with keys that says what it likes.
type insider struct {
	*host
	t       *testing.T
	counter uint64
}

// insider adds a peer of a host.
func (h *host) insider(t *testing.T, num byte, addr string) *insider {
	i := &insider{host: h.wire.host(t, num, addr), t: t}
	h.add(i.host, addr)
	return i
}

// say has a message arrive at a host, from any address.
func (i *insider) say(keys *path.Keys, to *host, from netip.AddrPort, m path.Message) {
	i.counter++
	to.deliver(rawudp.Datagram{Payload: keys.Seal(m, i.counter), From: from, To: to.addrs[0].Addr(), Link: to.link})
}

// TestHostileInsider has a third node flood one of two, which talk through a relay, with each message
// there is, from its own address and from those of the other one and of the relay. Nothing about the
// two changes, and the node sends little.
func TestHostileInsider(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, r := overOneRelay(t)
		i := a.insider(t, 5, addrX)
		a.SetPeers([]Peer{b.through(behindFirewall(addrB), r), i.through(direct(addrX), r)})
		a.initiateThrough(r, b)
		b.initiateThrough(r, a)
		a.talk(t, b)
		b.talk(t, a)
		time.Sleep(5 * time.Second)
		keys := i.keysTo(t, a)
		who, err := path.WhoSealer("test", secret, path.ShortOf(r.id), r.pathKey.PublicKey())
		if err != nil {
			t.Fatal(err)
		}
		before := a.Bound()
		said, toB := 0, b.received(a)
		var sent atomic.Int64
		a.mu.Lock()
		a.tap = func(p []byte, from, _ netip.AddrPort) {
			if from == a.addrs[0] {
				sent.Add(int64(len(p)))
			}
		}
		a.mu.Unlock()
		const seconds = 30
		for n := range seconds * 100 {
			from := []netip.AddrPort{i.addrs[0], b.addrs[0], r.addrs[0]}[n%3]
			node := []mesh.ID{i.id, b.id}[n%2]
			for op := path.Ping; op <= path.Renew; op++ {
				i.say(keys, a, from, path.Message{
					Op: op, Number: indexOf(a, b), Node: path.ShortOf(node), Use: path.Relayed, Look: path.Relayed, This: true, Silence: time.Minute,
				})
				said++
			}
			i.counter++
			a.deliver(rawudp.Datagram{Payload: who.Seal(path.Message{Op: path.Who}, 1<<40+i.counter), From: from, To: a.addrs[0].Addr(), Link: 2})
			time.Sleep(10 * time.Millisecond)
		}
		t.Logf("it has sent %d bytes for %d datagrams", sent.Load(), said)
		a.wantPath(t, b, r.by())
		b.wantPath(t, a, r.by())
		if after := a.Bound(); len(after) != 1 || after[0] != before[0] {
			t.Errorf("bound at %+v, want %+v", after, before)
		}
		if n := (b.received(a) - toB) / 128; n < seconds*15 {
			t.Errorf("%d packets have passed in %d s, want some 20 a second", n, seconds)
		}
		if renew := a.statusOf(t, b).Renew; !renew.IsZero() {
			t.Errorf("the session of the two was begun anew %v", renew)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if to, verdict := r.table.Forward(time.Now(), dataOf(a, b), a.addrs[0]); verdict != path.Pass || to != b.addrs[0] {
			t.Errorf("what is for the other one: got verdict %d to %v", verdict, to)
		}
		if sent.Load() > int64(said)*90 {
			t.Errorf("the node has sent %d bytes for %d datagrams, want no more than it got", sent.Load(), said)
		}
	})
}

// TestHostileSessions has a relay say that a session of others is its own, and somebody begin one in
// a third node's name: the other relay, through which they talk, is told nothing.
func TestHostileSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, r, s := twoWithRelays(t)
		a.set(addrA, true)
		a.set(addrB, true)
		time.Sleep(5 * time.Second)
		through, rogue := r, s
		if a.statusOf(t, b).Path == s.by().Path {
			through, rogue = s, r
		}
		c := a.insider(t, 3, addrC)
		a.SetPeers([]Peer{b.through(behindFirewall(addrB), r, s), c.through(direct(addrC), r, s)})
		a.initiateThrough(through, b)
		b.initiateThrough(through, a)
		a.data(b)
		time.Sleep(2 * time.Second)
		rogue.mu.Lock()
		rogue.counter++
		begun := rogue.keys[path.ShortOf(a.id)].Seal(path.Message{Op: path.Begun, Number: indexOf(a, b), Node: path.ShortOf(c.id)}, rogue.counter)
		rogue.mu.Unlock()
		a.deliver(rawudp.Datagram{Payload: begun, From: rogue.addrs[0], To: a.addrs[0].Addr(), Link: 2})
		initiation := make([]byte, device.MessageInitiationSize)
		initiation[0] = device.MessageInitiationType
		binary.LittleEndian.PutUint32(initiation[4:], indexOf(a, b))
		a.deliver(rawudp.Datagram{Payload: initiation, From: c.addrs[0], To: a.addrs[0].Addr(), Link: 2})
		time.Sleep(time.Second)
		for _, relay := range []*wireRelay{through, rogue} {
			relay.mu.Lock()
			if to, verdict := relay.table.Forward(time.Now(), dataOf(a, b), a.addrs[0]); verdict != path.Pass || to != b.addrs[0] {
				t.Errorf("what is for the other one: got verdict %d to %v", verdict, to)
			}
			relay.mu.Unlock()
		}
	})
}

// dataOf is a message of the session of two hosts.
func dataOf(from, to *host) []byte {
	b := make([]byte, 128)
	b[0] = device.MessageTransportType
	binary.LittleEndian.PutUint32(b[4:], indexOf(from, to))
	return b
}

// TestHostilePunching has a node that names addresses of somebody else as its own call without end:
// they get no more probes than from a peer that behaves.
func TestHostilePunching(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		a := w.host(t, 1, addrA)
		a.start(t)
		i := a.insider(t, 5, addrX)
		var others []path.Candidate
		for n := range 12 {
			others = append(others, behindFirewall(fmt.Sprintf("192.0.2.%d:53", 100+n)))
		}
		a.SetPeers([]Peer{i.peer(others...)})
		var sent atomic.Int64
		a.mu.Lock()
		a.tap = func(p []byte, from, to netip.AddrPort) {
			if to.Port() == 53 {
				sent.Add(1)
			}
		}
		a.mu.Unlock()
		keys := i.keysTo(t, a)
		const minutes = 10
		for range minutes * 120 {
			for _, op := range []path.Op{path.Call, path.Called} {
				i.say(keys, a, i.addrs[0], path.Message{Op: op})
			}
			time.Sleep(time.Second / 2)
		}
		t.Logf("%d datagrams in %d minutes", sent.Load(), minutes)
		// Five attempts, and one every 35 s, of some 40 probes to each address.
		if most := int64(5+minutes*60/35+1) * 45 * int64(len(others)); sent.Load() == 0 || sent.Load() > most {
			t.Errorf("others got %d datagrams in %d minutes, want some, and no more than %d", sent.Load(), minutes, most)
		}
	})
}

// TestHostileRestart has somebody who has recorded probes send them from his address to a host whose
// agent has just started again, and so has not seen them.
func TestHostileRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := two(t)
		o := &outsider{wire: a.wire, addr: netip.MustParseAddrPort(addrX)}
		var recorded [][]byte
		a.tap = func(p []byte, _, to netip.AddrPort) {
			switch to {
			case b.addrs[0]:
				recorded = append(recorded, p)
			case o.addr:
				o.got += len(p)
			}
		}
		a.SetPeers([]Peer{b.peer(direct(addrB))})
		b.SetPeers([]Peer{a.peer(direct(addrA))})
		a.talk(t, b)
		b.talk(t, a)
		time.Sleep(30 * time.Second)
		b.stop()
		a.mu.Lock()
		old := recorded
		a.mu.Unlock()
		b.start(t)
		b.SetPeers([]Peer{a.peer(direct(addrA))})
		for len(old) > 0 {
			a.mu.Lock()
			o.send(0, old[0], o.addr, b.addrs[0])
			a.mu.Unlock()
			old = old[1:]
			time.Sleep(travel)
		}
		time.Sleep(5 * time.Second)
		a.mu.Lock()
		if slices.Contains(b.writes, o.addr) {
			t.Errorf("%v has sent packets to the outsider", b.id)
		}
		t.Logf("the outsider has sent %d bytes and got %d", o.sent, o.got)
		if o.got > 2*o.sent {
			t.Errorf("the outsider got %d bytes for %d, want no more than twice as many", o.got, o.sent)
		}
		a.mu.Unlock()
		b.wantPath(t, a, direct(addrA))
	})
}

// TestHostileRelayVanishes has a relay through which two hosts talk go from the list of relays, as one
// does that gossip takes for dead, and come back, while it goes on to forward: it is never taken for the peer.
func TestHostileRelayVanishes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, r := overOneRelay(t)
		a.initiateThrough(r, b)
		b.initiateThrough(r, a)
		a.talk(t, b)
		b.talk(t, a)
		time.Sleep(time.Second)
		for _, relays := range [][]Relay{nil, {r.as(addrR)}} {
			for _, h := range []*host{a, b} {
				h.SetRelays(relays, 1, [][32]byte{secret})
			}
			time.Sleep(20 * time.Second)
			for _, way := range [][2]*host{{a, b}, {b, a}} {
				s := way[0].statusOf(t, way[1])
				if s.Path.Addr != r.addrs[0] || s.Path.Straight() {
					t.Errorf("with %d relays: got %v, want the relay", len(relays), s.Path)
				}
				for _, tried := range s.Tried {
					if tried.Path.Addr == r.addrs[0] && tried.Path.Straight() {
						t.Errorf("with %d relays: got %v among the paths", len(relays), tried.Path)
					}
				}
			}
		}
	})
}
