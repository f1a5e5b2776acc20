// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"crypto/ed25519"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
)

// founded is when the mesh of these tests begins.
var founded = time.UnixMilli(1_800_000_000_000)

// claimant is a node of which only the claim matters.
type claimant struct {
	name  string
	id    byte
	first bool          // its join list names nobody else
	at    time.Duration // its daemon starts
	clock time.Duration // ahead of the right time
	uses  string        // what uses its addresses once it has some

	memory   Memory
	promise  Promise
	restored func() // runs before the next turn
	store    map[mesh.ID]mesh.Record
	merged   bool
	moved    int
	problems []mesh.Problem
}

// claimants take turns, and hear of each other as far as linked allows.
type claimants struct {
	now    time.Duration // since founded
	nodes  []*claimant
	linked func(a, b *claimant, now time.Duration) bool
}

func (w *claimants) pass(until time.Duration) {
	for _, n := range w.nodes {
		if n.store == nil {
			n.store, n.promise.Claim.Slot = make(map[mesh.ID]mesh.Record), mesh.None
		}
	}
	for ; w.now < until; w.now += 500 * time.Millisecond {
		for _, a := range w.nodes {
			for _, b := range w.nodes {
				if a != b && a.at <= w.now && b.at <= w.now && w.linked(a, b, w.now) {
					a.take(b)
				}
			}
		}
		for _, n := range w.nodes {
			if n.at <= w.now {
				n.turn(w.now)
			}
		}
	}
}

// take merges what another node knows.
func (n *claimant) take(from *claimant) {
	n.merged = true
	for id, r := range from.store {
		if n.store[id].Sequence < r.Sequence {
			n.store[id] = r
		}
	}
}

func (n *claimant) turn(now time.Duration) {
	if n.restored != nil {
		n.restored()
		n.restored = nil
	}
	public := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n.id}, ed25519.SeedSize)).Public().(ed25519.PublicKey)
	in := Input{
		Now: founded.Add(now + n.clock), Started: founded.Add(n.at + n.clock), Config: config(), Promise: n.promise,
		Self: Identity{Public: public, WireGuard: wgtypes.Key{n.id}, Instance: 1},
	}
	in.Config.Name = n.name
	in.View = mesh.View{Cluster: in.Config.Cluster, JoinEmpty: n.first, Merged: n.merged, Records: slices.Collect(maps.Values(n.store))}
	slices.SortFunc(in.View.Records, func(a, b mesh.Record) int { return a.ID().Compare(b.ID()) })
	in.View.OwnSequence = n.store[in.Self.ID()].Sequence
	if n.memory.WouldMove(in) {
		in.InUse = n.uses
	}
	a := n.memory.Announce(in)
	n.problems = a.Problems
	if !a.RecordChanged {
		return
	}
	if a.NewClaim {
		if n.promise.Claim.Slot != mesh.None {
			n.moved++
		}
		n.memory.ClaimedAt = in.Now
	}
	n.memory.Own, n.promise, n.store[in.Self.ID()] = a.Record, a.Promise, a.Record
	// The daemon notes it in the turn in which pods may start.
	n.promise.Ready = n.promise.Ready || n.promise.Claim.Slot != mesh.None && n.memory.claimWait(in) == 0
}

// apartUntil keeps nodes whose names begin with other letters from each other for a while.
func apartUntil(end time.Duration) func(a, b *claimant, now time.Duration) bool {
	return func(a, b *claimant, now time.Duration) bool { return a.name[0] == b.name[0] || now >= end }
}

// TestClaimsThatMeet: nodes that claimed one slot without knowing of each other meet. Who
// has to give way moves by itself where nothing uses its addresses, and is told where
// something does. Nobody else is told anything.
func TestClaimsThatMeet(t *testing.T) {
	const ago1970 = -1_800_000_000 * time.Second // founded, by a clock that was never set
	seed := func(name string, id byte, at time.Duration) *claimant {
		return &claimant{name: name, id: id, first: true, at: at}
	}
	for _, tt := range []struct {
		name  string
		nodes func() []*claimant
		meet  time.Duration
		first string // who has the first slot in the end
		moved string // who moved
		told  string // who is told to renumber
	}{
		{"two halves, their seeds 8 s apart, meet soon", func() []*claimant {
			return []*claimant{seed("a1", 1, 0), {name: "a2", id: 2, at: time.Second}, seed("b1", 3, 8*time.Second), {name: "b2", id: 4, at: 9 * time.Second}}
		}, 10 * time.Second, "a1", "b1", ""},
		{"two halves, their seeds 8 s apart, meet late", func() []*claimant {
			return []*claimant{seed("a1", 1, 0), {name: "a2", id: 2, at: time.Second}, seed("b1", 3, 8*time.Second), {name: "b2", id: 4, at: 9 * time.Second}}
		}, 10 * time.Minute, "a1", "b1", ""},
		{"two halves, and pods run on both seeds", func() []*claimant {
			a, b := seed("a1", 1, 0), seed("b1", 3, 8*time.Second)
			a.uses, b.uses = "pods", "pods"
			return []*claimant{a, {name: "a2", id: 2, at: time.Second}, b, {name: "b2", id: 4, at: 9 * time.Second}}
		}, 10 * time.Minute, "a1", "", "b1"},
		{"a seed that met others goes before an earlier one that was alone", func() []*claimant {
			return []*claimant{seed("a1", 1, 0), seed("b1", 3, 8*time.Second), {name: "b2", id: 4, at: 9 * time.Second}}
		}, time.Minute, "b1", "a1", ""},
		{"a seed's port opens 70 s late", func() []*claimant {
			return []*claimant{seed("a1", 1, 0), {name: "b1", id: 2, at: 0}, {name: "c1", id: 3, at: 0}}
		}, 70 * time.Second, "a1", "", ""},
		{"a first boot in 1970 without network", func() []*claimant {
			server, small := seed("a1", 1, 0), seed("b1", 2, time.Minute)
			server.uses, small.clock = "k3s", ago1970
			return []*claimant{server, small}
		}, 5 * time.Minute, "a1", "b1", ""},
		{"a first boot in 1970, and pods run there", func() []*claimant {
			server, small := seed("a1", 1, 0), seed("b1", 2, time.Minute)
			server.uses, small.uses, small.clock = "k3s", "pods", ago1970
			return []*claimant{server, small}
		}, 5 * time.Minute, "a1", "", "b1"},
		{"a mesh that lives in 1970", func() []*claimant {
			a, b := seed("a1", 1, 0), seed("b1", 2, time.Minute)
			a.clock, b.clock = ago1970, ago1970
			return []*claimant{a, b}
		}, 5 * time.Minute, "a1", "b1", ""}, // a1 has the lower ID
		{"a clock of the future", func() []*claimant {
			a, b := seed("a1", 1, 0), seed("b1", 2, time.Minute)
			a.clock = 20 * 365 * 24 * time.Hour
			return []*claimant{a, b}
		}, 5 * time.Minute, "b1", "a1", ""},
		{"equal times", func() []*claimant { return []*claimant{seed("a1", 1, 0), seed("b1", 2, 0)} }, time.Minute, "a1", "b1", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := &claimants{nodes: tt.nodes(), linked: apartUntil(tt.meet)}
			w.pass(tt.meet + time.Minute)
			var moved, told []string
			slots := make(map[int]string)
			for _, n := range w.nodes {
				if n.moved > 0 {
					moved = append(moved, n.name)
				}
				if len(n.problems) > 0 {
					told = append(told, n.name)
				} else if other := slots[n.promise.Claim.Slot]; other != "" {
					t.Errorf("%s and %s both have slot %d, and nobody is told", n.name, other, n.promise.Claim.Slot)
				} else {
					slots[n.promise.Claim.Slot] = n.name
				}
				if n.moved > 1 {
					t.Errorf("%s moved %d times", n.name, n.moved)
				}
			}
			if got := strings.Join(moved, " "); got != tt.moved {
				t.Errorf("moved: got %q, want %q", got, tt.moved)
			}
			if got := strings.Join(told, " "); got != tt.told {
				t.Errorf("told to renumber: got %q, want %q", got, tt.told)
			}
			if got := slots[0]; got != tt.first {
				t.Errorf("the first slot: got %q, want %q", got, tt.first)
			}
		})
	}
}

// TestRestoredDisk: a node moved, and another one has its former slot. Then its disk is
// put back to what it was before.
func TestRestoredDisk(t *testing.T) {
	for _, tt := range []struct {
		name string
		uses string // of the addresses that the disk knows of
		told bool
	}{
		{"nothing runs", "", false},
		{"pods run with the former addresses", "pods", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := &claimant{name: "a1", id: 1, first: true}
			b := &claimant{name: "b1", id: 2, first: true, at: time.Second}
			c := &claimant{name: "a2", id: 3, at: time.Second}
			w := &claimants{nodes: []*claimant{a, b, c}, linked: apartUntil(time.Minute)}
			w.pass(50 * time.Second)
			before, sessions := b.promise, b.store
			before.Claim.Confirmed, before.Claim.Time = true, mesh.FirstRelease // older than any other
			w.pass(2 * time.Minute)
			if b.moved != 1 || !b.promise.Claim.Confirmed {
				t.Fatalf("before the disk is restored: b1 moved %d times and has %+v", b.moved, b.promise)
			}
			later := b.promise.Claim
			b.restored = func() {
				b.promise, b.store, b.memory, b.merged = before, maps.Clone(sessions), Memory{}, false
				b.at, b.uses = w.now, tt.uses
			}
			w.pass(3 * time.Minute)
			if got := b.promise.Claim; !tt.told && (got.Slot != later.Slot || got.Time != later.Time || !got.Confirmed) {
				t.Errorf("b1 has %+v, want what it claimed last, %+v", got, later)
			}
			if got := len(b.problems) > 0; got != tt.told {
				t.Errorf("b1 is told: %t, want %t", got, tt.told)
			}
			if a.promise.Claim.Slot != 0 || a.moved > 0 || len(a.problems) > 0 {
				t.Errorf("a1 has %+v, moved %d times, problems %v; want it undisturbed", a.promise.Claim, a.moved, a.problems)
			}
		})
	}
}
