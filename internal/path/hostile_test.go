// SPDX-License-Identifier: Apache-2.0

package path

import (
	"testing"
	"time"
)

// TestHostileRows has a bound node that knows the indices of two others' session say in each way
// that packets with them are for itself. What the two send still goes to each other.
func TestHostileRows(t *testing.T) {
	g := guests(3)
	a, b, insider := g[0], g[1], g[2]
	const toA, toB = 11, 22 // indices with which b and a send
	for name, tell := range map[string]func(r *Relay){
		"rows of its own": func(r *Relay) {
			r.Learn(began, insider.id, toA, insider.id)
			r.Learn(began, insider.id, toB, insider.id)
		},
		"initiations with the indices": func(r *Relay) {
			r.Forward(began, handshake(initiation, initiationLen, toA, 0, b.key), insider.addr)
			r.Forward(began, handshake(initiation, initiationLen, toB, 0, a.key), insider.addr)
		},
		"responses with the indices": func(r *Relay) {
			r.Forward(began, handshake(response, responseLen, toA, 5, b.key), insider.addr)
			r.Forward(began, handshake(response, responseLen, toB, 5, a.key), insider.addr)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := bind(t, g...)
			r.Forward(began, handshake(initiation, initiationLen, toA, 0, b.key), a.addr)
			r.Forward(began, handshake(response, responseLen, toB, toA, a.key), b.addr)
			tell(r)
			for _, s := range []struct {
				from, to guest
				index    uint32
			}{{a, b, toB}, {b, a, toA}} {
				if to, got := r.Forward(began, data(s.index), s.from.addr); got != Pass || to != s.to.addr {
					t.Errorf("data with index %d: got verdict %d to %s, want it passed to %s", s.index, got, to, s.to.addr)
				}
			}
		})
	}
}

// TestHostileBegun has a node begin a session with an index that its receiver sends to somebody
// else with: the receiver, which would believe it, is told nothing. What it says itself counts.
func TestHostileBegun(t *testing.T) {
	g := guests(3)
	a, b, insider := g[0], g[1], g[2]
	r := bind(t, g...)
	const index = 11
	r.Forward(began, handshake(initiation, initiationLen, index, 0, b.key), a.addr)
	forged := handshake(initiation, initiationLen, index, 0, b.key)
	to, _ := r.Forward(began, forged, insider.addr)
	if _, m, ok := r.Begun(began, forged, insider.addr, to); ok {
		t.Errorf("the receiver is told %+v, want nothing", m)
	}
	r.Learn(began, b.id, index, insider.id)
	if to, got := r.Forward(began, data(index), b.addr); got != Pass || to != insider.addr {
		t.Errorf("after the receiver's own word: got verdict %d to %s, want it passed to %s", got, to, insider.addr)
	}
	later := began.Add(rowFor)
	for _, n := range g {
		r.bound[n.id].until = later.Add(boundFor)
	}
	r.Forward(later, handshake(initiation, initiationLen, index, 0, b.key), a.addr)
	if to, got := r.Forward(later, data(index), b.addr); got != Pass || to != a.addr {
		t.Errorf("after the row has ended: got verdict %d to %s, want it passed to %s", got, to, a.addr)
	}
}

// TestHostileAddress has a node bind at the address of another one: it has read a token on the
// way there. The other one has its address back once it has repeated a token, too.
func TestHostileAddress(t *testing.T) {
	g := guests(2)
	a, insider := g[0], g[1]
	r := bind(t, a)
	token := r.Bind(began, insider.id, insider.key, Message{Op: Bind}, a.addr).Token
	r.Bind(began, insider.id, insider.key, Message{Op: Bind, Token: token}, a.addr)
	answer := r.Bind(began, a.id, a.key, Message{Op: Bind}, a.addr)
	if answer.Token == (Token{}) {
		t.Fatal("a node whose address another one has is told that it is bound")
	}
	r.Bind(began, a.id, a.key, Message{Op: Bind, Token: answer.Token}, a.addr)
	if got := r.At(a.addr); got != a.id {
		t.Errorf("at the address: got %x, want %x", got, a.id)
	}
}

// TestHostileManyRows has a node begin sessions with another one until there is no room for
// rows. Sessions of others, and what the receiver itself tells, take their places.
func TestHostileManyRows(t *testing.T) {
	g := guests(4)
	a, b, c, insider := g[0], g[1], g[2], g[3]
	r := bind(t, g...)
	now := began
	for i := range uint32(maxRows + 100) {
		now = now.Add(time.Second / handshakeRate)
		if _, got := r.Forward(now, handshake(initiation, initiationLen, 1000+i, 0, b.key), insider.addr); got != Pass {
			t.Fatalf("initiation %d: got verdict %d, want it passed", i, got)
		}
	}
	r.Forward(now, handshake(initiation, initiationLen, 11, 0, b.key), a.addr)
	r.Learn(now, b.id, 12, c.id)
	for index, want := range map[uint32]guest{11: a, 12: c} {
		if to, got := r.Forward(now, data(index), b.addr); got != Pass || to != want.addr {
			t.Errorf("data with index %d: got verdict %d to %s, want it passed to %s", index, got, to, want.addr)
		}
	}
	if rows := len(r.bound[b.id].rows); rows > maxRows {
		t.Errorf("rows: got %d, want no more than %d", rows, maxRows)
	}
}

// TestSwallowedPackets has this end alone send, over a path on which probes pass. The path is left
// if not even WireGuard's keepalives come back, which take up to 10 s.
func TestSwallowedPackets(t *testing.T) {
	for name, tt := range map[string]struct {
		first, second Path
		keepalives    bool
	}{
		"relay, nothing":     {firstHop, secondHop, false},
		"relay, keepalives":  {firstHop, secondHop, true},
		"direct, nothing":    {directly, firstHop, false},
		"direct, keepalives": {directly, firstHop, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := sender{m: machineWith(true, tt.first, tt.second), now: epoch, passes: answering{tt.first: tt.first.Kind, tt.second: tt.second.Kind}}
			s.run(20*time.Second, nil)
			use, _ := s.m.InUse()
			began := s.now
			s.run(2*time.Minute, func(Path) bool { return tt.keepalives && s.now.Sub(began)%(10*time.Second) < sendEvery })
			switch {
			case tt.keepalives && len(s.changes) > 0:
				t.Errorf("the path was left after %v", s.changes[0].Sub(began))
			case !tt.keepalives && len(s.changes) == 0:
				t.Error("the path was not left")
			case !tt.keepalives:
				if after := s.changes[0].Sub(began); after < quietAfter || after > quietAfter+2*time.Second {
					t.Errorf("the path was left after %v", after)
				}
			}
			if use != tt.first && tt.first.Kind == Direct {
				t.Errorf("used %v at first, want %v", use, tt.first)
			}
		})
	}
}

// TestSwallowedForGood has a network that lets probes pass and drops WireGuard's packets: the direct
// path is tried again, but more and more rarely.
func TestSwallowedForGood(t *testing.T) {
	s := sender{m: machineWith(true, directly, firstHop), now: epoch, passes: answering{directly: Direct, firstHop: Relayed}}
	s.run(20*time.Second, nil)
	s.run(2*time.Hour, func(at Path) bool { return at != directly })
	if got := len(s.changes); got < 4 || got > 30 {
		t.Errorf("the path changed %d times in two hours, want the direct one tried now and then", got)
	}
	if use, _ := s.m.InUse(); use != firstHop {
		t.Errorf("uses %v in the end, want %v", use, firstHop)
	}
}

// TestPeerIsSilent has a peer whose WireGuard says nothing for a while, on any path. When it does,
// the best path is in use again soon.
func TestPeerIsSilent(t *testing.T) {
	s := sender{m: machineWith(true, directly, firstHop), now: epoch, passes: answering{directly: Direct, firstHop: Relayed}}
	s.run(20*time.Second, nil)
	s.run(10*time.Minute, func(Path) bool { return false })
	s.run(30*time.Second, func(Path) bool { return true })
	if use, _ := s.m.InUse(); use != directly {
		t.Errorf("uses %v, want %v", use, directly)
	}
}

// sender is a machine whose WireGuard sends all the time. Its peer answers probes.
type sender struct {
	m       *Machine
	now     time.Time
	passes  answering
	traffic Traffic
	changes []time.Time
}

const sendEvery = 100 * time.Millisecond

// run has the machine run for a while. Answers reports whether the peer's WireGuard sends something
// over the path in use; if it is nil, this end sends nothing either.
func (s *sender) run(d time.Duration, answers func(at Path) bool) {
	for end := s.now.Add(d); s.now.Before(end); {
		before, _ := s.m.InUse()
		s.now = s.passes.run(s.m, s.now, sendEvery)
		use, _ := s.m.InUse()
		if use != before {
			s.changes = append(s.changes, s.now)
		}
		s.traffic.Endpoint = use.Addr
		if answers == nil {
			s.changes = nil
			continue
		}
		s.traffic.Sent += 1000
		if answers(use) {
			s.traffic.Received += transportMin
		}
		s.m.Observe(s.now, s.traffic)
	}
}
