// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
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
		want      string        // speaks?, how soon again
	}
	tests := []struct {
		name      string
		self      byte
		endpoints []mesh.Endpoint
		steps     []step
	}{
		{"lower key speaks at once, and renews the peer until it is answered", low, reachable, []step{
			{0, true, true, 0, "speaks, 400ms"},
			{100 * time.Millisecond, true, true, 0, "silent, 300ms"},
			{400 * time.Millisecond, true, true, 0, "renews, 800ms"},
			{1200 * time.Millisecond, true, true, 0, "renews, 1.6s"},
			{2800 * time.Millisecond, true, true, 0, "renews, 3.2s"},
			{6 * time.Second, true, true, 0, "renews, 5s"},
			{11 * time.Second, true, true, 0, "renews, 5s"},
			{12 * time.Second, true, true, time.Second, "silent, 0s"},
		}},
		{"who has no endpoint leads, whatever its key", high, nil, []step{
			{0, true, true, 0, "speaks, 400ms"},
			{400 * time.Millisecond, true, true, 0, "renews, 800ms"},
		}},
		{"higher key waits for the other", high, reachable, []step{
			{0, true, true, 0, "silent, 200ms"},
			{100 * time.Millisecond, true, true, time.Millisecond, "silent, 0s"},
		}},
		{"higher key speaks when it has not been spoken to", high, reachable, []step{
			{0, true, true, 0, "silent, 200ms"},
			{200 * time.Millisecond, true, true, 0, "speaks, 5s"},
			{5200 * time.Millisecond, true, true, 0, "speaks, 5s"},
		}},
		{"nobody speaks to the dead", low, reachable, []step{
			{0, true, false, 0, "silent, 0s"},
			{time.Hour, true, false, time.Hour, "silent, 0s"},
			{2 * time.Hour, true, true, 2 * time.Hour, "speaks, 400ms"},
			{2*time.Hour + time.Second, true, true, 2 * time.Hour, "speaks, 800ms"},
		}},
		{"a peer that is not on the device yet", low, reachable, []step{
			{0, false, true, 0, "silent, 0s"},
			{time.Second, true, true, 0, "speaks, 400ms"},
		}},
		{"a session that ran out is renewed", high, reachable, []step{
			{0, true, true, time.Second, "silent, 0s"},
			{time.Hour, true, true, netcfg.HandshakeFresh, "silent, 200ms"},
		}},
		{"a device that was made anew begins anew", low, reachable, []step{
			{0, true, true, 0, "speaks, 400ms"},
			{time.Second, true, true, time.Second, "silent, 0s"},
			{2 * time.Second, true, true, 0, "speaks, 400ms"},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			start := time.Unix(1000, 0)
			tun := newTunnels()
			for _, s := range tt.steps {
				now := start.Add(s.at)
				out := tun.next(turnWithPeer(now, s.there, s.alive, s.handshake), mesh.Record{Key: wgtypes.Key{tt.self}, Endpoints: tt.endpoints})
				got := "silent"
				switch {
				case len(out.renew) > 0:
					got = "renews"
				case len(out.speak) > 0:
					got = "speaks"
				}
				if got = fmt.Sprintf("%s, %v", got, out.again); got != s.want {
					t.Errorf("after %v: got %s, want %s", s.at, got, s.want)
				}
			}
		})
	}
}

// turnWithPeer is a turn that has one peer with two endpoints.
func turnWithPeer(now time.Time, there, alive bool, handshake time.Duration) turn {
	peer := mesh.Peer{
		ID: mesh.ID{5}, Key: wgtypes.Key{5}, AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.4.0.5/32"), netip.MustParsePrefix("10.42.5.0/24")},
		Endpoints: []netip.AddrPort{netip.MustParseAddrPort("203.0.113.5:1"), netip.MustParseAddrPort("203.0.113.5:2")},
	}
	tn := turn{now: now, topology: mesh.Topology{Peers: []mesh.Peer{peer}}, view: gossip.View{Alive: map[mesh.ID]bool{peer.ID: alive}}}
	if there {
		p := netcfg.Peer{Key: peer.Key}
		if handshake > 0 {
			p.LastHandshake = now.Add(-handshake)
		}
		tn.observed.Peers = []netcfg.Peer{p}
	}
	return tn
}

func TestEndpointsTakeTurns(t *testing.T) {
	start := time.Unix(1000, 0)
	tun := newTunnels()
	for i, want := range []int{0, 1, 2, 2} {
		now := start.Add(time.Duration(i) * tryNext)
		handshake := time.Duration(0)
		if i == 3 {
			handshake = time.Second // the third try has worked
		}
		tun.next(turnWithPeer(now, true, true, handshake), mesh.Record{})
		if got := tun.pick()[mesh.ID{5}]; got != want {
			t.Errorf("after %d intervals: got endpoint %d, want %d", i, got, want)
		}
	}
	tun.next(turn{now: start}, mesh.Record{})
	if len(tun.peers) != 0 {
		t.Errorf("peers that are gone: got %v, want none remembered", tun.peers)
	}
}
