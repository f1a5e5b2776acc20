// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"context"
	"encoding/binary"
	"log/slog"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// tap forwards the text of memberlist's log lines.
type tap struct {
	slog.Handler
	lines chan string
}

func (t tap) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		select {
		case t.lines <- a.Value.String():
		default:
		}
		return true
	})
	return nil
}

// accusation returns memberlist's message that a node is dead, or, if the node itself is
// the sender, that it has left.
func accusation(name, from string, incarnation uint32) []byte {
	const deadMsg = 5
	b := []byte{deadMsg, 0x83} // a map of three, in msgpack
	text := func(s string) { b = append(append(b, 0xda, 0, byte(len(s))), s...) }
	text("Incarnation")
	b = binary.BigEndian.AppendUint32(append(b, 0xce), incarnation)
	text("Node")
	text(name)
	text("From")
	text(from)
	return b
}

// An attacker with the secret may announce that a live node is dead or has left. The node
// receives that, and refutes it.
func TestForgedDeathIsRefuted(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"dead", "left"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			seed := startNode(t, 0, nil)
			lines := make(chan string, 100)
			victim := startNode(t, 1, func(o *Options) {
				joining(seed)(o)
				o.Logger = slog.New(tap{slog.Default().Handler(), lines})
			})
			nodes := []*testNode{seed, victim, startNode(t, 2, joining(seed))}
			for _, n := range nodes {
				n.publish(1)
			}
			all := func(v mesh.View) bool { return len(v.Alive) == 3 && len(v.Records) == 3 }
			eventually(t, "all see all", nodes, all)
			from := nodeName(nodes[2].self, 0)
			if kind == "left" {
				from = nodeName(victim.self, 0)
			}
			nodes[2].transport.send(seed.self, kindMemberlist, accusation(nodeName(victim.self, 0), from, 1000))
			deadline := time.After(patience)
			for refuted := false; !refuted; {
				select {
				case line := <-lines:
					refuted = strings.Contains(line, "Refuting")
				case <-deadline:
					t.Fatal("the victim does not refute it")
				}
			}
			eventually(t, "all see all again", nodes, all)
			if _, member := victim.membership(); member.name != nodeName(victim.self, 0) {
				t.Errorf("the victim has changed its name to %s without a reason", member.name)
			}
		})
	}
}

// An accusation with the highest incarnation drives the victim into another epoch, and
// all nodes see it again, as often as it is accused.
func TestEvictedNodeComesBack(t *testing.T) {
	t.Parallel()
	for name, incarnation := range map[string]uint32{"last": math.MaxUint32, "last but one": math.MaxUint32 - 1, "high": 1 << 30} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nodes := startCluster(t, 4)
			liar, victim := nodes[3], nodes[1]
			for range 2 {
				_, before := victim.membership()
				began := time.Now()
				for _, n := range nodes[:3] { // the victim also receives it at once
					liar.transport.send(n.self, kindMemberlist, accusation(before.name, nodeName(liar.self, 0), incarnation))
				}
				eventually(t, "the victim has another name", nodes[1:2], func(mesh.View) bool {
					_, now := victim.membership()
					return now.name != before.name
				})
				_, now := victim.membership()
				eventually(t, "all see it by that name", []*testNode{nodes[0], nodes[2], liar}, func(v mesh.View) bool {
					return len(v.Alive) == 4
				})
				for _, n := range []*testNode{nodes[0], nodes[2], liar} {
					eventually(t, "the new name is known", []*testNode{n}, func(mesh.View) bool {
						n.members.mu.Lock()
						defer n.members.mu.Unlock()
						return n.members.alive[victim.self][now.name] > 0
					})
				}
				t.Logf("back after %v", time.Since(began))
				eventually(t, "the victim sees all", nodes[1:2], func(v mesh.View) bool { return len(v.Alive) == 4 })
			}
			if got := victim.View().Counters["member-evicted"]; got < 2 {
				t.Errorf("counted %d times", got)
			}
			victim.publish(2)
			eventually(t, "it is heard", nodes, func(v mesh.View) bool { return len(v.Alive) == 4 && sequenceOf(v, victim.self) == 2 })
		})
	}
}

func TestNodeNames(t *testing.T) {
	id := mesh.ID{1, 2, 3}
	for _, epoch := range []uint32{0, 1, math.MaxUint32} {
		if got, err := nodeID(nodeName(id, epoch)); got != id || err != nil {
			t.Errorf("epoch %d: got %v, %v", epoch, got, err)
		}
	}
	for _, name := range []string{"", "-1", id.String() + "-", id.String() + "-1", id.String() + "-00000000", id.String() + "-0000000g", id.String()[1:]} {
		if _, err := nodeID(name); err == nil {
			t.Errorf("%q is accepted as a name", name)
		}
	}
}

// Nodes that are known from an earlier epoch stay until dropStale.
func TestMembersOverEpochs(t *testing.T) {
	m := newMembers(mesh.ID{9}, func() {})
	a, b := nodeName(mesh.ID{1}, 0), nodeName(mesh.ID{2}, 0)
	first := m.listen("")
	first.set(a, true)
	first.set(b, true)
	second := m.listen("")
	first.set(a, false) // it is ignored from now on
	second.set(a, true)
	if got := m.count(); got != 3 {
		t.Errorf("%d members before dropStale, want 3", got)
	}
	if !m.dropStale() || m.dropStale() || m.count() != 2 {
		t.Errorf("%d members after dropStale, want 2", m.count())
	}
	second.set(nodeName(mesh.ID{1}, 5), true)
	second.set(a, false)
	if got := m.count(); got != 2 {
		t.Errorf("%d members after one has changed its name, want 2", got)
	}
}
