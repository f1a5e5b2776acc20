// SPDX-License-Identifier: Apache-2.0

//go:build !kernel

package e2e

import (
	"strings"
	"testing"

	"github.com/meshd/meshd/test/lab"
)

// TestInitAndJoin makes a mesh with three commands: what they write is what the daemons run with. Mistakes
// are found before anything is written.
func TestInitAndJoin(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 3)
	first, second, third := m.nodes[0], m.nodes[1], m.nodes[2]
	for _, n := range m.nodes {
		m.run(n, "rm", lab.ConfigPath, lab.SecretPath)
	}
	empty := func(n *lab.Node) {
		t.Helper()
		if out, err := n.Run(m.ctx, "sh", "-c", "ls /etc/meshd.yaml /etc/meshd/secret"); err == nil {
			t.Errorf("%s has %q, want nothing written", n.Name, out)
		}
	}
	fails := func(n *lab.Node, want string, args ...string) {
		t.Helper()
		if out, err := n.Meshd(m.ctx, args...); err == nil || !strings.Contains(err.Error()+out, want) {
			t.Errorf("meshd %s: got %q, %v, want %q", strings.Join(args, " "), out, err, want)
		}
	}

	fails(first, "node.location", "init", "--no-start", "--location", "not a name")
	fails(first, "cluster.modus: unknown key", "init", "--no-start", "--set", "cluster.modus=full")
	fails(first, "overlaps", "init", "--no-start", "--set", "cluster.pods=192.168.0.0/16")
	empty(first)
	m.run(first, binary, "init", "--no-start", "--name", first.Name, "--set", "cluster.pods=10.52.0.0/16")
	fails(first, "is set up already", "init", "--no-start")
	m.must(first.Start())
	m.await(settleLimit, "ready", lab.Ready, first)
	token := strings.TrimSpace(m.run(first, binary, "token", "--address", first.Public().String()))

	fails(second, "is not complete", "join", "--no-start", token[:len(token)-1])
	fails(second, "the name "+first.Name+" is that of node", "join", "--no-start", "--name", first.Name, token)
	empty(second)
	m.run(second, binary, "join", "--no-start", "--name", second.Name, token)
	m.must(second.Start())
	m.run(third, "sh", "-c", "umask 077; echo '"+token+"' >/etc/token")
	m.run(third, "sh", "-c", binary+" join --no-start --name "+third.Name+" - </etc/token")
	fails(third, "is set up already", "join", "--no-start", "/etc/token")
	m.must(third.Start())
	m.await(settleLimit, "ready", lab.Ready, m.nodes...)
	m.await(settleLimit, "aware of the others", lab.Sees(2), m.nodes...)
	m.connected(pingLimit, m.nodes...)
	if got := m.run(third, "stat", "-c", "%a", "/etc/meshd/secret", "/etc/meshd.yaml"); got != "600\n644\n" {
		t.Errorf("modes of the files: got %q", got)
	}
	s, err := third.Status(m.ctx)
	m.must(err)
	if len(s.Node.PodCIDRs) != 1 || !strings.HasPrefix(s.Node.PodCIDRs[0].String(), "10.52.") {
		t.Errorf("pod CIDRs of %s: got %v, want one of the token's range", third.Name, s.Node.PodCIDRs)
	}

	// Without a node that answers nothing is written either.
	m.must(third.Stop())
	m.run(third, "rm", "-r", lab.ConfigPath, lab.SecretPath, lab.StateDir)
	m.must(first.Stop())
	fails(third, "no node of the mesh has answered", "join", "--no-start", "--name", "other", "/etc/token")
	empty(third)
}
