// SPDX-License-Identifier: Apache-2.0

//go:build !kernel

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/test/lab"
)

// refused runs a command that the daemon must refuse, and returns the error message.
func (m *testbed) refused(n *lab.Node, args ...string) string {
	m.t.Helper()
	_, err := n.Meshd(m.ctx, args...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 4 {
		m.t.Fatalf("meshd %s on %s: got %v, want exit code 4", strings.Join(args, " "), n.Name, err)
	}
	return err.Error()
}

// copyState copies one node's state directory to another, as an image of its disk
// would.
func (m *testbed) copyState(from, to *lab.Node) {
	m.t.Helper()
	source := from.Path(lab.StateDir)
	m.must(filepath.WalkDir(source, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return to.WriteFile(filepath.Join(lab.StateDir, strings.TrimPrefix(path, source)), string(data), 0o600)
	}))
}

// TestRevoke revokes a running node, and lets its host join again with another identity.
func TestRevoke(t *testing.T) {
	t.Parallel()
	m := settledMesh(t, lab.NAT, 3)
	victim, rest := m.nodes[2], m.nodes[:2]
	old := m.status(victim).Node
	if text := m.refused(rest[0], "revoke", "--yes", rest[0].Name); !strings.Contains(text, "this node") {
		t.Errorf("revoking itself: got %q, want that it is this node", text)
	}
	if text := m.refused(rest[0], "revoke", "--yes", "nobody"); !strings.Contains(text, "no node is named nobody") {
		t.Errorf("revoking nobody: got %q, want that there is none", text)
	}

	var revoked control.Revoked
	m.must(json.Unmarshal([]byte(m.run(rest[0], binary, "revoke", "--yes", victim.Name, "-o", "json")), &revoked))
	if want := (control.Revoked{ID: old.ID, Name: victim.Name}); revoked != want {
		t.Errorf("revoked: got %+v, want %+v", revoked, want)
	}
	m.await(settleLimit, "rid of the revoked node", knows(1), rest...)
	m.await(settleLimit, "aware of its revocation", shows(gossip.ProblemRevoked, "new identity"), victim)
	m.connected(pingLimit, rest...)

	m.must(victim.Stop())
	m.must(victim.Start())
	m.await(settleLimit, "aware of it after a restart", shows(gossip.ProblemRevoked), victim)
	m.await(settleLimit, "rid of it still", knows(1), rest...)

	m.must(victim.Stop())
	m.run(victim, "rm", "-r", lab.StateDir)
	m.start(victim)
	m.settle(settleLimit, m.nodes...)
	m.connected(pingLimit, m.nodes...)
	if s := m.status(victim); s.Node.ID == old.ID {
		t.Errorf("identity of %s: got %v again", victim.Name, old.ID)
	}
}

// TestRevokeUnseen revokes an identity by its fingerprint before it is ever seen, for
// example that of a stolen backup.
func TestRevokeUnseen(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 3)
	rest, stolen := m.nodes[:2], m.nodes[2]
	m.must(stolen.Configure(lab.Config(stolen.Name, nil), m.secret))
	m.start(stolen)
	id := m.await(settleLimit, "ready alone", lab.Ready, stolen)[0].Node.ID
	m.must(stolen.Stop())

	m.start(rest...)
	m.settle(settleLimit, rest...)
	m.run(rest[1], binary, "revoke", "--yes", id.String())
	m.must(stolen.Configure(lab.Config(stolen.Name, []string{rest[0].Public().String()}), m.secret))
	m.start(stolen)
	m.await(settleLimit, "aware of its revocation", shows(gossip.ProblemRevoked), stolen)
	m.await(settleLimit, "without it", knows(1), rest...)
}

// TestTrustList starts a node that has the secret but is not on the list.
func TestTrustList(t *testing.T) {
	t.Parallel()
	m := settledMesh(t, lab.NAT, 3)
	members, stranger := m.nodes[:2], m.nodes[2]
	list := fmt.Sprintf("cluster: {trust: list, trusted: [%v, %v]}", m.status(members[0]).Node.ID, m.status(members[1]).Node.ID)
	id := m.status(stranger).Node.ID
	for i, n := range members {
		var join []string
		if i > 0 {
			join = append(join, members[0].Public().String())
		}
		m.must(n.Configure(lab.Config(n.Name, join, list), m.secret))
		m.must(n.Reload())
	}
	m.await(settleLimit, "without the stranger, and aware of it", all(knows(1), shows(gossip.ProblemUntrusted, id.String())), members...)
	m.connected(pingLimit, members...)

	// Add it to the list.
	list = strings.Replace(list, "]", ", "+id.String()+"]", 1)
	for i, n := range members {
		var join []string
		if i > 0 {
			join = append(join, members[0].Public().String())
		}
		m.must(n.Configure(lab.Config(n.Name, join, list), m.secret))
		m.must(n.Reload())
	}
	m.settle(settleLimit, m.nodes...)
	m.connected(pingLimit, m.nodes...)
}

// TestClonedImage starts a host from another one's disk. It has another
// machine-id, as all hosts of a lab have, so it is another node.
func TestClonedImage(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 3)
	early, clone := m.nodes[:2], m.nodes[2]
	m.start(early...)
	m.settle(settleLimit, early...)
	m.copyState(early[1], clone)
	m.start(clone)
	addresses(t, m.settle(settleLimit, m.nodes...))
	m.connected(pingLimit, m.nodes...)
	if a, b := m.status(early[1]).Node.ID, m.status(clone).Node.ID; a == b {
		t.Errorf("identities of the original and the clone: both are %v", a)
	}
}

// TestDuplicate starts a host from a copy of another one's disk, including machine-id:
// the daemon that started later stops.
func TestDuplicate(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 3)
	early, duplicate := m.nodes[:2], m.nodes[2]
	m.start(early...)
	before := m.settle(settleLimit, early...)
	m.copyState(early[1], duplicate)
	m.must(duplicate.WriteFile("/etc/machine-id", m.run(early[1], "cat", "/etc/machine-id"), 0o444))
	m.must(duplicate.Configure(lab.Config(early[1].Name, []string{early[0].Public().String()}), m.secret))
	for _, start := range []string{"first", "second"} { // it does not come back and forth
		m.start(duplicate)
		select {
		case <-duplicate.Exited():
		case <-m.ctx.Done():
			t.Fatalf("%s start: the duplicate that started later runs on", start)
		}
		err := duplicate.Stop()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 5 {
			t.Errorf("%s start: the duplicate ended with %v, want exit code 5", start, err)
		}
		if up := m.run(duplicate, "ip", "-o", "link", "show", "up"); strings.Contains(up, "meshd0") {
			t.Errorf("%s start: the duplicate's device is still up:\n%s", start, up)
		}
	}
	if log := duplicate.Log(); !strings.Contains(log, "runs on another host, too") || !strings.Contains(log, "identity.json") {
		t.Errorf("log of the duplicate: got %s, want what is wrong and what to do", log)
	}
	after := m.settle(settleLimit, early...)
	m.connected(pingLimit, early...)
	for i, n := range early {
		if n.PID() == 0 || before[i].Node.ID != after[i].Node.ID || before[i].Node.Slot != after[i].Node.Slot {
			t.Errorf("%s: got %+v, want it to go on as %+v", n.Name, after[i].Node, before[i].Node)
		}
	}
}

// TestReinstalledHost starts a new identity under an old name. The old identity keeps its
// claim until a person forgets it.
func TestReinstalledHost(t *testing.T) {
	t.Parallel()
	m := settledMesh(t, lab.NAT, 3)
	host, rest := m.nodes[2], m.nodes[:2]
	old := m.status(host).Node.ID
	m.must(host.Kill())
	m.run(host, "rm", "-r", lab.StateDir)
	m.start(host)
	advice := "meshd forget " + old.String()
	m.await(settleLimit, "aware of two nodes of one name", shows(mesh.ProblemName, old.String()+" has the stronger claim", advice), m.nodes...)
	m.await(settleLimit, "sure that the old identity is dead", all(knows(3), lab.Sees(2)), m.nodes...)

	m.run(rest[0], binary, strings.Fields(advice)[1:]...)
	m.await(settleLimit, "rid of the old identity", all(lacks(mesh.ProblemName), knows(2), lab.Sees(2)), m.nodes...)
	m.connected(pingLimit, m.nodes...)
}

// TestReplacedHost plays the runbook "A dead host is replaced" of docs/operations.md: another
// host, with another address and an empty disk, takes the name and the addresses of a dead
// one, which comes back later all the same.
func TestReplacedHost(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 4)
	dead, replacement, rest := m.nodes[2], m.nodes[3], m.nodes[:2]
	m.start(append(rest, dead)...)
	before := m.settle(settleLimit, append(rest, dead)...)[2].Node
	m.must(dead.Kill())
	m.await(settleLimit, "aware of the dead host", lab.Sees(1), rest...)

	m.run(rest[0], binary, "forget", dead.Name)
	podCIDR := fmt.Sprintf("  pod-cidr: [%v]", before.PodCIDRs[0])
	m.must(replacement.Configure(lab.Config(dead.Name, []string{rest[0].Public().String()}, podCIDR), m.secret))
	m.start(replacement)
	m.run(replacement, binary, "status", "--wait")
	m.await(settleLimit, "whole, without a conflict", all(lab.Sees(2), knows(2), lacks(mesh.ProblemName), lacks(mesh.ProblemSlot)), append(rest, replacement)...)
	after := m.status(replacement).Node
	if after.Name != before.Name || after.Slot != before.Slot || after.ID == before.ID {
		t.Errorf("the replacement: got %+v, want another identity with name and slot of %+v", after, before)
	}
	m.connected(pingLimit, append(rest, replacement)...)

	// The dead host comes back. Name and addresses stay with the replacement.
	m.must(dead.Start())
	m.await(settleLimit, "told of the old identity", shows(mesh.ProblemName, before.ID.String()), append(rest, replacement)...)
	m.run(rest[0], binary, "revoke", "--yes", before.ID.String())
	m.await(settleLimit, "rid of the old identity", all(lab.Sees(2), knows(2), lacks(mesh.ProblemName)), append(rest, replacement)...)
	m.connected(pingLimit, append(rest, replacement)...)
	if got := m.status(replacement).Node.Slot; got != before.Slot {
		t.Errorf("slot of the replacement: got %d, want %d", got, before.Slot)
	}
}

// lacks negates shows.
func lacks(kind mesh.ProblemKind) func(control.Status) bool { return not(shows(kind)) }

// knows returns a condition for await: this number of other nodes is known, alive or not.
func knows(peers int) func(control.Status) bool {
	return func(s control.Status) bool { return len(s.Peers) == peers }
}
