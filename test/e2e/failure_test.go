// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/meshd/meshd/test/lab"
)

func TestKilledNodeReturns(t *testing.T) {
	onUnderlays(t, func(t *testing.T, u lab.Underlay) {
		m := settledMesh(t, u, 3)
		before := addresses(t, m.settle(settleLimit, m.nodes...))
		victim, others := m.nodes[1], []*lab.Node{m.nodes[0], m.nodes[2]}

		m.must(victim.Kill())
		m.await(settleLimit, "aware of one dead peer", lab.Sees(1), others...)
		m.connected(pingLimit, others...)

		m.start(victim)
		after := addresses(t, m.settle(settleLimit, m.nodes...))
		m.connected(pingLimit, m.nodes...)
		if diff := cmp.Diff(before, after); diff != "" {
			t.Errorf("addresses moved over a kill (-before +after):\n%s", diff)
		}
	})
}

// splitTime is how long the network is split.
const splitTime = 60 * time.Second

// heals waits until the nodes are one mesh again after the split, and logs how long
// that took. Their addresses must not have changed.
func (m *testbed) heals(before []string) {
	m.t.Helper()
	returned := time.Now()
	after := addresses(m.t, m.settle(settleLimit, m.nodes...))
	m.connected(pingLimit, m.nodes...)
	m.t.Logf("whole again after %v", time.Since(returned).Round(100*time.Millisecond))
	if diff := cmp.Diff(before, after); diff != "" {
		m.t.Errorf("addresses moved (-before +after):\n%s", diff)
	}
}

func TestSplitIntoHalvesHeals(t *testing.T) {
	onUnderlays(t, func(t *testing.T, u lab.Underlay) {
		m := settledMesh(t, u, 4)
		before := addresses(t, m.settle(settleLimit, m.nodes...))
		left, right := m.nodes[:2], m.nodes[2:]
		var pods []*lab.Pod
		for _, n := range m.nodes {
			pods = append(pods, m.pod(n, "pod-"+n.Name))
		}
		m.podsConnected(pods...)

		m.must(m.lab.Partition(m.ctx, hosts(left), hosts(right)))
		end := time.After(splitTime)
		for _, half := range [][]*lab.Node{left, right} {
			m.await(splitTime, "aware of its own half only", lab.Sees(1), half...)
			m.connected(splitTime, half...)
		}
		<-end // the length of the split is the condition here
		m.connected(pingLimit, left...)
		m.connected(pingLimit, right...)
		m.podsConnected(pods[:2]...)
		m.podsConnected(pods[2:]...)

		m.must(m.lab.Heal(m.ctx))
		m.heals(before)
		m.podsConnected(pods...)
	})
}

// podsConnected pings every pod from every other.
func (m *testbed) podsConnected(pods ...*lab.Pod) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.ctx, pingLimit)
	defer cancel()
	m.must(lab.AwaitEachOther(ctx, pods, func(p *lab.Pod) []netip.Addr { return p.Addresses }))
}

func hosts(nodes []*lab.Node) []*lab.Host {
	var all []*lab.Host
	for _, n := range nodes {
		all = append(all, n.Host)
	}
	return all
}
