// SPDX-License-Identifier: Apache-2.0

package compat

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/test/lab"
)

func TestMain(m *testing.M) {
	lab.Main()
	os.Exit(m.Run())
}

// limit only distinguishes slow from never.
const limit = 10 * time.Minute

// releases are the binaries of this meshd and of the one before.
type releases struct{ current, former string }

// bothReleases builds what is not built yet. This meshd is the one in the variable MESHD, or one
// built from the tree.
func bothReleases(t *testing.T) releases {
	t.Helper()
	former, err := build("../..", strings.TrimSpace(previous))
	if err != nil {
		t.Fatal(err)
	}
	current := os.Getenv("MESHD")
	if current == "" {
		current = filepath.Join(t.TempDir(), "meshd")
		if out, err := exec.Command("go", "build", "-o", current, "../../cmd/meshd").CombinedOutput(); err != nil {
			t.Fatalf("build meshd: %v\n%s", err, out)
		}
	}
	return releases{current, former}
}

// mesh is a mesh of four nodes with a pod each.
type mesh struct {
	t     *testing.T
	ctx   context.Context
	nodes []*lab.Node
	pods  []*lab.Pod
}

// TestNeighbouringReleases has nodes of the release before and of this one in one mesh, the first
// of which is joined by nodes of both. Then one is upgraded and one taken back to the release
// before. All reach each other all along, and all keep their addresses.
func TestNeighbouringReleases(t *testing.T) {
	r := bothReleases(t)
	m := newMesh(t, r.former, r.current, r.former, r.current)
	before := m.whole()
	for i, n := range m.nodes {
		pod, err := n.Pod(m.ctx, lab.Network, fmt.Sprintf("pod%d", i))
		m.must(err)
		m.pods = append(m.pods, pod)
	}
	m.reach(before)
	m.runs(2, before)

	m.change(m.nodes[2], r.current)
	upgraded := m.whole()
	m.reach(upgraded)
	m.runs(1, upgraded)

	m.change(m.nodes[1], r.former)
	taken := m.whole()
	m.reach(taken)
	m.runs(2, taken)

	for _, after := range [][]control.Status{upgraded, taken} {
		if diff := cmp.Diff(addresses(before), addresses(after)); diff != "" {
			t.Errorf("addresses after the change of a release (-before +after):\n%s", diff)
		}
	}
}

// newMesh starts a node with each of the binaries. The first one makes the mesh.
func newMesh(t *testing.T, binaries ...string) *mesh {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	l, err := lab.New(ctx)
	if err != nil {
		t.Fatal(err)
	}
	m := &mesh{t: t, ctx: ctx}
	t.Cleanup(func() {
		if t.Failed() {
			for _, n := range m.nodes {
				t.Logf("log of %s:\n%s", n.Name, n.Log())
			}
		}
		cancel()
		if err := l.Close(); err != nil {
			t.Errorf("close lab: %v", err)
		}
	})
	var names []string
	for i := range binaries {
		names = append(names, string(rune('a'+i)))
	}
	m.nodes, err = l.Nodes(ctx, binaries[0], lab.NAT, names...)
	m.must(err)
	for i, n := range m.nodes {
		n.Upgrade(binaries[i])
		m.must(n.Start())
	}
	return m
}

func (m *mesh) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// change restarts a node as another release, with the state that it has.
func (m *mesh) change(n *lab.Node, binary string) {
	m.t.Helper()
	m.must(n.Stop())
	n.Upgrade(binary)
	m.must(n.Start())
}

// whole waits until all nodes see each other, and returns what each says.
func (m *mesh) whole() []control.Status {
	m.t.Helper()
	all := make([]control.Status, len(m.nodes))
	var g errgroup.Group
	for i, n := range m.nodes {
		g.Go(func() (err error) {
			all[i], err = n.Await(m.ctx, "seeing all others", lab.Sees(len(m.nodes)-1))
			return err
		})
	}
	m.must(g.Wait())
	return all
}

// reach waits until each node has had an answer from each other one, and each pod.
func (m *mesh) reach(all []control.Status) {
	m.t.Helper()
	overlays := make(map[*lab.Node][]netip.Addr)
	for i, n := range m.nodes {
		overlays[n] = all[i].Node.Overlay
	}
	m.must(lab.AwaitEachOther(m.ctx, m.nodes, func(n *lab.Node) []netip.Addr { return overlays[n] }))
	m.must(lab.AwaitEachOther(m.ctx, m.pods, func(p *lab.Pod) []netip.Addr { return p.Addresses }))
}

// runs checks how many of the nodes run the release before. Otherwise the test would pass with
// one release alone.
func (m *mesh) runs(want int, all []control.Status) {
	m.t.Helper()
	var got int
	for _, s := range all {
		if s.Version == version(previous) {
			got++
		}
	}
	if got != want {
		m.t.Errorf("nodes that run the release before: got %d, want %d", got, want)
	}
}

// addresses are those that nodes have claimed.
func addresses(all []control.Status) map[string]string {
	claimed := map[string]string{}
	for _, s := range all {
		claimed[s.Node.Name] = fmt.Sprint(s.Node.Overlay, s.Node.PodCIDRs)
	}
	return claimed
}

// TestMissingCommit: the error says how to get the commit, in a shallow clone and in a whole one.
func TestMissingCommit(t *testing.T) {
	origin := filepath.Join(t.TempDir(), "origin")
	mustGit := func(args ...string) string {
		t.Helper()
		out, err := git(".", args...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	mustGit("init", "--quiet", origin)
	commit := func() {
		mustGit("-C", origin, "-c", "user.name=test", "-c", "user.email=test@example.com", "commit", "--quiet", "--allow-empty", "-m", "test")
	}
	commit()
	first := mustGit("-C", origin, "rev-parse", "HEAD")
	commit()
	shallow := filepath.Join(t.TempDir(), "shallow")
	mustGit("clone", "--quiet", "--depth", "1", "file://"+origin, shallow)

	if err := reachable(origin, first); err != nil {
		t.Errorf("a commit that is there: got %v", err)
	}
	for root, want := range map[string]string{shallow: "git fetch --unshallow", origin: "git fetch origin"} {
		commit := first
		if root == origin {
			commit = strings.Repeat("0", 40)
		}
		if err := reachable(root, commit); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), commit) {
			t.Errorf("a commit that is not there: got %v, want an error with %q and %s", err, want, commit)
		}
	}
	if err := reachable(t.TempDir(), first); err == nil || errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "needs a clone") {
		t.Errorf("no clone: got %v, want an error that asks for one", err)
	}
}
