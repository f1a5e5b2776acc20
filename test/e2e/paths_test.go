// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"testing"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/test/lab"
)

// deaf drops what arrives at WireGuard's port.
const deaf = "table inet deaf { chain in { type filter hook input priority -300; udp dport 51820 drop; }; }"

// TestPaths: nodes prove by probes where they reach each other, over every underlay, and again
// after a restart. They say so when a peer no longer answers, and when it does again.
func TestPaths(t *testing.T) {
	onUnderlays(t, func(t *testing.T, u lab.Underlay) {
		m := settledMesh(t, u, 2)
		a, b := m.nodes[0], m.nodes[1]
		proved := func(want bool) func(control.Status) bool {
			return func(s control.Status) bool {
				if len(s.Peers) == 0 {
					return false
				}
				p := s.Peers[0].Path
				return p.Proved == want && p.Kind == control.PathDirect && p.Addr == s.Peers[0].Endpoint && (p.RTT > 0 || !want)
			}
		}
		m.await(settleLimit, "paths are proved", proved(true), a, b)
		m.must(a.Kill())
		m.start(a)
		m.await(settleLimit, "paths are proved after a restart", proved(true), a, b)
		m.connected(settleLimit, a, b) // with a session, there is traffic that nobody answers
		m.run(a, "nft", deaf)
		m.eventually(settleLimit, func() error {
			// Without traffic, only one of the two probes the other, and that seldom.
			_, _ = a.Run(m.ctx, "ping", "-c", "1", "-W", "1", m.status(b).Node.Overlay[0].String())
			if s := m.status(a); !proved(false)(s) {
				return fmt.Errorf("the path to a peer that does not answer: got %+v, want one that is not proved", s.Peers[0].Path)
			}
			return nil
		})
		m.run(a, "nft", "delete table inet deaf")
		m.await(settleLimit, "paths are proved again", proved(true), a, b)
	})
}
