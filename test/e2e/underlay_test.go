// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/meshd/meshd/test/lab"
)

// transferSize is many times what any queue or window holds.
const transferSize = 1 << 20

// transferLimit is for all transfers of a test, on a slow machine.
const transferLimit = 2 * time.Minute

// transfers makes a pod on each of the nodes, and sends size bytes both ways
// between each two nodes and each two pods, to every address of each.
func (m *testbed) transfers(size int, nodes ...*lab.Node) []*lab.Pod {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.ctx, transferLimit)
	defer cancel()
	all := m.await(settleLimit, "ready", lab.Ready, nodes...)
	var pods []*lab.Pod
	for _, n := range nodes {
		pods = append(pods, m.pod(n, "pod-"+n.Name))
	}
	for i, from := range pods {
		for j, to := range pods {
			if i == j {
				continue
			}
			m.reaches(from, to)
			for _, a := range to.Addresses {
				m.must(lab.Transfer(ctx, from.Do, lab.Party{At: to.Do, Addr: a}, size))
			}
			for _, a := range all[j].Node.Overlay {
				m.must(lab.Transfer(ctx, nodes[i].Do, lab.Party{At: nodes[j].Do, Addr: a}, size))
			}
		}
	}
	return pods
}

// TestUnderlayMTU has packets vanish that are too big for a link, without a word
// to who sent them. Jumbo frames of 9001 bytes are what a cloud has.
func TestUnderlayMTU(t *testing.T) {
	t.Parallel()
	for name, mtus := range map[string][]int{
		"1280":  {1280, 1280},
		"1500":  {1500, 1500},
		"9001":  {9001, 9001},
		"mixed": {1280, 1500, 9001},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMesh(t, lab.NAT, len(mtus))
			m.must(m.lab.BlockPathMTU(m.ctx))
			for i, n := range m.nodes {
				m.must(n.SetMTU(m.ctx, mtus[i]))
			}
			m.start(m.nodes...)
			for i, s := range m.settle(settleLimit, m.nodes...) {
				// Larger frames are for inside a cloud, not for the internet.
				if got, want := s.Device.MTU, min(mtus[i], lab.UnderlayMTU)-wireguardOverhead; got != want {
					t.Errorf("MTU of %s: got %d, want %d", s.Device.Name, got, want)
				}
			}
			m.connected(pingLimit, m.nodes...)
			m.transfers(transferSize, m.nodes...)
		})
	}
}

func TestIPv6OnlyUnderlay(t *testing.T) {
	t.Parallel()
	m := settledMesh(t, lab.Routed6, 3)
	m.connected(pingLimit, m.nodes...)
	m.transfers(transferSize, m.nodes...)
}

func TestDualStackPods(t *testing.T) {
	onUnderlays(t, func(t *testing.T, u lab.Underlay) {
		m := newMesh(t, u, 2)
		for i, n := range m.nodes {
			var join []string
			if i > 0 {
				join = append(join, m.nodes[0].Public().String())
			}
			m.must(n.Configure(lab.Config(n.Name, join,
				"cluster:",
				"  overlay: [10.4.0.0/16, fd00:4::/112]",
				"  pods: [10.42.0.0/16, fd00:42::/48]",
				"  services: [10.43.0.0/16, fd00:43::/112]"), m.secret))
		}
		m.start(m.nodes...)
		m.settle(settleLimit, m.nodes...)
		m.connected(pingLimit, m.nodes...)
		for _, p := range m.transfers(transferSize, m.nodes...) {
			if len(p.Addresses) != 2 || !p.Addresses[0].Is4() || !p.Addresses[1].Is6() {
				t.Errorf("addresses of a pod: got %v, want one of each family", p.Addresses)
			}
		}
	})
}
