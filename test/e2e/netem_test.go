// SPDX-License-Identifier: Apache-2.0

//go:build kernel

package e2e

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/test/lab"
)

// The tests in this file need a kernel with netem and WireGuard; they are built
// with the tag kernel, for the virtual machine of test/kernel.

// TestKernelWireGuard checks that the tests here use the kernel's WireGuard.
func TestKernelWireGuard(t *testing.T) {
	t.Parallel()
	m := settledMesh(t, lab.NAT, 2)
	m.await(settleLimit, "on kernel WireGuard", func(s control.Status) bool {
		return s.Device.Implementation == netcfg.Kernel
	}, m.nodes...)
	m.connected(pingLimit, m.nodes...)
}

// TestBadUnderlay starts a mesh on an internet that loses, delays or reorders packets to
// every host, and kills a node there.
func TestBadUnderlay(t *testing.T) {
	t.Parallel()
	for name, netem := range map[string]string{
		"loss":       "loss 5%",
		"latency":    "delay 150ms 50ms",
		"reordering": "delay 20ms reorder 75% 50%",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMesh(t, lab.NAT, 3)
			for _, n := range m.nodes {
				m.must(n.Impair(m.ctx, netem))
			}
			m.start(m.nodes...)
			before := addresses(t, m.settle(settleLimit, m.nodes...))
			m.connected(pingLimit, m.nodes...)
			m.transfers(256<<10, m.nodes[:2]...)

			victim, others := m.nodes[2], m.nodes[:2]
			m.must(victim.Kill())
			m.await(settleLimit, "aware of one dead peer", lab.Sees(1), others...)
			m.start(victim)
			after := addresses(t, m.settle(settleLimit, m.nodes...))
			m.connected(pingLimit, m.nodes...)
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf("addresses moved (-before +after):\n%s", diff)
			}
		})
	}
}
