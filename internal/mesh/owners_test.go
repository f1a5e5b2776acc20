// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/meshd/meshd/internal/mesh"
	"pgregory.net/rapid"
)

// t0 is a time that clocks may show.
const t0 = mesh.FirstRelease

func TestOwners(t *testing.T) {
	claim := func(i, slot int, time int64) mesh.Record {
		r := record(i)
		r.Claim = mesh.Claim{Slot: slot, Time: t0 + time}
		return r
	}
	confirmed := func(r mesh.Record) mesh.Record { r.Claim.Confirmed = true; return r }
	undated := func(r mesh.Record, time int64) mesh.Record { r.Claim.Time = time; return r }
	low, high := record(0), record(1)
	if low.ID().Compare(high.ID()) > 0 {
		low, high = high, low
	}
	low.Claim, high.Claim = mesh.Claim{Slot: 3, Time: t0 + 7}, mesh.Claim{Slot: 3, Time: t0 + 7}
	tests := []struct {
		name    string
		records []mesh.Record
		want    map[int]mesh.ID
	}{
		{"nobody", nil, map[int]mesh.ID{}},
		{"nothing claimed", []mesh.Record{claim(0, mesh.None, 0)}, map[int]mesh.ID{}},
		{"stronger claim", []mesh.Record{claim(0, 3, 20), claim(1, 3, 10)}, map[int]mesh.ID{3: record(1).ID()}},
		{"confirmed", []mesh.Record{claim(0, 3, 10), confirmed(claim(1, 3, 20))}, map[int]mesh.ID{3: record(1).ID()}},
		{"confirmed earlier", []mesh.Record{confirmed(claim(0, 3, 20)), confirmed(claim(1, 3, 10))}, map[int]mesh.ID{3: record(1).ID()}},
		{"a clock of 1970", []mesh.Record{claim(0, 3, 10-t0), claim(1, 3, 20)}, map[int]mesh.ID{3: record(1).ID()}},
		{"a clock of 1970 that says it is confirmed", []mesh.Record{confirmed(claim(0, 3, 10-t0)), claim(1, 3, 20)}, map[int]mesh.ID{3: record(1).ID()}},
		{"two clocks of 1970, lower identity", []mesh.Record{undated(low, 9), undated(high, 5)}, map[int]mesh.ID{3: low.ID()}},
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
			records[i].Claim = mesh.Claim{Slot: rapid.IntRange(-1, 10).Draw(t, "slot"), Time: t0 + rapid.Int64Range(-1, 3).Draw(t, "time"), Confirmed: rapid.Bool().Draw(t, "confirmed")}
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
	confirmed := func(r mesh.Record) mesh.Record { r.Claim.Confirmed = true; return r }
	other := func(slot int, time int64) mesh.Record {
		r := record(1)
		r.Claim = mesh.Claim{Slot: slot, Time: t0 + time}
		return r
	}
	tests := []struct {
		name    string
		s       mesh.ClaimInput
		want    mesh.Claim // Slot -2: any free one; -3: any free one but Current's; -4: any but the first
		problem string
	}{
		{"has not listened", mesh.ClaimInput{Current: none, Static: mesh.None}, none, ""},
		{"first of all", mesh.ClaimInput{Current: none, Static: mesh.None, First: true, Listened: true}, mesh.Claim{Slot: 0, Time: t0 + 50}, ""},
		{"first, but not of all", mesh.ClaimInput{Current: none, Static: mesh.None, First: true, Listened: true, Records: []mesh.Record{other(0, 5)}}, mesh.Claim{Slot: -2, Time: t0 + 50}, ""},
		{"not the first", mesh.ClaimInput{Current: none, Static: mesh.None, Listened: true, Records: []mesh.Record{other(0, 5)}}, mesh.Claim{Slot: -2, Time: t0 + 50}, ""},
		{"not the first, and nobody is there", mesh.ClaimInput{Current: none, Static: mesh.None, Listened: true}, mesh.Claim{Slot: -4, Time: t0 + 50}, ""},
		{"confirms its claim", mesh.ClaimInput{Current: mesh.Claim{Slot: 9, Time: t0 + 3, Since: 2}, Static: mesh.None, Met: true, Records: []mesh.Record{other(8, 5)}}, mesh.Claim{Slot: 9, Confirmed: true, Time: t0 + 50, Since: 2}, ""},
		{"confirms its claim after all others", mesh.ClaimInput{Current: mesh.Claim{Slot: 9, Time: t0 + 3}, Static: mesh.None, Met: true, Records: []mesh.Record{confirmed(other(8, 70))}}, mesh.Claim{Slot: 9, Confirmed: true, Time: t0 + 70}, ""},
		{"is confirmed, and stays so", mesh.ClaimInput{Current: mesh.Claim{Slot: 9, Confirmed: true, Time: t0 + 3}, Static: mesh.None, Met: true, Records: []mesh.Record{confirmed(other(8, 70))}}, mesh.Claim{Slot: 9, Confirmed: true, Time: t0 + 3}, ""},
		{"confirms nothing that it does not own", mesh.ClaimInput{Current: mesh.Claim{Slot: 9, Time: t0 + 7}, InUse: "a pod", Static: mesh.None, Met: true, Records: []mesh.Record{other(9, 5)}}, mesh.Claim{Slot: 9, Time: t0 + 7}, "belongs to node n1"},
		{"moves though it is confirmed", mesh.ClaimInput{Current: mesh.Claim{Slot: 9, Confirmed: true, Time: t0 + 7}, Static: mesh.None, Listened: true, Records: []mesh.Record{confirmed(other(9, 5))}}, mesh.Claim{Slot: -2, Time: t0 + 50}, ""},
		{"stays though it is confirmed and lost, in use", mesh.ClaimInput{Current: mesh.Claim{Slot: 9, Confirmed: true, Time: t0 + 7}, InUse: "a pod", Static: mesh.None, Listened: true, Records: []mesh.Record{confirmed(other(9, 5))}}, mesh.Claim{Slot: 9, Confirmed: true, Time: t0 + 7}, "in use here: a pod"},
		{"keeps its claim", mesh.ClaimInput{Current: mesh.Claim{Slot: 9, Time: t0 + 3}, Static: mesh.None}, mesh.Claim{Slot: 9, Time: t0 + 3}, ""},
		{"keeps a stronger claim", mesh.ClaimInput{Current: mesh.Claim{Slot: 9, Time: t0 + 3}, Static: mesh.None, Records: []mesh.Record{other(9, 5)}}, mesh.Claim{Slot: 9, Time: t0 + 3}, ""},
		{"moves when it loses", mesh.ClaimInput{Current: mesh.Claim{Slot: 9, Time: t0 + 7}, Static: mesh.None, Listened: true, Records: []mesh.Record{other(9, 5)}}, mesh.Claim{Slot: -2, Time: t0 + 50}, ""},
		{"stays when pods run", mesh.ClaimInput{Current: mesh.Claim{Slot: 9, Time: t0 + 7}, InUse: "a pod", Static: mesh.None, Listened: true, Records: []mesh.Record{other(9, 5)}}, mesh.Claim{Slot: 9, Time: t0 + 7}, "belongs to node n1"},
		{"forgotten: claims again", mesh.ClaimInput{Current: mesh.Claim{Slot: 9, Time: t0 + 3}, Void: true, InUse: "a pod", Static: mesh.None}, mesh.Claim{Slot: 9, Time: t0 + 50}, ""},
		{"forgotten, its slot taken", mesh.ClaimInput{Current: mesh.Claim{Slot: 9, Time: t0 + 3}, Void: true, Static: mesh.None, Listened: true, Records: []mesh.Record{other(9, 5)}}, mesh.Claim{Slot: -2, Time: t0 + 50}, ""},
		{"forgotten, its slot taken, pods run", mesh.ClaimInput{Current: mesh.Claim{Slot: 9, Time: t0 + 3}, Void: true, InUse: "a pod", Static: mesh.None, Records: []mesh.Record{other(9, 5)}}, mesh.Claim{Slot: 9, Time: t0 + 50}, "belongs to node n1"},
		{"static", mesh.ClaimInput{Current: none, Static: 7, Listened: true}, mesh.Claim{Slot: 7, Time: t0 + 50}, ""},
		{"static before it was claimed", mesh.ClaimInput{Current: mesh.Claim{Slot: 9, Time: t0 + 7}, Static: 7, Listened: true}, mesh.Claim{Slot: 7, Time: t0 + 50}, ""},
		{"static, taken", mesh.ClaimInput{Current: none, Static: 7, Listened: true, Records: []mesh.Record{other(7, 5)}}, none, "meshd forget n1"},
		{"static, another one in use", mesh.ClaimInput{Current: mesh.Claim{Slot: 9, Time: t0 + 7}, InUse: "a pod", Static: 7, Listened: true}, mesh.Claim{Slot: 9, Time: t0 + 7}, "runs with slot 9"},
		{"given up after a conflict", mesh.ClaimInput{Current: mesh.Claim{Slot: 9, Time: t0 + 7}, InUse: "a pod", GiveUp: true, Static: mesh.None, Listened: true, Records: []mesh.Record{other(9, 5)}}, mesh.Claim{Slot: -2, Time: t0 + 50}, ""},
		{"given up without a conflict", mesh.ClaimInput{Current: mesh.Claim{Slot: 0, Time: t0 + 7}, InUse: "a pod", GiveUp: true, Static: mesh.None, Listened: true, Records: []mesh.Record{other(1, 5)}}, mesh.Claim{Slot: -3, Time: t0 + 50}, ""},
		{"given up for the static one", mesh.ClaimInput{Current: mesh.Claim{Slot: 9, Time: t0 + 7}, InUse: "a pod", GiveUp: true, Static: 7, Listened: true}, mesh.Claim{Slot: 7, Time: t0 + 50}, ""},
		{"given up though it is the static one", mesh.ClaimInput{Current: mesh.Claim{Slot: 7, Time: t0 + 7}, InUse: "a pod", GiveUp: true, Static: 7, Listened: true}, none, "to be given up"},
		{"given up, the static one is taken", mesh.ClaimInput{Current: mesh.Claim{Slot: 9, Time: t0 + 7}, InUse: "a pod", GiveUp: true, Static: 7, Listened: true, Records: []mesh.Record{other(7, 5)}}, none, "meshd forget n1"},
		{"given up without a claim", mesh.ClaimInput{Current: none, GiveUp: true, First: true, Static: mesh.None, Listened: true}, mesh.Claim{Slot: 0, Time: t0 + 50}, ""},
		{"ranges shrank", mesh.ClaimInput{Current: mesh.Claim{Slot: 999, Time: t0 + 7}, First: true, Static: mesh.None, Listened: true}, mesh.Claim{Slot: 0, Time: t0 + 50}, ""},
		{"ranges shrank under pods", mesh.ClaimInput{Current: mesh.Claim{Slot: 999, Time: t0 + 7}, InUse: "a pod", Static: mesh.None, Listened: true}, mesh.Claim{Slot: 999, Time: t0 + 7}, "does not fit"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := tt.s
			s.Cluster, s.Self, s.Name, s.Now = cluster(true), self.ID(), "n0", t0+50
			got, problems := mesh.NextClaim(s)
			if tt.want.Slot == -3 && got.Slot == s.Current.Slot {
				t.Errorf("got slot %d, which was to be given up", got.Slot)
			}
			if tt.want.Slot == -4 && got.Slot == 0 {
				t.Error("got the first slot, which is for the first node")
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
