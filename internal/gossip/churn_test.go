// SPDX-License-Identifier: Apache-2.0

package gossip

import "testing"

// A thousand nodes, with -short a hundred, come and go, and leave nothing behind in
// one that stays: no file, no stream, and little memory. TestMain counts the
// goroutines.
func TestJoinsAndLeavesLeaveNothing(t *testing.T) { // not parallel: it counts files
	stays := startNode(t, 0, nil)
	stays.publish(1)
	both := func(v View) bool { return len(v.Records) == 2 && len(v.Alive) == 2 }
	round := func(boot uint64) {
		comes := startNode(t, 1, func(o *Options) {
			joining(stays)(o)
			o.Boot = boot
		})
		comes.publish(boot)
		eventually(t, "joined", []*testNode{comes}, func(v View) bool { return both(v) && sequenceOf(v, stays.self) == 1 })
		eventually(t, "heard", []*testNode{stays}, func(v View) bool { return sequenceOf(v, comes.self) == boot })
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
	eventually(t, "all closed", []*testNode{stays}, func(View) bool { return openFiles(t) <= files })
	// What was stopped a moment ago still has timers. A leak of all that a node
	// has would be several times as much.
	if grown := int64(heap()) - int64(memory); grown > 8<<20 {
		t.Errorf("the heap has grown by %d bytes over %d joins", grown, rounds)
	}
	stays.transport.mu.Lock()
	defer stays.transport.mu.Unlock()
	if got := len(stays.transport.paths.nodes) + len(stays.transport.replays.windows) + len(stays.transport.observed); got > 6 {
		t.Errorf("%d entries are kept of two nodes", got)
	}
}
