// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/meshd/meshd/internal/mesh"
	"pgregory.net/rapid"
)

var comparePrefixes = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

func TestAddressesOfSlots(t *testing.T) {
	dual := mesh.Cluster{
		Overlay: prefixes("10.4.0.0/16", "fd04::/64"), Pods: prefixes("10.42.0.0/16", "fd42::/48"), PodPrefix: []int{24, 64},
	}
	tests := []struct {
		name    string
		cluster mesh.Cluster
		slots   int
		slot    int
		overlay string
		pods    string
	}{
		{"first", dual, 256, 0, "[10.4.0.1 fd04::1]", "[10.42.0.0/24 fd42::/64]"},
		{"second", dual, 256, 1, "[10.4.0.2 fd04::2]", "[10.42.1.0/24 fd42:0:0:1::/64]"},
		{"last", dual, 256, 255, "[10.4.1.0 fd04::100]", "[10.42.255.0/24 fd42:0:0:ff::/64]"},
		{"lower half of a small overlay", mesh.Cluster{Overlay: prefixes("10.4.0.0/28"), Pods: prefixes("10.42.0.0/16"), PodPrefix: []int{24}}, 7, 6, "[10.4.0.7]", "[10.42.6.0/24]"},
		{"wide IPv6", mesh.Cluster{Overlay: prefixes("fd04::/16"), Pods: prefixes("fd42::/32"), PodPrefix: []int{64}}, mesh.MaxSlots, 0x1234, "[fd04::1235]", "[fd42:0:0:1234::/64]"},
		{"pods across 64 bits", mesh.Cluster{Overlay: prefixes("fd04::/64"), Pods: prefixes("fd42::/56"), PodPrefix: []int{72}}, 1 << 16, 0x1ff, "[fd04::200]", "[fd42:0:0:1:ff00::/72]"},
		{"one pod CIDR for all", mesh.Cluster{Overlay: prefixes("10.4.0.0/16"), Pods: prefixes("10.42.0.0/16"), PodPrefix: []int{16}}, 1, 0, "[10.4.0.1]", "[10.42.0.0/16]"},
		{"overlay of one address", mesh.Cluster{Overlay: prefixes("10.4.0.1/32"), Pods: prefixes("10.42.0.0/16"), PodPrefix: []int{24}}, 0, 0, "[10.4.0.2]", "[10.42.0.0/24]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.cluster.Slots(); got != tt.slots {
				t.Errorf("slots: got %d, want %d", got, tt.slots)
			}
			if got := fmt.Sprint(tt.cluster.Overlays(tt.slot)); got != tt.overlay {
				t.Errorf("overlay addresses of slot %d: got %s, want %s", tt.slot, got, tt.overlay)
			}
			if got := fmt.Sprint(tt.cluster.PodCIDRs(tt.slot)); got != tt.pods {
				t.Errorf("pod CIDRs of slot %d: got %s, want %s", tt.slot, got, tt.pods)
			}
		})
	}
}

func TestSlotOf(t *testing.T) {
	c := cluster(false)
	rapid.Check(t, func(t *rapid.T) {
		slot := rapid.IntRange(0, c.Slots()-1).Draw(t, "slot")
		for _, p := range c.PodCIDRs(slot) {
			if got, ok := c.SlotOf(p); !ok || got != slot {
				t.Fatalf("slot of %v: got %d, %v, want %d", p, got, ok, slot)
			}
		}
	})
	for _, s := range []string{"10.42.0.0/24", "10.128.0.0/25", "10.128.0.1/24", "fd42::/63"} {
		if got, ok := c.SlotOf(netip.MustParsePrefix(s)); ok {
			t.Errorf("slot of %s: got %d, want none", s, got)
		}
	}
}

// Two slots never share an address, whatever the ranges.
func TestSlotsAreDisjoint(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bits := rapid.IntRange(4, 20).Draw(t, "bits of the pod range")
		c := mesh.Cluster{
			Overlay: []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr("172.16.0.0"), rapid.IntRange(12, 30).Draw(t, "overlay bits"))},
			Pods:    []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr("10.0.0.0"), bits).Masked()}, PodPrefix: []int{rapid.IntRange(bits, 28).Draw(t, "pod prefix")},
		}
		n := c.Slots()
		if n < 2 {
			return
		}
		i := rapid.IntRange(0, n-1).Draw(t, "i")
		j := rapid.IntRange(0, n-1).Filter(func(j int) bool { return j != i }).Draw(t, "j")
		if a, b := c.PodCIDRs(i)[0], c.PodCIDRs(j)[0]; a.Overlaps(b) || !c.Pods[0].Contains(a.Addr()) {
			t.Fatalf("pod CIDRs of slots %d and %d: %v and %v", i, j, a, b)
		}
		half := netip.PrefixFrom(c.Overlay[0].Addr(), c.Overlay[0].Bits()+1)
		if a, b := c.Overlays(i)[0], c.Overlays(j)[0]; a == b || !half.Contains(a) {
			t.Fatalf("overlay addresses of slots %d and %d: %v and %v, lower half %v", i, j, a, b, half)
		}
	})
}

func TestOwners(t *testing.T) {
	claim := func(i, slot int, time int64) mesh.Record {
		r := record(i)
		r.Claim = mesh.Claim{Slot: slot, Time: time}
		return r
	}
	low, high := record(0), record(1)
	if low.ID().Compare(high.ID()) > 0 {
		low, high = high, low
	}
	low.Claim, high.Claim = mesh.Claim{Slot: 3, Time: 7}, mesh.Claim{Slot: 3, Time: 7}
	tests := []struct {
		name    string
		records []mesh.Record
		want    map[int]mesh.ID
	}{
		{"nobody", nil, map[int]mesh.ID{}},
		{"nothing claimed", []mesh.Record{claim(0, mesh.None, 0)}, map[int]mesh.ID{}},
		{"older claim", []mesh.Record{claim(0, 3, 20), claim(1, 3, 10)}, map[int]mesh.ID{3: record(1).ID()}},
		{"same time, lower identity", []mesh.Record{high, low}, map[int]mesh.ID{3: low.ID()}},
		{"newest record of a node", []mesh.Record{claim(0, 3, 10), func() mesh.Record { r := claim(0, 4, 30); r.Sequence = 2; return r }()}, map[int]mesh.ID{4: record(0).ID()}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, mesh.SlotOwners(tt.records)); diff != "" {
				t.Errorf("owners (-want +got):\n%s", diff)
			}
		})
	}
}

// Equal records give equal owners, in whatever order they came, and every claimed slot
// has exactly one owner.
func TestOwnersDoNotDependOnOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		records := make([]mesh.Record, rapid.IntRange(1, 30).Draw(t, "nodes"))
		for i := range records {
			records[i] = record(i)
			records[i].Claim = mesh.Claim{Slot: rapid.IntRange(-1, 10).Draw(t, "slot"), Time: rapid.Int64Range(0, 3).Draw(t, "time")}
		}
		want := mesh.SlotOwners(records)
		got := mesh.SlotOwners(rapid.Permutation(records).Draw(t, "order"))
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("owners in another order (-want +got):\n%s", diff)
		}
		for _, r := range records {
			if _, ok := got[r.Claim.Slot]; !ok && r.Claim.Slot != mesh.None {
				t.Fatalf("slot %d has no owner", r.Claim.Slot)
			}
		}
	})
}

func TestNextClaim(t *testing.T) {
	self := record(0)
	other := func(slot int, time int64) mesh.Record {
		r := record(1)
		r.Claim = mesh.Claim{Slot: slot, Time: time}
		return r
	}
	tests := []struct {
		name    string
		s       mesh.ClaimInput
		want    mesh.Claim // Slot -2: any free one; -3: any free one but Current's
		problem string
	}{
		{"has not listened", mesh.ClaimInput{Current: none, Static: mesh.None}, none, ""},
		{"first of all", mesh.ClaimInput{Current: none, Static: mesh.None, Listened: true}, mesh.Claim{Slot: 0, Time: 50}, ""},
		{"lowest free", mesh.ClaimInput{Current: none, Static: mesh.None, Listened: true, Records: []mesh.Record{other(0, 5)}}, mesh.Claim{Slot: 1, Time: 50}, ""},
		{"with another newcomer", mesh.ClaimInput{Current: none, Static: mesh.None, Listened: true, Records: []mesh.Record{other(mesh.None, 0)}}, mesh.Claim{Slot: -2, Time: 50}, ""},
		{"keeps its claim", mesh.ClaimInput{Current: mesh.Claim{Slot: 9, Time: 3}, Static: mesh.None}, mesh.Claim{Slot: 9, Time: 3}, ""},
		{"keeps an older claim", mesh.ClaimInput{Current: mesh.Claim{Slot: 9, Time: 3}, Static: mesh.None, Records: []mesh.Record{other(9, 5)}}, mesh.Claim{Slot: 9, Time: 3}, ""},
		{"moves when it loses", mesh.ClaimInput{Current: mesh.Claim{Slot: 9, Time: 7}, Static: mesh.None, Listened: true, Records: []mesh.Record{other(9, 5)}}, mesh.Claim{Slot: -2, Time: 50}, ""},
		{"stays when pods run", mesh.ClaimInput{Current: mesh.Claim{Slot: 9, Time: 7}, Ready: true, Static: mesh.None, Listened: true, Records: []mesh.Record{other(9, 5)}}, mesh.Claim{Slot: 9, Time: 7}, "belongs to node n1"},
		{"forgotten: claims again", mesh.ClaimInput{Current: mesh.Claim{Slot: 9, Time: 3}, Forgotten: true, Ready: true, Static: mesh.None}, mesh.Claim{Slot: 9, Time: 50}, ""},
		{"forgotten, its slot taken", mesh.ClaimInput{Current: mesh.Claim{Slot: 9, Time: 3}, Forgotten: true, Static: mesh.None, Listened: true, Records: []mesh.Record{other(9, 5)}}, mesh.Claim{Slot: -2, Time: 50}, ""},
		{"forgotten, its slot taken, pods run", mesh.ClaimInput{Current: mesh.Claim{Slot: 9, Time: 3}, Forgotten: true, Ready: true, Static: mesh.None, Records: []mesh.Record{other(9, 5)}}, mesh.Claim{Slot: 9, Time: 50}, "belongs to node n1"},
		{"static", mesh.ClaimInput{Current: none, Static: 7, Listened: true}, mesh.Claim{Slot: 7, Time: 50}, ""},
		{"static before it was claimed", mesh.ClaimInput{Current: mesh.Claim{Slot: 9, Time: 7}, Static: 7, Listened: true}, mesh.Claim{Slot: 7, Time: 50}, ""},
		{"static, taken", mesh.ClaimInput{Current: none, Static: 7, Listened: true, Records: []mesh.Record{other(7, 5)}}, none, "meshd forget n1"},
		{"static, another one in use", mesh.ClaimInput{Current: mesh.Claim{Slot: 9, Time: 7}, Ready: true, Static: 7, Listened: true}, mesh.Claim{Slot: 9, Time: 7}, "runs with slot 9"},
		{"given up after a conflict", mesh.ClaimInput{Current: mesh.Claim{Slot: 9, Time: 7}, Ready: true, GiveUp: true, Static: mesh.None, Listened: true, Records: []mesh.Record{other(9, 5)}}, mesh.Claim{Slot: -2, Time: 50}, ""},
		{"given up without a conflict", mesh.ClaimInput{Current: mesh.Claim{Slot: 0, Time: 7}, Ready: true, GiveUp: true, Static: mesh.None, Listened: true, Records: []mesh.Record{other(1, 5)}}, mesh.Claim{Slot: -3, Time: 50}, ""},
		{"given up for the static one", mesh.ClaimInput{Current: mesh.Claim{Slot: 9, Time: 7}, Ready: true, GiveUp: true, Static: 7, Listened: true}, mesh.Claim{Slot: 7, Time: 50}, ""},
		{"given up though it is the static one", mesh.ClaimInput{Current: mesh.Claim{Slot: 7, Time: 7}, Ready: true, GiveUp: true, Static: 7, Listened: true}, none, "to be given up"},
		{"given up, the static one is taken", mesh.ClaimInput{Current: mesh.Claim{Slot: 9, Time: 7}, Ready: true, GiveUp: true, Static: 7, Listened: true, Records: []mesh.Record{other(7, 5)}}, none, "meshd forget n1"},
		{"given up without a claim", mesh.ClaimInput{Current: none, GiveUp: true, Static: mesh.None, Listened: true}, mesh.Claim{Slot: 0, Time: 50}, ""},
		{"ranges shrank", mesh.ClaimInput{Current: mesh.Claim{Slot: 999, Time: 7}, Static: mesh.None, Listened: true}, mesh.Claim{Slot: 0, Time: 50}, ""},
		{"ranges shrank under pods", mesh.ClaimInput{Current: mesh.Claim{Slot: 999, Time: 7}, Ready: true, Static: mesh.None, Listened: true}, mesh.Claim{Slot: 999, Time: 7}, "does not fit"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := tt.s
			s.Cluster, s.Self, s.Name, s.Now = cluster(true), self.ID(), "n0", 50
			got, problems := mesh.NextClaim(s)
			if tt.want.Slot == -3 && got.Slot == s.Current.Slot {
				t.Errorf("got slot %d, which was to be given up", got.Slot)
			}
			if tt.want.Slot < mesh.None {
				if _, taken := mesh.SlotOwners(s.Records)[got.Slot]; taken || got.Slot < 0 || got.Slot >= s.Cluster.Slots() {
					t.Errorf("got slot %d, want a free one", got.Slot)
				}
				tt.want.Slot = got.Slot
			}
			if got != tt.want {
				t.Errorf("claim: got %+v, want %+v", got, tt.want)
			}
			if text := fmt.Sprint(problems); (len(problems) > 0) != (tt.problem != "") || !strings.Contains(text, tt.problem) {
				t.Errorf("problems: got %s, want %q", text, tt.problem)
			}
		})
	}
}

var none = mesh.Claim{Slot: mesh.None}

func TestNextClaimExhausted(t *testing.T) {
	s := mesh.ClaimInput{Cluster: cluster(true), Self: mesh.ID{1}, Current: none, Static: mesh.None, Listened: true}
	s.Cluster.PodPrefix = []int{18}
	for i := range 4 {
		s.Records = append(s.Records, record(i))
	}
	got, problems := mesh.NextClaim(s)
	if got != none || len(problems) != 1 || problems[0].Kind != mesh.ProblemExhausted {
		t.Errorf("got %+v, %v, want no claim and %s", got, problems, mesh.ProblemExhausted)
	}
}

// TestClaimsConverge lets nodes claim at once, gossip in any order and with any delay,
// and claim again: in the end each node has a slot of its own, and all nodes agree.
func TestClaimsConverge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := cluster(true)
		c.PodPrefix = []int{rapid.IntRange(19, 22).Draw(t, "pod prefix")}
		n := rapid.IntRange(2, c.Slots()).Draw(t, "nodes")
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		sim := newClaimSim(c, n, rng)
		for round := 0; !sim.settled(); round++ {
			if round > 60 {
				t.Fatalf("%d nodes, %d slots: not settled after %d rounds", n, c.Slots(), round)
			}
			sim.gossip(3)
			sim.claim(int64(round))
		}
	})
}

// claimSim is a cluster of nodes that know of each other only what they received.
type claimSim struct {
	cluster mesh.Cluster
	rng     *rand.Rand
	views   []map[mesh.ID]mesh.Record // by node
	own     []mesh.Record
}

func newClaimSim(c mesh.Cluster, n int, rng *rand.Rand) *claimSim {
	s := &claimSim{cluster: c, rng: rng}
	for i := range n {
		r := record(i)
		binary.BigEndian.PutUint64(r.Identity, rng.Uint64())
		r.Claim = none
		s.own = append(s.own, r)
		s.views = append(s.views, map[mesh.ID]mesh.Record{r.ID(): r})
	}
	return s
}

// gossip lets every node send all that it knows to some random others.
func (s *claimSim) gossip(fanout int) {
	for _, from := range s.rng.Perm(len(s.own)) {
		for range fanout {
			to := s.rng.IntN(len(s.own))
			for id, r := range s.views[from] {
				if old, ok := s.views[to][id]; !ok || old.Sequence < r.Sequence {
					s.views[to][id] = r
				}
			}
		}
	}
}

func (s *claimSim) claim(now int64) {
	for i := range s.own {
		next, _ := mesh.NextClaim(mesh.ClaimInput{
			Cluster: s.cluster, Self: s.own[i].ID(), Records: s.records(i), Current: s.own[i].Claim,
			Static: mesh.None, Listened: true, Now: now,
		})
		if next != s.own[i].Claim {
			s.own[i].Claim = next
			s.own[i].Sequence++
			s.views[i][s.own[i].ID()] = s.own[i]
		}
	}
}

func (s *claimSim) records(i int) []mesh.Record {
	var rs []mesh.Record
	for _, r := range s.views[i] {
		rs = append(rs, r)
	}
	return rs
}

// settled reports whether every node has a slot of its own in the view of every node.
func (s *claimSim) settled() bool {
	return !slices.ContainsFunc(s.views, func(v map[mesh.ID]mesh.Record) bool {
		var rs []mesh.Record
		for _, r := range v {
			rs = append(rs, r)
		}
		return len(mesh.SlotOwners(rs)) != len(s.own)
	})
}
