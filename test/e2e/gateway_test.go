// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"testing"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/test/lab"
)

// TestGatewayThatNeverWorked has a location's first node, which becomes its gateway, carry nothing
// from the beginning. Another one does then.
func TestGatewayThatNeverWorked(t *testing.T) { // not parallel: slow answers count as none
	for _, tt := range []struct {
		name  string
		spoil func(v *village, first *lab.Node) (lines []string)
	}{
		{"it does not forward", func(v *village, first *lab.Node) []string {
			v.must(first.StopForwarding(v.ctx))
			return nil
		}},
		{"its only endpoint is private, and strangers do not reach it", func(v *village, first *lab.Node) []string {
			v.run(first, "nft", "table inet lab-no-strangers { chain input { type filter hook input priority -20; "+
				"ip saddr != "+first.Prefix().String()+" udp dport 51820 ct state new drop; }; }")
			return []string{"  endpoint: " + first.Address().String()}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := newVillage(t, func(m *testbed) []*lab.Host {
				far, err := m.lab.Host(m.ctx, "far", lab.NAT)
				m.must(err)
				return append(m.site("a", lab.SiteOptions{Underlay: lab.NAT}, "a1", "a2", "a3"), far)
			})
			first, far := v.node("a1"), v.node("far")
			settings := cluster(1, mesh.ModeLocation)
			for _, n := range v.nodes {
				v.configure(n, settings...)
			}
			v.configure(first, append(tt.spoil(v, first), settings...)...)
			v.start(first)
			v.settle(settleLimit, first)
			v.start(v.without(first)...)
			v.makePods()
			v.full(v.without(first)...)
			if got := v.gateway(far, "a"); got == first {
				t.Errorf("gateway of a: got %s, want another one", got.Name)
			}
			v.encrypted()
		})
	}
}
