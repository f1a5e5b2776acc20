// SPDX-License-Identifier: Apache-2.0

package path

import (
	"testing"
	"time"
)

// TestOwnTraffic shows a machine what gossip sends and receives, and says which of it makes the path busy
// or used.
func TestOwnTraffic(t *testing.T) {
	const packet = 144 // of WireGuard
	type step struct {
		after                                time.Duration
		sent, ownSent, received, ownReceived uint64
	}
	tests := map[string]struct {
		steps      []step
		busy, used bool
	}{
		"data sent":                      {[]step{{0, packet, 0, 0, 0}}, true, true},
		"data received":                  {[]step{{0, 0, 0, packet, 0}, {readFor, 0, 0, 0, 0}}, false, true},
		"gossip":                         {[]step{{0, packet, packet, packet, packet}, {time.Minute, 0, 0, 0, 0}}, false, false},
		"gossip, counted too high":       {[]step{{0, packet, packet + 100, packet, packet + 100}, {time.Minute, 0, 0, 0, 0}}, false, false},
		"gossip, not sent yet":           {[]step{{0, 0, packet, 0, 0}, {ownFor / 2, packet, 0, 0, 0}}, false, false},
		"gossip, not read yet":           {[]step{{0, 0, 0, packet, 0}, {readFor / 2, 0, 0, 0, packet}, {time.Minute, 0, 0, 0, 0}}, false, false},
		"gossip and a keepalive":         {[]step{{0, packet + 32, packet, packet + 32, packet}, {time.Minute, 0, 0, 0, 0}}, false, false},
		"a handshake":                    {[]step{{0, 148 + 32 + 32, 0, 92, 0}, {time.Minute, 0, 0, 0, 0}}, false, false},
		"gossip and data":                {[]step{{0, packet + 64, packet, packet + 64, packet}, {readFor, 0, 0, 0, 0}}, true, true},
		"gossip that is lost, then data": {[]step{{0, 0, packet, 0, 0}, {ownFor, packet, 0, 0, 0}}, true, true},
		"data before gossip is read":     {[]step{{0, 0, 0, 2 * packet, 0}, {readFor / 2, 0, 0, 0, packet}, {readFor, 0, 0, 0, 0}}, false, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			now, sum := epoch, Traffic{Endpoint: directly.Addr}
			m := NewMachine(true, sum, now)
			for _, s := range tt.steps {
				now = now.Add(s.after)
				sum.Sent, sum.OwnSent = sum.Sent+s.sent, sum.OwnSent+s.ownSent
				sum.Received, sum.OwnReceived = sum.Received+s.received, sum.OwnReceived+s.ownReceived
				m.Observe(now, sum)
				m.Step(now)
			}
			if busy, used := !m.busy.IsZero(), !m.Used().IsZero(); busy != tt.busy || used != tt.used {
				t.Errorf("busy: %t, used: %t; want %t, %t", busy, used, tt.busy, tt.used)
			}
		})
	}
}
