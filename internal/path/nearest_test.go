// SPDX-License-Identifier: Apache-2.0

package path

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// relayedPair returns an internet of relays, so far from all others each, and two hosts that only
// reach each other through them, after a minute of traffic.
func relayedPair(seed uint64, distances ...time.Duration) (n *internet, a, b *box) {
	n = newInternet(seed)
	for _, d := range distances {
		r := n.host(public, false, 0)
		r.relay = true
		n.far[r.num] = d
	}
	a, b = n.host(symmetric, false, 1), n.host(symmetric, false, 2)
	n.bind(a)
	n.bind(b)
	n.connect(a, b, func() bool { return true })
	n.run(2 * time.Minute)
	return n, a, b
}

// relayOf is the relay in use from a host to another one.
func relayOf(a, b *box) int {
	p, _ := a.machine[b.num].InUse()
	return int(p.Relay[0])
}

func (n *internet) last(lines int) string {
	return strings.Join(n.log[max(0, len(n.log)-lines):], "\n")
}

// wantRelay asserts which relay both ends use.
func (n *internet) wantRelay(t *testing.T, when string, a, b *box, want ...int) {
	t.Helper()
	if x, y := relayOf(a, b), relayOf(b, a); x != y || !slices.Contains(want, x) {
		t.Fatalf("%s: got relays %d and %d, want %v\n%s", when, x, y, want, n.last(20))
	}
}

// changes counts how often the path changes meanwhile.
func (n *internet) changes(a, b *box, d time.Duration) int {
	count, before := 0, relayOf(a, b)
	for range int(d / time.Second) {
		n.run(time.Second)
		if now := relayOf(a, b); now != before {
			count, before = count+1, now
		}
	}
	return count
}

const ms = time.Millisecond

// TestNearestRelay has two hosts use the relay with the lowest sum of round trips, and stay there.
func TestNearestRelay(t *testing.T) {
	for seed := range uint64(3) {
		n, a, b := relayedPair(seed, 200*ms, 100*ms, 0, 100*ms)
		n.wantRelay(t, "at first", a, b, 3)
		if got := n.changes(a, b, 10*time.Minute); got != 0 {
			t.Errorf("the relay changed %d times in ten minutes\n%s", got, n.last(20))
		}
	}
}

// TestRelaysNearlyAsFar has relays that differ by no more than jitter: nothing changes.
func TestRelaysNearlyAsFar(t *testing.T) {
	for seed := range uint64(3) {
		n, a, b := relayedPair(seed, 0, 0, 0)
		for r := 1; r <= 3; r++ {
			there := n.distance(a.num, r) + n.distance(r, b.num)
			back := n.distance(b.num, r) + n.distance(r, a.num)
			n.far[r] = (200*ms - there - back) / 4
		}
		n.run(5 * time.Minute)
		if got := n.changes(a, b, 20*time.Minute); got > 1 {
			t.Errorf("seed %d: the relay changed %d times in 20 minutes\n%s", seed, got, n.last(20))
		}
	}
}

// TestSlowRelay has the relay in use become ever slower: within a minute packets go through another one, and
// back once it is near again.
func TestSlowRelay(t *testing.T) {
	for seed := range uint64(3) {
		n, a, b := relayedPair(seed, 150*ms, 0, 200*ms)
		n.wantRelay(t, "at first", a, b, 2)
		for range 40 {
			n.far[2] += 10 * ms
			n.run(time.Second)
		}
		n.run(20 * time.Second)
		n.wantRelay(t, "when it is slow", a, b, 1)
		n.far[2] = 0
		n.run(5 * time.Minute)
		n.wantRelay(t, "when it is near again", a, b, 2)
	}
}

// TestFullRelay has a relay drop a third of all that it is to forward, but only while it is used.
// Within a minute packets go through another one, and come back ever more seldom.
func TestFullRelay(t *testing.T) {
	for seed := range uint64(2) {
		n, a, b := relayedPair(seed, 50*ms, 0, 60*ms)
		n.wantRelay(t, "at first", a, b, 2)
		used := 0
		var watch func()
		watch = func() {
			n.full[2] = 0
			if relayOf(a, b) == 2 {
				n.full[2] = 0.3
				used++
			}
			n.after(100*ms, watch)
		}
		watch()
		n.run(time.Minute)
		n.wantRelay(t, "when it is full", a, b, 1)
		used = 0
		changes := n.changes(a, b, time.Hour)
		t.Logf("%d changes, %v through the full one", changes, time.Duration(used)*100*ms)
		// It is tried again after 5, 10, 20 and 30 minutes.
		if changes > 8 || used > 2*60*10 {
			t.Errorf("seed %d: in an hour %d changes, and packets go through the full one for %v\n%s", seed, changes, time.Duration(used)*100*ms, n.last(20))
		}
	}
}

// TestAllRelaysFull has all relays drop as much: another one is hardly taken for better.
func TestAllRelaysFull(t *testing.T) {
	for seed := range uint64(3) {
		n, a, b := relayedPair(seed, 0, 0, 0)
		for r := range 3 {
			n.full[r+1] = 0.3
		}
		if got := n.changes(a, b, 30*time.Minute); got > 2 {
			t.Errorf("seed %d: the relay changed %d times in half an hour\n%s", seed, got, n.last(20))
		}
	}
}

// bindingHost returns an internet of relays, so far from all others each, and a host behind NAT.
func bindingHost(seed uint64, distances ...time.Duration) (*internet, *box) {
	n := newInternet(seed)
	for _, d := range distances {
		r := n.host(public, false, 0)
		r.relay = true
		n.far[r.num] = d
	}
	b := n.host(symmetric, false, 1)
	n.bind(b)
	return n, b
}

// kept returns the relays to which a host stays bound.
func (n *internet) kept(b *box) []int {
	var all []int
	for _, r := range b.binder.Bound(n.now) {
		if r.Kept {
			all = append(all, int(r.Relay[0]))
		}
	}
	return all
}

// wantKept asserts to which relays a host stays bound after a while, and how often that changes at
// most: each time all nodes hear of it.
func (n *internet) wantKept(t *testing.T, when string, b *box, d time.Duration, maxChanges int, want ...int) {
	t.Helper()
	changes, before := 0, n.kept(b)
	for range int(d / (100 * ms)) {
		n.run(100 * ms)
		if now := n.kept(b); !slices.Equal(now, before) {
			changes, before = changes+1, now
		}
	}
	if !slices.Equal(before, want) || changes > maxChanges {
		t.Errorf("%s: got %v after %d changes, want %v after %d at most", when, before, changes, want, maxChanges)
	}
}

// TestBinderNearest has a host stay bound to the two nearest relays, and change that seldom.
func TestBinderNearest(t *testing.T) {
	for seed := range uint64(5) {
		n, b := bindingHost(seed, 200*ms, 300*ms, 0, 50*ms, 400*ms)
		n.wantKept(t, "when all are measured", b, time.Minute, 3, 3, 4)
		n.wantKept(t, "and then", b, 3*time.Hour, 0, 3, 4)
		n.far[3] = 350 * ms
		n.wantKept(t, "when one is slow", b, 5*time.Minute, 1, 1, 4)
		n.far[3] = 0
		n.wantKept(t, "when it is fast again", b, 31*time.Minute, 1, 3, 4)
		n.prefer = []Short{shortOf(5)}
		n.wantKept(t, "when one is preferred", b, time.Minute, 1, 3, 5)
		n.box(5).up = false
		n.wantKept(t, "when that one is down", b, time.Minute, 2, 3, 4)
		n.box(5).up, n.box(5).table = true, NewRelay([32]byte{5, 1})
		n.wantKept(t, "when it is up again", b, 31*time.Minute, 1, 3, 5)
	}
	// All are measured before any is replaced.
	n, b := bindingHost(0, 300*ms, 300*ms, 100*ms, 0, 50*ms)
	n.wantKept(t, "at once", b, time.Minute, 3, 4, 5)
}

// TestBinderNearlyAsFar has relays that differ by less than is worth a change.
func TestBinderNearlyAsFar(t *testing.T) {
	for seed := range uint64(5) {
		n, b := bindingHost(seed, 0, 0, 0, 0)
		for r := 1; r <= 4; r++ {
			n.far[r] = (100*ms - n.distance(r, b.num) - n.distance(b.num, r)) / 2
			n.far[r] -= time.Duration(r) * ms // the last one is the nearest, but not by much
		}
		n.wantKept(t, "all the time", b, 3*time.Hour, 2, 1, 2)
	}
}
