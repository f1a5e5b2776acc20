// SPDX-License-Identifier: Apache-2.0

package path

import (
	"net/netip"
	"testing"
	"time"
)

var (
	firstRelay  = RelayAddr{Short{7}, netip.MustParseAddrPort("203.0.113.7:7946")}
	secondRelay = RelayAddr{Short{8}, netip.MustParseAddrPort("203.0.113.8:7946")}
)

// throughRelay returns a machine whose path in use is through the first relay.
func throughRelay(leads bool) *Machine {
	m := NewMachine(leads, Traffic{Endpoint: firstRelay.Addr}, began)
	m.SetCandidates(began, []Candidate{{Path: Path{Kind: Relayed, Relay: firstRelay.Relay, Addr: firstRelay.Addr}, Open: true}})
	return m
}

// renews steps a machine, and returns how often it asks the peer to renew, and over which path.
func renews(m *Machine, now time.Time) (n int, over Path) {
	for _, a := range m.Step(now) {
		if a.Message.Op == Renew {
			n, over = n+1, a.Path
		}
	}
	return n, over
}

func TestRenew(t *testing.T) {
	sent := func(bytes uint64) Traffic { return Traffic{Sent: bytes, Endpoint: firstRelay.Addr} }
	for _, c := range []struct {
		name   string
		leads  bool
		do     func(m *Machine)
		own    bool // the leader renews
		asked  bool // the peer is asked to
		gossip bool // by gossip, as the peer does not answer
	}{
		{"the leader's packets are unknown", true, func(m *Machine) { m.Unknown(began, Short{7}) }, true, false, false},
		{"the follower's packets are unknown", false, func(m *Machine) { m.Unknown(began, Short{7}); m.use.answered = began }, false, true, false},
		{"and no probe passes either", false, func(m *Machine) { m.Unknown(began, Short{7}) }, false, true, true},
		{"nobody says so", true, func(*Machine) {}, false, false, false},
		{"another relay says so", true, func(m *Machine) { m.Unknown(began, secondRelay.Relay) }, false, false, false},
		{"it was long ago", true, func(m *Machine) { m.Unknown(began.Add(-unknownFor), Short{7}) }, false, false, false},
		{"something has come", true, func(m *Machine) {
			m.Unknown(began, Short{7})
			m.Observe(began, Traffic{Sent: 500, Received: 500, Endpoint: firstRelay.Addr})
		}, false, false, false},
		{"the follower asks", true, func(m *Machine) { m.Receive(began.Add(quietFor), Message{Op: Renew}, Path{}) }, true, false, false},
		{"the follower asks although something comes", true, func(m *Machine) {
			m.Observe(began, Traffic{Sent: 500, Received: 500, Endpoint: firstRelay.Addr})
			m.Receive(began.Add(quietFor-1), Message{Op: Renew}, Path{})
		}, false, false, false},
		{"the leader asks", false, func(m *Machine) { m.Receive(began.Add(quietFor), Message{Op: Renew}, Path{}) }, false, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := throughRelay(c.leads)
			m.Observe(began, sent(500))
			c.do(m)
			if n, _ := renews(m, began.Add(quietFor-1)); n > 0 || m.Renew().Before(began.Add(quietFor)) && !m.Renew().IsZero() {
				t.Error("renewed at once")
			}
			n, over := renews(m, began.Add(quietFor))
			if (n == 1) != c.asked || c.asked && (over.Kind == None) != c.gossip {
				t.Errorf("the peer was asked %d times over %v, want it asked %t, by gossip %t", n, over, c.asked, c.gossip)
			}
			if own := !m.Renew().IsZero(); own != c.own {
				t.Errorf("renewed: got %t, want %t", own, c.own)
			}
		})
	}

	straight := NewMachine(true, Traffic{Endpoint: firstRelay.Addr}, began)
	straight.Receive(began.Add(time.Hour), Message{Op: Renew}, Path{})
	if !straight.Renew().IsZero() {
		t.Error("a session on a direct path is renewed")
	}
}

// TestRenewForADeafPeer has a relay know only what the peer sends, which arrives. The peer says for
// how long it has heard nothing.
func TestRenewForADeafPeer(t *testing.T) {
	for _, c := range []struct {
		silence time.Duration
		renewed bool
	}{{0, false}, {quietFor - 1, false}, {quietFor, true}} {
		for _, leads := range []bool{true, false} {
			m := throughRelay(leads)
			m.Observe(began, Traffic{Sent: 500, Received: 500, Endpoint: firstRelay.Addr})
			m.Receive(began, Message{Op: Ping, Silence: c.silence}, m.use.Path)
			m.Unknown(began, firstRelay.Relay)
			n, _ := renews(m, began)
			if own := !m.Renew().IsZero(); own != (c.renewed && leads) || (n == 1) != (c.renewed && !leads) {
				t.Errorf("silent for %v, leads %t: renewed %t, asked %d times", c.silence, leads, own, n)
			}
		}
	}
}

// TestHostileRenew has a relay and a peer ask for renewals without end, and nothing comes.
func TestHostileRenew(t *testing.T) {
	for _, leads := range []bool{true, false} {
		m := throughRelay(leads)
		var times []time.Duration
		before := m.Renew()
		for at := time.Duration(0); at < 5*time.Minute; at += 100 * time.Millisecond {
			now := began.Add(at)
			m.Observe(now, Traffic{Sent: 1000 + uint64(at/time.Millisecond)*10, Endpoint: firstRelay.Addr})
			m.Unknown(now, firstRelay.Relay)
			m.Receive(now, Message{Op: Renew}, Path{})
			n, _ := renews(m, now)
			if n > 0 || m.Renew().After(before) {
				before = m.Renew()
				times = append(times, at.Truncate(time.Second))
			}
		}
		for i, want := range []time.Duration{5, 10, 20, 40, 60, 60} {
			if i+1 < len(times) && times[i+1]-times[i] < want*time.Second {
				t.Errorf("leads %t: renewed at %v", leads, times)
			}
		}
		if len(times) < 5 || len(times) > 9 {
			t.Errorf("leads %t: renewed at %v, want it a few times", leads, times)
		}
	}
}
