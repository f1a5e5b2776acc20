// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/meshd/meshd/internal/mesh"
)

// Packets from one node to the other pass only by one of two addresses, packets back only
// over the other. That other one is found, although requests for answers keep coming over
// the first.
func TestOneWayPathIsAvoided(t *testing.T) {
	t.Parallel()
	first, second := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")
	everywhere := func(o *Options) { o.Bind = "0.0.0.0:0" }
	a := startNode(t, 0, everywhere)
	port := a.Addr().Port()
	b := startNode(t, 1, all(everywhere, func(o *Options) {
		o.filter = func(network string, to netip.AddrPort) bool {
			return network == "udp" && to != netip.AddrPortFrom(first, port)
		}
	}))
	// A knows one address, and B both, the bad one first.
	setPaths := func() {
		a.SetAddresses(map[mesh.ID][]netip.AddrPort{b.self: {netip.AddrPortFrom(first, b.Addr().Port())}}, nil)
		b.SetAddresses(map[mesh.ID][]netip.AddrPort{a.self: {netip.AddrPortFrom(first, port), netip.AddrPortFrom(second, port)}}, nil)
	}
	b.publish(1)
	root := newStore().rootMessage() // a differing one, so that B has something to reply
	eventually(t, "packets pass both ways", []*testNode{a, b}, func(mesh.View) bool {
		setPaths()
		a.transport.send(b.self, kindSync, root)
		a.transport.mu.Lock()
		defer a.transport.mu.Unlock()
		n := a.transport.addresses.nodes[b.self]
		return n != nil && n.fresh(a.now()) && n.silent.IsZero()
	})
	eventually(t, "the record gets through", []*testNode{a}, func(v mesh.View) bool {
		setPaths()
		a.transport.send(b.self, kindSync, root)
		return sequenceOf(v, b.self) == 1
	})
}

// One node can't send to another at all, but receives from it: the other nodes confirm
// that both are alive, and no object is missed.
func TestOneWayCutBetweenTwo(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 4)
	nodes[1].block(nodes[2])
	for sequence := uint64(2); sequence < 6; sequence++ {
		for _, n := range nodes {
			n.publish(sequence)
		}
		eventually(t, "updates get through", nodes, func(v mesh.View) bool {
			return len(v.Alive) == 4 && !slices.ContainsFunc(nodes, func(n *testNode) bool { return sequenceOf(v, n.self) != sequence })
		})
	}
}

// A firewall passes streams to the gossip port, but no packets. Gossip is slower, but
// complete.
func TestConvergesWithoutPackets(t *testing.T) {
	t.Parallel()
	streams := func(o *Options) {
		o.filter = func(network string, _ netip.AddrPort) bool { return network == "tcp" }
	}
	nodes := []*testNode{startNode(t, 0, streams)}
	for n := 1; n < 4; n++ {
		nodes = append(nodes, startNode(t, n, all(streams, joining(nodes[0]))))
	}
	for _, n := range nodes {
		n.publish(1)
	}
	eventually(t, "all see all", nodes, func(v mesh.View) bool { return len(v.Alive) == 4 && len(v.Records) == 4 })
	for sequence := uint64(2); sequence < 4; sequence++ {
		for _, n := range nodes {
			n.publish(sequence)
		}
		eventually(t, "updates get through", nodes, func(v mesh.View) bool {
			return len(v.Alive) == 4 && !slices.ContainsFunc(slices.Collect(maps.Values(sequences(v))), func(s uint64) bool { return s != sequence })
		})
	}
}

func sequences(v mesh.View) map[mesh.ID]uint64 {
	all := make(map[mesh.ID]uint64)
	for _, r := range v.Records {
		all[r.ID()] = r.Sequence
	}
	return all
}
