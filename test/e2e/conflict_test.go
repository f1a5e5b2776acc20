// SPDX-License-Identifier: Apache-2.0

//go:build !kernel

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/daemon"
	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/test/lab"
)

// podCIDR is a line of configuration that names a slot.
func podCIDR(slot int) string { return fmt.Sprintf("  pod-cidr: [10.42.%d.0/24]", slot) }

// TestOneNameTwice starts two nodes with one name.
func TestOneNameTwice(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 3)
	second := m.nodes[2]
	join := []string{m.nodes[0].Public().String()}
	m.start(m.nodes[:2]...)
	first := m.settle(settleLimit, m.nodes[:2]...)[1].Node.ID.String()
	m.must(second.Configure(lab.Config("b", join), m.secret))
	m.start(second)
	m.settle(settleLimit, m.nodes...)
	m.await(settleLimit, "aware of the name's two nodes", shows(mesh.ProblemName, first+" has the stronger claim", "set another node.name on "+m.status(second).Node.ID.String()), m.nodes...)
	m.connected(pingLimit, m.nodes...)

	// The node that changed its name reports it. Then it gets a name of its own.
	m.must(second.Configure(lab.Config("c", join), m.secret))
	m.must(second.Reload())
	m.await(settleLimit, "aware that a name needs a restart", shows(daemon.ProblemConfiguration, "node.name", "systemctl restart"), second)
	m.must(second.Stop())
	m.start(second)
	m.settle(settleLimit, m.nodes...)
	m.await(settleLimit, "content", lacks(mesh.ProblemName), m.nodes...)
}

// TestStaticSlotTaken configures a slot that another node has.
func TestStaticSlotTaken(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 3)
	early, late := m.nodes[:2], m.nodes[2]
	m.start(early...)
	taken := m.settle(settleLimit, early...)[1].Node.Slot
	join := []string{m.nodes[0].Public().String()}
	m.must(late.Configure(lab.Config(late.Name, join, podCIDR(taken)), m.secret))
	m.start(late)
	s := m.await(settleLimit, "refused the slot", shows(mesh.ProblemSlot, "belongs to node "+early[1].Name, "name another pod-cidr"), late)[0]
	if s.Node.Slot != mesh.None || len(s.Node.Overlay) > 0 || s.Node.Ready {
		t.Errorf("node: got %+v, want no slot and no addresses", s.Node)
	}
	m.connected(pingLimit, early...)

	m.rewrite(late, podCIDR(77))
	m.settle(settleLimit, m.nodes...)
	if got := m.status(late).Node.Slot; got != 77 {
		t.Errorf("slot of %s: got %d, want 77", late.Name, got)
	}
	m.connected(pingLimit, m.nodes...)

	// A node that is in use changes to a newly configured slot only on request.
	m.pod(late, "held")
	m.rewrite(late, podCIDR(78))
	m.await(settleLimit, "aware of what runs", shows(mesh.ProblemSlot, "names slot 78", "runs with slot 77", "meshd renumber"), late)
	m.run(late, binary, "renumber")
	m.await(settleLimit, "on the other slot", func(s control.Status) bool { return s.Node.Slot == 78 }, late)
	m.settle(settleLimit, m.nodes...)
	m.connected(pingLimit, m.nodes...)
}

// TestConflictInUse has two nodes claim one slot in a split, and use it. The one with the
// weaker claim keeps its pods, and gets other addresses on request.
func TestConflictInUse(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 4)
	a, b, c, d := m.nodes[0], m.nodes[1], m.nodes[2], m.nodes[3]
	m.start(a, b)
	m.settle(settleLimit, a, b)
	m.must(m.lab.Partition(m.ctx, hosts([]*lab.Node{a, c}), hosts([]*lab.Node{b, d})))
	m.await(settleLimit, "alone", lab.Sees(0), a, b)
	const contested = 50
	joins := map[*lab.Node]string{c: a.Public().String(), d: b.Public().String()}
	for _, n := range []*lab.Node{c, d} {
		m.must(n.Configure(lab.Config(n.Name, []string{joins[n]}, podCIDR(contested)), m.secret))
		m.start(n)
		m.settle(settleLimit, map[*lab.Node]*lab.Node{c: a, d: b}[n], n)
		m.must(n.Configure(lab.Config(n.Name, []string{joins[n]}), m.secret))
		m.must(n.Reload())
	}
	old := m.pod(c, "old")
	m.pod(d, "held")
	if text := m.refused(d, "renumber"); !strings.Contains(text, "nothing is wrong") || !strings.Contains(text, "--force") {
		t.Errorf("renumber without a conflict: got %q, want that nothing is wrong", text)
	}
	m.must(m.lab.Heal(m.ctx))
	m.settle(settleLimit, m.nodes...)
	m.await(settleLimit, "loud about its slot", shows(mesh.ProblemSlot, "belongs to node "+c.Name, "in use here", "run on "+d.Name+": meshd renumber"), d)
	m.await(settleLimit, "aware of the conflict", shows(mesh.ProblemSlot, c.Name+" has the stronger claim"), a, b, c)
	if got := m.status(d).Node; got.Slot != contested || len(got.PodCIDRs) != 1 {
		t.Errorf("the loser: got %+v, want it to keep slot %d", got, contested)
	}
	m.connected(pingLimit, a, b, c)

	var r control.Renumbered
	m.must(json.Unmarshal([]byte(m.run(d, binary, "renumber", "-o", "json")), &r))
	if r.Former.Slot != contested || r.Now.Slot == contested || len(r.Now.Overlay) != 1 || len(r.Now.PodCIDRs) != 1 {
		t.Errorf("renumbered: got %+v, want slot %d given up for another", r, contested)
	}
	m.await(settleLimit, "on its new slot", func(s control.Status) bool { return s.Node.Slot == r.Now.Slot }, d)
	m.await(settleLimit, "content", lacks(mesh.ProblemSlot), m.nodes...)
	addresses(t, m.settle(settleLimit, m.nodes...))
	m.connected(pingLimit, m.nodes...)
	m.eventually(settleLimit, func() error {
		conflist, err := os.ReadFile(d.Path(lab.ConfDir + "/10-meshd.conflist"))
		if err != nil || !strings.Contains(string(conflist), r.Now.PodCIDRs[0].String()) {
			return fmt.Errorf("CNI configuration: got %s, %v, want %v in it", conflist, err, r.Now.PodCIDRs)
		}
		return nil
	})
	m.reaches(m.pod(d, "new"), old)
}

// TestTwoSeeds starts the README's two locations, each with a seed of its own that names
// nobody, one seed after the other is ready. The others name both seeds. Both seeds have
// taken the first slot; one of them moves by itself, and nobody is told to renumber.
func TestTwoSeeds(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 4)
	office, aws := m.nodes[0], m.nodes[1]
	seeds := []string{office.Public().String(), aws.Public().String()}
	m.must(aws.Configure(lab.Config(aws.Name, nil), m.secret))
	m.start(office)
	m.await(settleLimit, "ready alone", lab.Ready, office)
	m.start(aws)
	m.await(settleLimit, "ready alone", lab.Ready, aws)
	if a, b := m.status(office).Node, m.status(aws).Node; a.Slot != 0 || b.Slot != 0 || !a.Alone || !b.Alone {
		t.Errorf("the seeds have slots %d and %d, and are alone: %t, %t; want the first one both", a.Slot, b.Slot, a.Alone, b.Alone)
	}
	for _, n := range m.nodes[2:] {
		m.must(n.Configure(lab.Config(n.Name, seeds), m.secret))
		m.start(n)
	}
	addresses(t, m.await(settleLimit, "content", all(lab.Sees(len(m.nodes)-1), lacks(mesh.ProblemSlot)), m.nodes...))
	m.connected(pingLimit, m.nodes...)
	m.reaches(m.pod(aws, "there"), m.pod(office, "here"))
}

// TestRenumberByForce renumbers a node whose slot is not contested.
func TestRenumberByForce(t *testing.T) {
	t.Parallel()
	m := settledMesh(t, lab.NAT, 2)
	n := m.nodes[1]
	before := m.status(n).Node.Slot
	if out := m.run(n, binary, "renumber", "--force"); !strings.Contains(out, "kubectl delete pods") {
		t.Errorf("renumber: got %s, want what becomes of pods", out)
	}
	m.await(settleLimit, "on another slot", func(s control.Status) bool { return s.Node.Slot != before && s.Node.Ready }, n)
	m.settle(settleLimit, m.nodes...)
	m.connected(pingLimit, m.nodes...)
}

// TestOtherRanges starts a node whose ranges differ from those of the mesh. Both sides
// refuse each other and report the difference for as long as it lasts.
func TestOtherRanges(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 3)
	members, stranger := m.nodes[:2], m.nodes[2]
	m.must(stranger.Configure(lab.Config(stranger.Name, []string{members[0].Public().String()}, "cluster: {pods: [10.50.0.0/16]}"), m.secret))
	m.start(m.nodes...)
	m.settle(settleLimit, members...)
	both := []*lab.Node{members[0], stranger}
	refused := shows(gossip.ProblemCluster, "cluster.pods", "10.42.0.0/16", "10.50.0.0/16")
	m.await(settleLimit, "aware of the difference", all(refused, lacks(mesh.ProblemDuplicate)), both...)
	for end := time.Now().Add(settleTime); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		for _, n := range both {
			if s := m.status(n); !refused(s) {
				t.Fatalf("problems of %s: got %+v, want the difference all the time", n.Name, s.Problems)
			}
		}
	}
	m.await(settleLimit, "without it", knows(1), members...)
	m.connected(pingLimit, members...)

	m.must(stranger.Configure(lab.Config(stranger.Name, []string{members[0].Public().String()}), m.secret))
	m.must(stranger.Stop())
	m.start(stranger)
	m.settle(settleLimit, m.nodes...)
	m.await(settleLimit, "content", lacks(gossip.ProblemCluster), m.nodes...)
	m.connected(pingLimit, m.nodes...)
}
