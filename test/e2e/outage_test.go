// SPDX-License-Identifier: Apache-2.0

//go:build !kernel

package e2e

import (
	"testing"
	"time"

	"github.com/meshd/meshd/test/lab"
)

// blockGossipUDP drops all gossip packets of a host, but no streams.
const blockGossipUDP = `
add table inet outage
add chain inet outage in { type filter hook input priority filter; }
add chain inet outage out { type filter hook output priority filter; }
add rule inet outage in udp dport 7946 counter drop
add rule inet outage out udp dport 7946 counter drop
`

func TestGossipWithoutUDP(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.Routed, 3)
	silent := m.nodes[1]
	m.must(silent.WriteFile("/run/outage.nft", blockGossipUDP, 0o644))
	m.run(silent, "nft", "-f", "/run/outage.nft")
	m.start(m.nodes...)
	m.settle(settleLimit, m.nodes...)
	m.connected(pingLimit, m.nodes...) // from now on gossip passes through the tunnels
	m.stays(settleLimit, "aware of two live peers", lab.Sees(2), m.nodes...)

	// Changes also arrive by streams.
	m.must(m.nodes[2].Kill())
	m.await(settleLimit, "aware of one dead peer", lab.Sees(1), m.nodes[:2]...)
	m.start(m.nodes[2])
	m.settle(settleLimit, m.nodes...)
	m.connected(pingLimit, m.nodes...)
}

// TestBlockedPaths cuts the direct path between some pairs of nodes for half of splitTime.
// No node is taken for dead, and all other pairs reach each other.
func TestBlockedPaths(t *testing.T) {
	t.Parallel()
	m := settledMesh(t, lab.Routed, 5)
	a, b, c, d, e := m.nodes[0], m.nodes[1], m.nodes[2], m.nodes[3], m.nodes[4]
	tests := []struct {
		name     string
		one, two []*lab.Node
		cliques  [][]*lab.Node // all of whose pairs still talk
	}{
		{"a pair", []*lab.Node{a}, []*lab.Node{b}, [][]*lab.Node{{a, c, d, e}, {b, c, d, e}}},
		{"a node and half of the others", []*lab.Node{e}, []*lab.Node{a, b}, [][]*lab.Node{{a, b, c, d}, {c, d, e}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := m.in(t)
			stop := m.never("one less alive", not(lab.Sees(4)), m.nodes...)
			m.must(m.lab.Partition(m.ctx, hosts(tt.one), hosts(tt.two)))
			time.Sleep(splitTime / 2) // what must not happen takes so long
			stop()
			for _, clique := range tt.cliques {
				m.connected(pingLimit, clique...)
			}
			m.must(m.lab.Heal(m.ctx))
			m.connected(pingLimit, m.nodes...)
		})
	}
}
