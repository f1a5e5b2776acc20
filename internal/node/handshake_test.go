// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

// TestWhoSpeaks follows one peer over time. Times count from the first turn.
func TestWhoSpeaks(t *testing.T) {
	const low, high = 1, 9 // of keys; the peer has 5
	reachable := []mesh.Endpoint{{Host: "203.0.113.1", Port: 51820}}
	type step struct {
		at        time.Duration
		there     bool
		alive     bool
		handshake time.Duration // age; 0 for never
		want      string        // whether it gets an endpoint, speaks?, how soon again
	}
	tests := []struct {
		name      string
		self      byte
		endpoints []mesh.Endpoint
		known     bool
		steps     []step
	}{
		{"the lower key leads: it speaks at once, and renews the peer until it is answered", low, reachable, false, []step{
			{0, true, true, 0, "endpoint, speaks, 150ms"},
			{100 * time.Millisecond, true, true, 0, "endpoint, silent, 50ms"},
			{150 * time.Millisecond, true, true, 0, "endpoint, renews, 300ms"},
			{200 * time.Millisecond, true, true, 0, "endpoint, silent, 250ms"},
			{450 * time.Millisecond, true, true, 0, "endpoint, renews, 500ms"},
			{1050 * time.Millisecond, true, true, 0, "endpoint, renews, 500ms"},
			{2250 * time.Millisecond, true, true, 0, "endpoint, renews, 500ms"},
			{6 * time.Second, true, true, 0, "endpoint, renews, 4.8s"},
			{11 * time.Second, true, true, 0, "endpoint, renews, 5s"},
			{12 * time.Second, true, true, time.Second, "endpoint, silent, 0s"},
		}},
		{"who can't be spoken to leads, whatever its key", high, nil, false, []step{
			{0, true, true, 0, "endpoint, speaks, 150ms"},
			{150 * time.Millisecond, true, true, 0, "endpoint, renews, 300ms"},
		}},
		{"the higher key follows: no endpoint until the leader has spoken", high, reachable, false, []step{
			{0, true, true, 0, "none, silent, 500ms"},
			{100 * time.Millisecond, true, true, time.Millisecond, "none, silent, 0s"},
			{time.Second, true, true, time.Second, "endpoint, silent, 0s"},
		}},
		{"the follower speaks when it was not spoken to, and never renews", high, reachable, false, []step{
			{0, true, true, 0, "none, silent, 500ms"},
			{3 * time.Second, true, true, 0, "none, silent, 50ms"},
			{3050 * time.Millisecond, true, true, 0, "endpoint, speaks, 500ms"},
			{8250 * time.Millisecond, true, true, 0, "endpoint, speaks, 5.2s"}, // not in step with the leader
		}},
		{"after a restart nobody waits for who may not have noticed", high, reachable, true, []step{
			{0, true, true, 0, "endpoint, silent, 200ms"},
			{200 * time.Millisecond, true, true, 0, "endpoint, speaks, 500ms"},
		}},
		{"nobody speaks to the dead", low, reachable, false, []step{
			{0, true, false, 0, "endpoint, silent, 0s"},
			{time.Hour, true, false, time.Hour, "endpoint, silent, 0s"},
			{2 * time.Hour, true, true, 2 * time.Hour, "endpoint, speaks, 500ms"},
			{2*time.Hour + time.Second, true, true, 2 * time.Hour, "endpoint, silent, 500ms"},
			{2*time.Hour + 5*time.Second, true, true, 2 * time.Hour, "endpoint, renews, 5s"},
		}},
		{"a peer that is not on the device yet", low, reachable, false, []step{
			{0, false, true, 0, "endpoint, silent, 0s"},
			{time.Second, true, true, 0, "endpoint, speaks, 150ms"},
		}},
		{"a session that ran out is renewed", high, reachable, false, []step{
			{0, true, true, time.Second, "none, silent, 0s"},
			{time.Hour, true, true, netcfg.HandshakeFresh, "endpoint, silent, 200ms"},
			{time.Hour + time.Second, true, true, netcfg.HandshakeFresh, "endpoint, speaks, 500ms"},
		}},
		{"a device that was made anew begins anew", low, reachable, false, []step{
			{0, true, true, 0, "endpoint, speaks, 150ms"},
			{time.Second, true, true, time.Second, "endpoint, silent, 0s"},
			{2 * time.Second, true, true, 0, "endpoint, speaks, 150ms"},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			start := time.Unix(1000, 0)
			h := NewHandshakes(nil)
			h.known[mesh.ID{5}] = tt.known
			for _, s := range tt.steps {
				now := start.Add(s.at)
				self := mesh.Record{Key: wgtypes.Key{tt.self}, Endpoints: tt.endpoints}
				in := inputWithPeer(self, now, s.there, s.alive, s.handshake)
				endpoint := "endpoint"
				if h.awaited(in.Topology.Peers, self)[mesh.ID{5}] {
					endpoint = "none"
				}
				out := h.next(in)
				if got := fmt.Sprintf("%s, %s, %v", endpoint, deed(out), out.RecheckAfter); got != s.want {
					t.Errorf("after %v: got %s, want %s", s.at, got, s.want)
				}
			}
		})
	}
}

// When an endpoint becomes known, who leads then gives what the other one may
// have sent some time. After that it renews the peer: what it sent before went
// nowhere, and makes WireGuard wait.
func TestRoleChanges(t *testing.T) {
	start := time.Unix(1000, 0)
	h := NewHandshakes(nil)
	self := mesh.Record{Key: wgtypes.Key{1}, Endpoints: []mesh.Endpoint{{Host: "203.0.113.1", Port: 51820}}}
	in := inputWithPeer(self, start, true, true, 0)
	endpoints := in.Topology.Peers[0].Endpoints
	in.Topology.Peers[0].Endpoints = nil // the peer leads now
	in.Proved = map[mesh.ID]netip.AddrPort{{5}: endpoints[0]}
	if out := h.next(in); len(out.Initiate) > 0 || out.RecheckAfter != pollInterval {
		t.Errorf("without endpoint: got %+v, want silence", out)
	}
	in.Topology.Peers[0].Endpoints = endpoints
	if out := h.next(in); len(out.Initiate) > 0 || out.RecheckAfter != roleChangeWait {
		t.Errorf("with endpoint: got %+v, want silence for a moment", out)
	}
	in.Now = start.Add(roleChangeWait)
	if out := h.next(in); len(out.Initiate) == 0 || len(out.Renew) == 0 || out.RecheckAfter != firstRenewWait {
		t.Errorf("a moment later: got %+v, want to speak after a renewal", out)
	}
}

// TestOneOfNeighborsLeads: two nodes of one LAN that nobody else can speak to don't both lead.
func TestOneOfNeighborsLeads(t *testing.T) {
	low := mesh.Record{Key: wgtypes.Key{1}, InternalIPs: []netip.Prefix{netip.MustParsePrefix("192.168.1.1/24")}}
	high := mesh.Record{Key: wgtypes.Key{2}, InternalIPs: []netip.Prefix{netip.MustParsePrefix("192.168.1.2/24")}}
	peer := func(r mesh.Record) mesh.Peer {
		return mesh.Peer{Key: r.Key, Endpoints: []netip.AddrPort{netip.AddrPortFrom(r.InternalIPs[0].Addr(), 51820)}}
	}
	if !roleOf(low, peer(high)).leads || roleOf(high, peer(low)).leads {
		t.Error("want that the lower key leads, and the higher one does not")
	}
}

// TestPeersHearOfAMove: a peer with a session is told once, by any packet, where this host is
// now: WireGuard at the far end goes by that.
func TestPeersHearOfAMove(t *testing.T) {
	start := time.Unix(1000, 0)
	h := NewHandshakes(nil)
	self := mesh.Record{Key: wgtypes.Key{1}}
	speaks := func(at, settled, handshake time.Duration, alive bool) bool {
		in := inputWithPeer(self, start.Add(at), true, alive, at-handshake)
		in.Settled = start.Add(settled)
		return len(h.next(in).Initiate) > 0
	}
	for _, step := range []struct {
		name    string
		at      time.Duration // since the start
		settled time.Duration // when the host got to where it is
		session time.Duration // when the handshake was
		alive   bool
		want    bool
	}{
		{"a session from before the daemon's start, with one that is not heard yet", time.Second, 0, -time.Minute, false, false},
		{"it is heard", 2 * time.Second, 0, -time.Minute, true, true},
		{"it was told", 3 * time.Second, 0, -time.Minute, true, false},
		{"the host has moved", 5 * time.Second, 4 * time.Second, -time.Minute, true, true},
		{"it was told that, too", 6 * time.Second, 4 * time.Second, -time.Minute, true, false},
		{"a session made at the new place", 9 * time.Second, 7 * time.Second, 8 * time.Second, true, false},
	} {
		if got := speaks(step.at, step.settled, step.session, step.alive); got != step.want {
			t.Errorf("%s: got that it speaks: %t, want %t", step.name, got, step.want)
		}
	}
}

// TestClientsHearOfAMove: a client that has not made a handshake since this host moved is told by any
// packet where it is now, and again after ever longer times.
func TestClientsHearOfAMove(t *testing.T) {
	start := time.Unix(1000, 0)
	h := NewHandshakes(nil)
	at := netip.MustParseAddrPort("203.0.113.5:40000")
	address := netip.MustParseAddr("10.4.128.1")
	for _, step := range []struct {
		name      string
		at        time.Duration // since the start
		settled   time.Duration // when the host got to where it is
		handshake time.Duration
		endpoint  netip.AddrPort
		want      bool
		again     time.Duration
	}{
		{"it is where it was not heard yet", time.Second, 0, -time.Minute, netip.AddrPort{}, false, 0},
		{"a session from before the daemon's start", 2 * time.Second, 0, -time.Minute, at, true, 2 * time.Minute},
		{"it was told", 3 * time.Second, 0, -time.Minute, at, false, 2*time.Minute - time.Second},
		{"the host has moved", 5 * time.Second, 4 * time.Second, -time.Minute, at, true, 2 * time.Minute},
		{"told again", 125 * time.Second, 4 * time.Second, -time.Minute, at, true, 4 * time.Minute},
		{"it has found the host", 130 * time.Second, 4 * time.Second, 129 * time.Second, at, false, 0},
		{"the host has moved again", 140 * time.Second, 139 * time.Second, 129 * time.Second, at, true, 2 * time.Minute},
	} {
		out := h.next(handshakeInput{
			Now: start.Add(step.at), Settled: start.Add(step.settled),
			Topology: mesh.Topology{Clients: []mesh.ClientTunnel{{Key: wgtypes.Key{7}, Addresses: []netip.Addr{address}}}},
			Observed: netcfg.State{Peers: []netcfg.Peer{{Key: wgtypes.Key{7}, Endpoint: step.endpoint, LastHandshake: start.Add(step.handshake)}}},
		})
		if got := slices.Equal(out.Initiate, []netip.Addr{address}); got != step.want || out.RecheckAfter != step.again {
			t.Errorf("%s: got that it is told: %t, and again after %v, want %t and %v", step.name, got, out.RecheckAfter, step.want, step.again)
		}
	}
	h.next(handshakeInput{Now: start})
	if len(h.clients) != 0 {
		t.Errorf("removed clients: got %v, want none", h.clients)
	}
}

// TestPeerThatMoves: this node has spoken to a peer where that is no longer, or did not know where it
// is. Once probes find it elsewhere, the leader speaks there at once, and the follower shortly afterwards.
func TestPeerThatMoves(t *testing.T) {
	former, now := netip.MustParseAddrPort("203.0.113.5:1"), netip.MustParseAddrPort("203.0.113.6:1")
	for _, tt := range []struct {
		name   string
		self   byte // of keys; the peer has 5
		former netip.AddrPort
		steps  []string
	}{
		{"leader", 1, former, []string{"speaks", "silent", "silent", "renews", "silent"}},
		{"follower", 9, former, []string{"silent", "speaks", "silent", "silent", "renews"}},
		{"follower of a peer that was nowhere", 9, netip.AddrPort{}, []string{"silent", "silent", "silent", "silent", "renews"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := NewHandshakes(nil)
			h.known[mesh.ID{5}] = true
			for i, at := range []time.Duration{0, 250 * time.Millisecond, 300 * time.Millisecond, 400 * time.Millisecond, 650 * time.Millisecond} {
				// The leader would renew a peer without any handshake all the time.
				self := mesh.Record{Key: wgtypes.Key{tt.self}, Endpoints: []mesh.Endpoint{{Host: "203.0.113.1", Port: 51820}}}
				in := inputWithPeer(self, time.Unix(1000, 0).Add(at), true, true, time.Hour)
				in.Observed.Peers[0].Endpoint = tt.former
				if !tt.former.IsValid() {
					in.Topology.Peers[0].Endpoints, in.Self.Endpoints = nil, nil
				}
				if i >= 3 {
					in.Proved = map[mesh.ID]netip.AddrPort{{5}: now}
				}
				if got := deed(h.next(in)); got != tt.steps[i] {
					t.Errorf("after %v: got that it %s, want %s", at, got, tt.steps[i])
				}
			}
		})
	}
}

// inputWithPeer has one peer with two endpoints.
func inputWithPeer(self mesh.Record, now time.Time, there, alive bool, handshake time.Duration) handshakeInput {
	peer := mesh.Peer{
		ID: mesh.ID{5}, Key: wgtypes.Key{5}, AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.4.0.5/32"), netip.MustParsePrefix("10.42.5.0/24")},
		Endpoints: []netip.AddrPort{netip.MustParseAddrPort("203.0.113.5:1"), netip.MustParseAddrPort("203.0.113.5:2")},
	}
	in := handshakeInput{Now: now, Self: self, Topology: mesh.Topology{Peers: []mesh.Peer{peer}}, Alive: map[mesh.ID]bool{peer.ID: alive}}
	if there {
		p := netcfg.Peer{Key: peer.Key}
		if handshake > 0 {
			p.LastHandshake = now.Add(-handshake)
		}
		in.Observed.Peers = []netcfg.Peer{p}
	}
	return in
}

// deed words what a plan does about a peer.
func deed(out HandshakePlan) string {
	switch {
	case len(out.Renew) > 0:
		return "renews"
	case len(out.Initiate) > 0:
		return "speaks"
	default:
		return "silent"
	}
}

// TestUnreachablePeer: as long as no endpoint of a peer is known, nobody speaks. Once probes have
// found one, a turn is due, and the leader speaks at once, by the next path again: what WireGuard has
// sent before was in vain. The follower gives it time.
func TestUnreachablePeer(t *testing.T) {
	one, two := netip.MustParseAddrPort("203.0.113.5:1"), netip.MustParseAddrPort("203.0.113.5:2")
	for _, tt := range []struct {
		name  string
		self  byte // of keys; the peer has 5
		steps []string
	}{
		{"leader", 1, []string{"silent, 0s", "silent, 0s", "renews, 150ms", "silent, 140ms", "renews, 150ms"}},
		{"follower", 9, []string{"silent, 0s", "silent, 0s", "silent, 500ms", "silent, 500ms", "silent, 500ms"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			now := time.Unix(1000, 0)
			h := NewHandshakes(nil)
			for i, proved := range []netip.AddrPort{{}, {}, one, one, two} {
				in := inputWithPeer(mesh.Record{Key: wgtypes.Key{tt.self}}, now.Add(time.Duration(i)*10*time.Millisecond), true, true, 0)
				in.Topology.Peers[0].Endpoints = nil
				in.Observed.Peers[0].Endpoint = proved
				in.Proved = make(map[mesh.ID]netip.AddrPort)
				if proved.IsValid() {
					in.Proved[mesh.ID{5}] = proved
				}
				if due := i == 2 || i == 4; h.foundPath(in.Proved) != due {
					t.Errorf("step %d: a turn is due: %t, want %t", i, !due, due)
				}
				out := h.next(in)
				if got := fmt.Sprintf("%s, %v", deed(out), out.RecheckAfter); got != tt.steps[i] {
					t.Errorf("step %d: got %s, want %s", i, got, tt.steps[i])
				}
			}
		})
	}
}

// TestLeaderGoesOn: a leader that names an endpoint of its own after it has spoken goes on until there
// is a session, although it would follow now.
func TestLeaderGoesOn(t *testing.T) {
	start := time.Unix(1000, 0)
	h := NewHandshakes(nil)
	for i, want := range []string{"speaks", "renews", "renews", "silent"} {
		self := mesh.Record{Key: wgtypes.Key{9}}
		if i > 0 {
			self.Endpoints = []mesh.Endpoint{{Host: "198.51.100.9", Port: 51820}}
		}
		in := inputWithPeer(self, start.Add(time.Duration(i)*time.Second), true, true, 0)
		if want == "silent" {
			in.Observed.Peers[0].LastHandshake = in.Now
		}
		if got := deed(h.next(in)); got != want {
			t.Errorf("step %d: got %s, want %s", i, got, want)
		}
	}
}

// TestBothLead: a leader that would follow by now, and the one that leads by now, do not speak in step
// for long, or their messages would cross each time.
func TestBothLead(t *testing.T) {
	start := time.Unix(1000, 0)
	unnamed := mesh.Record{Key: wgtypes.Key{9}}
	named := unnamed
	named.Endpoints = []mesh.Endpoint{{Host: "198.51.100.9", Port: 51820}}
	leads := named
	leads.Key = wgtypes.Key{1}
	speaks := func(before, now mesh.Record) (at []time.Duration) {
		h := NewHandshakes(nil)
		h.next(inputWithPeer(before, start, true, true, 0))
		for after := 10 * time.Millisecond; after < time.Minute; after += 10 * time.Millisecond {
			if out := h.next(inputWithPeer(now, start.Add(after), true, true, 0)); len(out.Initiate) > 0 {
				at = append(at, after)
			}
		}
		return at
	}
	goesOn, begins := speaks(unnamed, named), speaks(leads, leads)
	if slices.ContainsFunc(goesOn, func(at time.Duration) bool { return at > 20*time.Second && slices.Contains(begins, at) }) {
		t.Errorf("both speak at the same time: %v and %v", goesOn, begins)
	}
}

// TestRenewsUnknownSession: a session that lives is begun anew once each time that is asked for,
// unless there was a handshake since. Times count from the first turn.
func TestRenewsUnknownSession(t *testing.T) {
	start, id := time.Unix(1000, 0), mesh.ID{5}
	h := NewHandshakes(nil)
	for _, step := range []struct {
		name          string
		at, age       time.Duration // of the handshake; 0 for never
		asked         time.Duration
		dead          bool
		due, want     bool // a turn, a renewal
		wantHandshake bool // something is sent
	}{
		{"nothing asked", 0, 10 * time.Second, -1, false, false, false, false},
		{"asked", 2 * time.Second, 12 * time.Second, time.Second, false, true, true, true},
		{"not again", 3 * time.Second, 13 * time.Second, time.Second, false, false, false, false},
		{"asked again", 8 * time.Second, 18 * time.Second, 7 * time.Second, false, true, true, true},
		{"asked before the handshake", 20 * time.Second, time.Second, 18 * time.Second, false, true, false, false},
		{"asked without a session", 30 * time.Second, 0, 29 * time.Second, false, true, false, true},
		{"not again with one", 40 * time.Second, 20 * time.Second, 29 * time.Second, false, false, false, false},
		{"asked when it is dead", 50 * time.Second, 30 * time.Second, 49 * time.Second, true, true, false, false},
	} {
		in := inputWithPeer(mesh.Record{Key: wgtypes.Key{9}}, start.Add(step.at), true, !step.dead, step.age)
		if step.asked >= 0 {
			in.Renew = map[mesh.ID]time.Time{id: start.Add(step.asked)}
		}
		if due := h.isAsked(in.Renew); due != step.due {
			t.Errorf("%s: a turn is due: got %t, want %t", step.name, due, step.due)
		}
		out := h.next(in)
		after, renews := out.Renew[wgtypes.Key{5}]
		if renews != step.want || renews && !after.Equal(start.Add(step.asked)) {
			t.Errorf("%s: renews: got %t unless there was a handshake after %v, want %t", step.name, renews, after, step.want)
		}
		if sends := len(out.Initiate) > 0; sends != step.wantHandshake {
			t.Errorf("%s: sends something: got %t, want %t", step.name, sends, step.wantHandshake)
		}
	}
}

// TestGonePeersAreNotRemembered: what is kept has a bound.
func TestGonePeersAreNotRemembered(t *testing.T) {
	now := time.Unix(1000, 0)
	h := NewHandshakes(nil)
	h.next(inputWithPeer(mesh.Record{}, now, true, true, 0))
	h.next(handshakeInput{Now: now})
	if len(h.peers) != 0 {
		t.Errorf("got %v, want none", h.peers)
	}
}

// Two nodes that have known each other for long, and become peers only now, meet
// as strangers do: both begin at the same moment.
func TestLatePeersMeetAnew(t *testing.T) {
	start := time.Unix(1000, 0)
	h := NewHandshakes(nil)
	h.known[mesh.ID{5}] = true
	self := mesh.Record{Key: wgtypes.Key{9}, Endpoints: []mesh.Endpoint{{Host: "203.0.113.1", Port: 51820}}}
	early := inputWithPeer(self, start, true, true, 0)
	if h.awaited(early.Topology.Peers, self)[mesh.ID{5}] {
		t.Error("a peer from before: got no endpoint, want one")
	}
	h = NewHandshakes(nil)
	h.known[mesh.ID{5}] = true
	h.next(handshakeInput{Now: start, Self: self, Topology: mesh.Topology{Addresses: []netip.Addr{netip.MustParseAddr("10.4.0.9")}}})
	if !h.awaited(early.Topology.Peers, self)[mesh.ID{5}] {
		t.Error("a peer of today: got an endpoint, want none before the leader has spoken")
	}
}
