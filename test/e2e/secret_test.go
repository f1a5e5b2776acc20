// SPDX-License-Identifier: Apache-2.0

//go:build !kernel

package e2e

import (
	"slices"
	"strings"
	"testing"

	"github.com/meshd/meshd/internal/control"
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

// TestRotateSecret exchanges the secret of a mesh that runs by one command. It stops where a node is missing, and goes
// on when that is back.
func TestRotateSecret(t *testing.T) {
	t.Parallel()
	m := settledMesh(t, lab.NAT, 3)
	a, b, c := m.nodes[0], m.nodes[1], m.nodes[2]
	implementation := m.settle(settleLimit, m.nodes...)[0].Device.Implementation
	talk := m.converse(m.pod(a, "near"), m.pod(b, "far"))
	first := m.secret
	var pids []int
	for _, n := range m.nodes {
		pids = append(pids, n.PID())
	}
	lost := m.never("one less alive", not(lab.Sees(2)), m.nodes...)
	suspicious := m.never("a problem of the secret", shows(gossip.ProblemSecret), m.nodes...)
	out := m.run(b, binary, "secret", "rotate", "--yes")
	for _, want := range []string{"accept: all nodes (3)", "use: all nodes (3)", "drop: all nodes (3)", "meshd revoke"} {
		if !strings.Contains(out, want) {
			t.Errorf("got %q, want %q in it", out, want)
		}
	}
	talk.goesOn(t)
	second := m.sameSecret()
	if second == first || strings.Contains(second, strings.TrimSpace(first)) {
		t.Error("the old secret is still in the files")
	}
	lost()
	suspicious()
	for i, n := range m.nodes {
		if n.PID() != pids[i] {
			t.Errorf("%s was restarted", n.Name)
		}
	}

	m.must(c.Stop())
	m.await(settleLimit, "aware that one is gone", lab.Sees(1), a, b)
	if text := m.refused(b, "secret", "rotate", "--yes"); !strings.Contains(text, c.Name+" is not alive") {
		t.Errorf("with %s stopped: got %q, want its name", c.Name, text)
	}
	if got := m.sameSecret(); got != second {
		t.Error("a rotation that was refused has changed a secret")
	}
	m.start(c)
	m.settle(settleLimit, m.nodes...)
	m.run(a, binary, "secret", "rotate", "--yes")
	third := m.sameSecret()
	if third == second {
		t.Error("the second rotation has changed nothing")
	}
	talk.goesOn(t)
	talk.end(implementation)
	m.await(settleLimit, "naming one secret for all", func(s control.Status) bool {
		return len(s.Node.Secrets) == 1 && !slices.ContainsFunc(s.Peers, func(p control.Peer) bool { return !slices.Equal(p.Secrets, s.Node.Secrets) })
	}, m.nodes...)

	// A node that has only the first secret is refused now.
	m.must(c.Stop())
	m.must(c.Configure(lab.Config(c.Name, []string{a.Public().String()}), first))
	m.start(c)
	m.await(settleLimit, "aware that its secret is another", wrongSecret, c)
	m.await(settleLimit, "alone", lab.Sees(1), a, b)
}

// sameSecret returns the content of the secret file, which is the same on all nodes and has one secret.
func (m *testbed) sameSecret() string {
	m.t.Helper()
	secret := ""
	for i, n := range m.nodes {
		if mode := strings.TrimSpace(m.run(n, "stat", "-c", "%a", lab.SecretPath)); mode != "600" {
			m.t.Errorf("%s: the secret's mode is %s, want 600", n.Name, mode)
		}
		got := m.run(n, "cat", lab.SecretPath)
		if i > 0 && got != secret || len(strings.Fields(got)) != 1 {
			m.t.Errorf("%s: its secrets are not one and the same as on %s", n.Name, m.nodes[0].Name)
		}
		secret = got
	}
	return secret
}
