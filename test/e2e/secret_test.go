// SPDX-License-Identifier: Apache-2.0

//go:build !kernel

package e2e

import (
	"testing"

	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/test/lab"
)

// TestSecretRolled exchanges the secret of a mesh that runs, in three rounds: the
// new one is accepted everywhere, then used everywhere, then alone.
func TestSecretRolled(t *testing.T) {
	t.Parallel()
	m := settledMesh(t, lab.NAT, 3)
	a, b := m.nodes[0], m.nodes[1]
	implementation := m.settle(settleLimit, m.nodes...)[0].Device.Implementation
	talk := m.converse(m.pod(a, "near"), m.pod(b, "far"))
	old := m.secret
	next, err := b.NewSecret(m.ctx)
	m.must(err)
	lost := m.never("one less alive", not(lab.Sees(2)), m.nodes...)
	suspicious := m.never("a problem of the secret", shows(gossip.ProblemSecret), m.nodes...)
	for _, round := range []struct{ name, secrets string }{
		{"accepted", old + next},
		{"used", next + old},
		{"alone", next},
	} {
		t.Run(round.name, func(t *testing.T) {
			m := m.in(t)
			m.secret = round.secrets
			for _, n := range m.nodes {
				m.rewrite(n)
				talk.goesOn(t)
				m.settle(settleLimit, m.nodes...)
			}
		})
	}
	lost()
	suspicious()
	talk.end(implementation)

	// A node that has only the old secret is refused now.
	m.secret = old
	m.must(m.nodes[2].Stop())
	m.must(m.nodes[2].Configure(lab.Config(m.nodes[2].Name, []string{a.Public().String()}), old))
	m.start(m.nodes[2])
	m.await(settleLimit, "aware that its secret is another", wrongSecret, m.nodes[2])
	m.await(settleLimit, "alone", lab.Sees(1), a, b)
}
