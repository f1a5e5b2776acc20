// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/test/lab"
)

// TestRelayIsKilled has two homes talk through a relay that is killed and started again: their
// session goes on, so that nothing waits for another one.
func TestRelayIsKilled(t *testing.T) {
	t.Parallel()
	v := newHomes(t, lab.PortDependent, nil, "home-1")
	relay, home, shed := v.node("aws-1"), v.node("home-1"), v.node("shed-1")
	with := func(name string, s control.Status) (p control.Peer) {
		for _, peer := range s.Peers {
			if peer.Name == name {
				p = peer
			}
		}
		return p
	}
	isRelayed := func(s control.Status) bool {
		p := with(home.Name, s).Path
		return p.Proved && p.Kind == control.PathRelayed
	}
	v.await(settleLimit, "relayed", isRelayed, shed)
	v.connected(settleLimit, home, shed)
	time.Sleep(6 * time.Second) // until the relay has written down what it knows
	before := with(home.Name, v.status(shed)).LastHandshake

	v.must(relay.Kill())
	v.start(relay)
	out := v.run(shed, "ping", "-n", "-q", "-i", "0.1", "-c", "50", "-W", "1", v.status(home).Node.Overlay[0].String())
	t.Log(strings.TrimSpace(out))
	// The time of a handshake is computed from its age. WireGuard replaces a session after 120 s.
	if d := with(home.Name, v.status(shed)).LastHandshake.Sub(before); d.Abs() > time.Second && d < 100*time.Second {
		t.Errorf("the session was replaced after %v, want it to go on", d)
	}
}
