// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestSeries compares two series of one seed, and one of another.
func TestSeries(t *testing.T) {
	names := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
	rounds := func(seed uint64) (out [][]event) {
		s := newSeries(options{seed: seed, netem: true}, names)
		for range 200 {
			out = append(out, s.next())
		}
		return out
	}
	first := rounds(7)
	same := cmp.AllowUnexported(event{})
	if diff := cmp.Diff(first, rounds(7), same); diff != "" {
		t.Errorf("the same seed again:\n%s", diff)
	}
	if cmp.Equal(first, rounds(8), same) {
		t.Error("another seed brings the same series")
	}
	seen := make(map[kind]bool)
	for _, events := range first {
		busy := make(map[int]bool)
		for _, e := range events {
			seen[e.kind] = true
			for _, n := range e.targets {
				if busy[n] {
					t.Errorf("node %d has two faults in %v", n, events)
				}
				busy[n] = true
			}
		}
	}
	if got, want := len(seen), len(kinds)-1; got != want {
		t.Errorf("got %d kinds of faults, want %d, all but the clock", got, want)
	}
}
