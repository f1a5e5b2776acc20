// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/mesh"
	"pgregory.net/rapid"
)

// TestClaimsConverge lets nodes claim at once, in a mesh of several parts that know
// nothing of each other, with clocks of 1970, of the future and of now. Then the parts
// meet. Gossip brings records in any order and with any delay, daemons start again and
// know nothing but their own claim, clocks are set. In the end each node has a slot of its
// own, and all nodes agree.
func TestClaimsConverge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := cluster(true)
		c.PodPrefix = []int{rapid.IntRange(19, 22).Draw(t, "pod prefix")}
		n := rapid.IntRange(2, c.Slots()).Draw(t, "nodes")
		sim := newClaimSim(c, n, rapid.Uint64().Draw(t, "seed"))
		sim.parts = rapid.IntRange(1, 4).Draw(t, "parts")
		for range rapid.IntRange(0, 12).Draw(t, "rounds apart") {
			sim.round(t)
			sim.disturb()
		}
		sim.parts = 1
		for range rapid.IntRange(0, 6).Draw(t, "restless rounds together") {
			sim.round(t)
			sim.disturb()
		}
		for round := 0; !sim.settled(); round++ {
			if round > 60 {
				t.Fatalf("%d nodes, %d slots: not settled after %d rounds", n, c.Slots(), round)
			}
			sim.round(t)
		}
		for range 3 { // what has settled stays
			sim.round(t)
		}
		if !sim.settled() {
			t.Fatal("it had settled, and has not any more")
		}
	})
}

// TestClaimsConvergeSoon counts the rounds of gossip in which 200 nodes find places in 256
// slots: when all start at once, and when two halves meet of which each is settled.
func TestClaimsConvergeSoon(t *testing.T) {
	const limit = 20
	most := make(map[int]int)
	for seed := range uint64(3) {
		for parts := 1; parts <= 2; parts++ {
			sim := newClaimSim(cluster(true), 200, seed)
			sim.cluster.Overlay = prefixes("10.4.0.0/15") // with room for 256 slots
			sim.parts = parts
			for parts > 1 && !sim.settled() {
				sim.round(t)
			}
			sim.parts = 1
			rounds := 0
			for ; !sim.settled() && rounds <= limit; rounds++ {
				sim.round(t)
			}
			if rounds > limit {
				t.Errorf("%d parts, seed %d: not settled after %d rounds", parts, seed, limit)
			}
			most[parts] = max(most[parts], rounds)
		}
	}
	t.Logf("rounds at most, by the number of parts: %v", most)
}

// TestClaimsInUse is the same where some nodes have pods from the moment on at which they
// have claimed a slot: these never move, and all others find places.
func TestClaimsInUse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := cluster(true)
		n := rapid.IntRange(2, 20).Draw(t, "nodes")
		sim := newClaimSim(c, n, rapid.Uint64().Draw(t, "seed"))
		sim.parts = 2
		for i := range sim.nodes {
			sim.nodes[i].inUse = rapid.Bool().Draw(t, "in use")
		}
		for range 8 {
			sim.round(t)
		}
		sim.parts = 1
		for range 40 {
			sim.round(t)
		}
		owners := mesh.SlotOwners(sim.records(0))
		for i, n := range sim.nodes {
			if got := mesh.SlotOwners(sim.records(i)); !maps.Equal(got, owners) {
				t.Fatalf("owners: node 0 sees %v, node %d %v", owners, i, got)
			}
			if owned := owners[n.own.Claim.Slot] == n.own.ID(); !owned && !n.inUse {
				t.Errorf("node %d has slot %d, which is another one's, and nothing runs there", i, n.own.Claim.Slot)
			} else if owned == n.problem {
				t.Errorf("node %d, owns its slot: %t, has a problem: %t", i, owned, n.problem)
			}
		}
	})
}

// claimSim is a cluster of nodes that know of each other only what they received.
type claimSim struct {
	cluster mesh.Cluster
	rng     *rand.Rand
	nodes   []claimNode
	parts   int // node i is in part i modulo this number
	now     int64
}

type claimNode struct {
	own     mesh.Record // its claim is on disk
	view    map[mesh.ID]mesh.Record
	clock   int64 // milliseconds ahead of the right time
	met     bool  // others were heard since the start
	inUse   bool
	problem bool
	rises   int // of the current claim
}

func newClaimSim(c mesh.Cluster, n int, seed uint64) *claimSim {
	s := &claimSim{cluster: c, rng: rand.New(rand.NewPCG(seed, 0)), nodes: make([]claimNode, n), now: t0 + time.Hour.Milliseconds()}
	for i := range s.nodes {
		r := record(i)
		binary.BigEndian.PutUint64(r.Identity, s.rng.Uint64())
		r.Claim = none
		r.Identify()
		clocks := []int64{0, 0, -s.now, time.Hour.Milliseconds(), -time.Minute.Milliseconds(), 100 * 365 * 24 * time.Hour.Milliseconds()}
		s.nodes[i] = claimNode{own: r, view: map[mesh.ID]mesh.Record{r.ID(): r}, clock: clocks[s.rng.IntN(len(clocks))]}
	}
	return s
}

// round lets every node send all that it knows to some others, and claim.
func (s *claimSim) round(t rapid.TB) {
	s.now += time.Second.Milliseconds()
	s.gossip(3)
	for i := range s.nodes {
		s.claim(t, i)
	}
}

func (s *claimSim) gossip(fanout int) {
	for _, from := range s.rng.Perm(len(s.nodes)) {
		for range fanout {
			to := s.rng.IntN(len(s.nodes))
			if to == from || to%s.parts != from%s.parts {
				continue
			}
			s.nodes[to].met = true
			for id, r := range s.nodes[from].view {
				if old, ok := s.nodes[to].view[id]; !ok || old.Sequence < r.Sequence {
					s.nodes[to].view[id] = r
				}
			}
		}
	}
}

// disturb starts some daemons anew, and sets some clocks.
func (s *claimSim) disturb() {
	for i := range s.nodes {
		n := &s.nodes[i]
		if s.rng.IntN(8) == 0 {
			n.view, n.met = map[mesh.ID]mesh.Record{n.own.ID(): n.own}, false
		}
		if s.rng.IntN(8) == 0 {
			n.clock = 0
		}
	}
}

// claim lets a node claim, and checks what every step must keep: a claim rises once at
// most, and never falls; a new one is of a slot that is free.
func (s *claimSim) claim(t rapid.TB, i int) {
	n := &s.nodes[i]
	was, inUse := n.own.Claim, ""
	if n.inUse {
		inUse = "pods"
	}
	next, problems := mesh.NextClaim(mesh.ClaimInput{
		Cluster: s.cluster, Self: n.own.ID(), Records: s.records(i), Current: was, InUse: inUse,
		Static: mesh.None, First: i < s.parts, Listened: i < s.parts || n.met, Met: n.met, Now: max(s.now+n.clock, 0),
	})
	n.problem = len(problems) > 0
	if next == was {
		return
	}
	if next.Since == 0 {
		view := s.records(i)
		view = slices.DeleteFunc(view, func(r mesh.Record) bool { return r.ID() == n.own.ID() })
		if owner, taken := mesh.SlotOwners(view)[next.Slot]; taken || n.inUse && was.Slot != mesh.None {
			t.Fatalf("node %d moves from slot %d to slot %d, owner %v, in use: %t", i, was.Slot, next.Slot, owner, n.inUse)
		}
		n.rises = 0
		next.Since = n.own.Sequence + 1
	} else if n.rises++; n.rises > 1 || next.Slot != was.Slot || was.Confirmed || !next.Confirmed || next.Time < t0 {
		t.Fatalf("node %d: %+v became %+v, after %d changes", i, was, next, n.rises)
	}
	n.own.Claim = next
	n.own.Sequence++
	n.view[n.own.ID()] = n.own
}

func (s *claimSim) records(i int) []mesh.Record {
	return slices.Collect(maps.Values(s.nodes[i].view))
}

// settled reports whether every node has a slot of its own in the view of every node of
// its part, and the views are equal.
func (s *claimSim) settled() bool {
	for part := range min(s.parts, len(s.nodes)) {
		var want string
		for i := part; i < len(s.nodes); i += s.parts {
			owners := mesh.SlotOwners(s.records(i))
			if len(owners) != (len(s.nodes)-part+s.parts-1)/s.parts {
				return false
			}
			got := fmt.Sprint(owners)
			if i > part && got != want {
				return false
			}
			want = got
		}
	}
	return true
}
