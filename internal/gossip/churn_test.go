// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"testing"

	"github.com/meshd/meshd/internal/mesh"
)

// A thousand nodes (with -short a hundred) join and leave, and leave nothing behind in a
// node that stays: no file, no stream, and little memory. TestMain counts the goroutines.
func TestJoinsAndLeavesLeakNothing(t *testing.T) { // not parallel: it counts files
	stays := startNode(t, 0, nil)
	stays.publish(1)
	both := func(v mesh.View) bool { return len(v.Records) == 2 && len(v.Alive) == 2 }
	round := func(boot uint64) {
		comes := startNode(t, 1, func(o *Options) {
			joining(stays)(o)
			o.Boot = boot
		})
		comes.publish(boot)
		eventually(t, "joined", []*testNode{comes}, func(v mesh.View) bool { return both(v) && sequenceOf(v, stays.self) == 1 })
		eventually(t, "heard", []*testNode{stays}, func(v mesh.View) bool { return sequenceOf(v, comes.self) == boot })
		comes.stop()
	}
	boot, rounds := uint64(1), uint64(1000)
	if testing.Short() {
		rounds = 100
	}
	for ; boot <= 20; boot++ {
		round(boot)
	}
	files, memory := openFiles(t), heap()
	for ; boot <= 20+rounds; boot++ {
		round(boot)
	}
	eventually(t, "all closed", []*testNode{stays}, func(mesh.View) bool { return openFiles(t) <= files })
	// Nodes that were stopped a moment ago still have timers. A leak of everything that a
	// node has would be several times as much.
	if grown := int64(heap()) - int64(memory); grown > 8<<20 {
		t.Errorf("the heap has grown by %d bytes over %d joins", grown, rounds)
	}
	stays.transport.mu.Lock()
	defer stays.transport.mu.Unlock()
	if got := len(stays.transport.addresses.nodes) + len(stays.transport.replays.windows); got > 6 {
		t.Errorf("%d entries of two nodes are kept", got)
	}
}

// Nodes join with an identity of their own each, leave, and are forgotten. Only the
// tombstone and the last address of each are kept.
func TestForgottenIdentitiesLeaveLittle(t *testing.T) {
	t.Parallel()
	const rounds = 30
	stays := startNode(t, 0, nil)
	stays.publish(1)
	for n := 1; n <= rounds; n++ {
		comes := startNode(t, n, nil)
		comes.publish(1) // before it joins, so that the record arrives at once
		if err := comes.Reconfigure(testCluster(), []string{stays.Addr().String()}, [][32]byte{testSecret}, nil); err != nil {
			t.Fatal(err)
		}
		eventually(t, "heard", []*testNode{stays}, func(v mesh.View) bool { return sequenceOf(v, comes.self) == 1 })
		comes.stop()
		if err := stays.Forget(comes.self, 1); err != nil {
			t.Fatal(err)
		}
	}
	if v := stays.View(); len(v.Records) != 1 || v.Records[0].ID() != stays.self {
		t.Errorf("records: got %v, want the own one", v.Records)
	}
	stays.mu.Lock()
	s := stays.store
	objects, forgotten := max(len(s.objects), len(s.sums), len(s.highest)), len(s.forgottenUpTo)
	stays.mu.Unlock()
	if objects != rounds+2 || forgotten != rounds {
		t.Errorf("got %d objects and %d forgotten, want %d tombstones, a record and the settings", objects, forgotten, rounds)
	}
	eventually(t, "rid of all streams", []*testNode{stays}, func(mesh.View) bool {
		stays.transport.mu.Lock()
		defer stays.transport.mu.Unlock()
		return len(stays.transport.offers)+len(stays.transport.open)+stays.transport.streamsTaken() == 0
	})
	stays.transport.mu.Lock()
	defer stays.transport.mu.Unlock()
	for what, count := range map[string]int{
		"addresses": len(stays.transport.addresses.nodes), "windows": len(stays.transport.replays.windows),
	} {
		if count > rounds+1 { // including its own
			t.Errorf("%s: %d of %d nodes are kept", what, count, rounds)
		}
	}
}
