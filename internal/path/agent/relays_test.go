// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/path/rawudp"
)

var secret = [32]byte{'s'}

// wireRelay is a relay on the wire. Nothing else runs on its host.
type wireRelay struct {
	*host
	t       testing.TB
	table   *path.Relay
	keys    map[path.Short]*path.Keys
	who     *path.Keys
	counter uint64
	lossy   bool    // no probe passes
	deaf    []*host // of which no packet of WireGuard's passes
	delay   time.Duration
	copies  int // of what it passes on, further ones
	unknown int // sessions of which it had to say that it does not know them
}

const (
	addrR = "203.0.113.7:7946"
	addrS = "203.0.113.8:7946"
	addrC = "198.51.100.4:51820"
)

// relay adds a relay.
func (w *wire) relay(t testing.TB, num byte, addr string) *wireRelay {
	t.Helper()
	r := &wireRelay{host: w.host(t, num, addr), t: t, keys: map[path.Short]*path.Keys{}}
	var err error
	if r.who, err = path.WhoSealer("test", secret, path.ShortOf(r.id), r.pathKey.PublicKey()); err != nil {
		t.Fatal(err)
	}
	r.restart()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.relays[r.addrs[0]] = r
	return r
}

// restart has the relay forget all nodes.
func (r *wireRelay) restart() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.table = path.NewRelay([32]byte{1})
}

// forgetSessions has the relay forget all sessions, but not the nodes.
func (r *wireRelay) forgetSessions() {
	r.mu.Lock()
	defer r.mu.Unlock()
	kept := r.table.Kept(time.Now())
	for i := range kept {
		kept[i].Rows = nil
	}
	r.table = path.NewRelay([32]byte{1})
	r.table.Restore(time.Now(), kept)
}

// as returns the relay with the addresses at which others try it.
func (r *wireRelay) as(addrs ...string) Relay {
	out := Relay{ID: r.id, PathKey: r.pathKey.PublicKey()}
	for _, a := range addrs {
		out.Addrs = append(out.Addrs, netip.MustParseAddrPort(a))
	}
	return out
}

// by returns the path through the relay.
func (r *wireRelay) by() path.Candidate {
	return path.Candidate{Path: path.Path{Kind: path.Relayed, Relay: path.ShortOf(r.id), Addr: r.addrs[0]}, Open: true}
}

// take takes a datagram.
func (r *wireRelay) take(b []byte, from netip.AddrPort) {
	now := time.Now()
	h, err := path.ParseHeader(b)
	if err != nil || h.To != path.ShortOf(r.id) {
		if err == nil && r.lossy {
			return
		}
		switch to, verdict := r.table.Forward(now, b, from); verdict {
		case path.Pass:
			r.sendOn(b, to)
			if receiver, m, ok := r.table.Begun(now, b, from, to); ok {
				r.counter++
				r.sendOn(r.keys[receiver].Seal(m, r.counter), to)
			}
		case path.AskWho:
			if m, ok := r.table.Who(now, len(b), from); ok {
				r.counter++
				r.sendOn(r.who.Seal(m, r.counter), from)
			}
		case path.NoRow:
			if sender, m, ok := r.table.Unknown(now, b, from); ok {
				r.unknown++
				r.counter++
				r.sendOn(r.keys[sender].Seal(m, r.counter), from)
			}
		}
		return
	}
	i := slices.IndexFunc(r.hosts, func(o *host) bool { return path.ShortOf(o.id) == h.From })
	sender := r.hosts[i]
	keys := r.keys[h.From]
	if keys == nil {
		if keys, err = path.NewKeys("test", h.To, h.From, r.pathKey, sender.pathKey.PublicKey()); err != nil {
			r.t.Error(err)
			return
		}
		r.keys[h.From] = keys
	}
	m, err := keys.Open(b)
	if err != nil {
		r.t.Errorf("the relay got what it can't open: %v", err)
		return
	}
	switch m.Op {
	case path.Bind:
		r.counter++
		r.sendOn(keys.Seal(r.table.Bind(now, h.From, sender.key, m, from), r.counter), from)
	case path.Row:
		r.table.Learn(now, h.From, m.Number, m.Node)
	default:
		r.t.Errorf("the relay got message %d", m.Op)
	}
}

func (r *wireRelay) sendOn(b []byte, to netip.AddrPort) {
	dst := r.at(to)
	if dst == nil || !dst.letsIn(r.addrs[0]) {
		return
	}
	d := rawudp.Datagram{Payload: b, From: r.addrs[0], To: to.Addr(), Link: dst.link}
	for n := range 1 + r.copies {
		time.AfterFunc(2*travel+r.delay+time.Duration(n)*travel, func() { dst.deliver(d) })
	}
}

// data forwards a packet of WireGuard's if the relay knows the session.
func (r *wireRelay) data(from, to *host, source netip.AddrPort) {
	b := dataOf(from, to)
	at, verdict := r.table.Forward(time.Now(), b, source)
	if verdict != path.Pass || r.at(at) != to {
		r.take(b, source)
		return
	}
	if slices.Contains(r.deaf, from) {
		return
	}
	arrive := func() {
		theirs := to.peers[from.key]
		theirs.Received += 128
		theirs.Endpoint = r.addrs[0]
		to.sources[from.key] = to.addrs[0]
	}
	if r.delay == 0 {
		arrive()
		return
	}
	time.AfterFunc(r.delay, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		arrive()
	})
}

// indexOf is the index with which one host sends to another.
func indexOf(from, to *host) uint32 { return uint32(from.id[0])<<8 | uint32(to.id[0]) }

// initiate has a host begin a session with another one, and returns what arrives there.
func (h *host) initiate(peer *host, from netip.AddrPort) {
	b := make([]byte, device.MessageInitiationSize)
	b[0] = device.MessageInitiationType
	binary.LittleEndian.PutUint32(b[4:], indexOf(peer, h))
	peer.deliver(rawudp.Datagram{Payload: b, From: from, To: peer.addrs[0].Addr(), Link: peer.link})
}

// initiateThrough has a host begin a session with another one through a relay.
func (h *host) initiateThrough(r *wireRelay, peer *host) {
	b := make([]byte, device.MessageInitiationSize)
	b[0] = device.MessageInitiationType
	binary.LittleEndian.PutUint32(b[4:], indexOf(peer, h))
	var macs device.CookieGenerator
	macs.Init(device.NoisePublicKey(peer.key))
	macs.AddMacs(b)
	h.mu.Lock()
	defer h.mu.Unlock()
	r.take(b, h.addrs[0])
}

func (h *host) received(peer *host) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.peers[peer.key].Received
}

// through returns a peer that is also reached through relays.
func (h *host) through(candidate path.Candidate, relays ...*wireRelay) Peer {
	p := h.peer(candidate)
	for _, r := range relays {
		p.Relays = append(p.Relays, r.id)
	}
	return p
}

func (w *wire) set(addr string, cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut[netip.MustParseAddrPort(addr)] = cut
}

// twoWithRelays returns two hosts behind firewalls, of which the first one stays bound to two
// relays, and both relays.
func twoWithRelays(t testing.TB) (a, b *host, r, s *wireRelay) {
	t.Helper()
	a, b = two(t)
	a.closed, b.closed = true, true
	r, s = a.relay(t, 7, addrR), a.relay(t, 8, addrS)
	relays := []Relay{r.as(addrR), s.as(addrS)}
	a.SetRelays(relays, 2, [][32]byte{{'o', 'l', 'd'}, secret})
	b.SetRelays(relays, 0, [][32]byte{secret})
	a.SetPeers([]Peer{b.through(behindFirewall(addrB), r, s)})
	b.SetPeers([]Peer{a.through(behindFirewall(addrA), r, s)})
	return a, b, r, s
}

// TestRelayed has two hosts that reach relays only. The second one binds where the first one
// is bound. Then one of the relays is cut, and heals; sessions pass over both.
func TestRelayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, r, s := twoWithRelays(t)
		a.set(addrA, true)
		a.set(addrB, true)
		time.Sleep(2 * time.Second)
		use := a.statusOf(t, b).Path
		if use != r.by().Path && use != s.by().Path {
			t.Fatalf("got %v, want one of the relays", use)
		}
		a.wantPath(t, b, path.Candidate{Path: use})
		if all := a.Bound(); len(all) != 2 || !all[0].Kept || !all[1].Kept || all[0].Seen != a.addrs[0] {
			t.Errorf("the first one is bound at %+v, want both relays, kept, seen at %v", all, addrA)
		}
		if all := b.Bound(); len(all) == 0 || all[0].Kept {
			t.Errorf("the second one is bound at %+v, want some that are not kept", all)
		}

		// A session begins through one relay. The other one is told.
		through := r
		if use == s.by().Path {
			through = s
		}
		a.initiateThrough(through, b)
		b.initiateThrough(through, a)
		a.talk(t, b)
		b.talk(t, a)
		time.Sleep(3 * time.Second)
		use = a.statusOf(t, b).Path
		a.set(use.Addr.String(), true)
		time.Sleep(4 * time.Second)
		before := b.received(a)
		time.Sleep(time.Second)
		other := a.statusOf(t, b).Path
		if other == use || other.Kind != path.Relayed {
			t.Errorf("after the relay is cut: got %v, want the other one", other)
		}
		if b.received(a) == before {
			t.Error("nothing passes through the other relay")
		}
	})
}

// TestRelayIsShared has a host reach two others through one relay, where sessions begin. When it is
// cut, the other relay knows both sessions.
func TestRelayIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, r, s := twoWithRelays(t)
		c := a.host(t, 3, addrC)
		c.closed = true
		c.start(t)
		for _, h := range []*host{b, c} {
			a.add(h, "")
			h.add(a, "")
			for _, other := range []string{addrA, h.addrs[0].String()} {
				a.set(other, true)
			}
		}
		c.SetRelays([]Relay{r.as(addrR), s.as(addrS)}, 0, [][32]byte{secret})
		a.set(addrS, true)
		a.SetPeers([]Peer{b.through(behindFirewall(addrB), r, s), c.through(behindFirewall(addrC), r, s)})
		c.SetPeers([]Peer{a.through(behindFirewall(addrA), r, s)})
		time.Sleep(5 * time.Second)
		a.wantPath(t, b, r.by())
		a.wantPath(t, c, r.by())
		a.set(addrS, false)
		time.Sleep(15 * time.Second)
		for _, h := range []*host{b, c} {
			a.initiateThrough(r, h)
			h.initiateThrough(r, a)
			a.talk(t, h)
			h.talk(t, a)
		}
		time.Sleep(time.Second)
		a.set(addrR, true)
		time.Sleep(5 * time.Second)
		for _, h := range []*host{b, c} {
			a.wantPath(t, h, s.by())
			fromA, fromH := h.received(a), a.received(h)
			time.Sleep(time.Second)
			if h.received(a) == fromA || a.received(h) == fromH {
				t.Errorf("nothing passes both ways to %v", h.id)
			}
		}
	})
}

// TestForeignBegun has nodes say of whom a session is that relay nothing to that peer.
func TestForeignBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, _, _ := twoWithRelays(t)
		time.Sleep(25 * time.Second)
		a.inRun(func() {
			var number uint32
			for _, p := range a.Agent.peers {
				number++
				a.takeBegun(time.Now(), p, path.Message{Op: path.Begun, Number: number, Node: path.ShortOf(b.id)})
			}
			if n := len(a.byShort[path.ShortOf(b.id)].sessions); number != 3 || n != 2 {
				t.Errorf("%d nodes have told of sessions, and %d are noted, want 3 and those of the two relays", number, n)
			}
		})
	})
}

// TestRelayRestarts has a relay forget all nodes and sessions: it asks who the nodes are, and they
// bind again and tell their sessions, long before they would by themselves.
func TestRelayRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, r, _ := twoWithRelays(t)
		a.set(addrA, true)
		a.set(addrB, true)
		a.set(addrS, true)
		a.talk(t, b)
		b.talk(t, a)
		time.Sleep(2 * time.Second)
		a.wantPath(t, b, r.by())
		a.initiateThrough(r, b)
		b.initiateThrough(r, a)
		time.Sleep(time.Second)
		r.restart()
		time.Sleep(3 * time.Second)
		before := b.received(a)
		time.Sleep(time.Second)
		if b.received(a) == before {
			t.Error("nothing passes any more: the relay was not told of the session again")
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, h := range []*host{a, b} {
			if !r.table.IsBound(time.Now(), path.ShortOf(h.id)) {
				t.Errorf("%v is not bound again", h.id)
			}
		}
	})
}

// TestSessionsAreKept has a session begin on a direct path that fails then: relays know it, as
// they were told, also the one to which the second host binds only afterwards. What was lost on
// the way to the relays is told again.
func TestSessionsAreKept(t *testing.T) {
	for name, lost := range map[string]bool{"told": false, "lost": true} {
		t.Run(name, func(t *testing.T) { synctest.Test(t, func(t *testing.T) { testSessionsAreKept(t, lost) }) })
	}
}

func testSessionsAreKept(t *testing.T, lost bool) {
	a, b, _, _ := twoWithRelays(t)
	time.Sleep(25 * time.Second)
	a.wantPath(t, b, direct(addrB))
	a.set(addrR, lost)
	a.set(addrS, lost)
	a.initiate(b, a.addrs[0])
	b.initiate(a, b.addrs[0])
	a.talk(t, b)
	b.talk(t, a)
	time.Sleep(time.Second)
	if lost {
		a.set(addrR, false)
		a.set(addrS, false)
		time.Sleep(30 * time.Second)
	}
	a.set(addrA, true)
	a.set(addrB, true)
	time.Sleep(5 * time.Second)
	if use := a.statusOf(t, b).Path; use.Kind != path.Relayed {
		t.Fatalf("got %v, want a relay", use)
	}
	fromA, fromB := b.received(a), a.received(b)
	time.Sleep(time.Second)
	if b.received(a) == fromA || a.received(b) == fromB {
		t.Error("nothing passes both ways")
	}
}

// twoWithUnnamedRelays is twoWithRelays, but the first host is told of no relay for the second one. Each has begun
// a session.
func twoWithUnnamedRelays(t testing.TB) (a, b *host, r, s *wireRelay) {
	t.Helper()
	a, b, r, s = twoWithRelays(t)
	a.SetPeers([]Peer{b.through(behindFirewall(addrB))})
	time.Sleep(25 * time.Second)
	a.initiate(b, a.addrs[0])
	b.initiate(a, b.addrs[0])
	return a, b, r, s
}

// TestSessionIsToldLater has a session that is some minutes old when two more relays are named through which
// the peer may have to be reached. Relays to which the host is bound already are told of it, too, as soon as
// they are named and there is traffic, whichever comes first.
func TestSessionIsToldLater(t *testing.T) {
	steps := map[string]func(a, b *host, r, s *wireRelay){
		"named":   func(a, b *host, r, s *wireRelay) { a.SetPeers([]Peer{b.through(behindFirewall(addrB), r, s)}) },
		"traffic": func(a, b *host, _, _ *wireRelay) { a.data(b) },
	}
	for _, order := range [][]string{{"named", "traffic"}, {"traffic", "named"}} {
		t.Run(strings.Join(order, ", then "), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b, r, s := twoWithUnnamedRelays(t)
				time.Sleep(2 * time.Minute)
				for i, step := range order {
					steps[step](a, b, r, s)
					time.Sleep(2 * time.Second)
					for _, relay := range []*wireRelay{r, s} {
						if got, want := relay.knows(a, b), i > 0; got != want {
							t.Errorf("after %v: %v is told of the session: %t, want %t", step, relay.id, got, want)
						}
					}
				}
			})
		})
	}
}

// TestSessionIsToldToTheRelayInUse has a peer use a relay that this host was not told to try. The relay is told of
// the session before packets come, unless WireGuard has followed the peer there a moment before this host did.
func TestSessionIsToldToTheRelayInUse(t *testing.T) {
	const attempts = 3
	for range attempts {
		unknown := 0
		synctest.Test(t, func(t *testing.T) {
			a, b, r, s := twoWithUnnamedRelays(t)
			a.talk(t, b)
			b.talk(t, a)
			time.Sleep(2 * time.Minute)
			a.set(addrA, true)
			a.set(addrB, true)
			time.Sleep(5 * time.Second)
			use := a.statusOf(t, b).Path
			for _, relay := range []*wireRelay{r, s} {
				if use.Relay == path.ShortOf(relay.id) && !relay.knows(a, b) {
					t.Errorf("%v is not told of the session, the path is %v", relay.id, use)
				}
				unknown += relay.unknown
			}
		})
		if unknown == 0 {
			return
		}
	}
	t.Errorf("packets have come before a relay was told of the session, %d times of %d", attempts, attempts)
}

// knows reports whether the relay passes on what one host sends to another in their session.
func (r *wireRelay) knows(from, to *host) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.table.Kept(time.Now()), func(k path.Kept) bool {
		return k.Node == path.ShortOf(from.id) && slices.ContainsFunc(k.Rows, func(row path.KeptRow) bool {
			return row.Index == indexOf(from, to) && row.To == path.ShortOf(to.id)
		})
	})
}

// TestEarlySession has sessions begin before the agent knows the peer, and at an address of the
// peer to which WireGuard does not send.
func TestEarlySession(t *testing.T) {
	for _, tt := range []struct {
		name           string
		relayed, known bool
		from           string
		late           time.Duration // when the agent is told of the peer
		want           int
	}{
		{"before the peer is known", false, false, addrB, time.Second, 1},
		{"long before", false, false, addrB, earlyFor, 0},
		{"of a stranger", false, false, addrC, time.Second, 0},
		{"from where WireGuard sends", false, true, addrB, 0, 1},
		{"from elsewhere", true, true, addrB, 0, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b, r, s := twoWithRelays(t)
				if tt.relayed {
					a.set(addrA, true)
					a.set(addrB, true)
				}
				time.Sleep(25 * time.Second)
				if use := a.statusOf(t, b).Path; (use.Kind == path.Relayed) != tt.relayed {
					t.Fatalf("got path %v, want a relay %t", use, tt.relayed)
				}
				if !tt.known {
					a.SetPeers(nil)
				}
				b.initiate(a, netip.MustParseAddrPort(tt.from))
				time.Sleep(tt.late)
				a.SetPeers([]Peer{b.through(behindFirewall(addrB), r, s)})
				synctest.Wait()
				a.inRun(func() {
					if got := len(a.byShort[path.ShortOf(b.id)].sessions); got != tt.want {
						t.Errorf("got %d sessions, want %d", got, tt.want)
					}
				})
			})
		})
	}
}

// TestStartsWithRelay has an agent start again while WireGuard's endpoint is a relay: it is one from
// the beginning, and stays in use.
func TestStartsWithRelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, r, s := twoWithRelays(t)
		a.set(addrA, true)
		a.set(addrB, true)
		time.Sleep(5 * time.Second)
		use := a.statusOf(t, b).Path
		a.stop()
		a.start(t)
		a.SetRelays([]Relay{r.as(addrR), s.as(addrS)}, 2, [][32]byte{secret})
		a.SetPeers([]Peer{b.through(behindFirewall(addrB), r, s)})
		if got := a.statusOf(t, b); got.Path != use || len(got.Tried) != 3 {
			t.Errorf("got %v of %v, want %v", got.Path, got.Tried, use)
		}
		time.Sleep(3 * time.Second)
		a.wantPath(t, b, path.Candidate{Path: use})
	})
}

// TestSessionIsUnknown has a relay forget sessions that the nodes know: they tell it again, and
// nothing is begun anew.
func TestSessionIsUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, r := overOneRelay(t)
		a.initiateThrough(r, b)
		b.initiateThrough(r, a)
		a.talk(t, b)
		b.talk(t, a)
		time.Sleep(time.Minute) // then they are not told again by themselves
		r.forgetSessions()
		time.Sleep(time.Second)
		fromA, fromB := b.received(a), a.received(b)
		time.Sleep(time.Second)
		if b.received(a) == fromA || a.received(b) == fromB {
			t.Error("nothing passes both ways")
		}
		if renew := a.statusOf(t, b).Renew; !renew.IsZero() {
			t.Errorf("the session was begun anew %v", renew)
		}
	})
}

// TestSessionIsRenewed has a session that neither the nodes nor the relay know of. The one with
// the lower key begins it anew, whichever of the two sends; if no probe passes either, it is
// asked by gossip.
func TestSessionIsRenewed(t *testing.T) {
	for _, tt := range []struct {
		name          string
		aSends, lossy bool
	}{
		{"leader sends", true, false},
		{"follower sends", false, false},
		{"follower sends, no probe passes", false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b, r := overOneRelay(t)
				sender, other := a, b
				if !tt.aSends {
					sender, other = b, a
				}
				if tt.lossy {
					r.mu.Lock()
					r.lossy = true
					r.mu.Unlock()
				}
				sender.talk(t, other)
				time.Sleep(2500 * time.Millisecond)
				if renew := b.statusOf(t, a).Renew; !renew.IsZero() {
					t.Errorf("the follower began the session anew %v", renew)
				}
				if renew := a.statusOf(t, b).Renew; renew.IsZero() {
					t.Fatal("the leader did not begin the session anew")
				}
				a.initiateThrough(r, b)
				b.initiateThrough(r, a) // instead of the response
				before := other.received(sender)
				time.Sleep(time.Second)
				if other.received(sender) == before {
					t.Error("nothing passes")
				}
			})
		})
	}
}

// TestHostileUnknown has a relay say that it does not know sessions as fast as it can. Nothing
// but a few datagrams and renewals comes of it.
func TestHostileUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, r := overOneRelay(t)
		a.initiateThrough(r, b)
		b.initiateThrough(r, a)
		a.talk(t, b)
		b.talk(t, a)
		time.Sleep(time.Second)
		keys := r.keys[path.ShortOf(a.id)]
		a.mu.Lock()
		a.sent = 0
		a.mu.Unlock()
		for i := range uint32(2000) {
			r.mu.Lock()
			r.counter++
			datagram := keys.Seal(path.Message{Op: path.Unknown, Number: indexOf(a, b) + i%2}, r.counter)
			r.mu.Unlock()
			a.deliver(rawudp.Datagram{Payload: datagram, From: r.addrs[0], To: a.addrs[0].Addr(), Link: 2})
			time.Sleep(5 * time.Millisecond)
		}
		a.mu.Lock()
		sent := a.sent
		a.mu.Unlock()
		if sent > 100 {
			t.Errorf("got %d datagrams in 10 s, want a few", sent)
		}
		if renew := a.statusOf(t, b).Renew; !renew.IsZero() {
			t.Errorf("a session in which packets pass was begun anew %v", renew)
		}
	})
}

// overOneRelay returns two hosts that have met at a relay, which knows no session of theirs.
func overOneRelay(t *testing.T) (a, b *host, r *wireRelay) {
	t.Helper()
	a, b, r, _ = twoWithRelays(t)
	a.set(addrA, true)
	a.set(addrB, true)
	for _, h := range []*host{a, b} {
		h.SetRelays([]Relay{r.as(addrR)}, 1, nil)
	}
	a.SetPeers([]Peer{b.through(behindFirewall(addrB), r)})
	b.SetPeers([]Peer{a.through(behindFirewall(addrA), r)})
	time.Sleep(20 * time.Second)
	a.wantPath(t, b, r.by())
	return a, b, r
}

// TestRelayMoves has a relay that answers only at the second address that is known of it.
func TestRelayMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, r, _ := twoWithRelays(t)
		a.set(addrA, true)
		a.set(addrB, true)
		for _, h := range []*host{a, b} {
			h.SetRelays([]Relay{r.as("203.0.113.9:7946", addrR)}, 1, nil)
		}
		time.Sleep(15 * time.Second)
		a.wantPath(t, b, r.by())
		b.wantPath(t, a, r.by())
	})
}

// TestDirectNeedsNoRelay has strangers reach both hosts: neither binds to a relay.
func TestDirectNeedsNoRelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := two(t)
		r := a.relay(t, 7, addrR)
		for _, h := range []*host{a, b} {
			h.SetRelays([]Relay{r.as(addrR)}, 0, nil)
		}
		a.SetPeers([]Peer{b.through(direct(addrB), r)})
		b.SetPeers([]Peer{a.through(direct(addrA), r)})
		time.Sleep(10 * time.Second)
		a.wantPath(t, b, direct(addrB))
		for _, h := range []*host{a, b} {
			if all := h.Bound(); len(all) > 0 {
				t.Errorf("%v is bound at %v, want nowhere", h.id, all)
			}
		}

		// When they do not reach each other any more, they meet there: the relay reaches both.
		r.mu.Lock()
		r.table.SetProved(map[path.Short]netip.AddrPort{path.ShortOf(b.id): b.addrs[0]})
		r.mu.Unlock()
		a.set(addrA, true)
		a.set(addrB, true)
		a.talk(t, b)
		time.Sleep(5 * time.Second)
		a.wantPath(t, b, r.by())
	})
}

// TestForgedSessions has somebody begin sessions in a peer's name as fast as he can: the relay
// is told of a few.
func TestForgedSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, _, _ := twoWithRelays(t)
		time.Sleep(25 * time.Second)
		a.wantPath(t, b, direct(addrB))
		a.mu.Lock()
		a.sent = 0
		a.mu.Unlock()
		for i := range uint32(1000) {
			forged := make([]byte, device.MessageResponseSize)
			forged[0] = device.MessageResponseType
			binary.LittleEndian.PutUint32(forged[4:], i)
			a.deliver(rawudp.Datagram{Payload: forged, From: b.addrs[0], To: a.addrs[0].Addr(), Link: 2})
			time.Sleep(time.Millisecond)
		}
		if a.sent > 20 {
			t.Errorf("got %d datagrams, want a few", a.sent)
		}
	})
}

// TestRelayIsPeer has a relay become a peer, and a peer a relay, without forgetting what came.
func TestRelayIsPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := two(t)
		synctest.Wait() // until they listen
		b.SetPeers([]Peer{a.peer(direct(addrA))})
		a.SetRelays([]Relay{{ID: b.id, PathKey: b.pathKey.PublicKey(), Addrs: []netip.AddrPort{netip.MustParseAddrPort(addrR)}}}, 0, nil)
		keys := b.keysTo(t, a)
		if all := a.Status(); len(all) > 0 {
			t.Errorf("a relay that is no peer: got status %v, want none", all)
		}
		ping := rawudp.Datagram{Payload: keys.Seal(path.Message{Op: path.Ping}, 1<<20), From: b.addrs[0], To: a.addrs[0].Addr(), Link: 2}
		a.deliver(ping)
		a.SetPeers([]Peer{b.peer(direct(addrB))})
		a.deliver(ping)
		synctest.Wait()
		if s := a.statusOf(t, b); s.Unopened != 1 {
			t.Errorf("got %d unopened, want 1: what came before", s.Unopened)
		}
		a.SetPeers(nil)
		if got := a.Status(); len(got) > 0 {
			t.Errorf("got status %v, want none", got)
		}
	})
}

// TestForeignWho has a datagram for anybody from a node that is no relay, and with a secret
// that is not the cluster's: nothing is sent.
func TestForeignWho(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _, r, _ := twoWithRelays(t)
		a.SetPeers(nil)
		time.Sleep(2 * time.Second)
		sent := func(keys *path.Keys, err error) int {
			if err != nil {
				t.Fatal(err)
			}
			a.mu.Lock()
			a.sent = 0
			a.mu.Unlock()
			a.deliver(rawudp.Datagram{Payload: keys.Seal(path.Message{Op: path.Who}, 1<<20), From: r.addrs[0], To: a.addrs[0].Addr(), Link: 2})
			synctest.Wait()
			a.mu.Lock()
			defer a.mu.Unlock()
			return a.sent
		}
		if n := sent(path.WhoSealer("test", [32]byte{9}, path.ShortOf(r.id), r.pathKey.PublicKey())); n != 0 {
			t.Errorf("with another secret: got %d datagrams, want none", n)
		}
		if n := sent(path.WhoSealer("test", secret, path.ShortOf(mesh.ID{99}), r.pathKey.PublicKey())); n != 0 {
			t.Errorf("from an unknown node: got %d datagrams, want none", n)
		}
		if n := sent(path.WhoSealer("test", secret, path.ShortOf(r.id), r.pathKey.PublicKey())); n != 1 {
			t.Errorf("from the relay: got %d datagrams, want a Bind", n)
		}
	})
}
