// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

// TestTunnelsOfANewGateway lets two nodes learn at different times that they are peers, as
// when a gateway takes over, and measures how long after the later one the tunnel works for
// both.
func TestTunnelsOfANewGateway(t *testing.T) {
	step := 10 * time.Millisecond
	if testing.Short() {
		step = 50 * time.Millisecond
	}
	for _, tt := range []struct {
		name string
		far  underlay // where the node is for which the gateway changes
		low  bool     // it has the lower key
	}{
		{"both can be reached, the new gateway has the lower key", routed, false},
		{"both can be reached, the other one has the lower key", routed, true},
		{"only the one with the lower key can be reached", home, false},
		{"only the one with the higher key can be reached", home, true},
	} {
		for _, way := range []struct{ delay, most time.Duration }{
			{5 * time.Millisecond, 310 * time.Millisecond}, // two waits of the leader and a round trip
			{25 * time.Millisecond, 350 * time.Millisecond},
			{70 * time.Millisecond, 450 * time.Millisecond},
			{140 * time.Millisecond, 900 * time.Millisecond}, // longer than the leader waits before it renews the peer
		} {
			var worst, when time.Duration
			for apart := -200 * time.Millisecond; apart <= 200*time.Millisecond; apart += step {
				if took := meet(t, tt.far, tt.low, way.delay, apart); took > worst {
					worst, when = took, apart
				}
			}
			t.Logf("%s, %v one way: %v at the most", tt.name, way.delay, worst)
			if worst > way.most {
				t.Errorf("%s, %v one way: got %v when %v apart, want %v at the most", tt.name, way.delay, worst, when, way.most)
			}
		}
	}
}

// meet returns how long after the later of two ends has added its peer both have a session.
func meet(t *testing.T, far underlay, low bool, delay, apart time.Duration) time.Duration {
	s := newSimulation(t, 1)
	s.cluster.Mode = mesh.ModeLocation
	s.packetDelay = func(_, _ *host) time.Duration { return delay }
	a1, a2, b := s.add("a1", "a", place{1, cloud}), s.add("a2", "a", place{1, cloud}), s.add("b", "", place{2, far})
	if keyA, keyB := a2.self.WireGuard.PublicKey(), b.self.WireGuard.PublicKey(); (bytes.Compare(keyB[:], keyA[:]) < 0) != low {
		a2.self.WireGuard, b.self.WireGuard = b.self.WireGuard, a2.self.WireGuard
	}
	a2.config.Gateway = mesh.GatewayNever // until a1 is the gateway
	s.settleDown(a1, a2, b)
	a2.config.Gateway = mesh.GatewayAuto
	a2.tellUrgently()
	s.pass(5 * time.Second)

	v := &verdict{mesh.Verdict{Author: a2.self.Public, Subject: a1.id, State: mesh.HealthDown, Epoch: 1}, 1 << 40, 1 << 40}
	for h, d := range map[*host]time.Duration{a2: max(-apart, 0), b: max(apart, 0)} {
		s.after(d, func() {
			if h.peers.store.put(object{verdict: v}) {
				h.tellUrgently()
			}
		})
	}
	peered := func() bool { return a2.peer(b.deviceKey()) >= 0 && b.peer(a2.deviceKey()) >= 0 }
	if !s.passUntil(10*time.Second, peered) {
		s.fail("they are not peers")
	}
	since := s.now
	met := func() bool {
		return a2.tunnels[b.deviceKey()].usable(s.now) != nil && b.tunnels[a2.deviceKey()].usable(s.now) != nil
	}
	if !s.passUntil(time.Minute, met) {
		s.fail("no session")
	}
	return s.now.Sub(since)
}

// settleDown powers hosts on, and lets them find each other.
func (s *simulation) settleDown(hosts ...*host) {
	s.watchMembers()
	for _, h := range hosts {
		h.boot()
	}
	for range 100 {
		if s.pass(time.Second); s.whole() == nil && s.alike() == nil {
			return
		}
	}
	s.fail("not whole: %v, %v", s.whole(), s.alike())
}

// TestTunnelsOfClocksSetBack has two nodes whose session runs out while each refuses the
// other's handshakes, because they carry an earlier time than the last one did.
func TestTunnelsOfClocksSetBack(t *testing.T) {
	s := newSimulation(t, 1)
	a, b := s.add("a", "", place{0, routed}), s.add("b", "", place{0, routed})
	s.settleDown(a, b)
	a.clock, b.clock = -time.Hour, -time.Hour
	s.pass(netcfg.HandshakeFresh + time.Minute)
	for _, ends := range [][2]*host{{a, b}, {b, a}} {
		if ends[0].tunnels[ends[1].deviceKey()].usable(s.now) == nil {
			t.Errorf("%s has no session with %s any more", ends[0].name, ends[1].name)
		}
	}
}

// TestMovedNodeIsFollowed has a node move that has nothing to say. Its peers still reach it.
func TestMovedNodeIsFollowed(t *testing.T) {
	s := newSimulation(t, 1)
	a, b := s.add("a", "", place{0, routed}), s.add("b", "", place{0, routed})
	s.settleDown(a, b)
	b.move(b.place, 77)
	s.pass(time.Second)
	if err := a.send(a.overlay(), b.overlay()); err != nil {
		t.Errorf("b has moved: %v", err)
	}
	b.stop()
	b.move(b.place, 78)
	b.startDaemon()
	s.pass(3 * time.Second)
	if err := a.send(a.overlay(), b.overlay()); err != nil {
		t.Errorf("b has moved while its daemon was away: %v", err)
	}
}
