// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/gossip"
)

// TestMain runs the tests in a network namespace of their own.
func TestMain(m *testing.M) {
	if !Isolated() {
		cmd := Command(context.Background(), os.Args[1:]...)
		cmd.Stdout = os.Stdout
		if err := cmd.Run(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if err := SetUp(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	// One heap of many nodes is collected far more often than each node's own
	// would be, which would take most of the machine's time.
	debug.SetGCPercent(800)
	os.Exit(m.Run())
}

// newSwarm makes a swarm that is stopped when the test ends.
func newSwarm(t *testing.T, count int) *Swarm {
	t.Helper()
	s := New(count)
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// few is how many nodes a group of full size may join.
const few = 30

// settled starts the nodes of a swarm in groups, each when the group before sees all
// nodes, and waits until all see all. All nodes share one machine, so groups become smaller
// as the swarm grows: a busy machine answers late, and suspicions cost even more time.
func settled(t *testing.T, count, group int) *Swarm {
	t.Helper()
	s := newSwarm(t, count)
	began := time.Now()
	for started := 0; started < count; {
		next := min(count, started+max(1, min(group, group*few/max(1, started))))
		if err := s.Start(s.Nodes[started:next]...); err != nil {
			t.Fatal(err)
		}
		started = next
		if err := s.AwaitAll(within(t, patience)); err != nil {
			t.Fatal(err)
		}
		if err := AwaitCalm(within(t, patience)); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d nodes know all after %v", count, time.Since(began))
	return s
}

// TestTenComeTogether starts ten nodes at once.
func TestTenComeTogether(t *testing.T) {
	s := newSwarm(t, 10)
	if err := s.Start(s.Nodes...); err != nil {
		t.Fatal(err)
	}
	if err := s.AwaitAll(within(t, patience)); err != nil {
		t.Error(err)
	}
}

// patience is far more than anything here takes on an idle machine.
const patience = 2 * time.Minute

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// Ten of a hundred nodes are killed at the same moment. All others notice, and take no
// other node for dead.
func TestSoakTenOfAHundredAreKilled(t *testing.T) {
	s := settled(t, 100, 100)
	before := s.FalseDeaths()
	var killed []*Node
	for i := 5; i < len(s.Nodes); i += 10 {
		killed = append(killed, s.Nodes[i])
	}
	for _, n := range killed {
		if err := n.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	if err := s.AwaitGone(within(t, patience), killed...); err != nil {
		t.Fatal(err)
	}
	t.Logf("noticed after %v", time.Since(began))
	if deaths := s.FalseDeaths() - before; deaths > 0 {
		t.Errorf("%d false deaths, want none", deaths)
	}
}

// Two hundred nodes run undisturbed for two minutes.
func TestSoakTwoHundredStay(t *testing.T) { stay(t, 200) }

// Five hundred nodes do the same. On two processor cores it takes a quarter of an hour
// until all have joined: while one joins, all others are busy passing on its record, and if
// the next ones did not wait for that, all would be late at once.
func TestSoakFiveHundredStay(t *testing.T) { stay(t, 500) }

// stay starts nodes, and fails if any of them is taken for dead in two minutes.
func stay(t *testing.T, count int) {
	t.Helper()
	const length = 2 * time.Minute
	s := settled(t, count, 20)
	before := s.FalseDeaths()
	for end := time.Now().Add(length); time.Now().Before(end); {
		if deaths := s.FalseDeaths() - before; deaths > 0 {
			t.Fatalf("%d false deaths, want none", deaths)
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err := s.AwaitAll(within(t, patience)); err != nil {
		t.Error(err)
	}
}

// The daemon takes a view twice a turn.
func BenchmarkView1000(b *testing.B) {
	s := New(1000)
	var known gossip.Remembered
	for _, n := range s.Nodes {
		if err := n.start(); err != nil {
			b.Fatal(err)
		}
		r := n.gossip.Remember()
		known.Objects, known.Highest = append(known.Objects, r.Objects...), append(known.Highest, r.Highest...)
		if err := n.Stop(); err != nil {
			b.Fatal(err)
		}
	}
	g, err := gossip.Start(context.Background(), gossip.Options{
		Identity: s.Nodes[0].identity, Cluster: s.cluster, Secrets: secrets, Boot: 1, Instance: 1,
		Bind: s.Nodes[0].addr().String(), Remembered: known,
	})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if got, want := len(g.View().Records), len(s.Nodes); got != want {
			b.Fatalf("got %d records, want %d", got, want)
		}
	}
	if err := g.Stop(); err != nil {
		b.Error(err)
	}
}
