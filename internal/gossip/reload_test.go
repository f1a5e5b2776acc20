// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

func TestReconfigureRefuses(t *testing.T) {
	now := time.Unix(1700000000, 0)
	for want, change := range map[string]func(*mesh.Cluster, *[][32]byte){
		"cluster.name":       func(c *mesh.Cluster, _ *[][32]byte) { c.Name = "other" },
		"cluster.pods":       func(c *mesh.Cluster, _ *[][32]byte) { c.Pods = []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16")} },
		"cluster.generation": func(c *mesh.Cluster, _ *[][32]byte) { c.Generation = 1 << 60 },
		"no secret":          func(_ *mesh.Cluster, s *[][32]byte) { *s = nil },
		"too many":           func(c *mesh.Cluster, _ *[][32]byte) { c.DNS.Domain = strings.Repeat("a", maxHello) },
	} {
		g := idle(t, &now)
		c, secrets := testCluster(), [][32]byte{testSecret}
		c.Mode, c.Generation = mesh.ModeFull, 2
		change(&c, &secrets)
		if err := g.Reconfigure(c, []string{"a:1"}, secrets, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error with %q", err, want)
		}
		if v := g.View(); v.Cluster.Mode != mesh.ModeLocation || len(g.joinList) > 0 {
			t.Errorf("%s: something has changed: %+v", want, v.Cluster)
		}
	}
}

// The way in which an administrator changes a secret: the new one is added on all nodes,
// then it becomes the one that encrypts, then the old one is removed.
func TestSecretIsRolledWhileItRuns(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 3)
	newSecret := [32]byte{7}
	sequence := uint64(1)
	for _, secrets := range [][][32]byte{{testSecret, newSecret}, {newSecret, testSecret}, {newSecret}} {
		for _, n := range nodes {
			if err := n.Reconfigure(testCluster(), nil, secrets, nil); err != nil {
				t.Fatal(err)
			}
			sequence++
			n.publish(sequence)
			eventually(t, "nobody is lost", nodes, func(v mesh.View) bool {
				return len(v.Alive) == 3 && sequenceOf(v, n.self) == sequence
			})
		}
	}
	outside := startNode(t, 3, joining(nodes[0]))
	eventually(t, "the old secret is refused", []*testNode{outside}, func(v mesh.View) bool { return hasProblem(v, ProblemSecret, "") })
}

func TestJoinListIsReloaded(t *testing.T) {
	t.Parallel()
	a, b := startNode(t, 0, nil), startNode(t, 1, nil)
	a.publish(1)
	b.publish(1)
	if err := b.Reconfigure(testCluster(), []string{a.Addr().String()}, [][32]byte{testSecret}, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "joined", []*testNode{a, b}, func(v mesh.View) bool { return len(v.Records) == 2 && !v.Alone })
}

func listing(ids ...mesh.ID) func(*Options) {
	return func(o *Options) { o.Cluster.Trust, o.Trusted = mesh.TrustList, ids }
}

// With a list, objects of nodes that are not on it don't count, and a problem says which
// fingerprint to add.
func TestTrustList(t *testing.T) {
	t.Parallel()
	a := startNode(t, 0, listing(idOf(1)))
	b := startNode(t, 1, all(joining(a), listing(idOf(0))))
	stranger := startNode(t, 2, all(joining(a), listing(idOf(0), idOf(1)), withSettings(9, mesh.ModeFull)))
	for _, n := range []*testNode{a, b, stranger} {
		n.publish(1)
	}
	both := []*testNode{a, b}
	eventually(t, "named", both, func(v mesh.View) bool {
		return len(v.Records) == 2 && hasProblem(v, ProblemUntrusted, idOf(2).String()) && v.Counters["object-untrusted"] > 0
	})
	eventually(t, "the stranger sees all", []*testNode{stranger}, func(v mesh.View) bool { return len(v.Records) == 3 })
	if err := stranger.PublishVerdict(testVerdict(2, 0, mesh.HealthDown, 1)); err != nil {
		t.Fatal(err)
	}
	if err := stranger.Forget(a.self, mesh.Forever); err != nil {
		t.Fatal(err)
	}
	b.publish(2)
	eventually(t, "unharmed", both, func(v mesh.View) bool {
		return sequenceOf(v, b.self) == 2 && sequenceOf(v, a.self) == 1 && len(v.Verdicts) == 0 && follows(1, mesh.ModeLocation)(v)
	})

	// A node that is added counts; one that is removed does not.
	c := testCluster()
	c.Trust = mesh.TrustList
	if err := b.Reconfigure(c, nil, [][32]byte{testSecret}, []mesh.ID{idOf(2)}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "exchanged", both[1:], func(v mesh.View) bool {
		return sequenceOf(v, stranger.self) == 1 && sequenceOf(v, a.self) == 0 && sequenceOf(v, b.self) == 2
	})
}
