// SPDX-License-Identifier: Apache-2.0

// The race detector crashes with so many timers at once.
//go:build !race

package agent

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshd/meshd/internal/path"
)

// datagramLen is how long a probe is with its headers of UDP and IPv4.
const datagramLen = 90 + 8 + 20

// thirty returns the agents of thirty hosts behind firewalls, and three relays. Where they don't meet, each
// names as many addresses as others may see.
func thirty(t testing.TB, meet bool) (hosts []*host, relays []*wireRelay) {
	t.Helper()
	w := newWire()
	var all []Relay
	for i, addr := range []string{addrR, addrS, "203.0.113.9:7946"} {
		relays = append(relays, w.relay(t, byte(200+i), addr))
		all = append(all, relays[i].as(addr))
	}
	for i := range byte(30) {
		h := w.host(t, i+1, fmt.Sprintf("198.51.100.%d:51820", i+1))
		h.closed = true
		hosts = append(hosts, h)
		h.start(t)
		h.SetRelays(all, 2, [][32]byte{secret})
	}
	for _, h := range hosts {
		var peers []Peer
		for _, o := range hosts {
			if o != h {
				h.add(o, "")
				addrs := []string{o.addrs[0].String()}
				if !meet {
					addrs = nil
					for port := range 5 {
						addrs = append(addrs, fmt.Sprintf("203.0.113.%d:%d", o.id[0], 1000+port))
					}
				}
				p := o.through(behindFirewall(addrs[0]), relays[0], relays[1])
				for _, addr := range addrs[1:] {
					p.Candidates = append(p.Candidates, behindFirewall(addr))
				}
				peers = append(peers, p)
			}
		}
		h.SetPeers(peers)
	}
	return hosts, relays
}

// held returns how many paths of a host are direct ones.
func (h *host) held(t testing.TB) (held int) {
	t.Helper()
	for _, s := range h.Status() {
		if !s.Proved {
			t.Errorf("%v to %v: %v is not proved", h.id, s.ID, s.Path)
		}
		if s.Path.Straight() {
			held++
		}
	}
	return held
}

// TestThirty has thirty nodes behind firewalls meet, all directly. While there is no traffic, each holds
// no more than sixteen paths open, and few bytes go to and fro. What is sent on a path that rests arrives
// through a relay, and after some seconds it is direct again, instead of the one that was used least.
func TestThirty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hosts, relays := thirty(t, true)
		time.Sleep(time.Minute)
		for _, h := range hosts {
			if held := h.held(t); held != len(hosts)-1 {
				t.Errorf("%v: got %d direct paths, want one to each peer", h.id, held)
			}
		}
		time.Sleep(10 * time.Minute)
		most, all := mostBytes(hosts, 30*time.Minute), 0
		for _, h := range hosts {
			held := h.held(t)
			if held > maxHeld {
				t.Errorf("%v: got %d direct paths, want %d at most", h.id, held, maxHeld)
			}
			all += held
		}
		if least := len(hosts) * (maxHeld - 1); all < least {
			t.Errorf("got %d direct paths in all, want %d at least", all, least)
		}
		t.Logf("%.1f direct paths a node, %.0f bytes a second one way at most", float64(all)/float64(len(hosts)), most)
		if most > 120 {
			t.Errorf("got %.0f bytes a second, want 120 at most", most)
		}
		wantAwake(t, hosts, relays)
	})
}

// TestThirtyRelayed has thirty nodes that never meet, since their NATs change ports. Each tries to, again
// after half an hour.
func TestThirtyRelayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hosts, _ := thirty(t, false)
		time.Sleep(2 * time.Minute)
		for _, d := range []time.Duration{330 * time.Second, time.Hour} {
			most := mostBytes(hosts, d)
			t.Logf("in %v: %.0f bytes a second one way at most", d, most)
			if most > 200 {
				t.Errorf("in %v: got %.0f bytes a second, want 200 at most", d, most)
			}
		}
		for _, h := range hosts {
			if held := h.held(t); held > 0 {
				t.Errorf("%v: got %d direct paths, want none", h.id, held)
			}
		}
	})
}

// mostBytes returns how many bytes a second of probes one of the hosts sends or receives at most.
func mostBytes(hosts []*host, meanwhile time.Duration) (most float64) {
	for _, h := range hosts {
		h.mu.Lock()
		h.sent, h.arrived = 0, 0
		h.mu.Unlock()
	}
	time.Sleep(meanwhile)
	for _, h := range hosts {
		h.mu.Lock()
		most = max(most, float64(max(h.sent, h.arrived))*datagramLen/meanwhile.Seconds())
		h.mu.Unlock()
	}
	return most
}

// wantAwake asserts what comes of traffic on a path that rests.
func wantAwake(t *testing.T, hosts []*host, relays []*wireRelay) {
	t.Helper()
	a := hosts[0]
	i := slices.IndexFunc(hosts[1:], func(b *host) bool { return a.statusOf(t, b).Path.Kind == path.Relayed })
	if i < 0 {
		t.Fatal("no path rests")
	}
	b := hosts[i+1]
	for _, r := range relays {
		a.initiateThrough(r, b)
		b.initiateThrough(r, a)
	}
	time.Sleep(time.Second)
	before := b.received(a)
	a.data(b)
	if b.received(a) == before {
		t.Error("the first packet does not arrive")
	}
	a.talk(t, b)
	b.talk(t, a)
	time.Sleep(5 * time.Second)
	a.wantPath(t, b, behindFirewall(b.addrs[0].String()))
	b.wantPath(t, a, behindFirewall(a.addrs[0].String()))
	time.Sleep(10 * time.Minute)
	if held := a.held(t); held > maxHeld {
		t.Errorf("got %d direct paths, want %d at most", held, maxHeld)
	}
	a.wantPath(t, b, behindFirewall(b.addrs[0].String()))
}
