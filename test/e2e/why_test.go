// SPDX-License-Identifier: Apache-2.0

//go:build !kernel

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/test/lab"
)

// TestWhy asks for the way between nodes, from both ends, while all is well, behind a firewall, and after one
// has died.
func TestWhy(t *testing.T) {
	t.Parallel()
	m := settledMesh(t, lab.NAT, 3)
	m.connected(pingLimit, m.nodes...)
	here, there, third := m.nodes[0], m.nodes[1], m.nodes[2]
	says := func(code int, want string, args ...string) {
		t.Helper()
		m.eventually(settleLimit, func() error {
			out, err := here.Meshd(m.ctx, args...)
			if !strings.Contains(out, want) || (err == nil) != (code == 0) {
				return fmt.Errorf("meshd %s: got %q, %v, want %q, exit code %d", strings.Join(args, " "), out, err, want, code)
			}
			return nil
		})
	}
	says(0, there.Name+" answers in", "why", there.Name)
	says(0, there.Name+" has an answer from here in", "why", there.Name)
	pods := m.status(there).Node.PodCIDRs[0]
	says(0, "of the pods of the node "+there.Name, "why", pods.Addr().Next().Next().String())
	says(0, there.Name+" has an answer from here in", "ping", there.Name)

	var ping control.Ping
	out, err := here.Meshd(m.ctx, "ping", "-c", "2", "-o", "json", third.Name)
	m.must(err)
	m.must(json.Unmarshal([]byte(out), &ping))
	if len(ping.Hops) != 1 || ping.Hops[0].Answered != 2 || ping.Hops[0].RTT == 0 || ping.Back == nil || !ping.Back.Alive || !ping.Back.Proved || ping.Back.Path != "direct" {
		t.Errorf("ping: got %s, want two answers, and the other node's view", out)
	}

	// It still pings, and answers to what it has begun.
	m.run(there, "nft", "add table inet closed")
	m.run(there, "nft", "add chain inet closed in { type filter hook input priority 0 ; }")
	m.run(there, "nft", "add rule inet closed in iifname meshd0 icmp type echo-request drop")
	says(1, "a firewall there drops what others begin", "why", there.Name)
	says(1, "0 of 3", "ping", there.Name)
	m.run(there, "nft", "delete table inet closed")
	says(0, there.Name+" answers in", "why", there.Name)

	m.must(third.Kill())
	says(1, third.Name+" is not alive: no node has heard it since", "why", third.Name)
}
