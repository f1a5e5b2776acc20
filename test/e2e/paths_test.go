// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/node"
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

// TestBlockedPathIsTold drops all packets of WireGuard between two nodes that a third one reaches. They
// talk through it, and say what to mend; without a relay they say that nothing passes. Once packets
// pass directly again, that is gone.
func TestBlockedPathIsTold(t *testing.T) {
	t.Parallel()
	for relay, kind := range map[string]mesh.ProblemKind{"auto": node.ProblemDetour, "never": node.ProblemNoPath} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			m := newMesh(t, lab.Routed, 3)
			a, b, c := m.nodes[0], m.nodes[1], m.nodes[2]
			m.must(c.Configure(lab.Config(c.Name, []string{a.Public().String()}, "  relay: "+relay), m.secret))
			m.start(m.nodes...)
			m.settle(settleLimit, m.nodes...)
			m.connected(settleLimit, m.nodes...)
			wireguard := lab.Packets{Protocol: "udp", Port: 51820}
			m.must(m.lab.Block(m.ctx, []*lab.Host{a.Host}, []*lab.Host{b.Host}, wireguard))
			m.must(m.lab.Block(m.ctx, []*lab.Host{b.Host}, []*lab.Host{a.Host}, wireguard))
			// Without traffic a path that is cut is noticed late.
			passes := func(ok func(control.Status) bool) func() error {
				return func() error {
					for _, pair := range [][2]*lab.Node{{a, b}, {b, a}} {
						_, _ = pair[0].Run(m.ctx, "ping", "-c", "1", "-W", "1", m.status(pair[1]).Node.Overlay[0].String())
						if s := m.status(pair[0]); !ok(s) {
							return fmt.Errorf("%s: got problems %+v, peers %+v", pair[0].Name, s.Problems, s.Peers)
						}
					}
					return nil
				}
			}
			m.eventually(settleLimit, passes(shows(kind, "51820")))
			if kind == node.ProblemDetour {
				m.connected(settleLimit, m.nodes...)
				m.await(settleLimit, "aware of the relay", shows(kind, "through "+c.Name+" meanwhile"), a, b)
			}
			m.must(m.lab.Heal(m.ctx))
			m.eventually(settleLimit, passes(func(s control.Status) bool { return len(s.Problems) == 0 }))
		})
	}
}

// TestIdlePathsAreQuiet has nodes that exchange nothing but gossip, which goes through the tunnels of those
// behind routers. It keeps no path busy: with traffic each of these nodes sends probes to three others once a
// second.
func TestIdlePathsAreQuiet(t *testing.T) {
	t.Parallel()
	m := newUplinks(t, publicUplink, preservingUplink, preservingUplink, dependentUplink)
	for _, n := range m.nodes {
		m.must(lab.CountProbes(m.ctx, n.Host))
	}
	const window, most = 15 * time.Second, 1500 // bytes
	m.eventually(settleLimit, func() error {
		var errs []error
		before := make([]int, len(m.nodes))
		for i, n := range m.nodes {
			sent, _, err := lab.Probes(m.ctx, n.Host)
			m.must(err)
			before[i] = sent
		}
		time.Sleep(window)
		for i, n := range m.nodes {
			sent, _, err := lab.Probes(m.ctx, n.Host)
			m.must(err)
			if sent -= before[i]; sent > most {
				errs = append(errs, fmt.Errorf("%s sent probes of %d bytes within %v, want %d at most", n.Name, sent, window, most))
			}
		}
		return errors.Join(errs...)
	})
}
