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
