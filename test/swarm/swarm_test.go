// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"
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
	os.Exit(m.Run())
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// settled starts all nodes of a swarm at once and waits until all see all.
func settled(t *testing.T, count int) *Swarm {
	t.Helper()
	s := New(count)
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	began := time.Now()
	if err := s.Start(s.Nodes...); err != nil {
		t.Fatal(err)
	}
	if err := s.AwaitAll(within(t, 3*time.Minute)); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d nodes know all after %v", count, time.Since(began))
	return s
}

// A tenth of a hundred nodes is killed at one moment. All others notice, and
// bury nobody else.
func TestTenOfAHundredAreKilled(t *testing.T) {
	s := settled(t, 100)
	before := s.FalseDeaths()
	var killed []*Node
	for i := 5; i < 100; i += 10 {
		killed = append(killed, s.Nodes[i])
	}
	for _, n := range killed {
		if err := n.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	err := s.Await(within(t, time.Minute), "the dead are noticed", func(n *Node) bool {
		return !slices.ContainsFunc(killed, n.Sees)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("noticed after %v", time.Since(began))
	if deaths := s.FalseDeaths() - before; deaths > 0 {
		t.Errorf("%d false deaths, want none", deaths)
	}
}

// Five hundred nodes join in groups, as fast as the machine lets them, and then
// are left alone.
func TestFiveHundredStay(t *testing.T) {
	const count, group = 500, 25
	s := New(count)
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	began := time.Now()
	for i := 0; i < count; i += group {
		if err := s.Start(s.Nodes[i : i+group]...); err != nil {
			t.Fatal(err)
		}
		if err := s.AwaitAll(within(t, 2*time.Minute)); err != nil {
			t.Fatal(err)
		}
		t.Logf("%d nodes after %v, false deaths %d", i+group, time.Since(began), s.FalseDeaths())
	}
	before := s.FalseDeaths()
	for range 120 {
		time.Sleep(time.Second)
		if deaths := s.FalseDeaths() - before; deaths > 0 {
			t.Fatalf("%d false deaths, want none", deaths)
		}
	}
}
