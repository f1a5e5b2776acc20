// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// crowd returns a host whose agent has that many peers, each with several candidates.
func crowd(t testing.TB, count int, up bool) *host {
	t.Helper()
	w := newWire()
	a := w.host(t, 1, addrA)
	a.start(t)
	var peers []Peer
	for i := range byte(count) {
		addr := func(net int) string { return fmt.Sprintf("192.0.%d.%d:51820", net, i) }
		b := w.host(t, i+2, addr(2))
		a.add(b, "")
		b.add(a, "")
		peers = append(peers, b.peer(direct(addr(2)), direct(addr(3)), direct(addr(4)), behindFirewall(addr(5))))
		if up {
			b.start(t)
			b.SetPeers([]Peer{a.peer(direct(addrA))})
		}
	}
	a.SetPeers(peers)
	return a
}

// TestQuiet asserts how little is done for peers without traffic: a probe every
// 25 s, or a few a second in all where nobody answers.
func TestQuiet(t *testing.T) {
	const peers, minutes = 20, 10
	tests := map[string]struct {
		up      bool
		maxSent int
	}{
		"idle": {true, peers * minutes * 60 / 25},
		"down": {false, peers * minutes * 60},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := crowd(t, peers, tt.up)
				time.Sleep(minutes * time.Minute)
				a.mu.Lock()
				a.sent, a.reads = 0, 0
				a.mu.Unlock()
				time.Sleep(minutes * time.Minute)
				a.mu.Lock()
				defer a.mu.Unlock()
				if a.sent > tt.maxSent {
					t.Errorf("got %d datagrams, want no more than %d", a.sent, tt.maxSent)
				}
				if limit := minutes*60 + 1; a.reads > limit {
					t.Errorf("the device was read %d times, want no more than %d", a.reads, limit)
				}
			})
		})
	}
}
