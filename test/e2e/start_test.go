// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/test/lab"
)

func TestStartThroughOneSeed(t *testing.T) {
	onUnderlays(t, func(t *testing.T, u lab.Underlay) {
		m := settledMesh(t, u, 4)
		m.connected(pingLimit, m.nodes...)
		addresses(t, m.settle(settleLimit, m.nodes...))
	})
}

func TestSimultaneousStart(t *testing.T) {
	for name, config := range map[string]func(m *testbed, n *lab.Node) string{
		"every node names every other": func(m *testbed, n *lab.Node) string {
			var others []string
			for _, o := range m.nodes {
				if o != n {
					others = append(others, o.Public().String())
				}
			}
			return lab.Config(n.Name, others)
		},
		"one file for all names the first": func(m *testbed, _ *lab.Node) string {
			return lab.Config("", []string{m.nodes[0].Public().String()})
		},
	} {
		t.Run(name, func(t *testing.T) {
			onUnderlays(t, func(t *testing.T, u lab.Underlay) {
				m := newMesh(t, u, 4)
				for _, n := range m.nodes {
					m.must(n.Configure(config(m, n), m.secret))
				}
				m.start(m.nodes...)
				all := m.settle(settleLimit, m.nodes...)
				m.connected(pingLimit, m.nodes...)
				addresses(t, all)
				for i, s := range all {
					if got, want := s.Node.Name, m.nodes[i].Name; got != want {
						t.Errorf("node name: got %q, want the host name %q", got, want)
					}
				}
			})
		})
	}
}

func TestLateJoiner(t *testing.T) {
	onUnderlays(t, func(t *testing.T, u lab.Underlay) {
		m := newMesh(t, u, 4)
		early := m.nodes[:3]
		m.start(early...)
		before := addresses(t, m.settle(settleLimit, early...))
		m.connected(pingLimit, early...)

		m.start(m.nodes[3])
		after := addresses(t, m.settle(settleLimit, m.nodes...))
		m.connected(pingLimit, m.nodes...)
		if diff := cmp.Diff(before, after[:len(before)]); diff != "" {
			t.Errorf("addresses moved when a node joined (-before +after):\n%s", diff)
		}
	})
}

func TestWrongSecretLearnsNothing(t *testing.T) {
	onUnderlays(t, func(t *testing.T, u lab.Underlay) {
		m := newMesh(t, u, 3)
		members, stranger := m.nodes[:2], m.nodes[2]
		other, err := stranger.NewSecret(m.ctx)
		m.must(err)
		m.must(stranger.Configure(lab.Config(stranger.Name, []string{members[0].Public().String()}), other))
		m.start(m.nodes...)
		m.settle(settleLimit, members...)
		s := m.await(settleLimit, "aware that its secret is another", wrongSecret, stranger)[0]
		if len(s.Peers) > 0 {
			t.Errorf("the stranger knows peers: %+v", s.Peers)
		}
		for _, n := range members {
			s, err := n.Status(m.ctx)
			m.must(err)
			if len(s.Peers) != 1 {
				t.Errorf("peers of %s: got %+v, want the other member alone", n.Name, s.Peers)
			}
		}
	})
}

// wrongSecret reports whether a person would learn from the status that the
// secret is wrong, and what to do.
func wrongSecret(s control.Status) bool {
	return slices.ContainsFunc(s.Problems, func(p mesh.Problem) bool {
		return p.Kind == gossip.ProblemSecret && strings.Contains(p.Text, "secret") && strings.Contains(p.Advice, "same secret")
	})
}
