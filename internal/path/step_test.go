// SPDX-License-Identifier: Apache-2.0

package path

import (
	"net/netip"
	"testing"
	"time"
)

// TestOneWay has a node send data to which nothing comes back, on a path whose probes are answered. It
// probes fast until it knows that, and has nothing to do all the time.
func TestOneWay(t *testing.T) {
	now := time.Unix(1e9, 0)
	path := At(netip.MustParseAddrPort("192.0.2.1:51820"))
	m := NewMachine(true, Traffic{}, now)
	m.SetCandidates(now, []Candidate{{path, true}})
	traffic, probes := Traffic{Endpoint: path.Addr}, 0
	for range 300 {
		now = now.Add(100 * time.Millisecond)
		if now.Sub(m.made) > 5*time.Second {
			traffic.Sent += 1000
		}
		m.Observe(now, traffic)
		for {
			actions := m.Step(now)
			for _, a := range actions {
				if a.Message.Op == Ping {
					m.Receive(now.Add(20*time.Millisecond), Message{Op: Pong, Number: a.Message.Number}, path)
					probes++
				}
			}
			if len(actions) == 0 {
				break
			}
		}
		if next := m.Next(now); !next.After(now) {
			t.Fatalf("after %v something is due all the time: next is %v ago", now.Sub(m.made), now.Sub(next))
		}
	}
	if probes > 60 {
		t.Errorf("%d probes in 30 s, want some one a second", probes)
	}
}

// TestHeldPath has a path that answers, and that is not to be used for half an hour, as it has dropped packets.
// While there is traffic it is probed all the same, so that this node knows how it is then.
func TestHeldPath(t *testing.T) {
	for name, busy := range map[string]bool{"with traffic": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			relayed := Path{Kind: Relayed, Addr: firstRelay.Addr, Relay: firstRelay.Relay}
			now, traffic, probes := epoch, Traffic{Endpoint: relayed.Addr}, 0
			m := NewMachine(true, traffic, now)
			m.SetCandidates(now, []Candidate{{relayed, true}, {directly, true}})
			m.change(now, m.find(relayed))
			held := m.find(directly)
			held.failed, held.hold = now, maxHoldLong
			for range 600 {
				now = now.Add(100 * time.Millisecond)
				if busy {
					traffic.Sent, traffic.Received = traffic.Sent+1000, traffic.Received+1000
				}
				m.Observe(now, traffic)
				for _, a := range m.Step(now) {
					if a.Message.Op != Ping {
						continue
					}
					m.Receive(now, Message{Op: Pong, Number: a.Message.Number}, a.Path)
					if a.Path == directly {
						probes++
					}
				}
			}
			if use, _ := m.InUse(); use != relayed {
				t.Fatalf("got %v, want the relay", use)
			}
			if often := probes > 200; often != busy {
				t.Errorf("%d probes of the other path in a minute", probes)
			}
		})
	}
}

// TestPeerElsewhere has the peer use another path than this node, which has been idle for a while: it asks
// whether its own one still works.
func TestPeerElsewhere(t *testing.T) {
	elsewhere := At(netip.MustParseAddrPort("203.0.113.2:51820"))
	m := NewMachine(true, Traffic{Endpoint: directly.Addr}, epoch)
	m.use.answered = epoch
	for _, this := range []bool{false, true} {
		asks := false
		for _, a := range m.Receive(epoch.Add(time.Minute), Message{Op: Ping, Number: 1, This: this}, elsewhere) {
			asks = asks || a.Message.Op == Ping && a.Path.Addr == directly.Addr
		}
		if asks != this {
			t.Errorf("the peer uses the other path: %t; this node asks: %t", this, asks)
		}
	}
}

// TestFollowedElsewhere has WireGuard follow a peer away from the path in use, which has been idle for a
// while: both ends ask whether it still works, also if the other address is a candidate.
func TestFollowedElsewhere(t *testing.T) {
	elsewhere := netip.MustParseAddrPort("203.0.113.2:51820")
	for _, leads := range []bool{false, true} {
		for _, known := range []bool{false, true} {
			m := NewMachine(leads, Traffic{Endpoint: directly.Addr}, epoch)
			m.use.answered = epoch
			if known {
				m.SetCandidates(epoch, []Candidate{{Path: directly, Open: true}, {Path: At(elsewhere), Open: true}})
			}
			now := epoch.Add(time.Second)
			m.Step(now) // looks for better paths
			for range 10 {
				now = now.Add(time.Second)
				m.Step(now)
			}
			m.use.probed, m.use.pending, m.use.answered, m.use.misses = now, nil, now, 0
			now = now.Add(2 * provenFor)
			asks := func() (asks bool) {
				for _, a := range m.Step(now) {
					asks = asks || a.Message.Op == Ping && a.Path.Addr == directly.Addr
				}
				return asks
			}
			if asks() {
				t.Fatalf("leads: %t: an idle path is probed", leads)
			}
			m.Observe(now, Traffic{Endpoint: elsewhere})
			if !asks() {
				t.Errorf("leads: %t, a candidate: %t: got no probe of the path in use", leads, known)
			}
		}
	}
}

// TestOpenAgain has the peer open its side after a day on which no probe was answered. The first probe of that
// attempt comes too early, so more have to follow soon.
func TestOpenAgain(t *testing.T) {
	relayed := Path{Kind: Relayed, Addr: firstRelay.Addr, Relay: firstRelay.Relay}
	m := NewMachine(true, Traffic{Endpoint: relayed.Addr}, epoch)
	m.SetCandidates(epoch, []Candidate{{relayed, true}, {directly, false}})
	m.change(epoch, m.find(relayed))
	w := m.find(directly)
	w.answered, w.misses = epoch, 10*lostMisses
	now := epoch.Add(24 * time.Hour)
	m.punch.begin(now, relayed)
	m.Receive(now, Message{Op: Called}, relayed)
	m.Receive(now, Message{Op: Ping, Number: 1}, directly)
	probes := 0
	for range 20 {
		now = now.Add(fastPace / 2)
		for _, a := range m.Step(now) {
			if a.Message.Op == Ping && a.Path == directly {
				probes++
			}
		}
	}
	if probes < 8 {
		t.Errorf("%d probes in 2 s", probes)
	}
}

// TestSeenWithoutPong has a peer that answers nothing but sends: each probe says where it is seen, if it goes
// there.
func TestSeenWithoutPong(t *testing.T) {
	elsewhere := At(netip.MustParseAddrPort("203.0.113.2:51820"))
	m := NewMachine(true, Traffic{Endpoint: directly.Addr}, epoch)
	now := epoch
	for _, tt := range []struct {
		from Path // from where the peer sends
		want map[Path]netip.AddrPort
	}{
		{Path{}, map[Path]netip.AddrPort{directly: {}}},
		{directly, map[Path]netip.AddrPort{directly: directly.Addr}},
		{elsewhere, map[Path]netip.AddrPort{directly: {}, elsewhere: elsewhere.Addr}},
		{directly, map[Path]netip.AddrPort{directly: directly.Addr, elsewhere: {}}},
	} {
		now = now.Add(time.Second)
		if tt.from != (Path{}) {
			m.Receive(now, Message{Op: Call}, tt.from)
		}
		for to, want := range tt.want {
			if got := m.probe(now, m.find(to)).Message.Seen; got != want {
				t.Errorf("heard from %v: a probe to %v says that the peer is seen at %v, want %v", tt.from, to, got, want)
			}
		}
	}
}
