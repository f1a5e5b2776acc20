// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/meshd/meshd/internal/mesh"
)

// located returns records of nodes in the given locations, "-" for none.
func located(locations string) []mesh.Record {
	var rs []mesh.Record
	for i, l := range strings.Fields(locations) {
		r := record(i)
		r.Location = strings.Trim(l, "-")
		rs = append(rs, r)
	}
	return rs
}

// says returns what node i says of the nodes that it has met in its location.
func says(rs []mesh.Record, i int, met ...int) mesh.Membership {
	var ids []mesh.ID
	for _, j := range met {
		ids = append(ids, rs[j].ID())
	}
	return mesh.Membership{Author: rs[i].ID(), Location: rs[i].Location, Met: mesh.Nearest(rs[i].ID(), ids)}
}

// everybodyMet returns that all nodes have met all others of their locations.
func everybodyMet(rs []mesh.Record) []mesh.Membership {
	var said []mesh.Membership
	for i, r := range rs {
		var met []int
		for j, o := range rs {
			if i != j && r.SameLocation(&o) {
				met = append(met, j)
			}
		}
		said = append(said, says(rs, i, met...))
	}
	return said
}

// segments returns the numbers of the nodes of each segment, in order.
func segments(rs []mesh.Record) string {
	var out []string
	for i, r := range rs {
		var with []string
		first := true
		for j, o := range rs {
			if i == j || r.SameLAN(&o) {
				first = first && j >= i
				with = append(with, fmt.Sprint(j))
			}
		}
		if first {
			out = append(out, strings.Join(with, "+"))
		}
	}
	return strings.Join(out, " ")
}

func TestLocate(t *testing.T) {
	tests := []struct {
		name      string
		locations string
		said      func(rs []mesh.Record) []mesh.Membership
		want      string
	}{
		{"nobody has met anybody", "a a b -", func([]mesh.Record) []mesh.Membership { return nil }, "0 1 2 3"},
		{"everybody has", "a a b b a -", everybodyMet, "0+1+4 2+3 5"},
		{"one says so, the other does not", "a a a", func(rs []mesh.Record) []mesh.Membership {
			return []mesh.Membership{says(rs, 0, 1), says(rs, 1, 2), says(rs, 2, 1)}
		}, "0 1+2"},
		{"through others", "a a a a", func(rs []mesh.Record) []mesh.Membership {
			return []mesh.Membership{says(rs, 0, 1), says(rs, 1, 0, 2), says(rs, 2, 1, 3), says(rs, 3, 2)}
		}, "0+1+2+3"},
		{"two networks of one name", "a a a a", func(rs []mesh.Record) []mesh.Membership {
			return []mesh.Membership{says(rs, 0, 2), says(rs, 2, 0), says(rs, 1, 3), says(rs, 3, 1)}
		}, "0+2 1+3"},
		{"met elsewhere, before the file was changed", "a a", func(rs []mesh.Record) []mesh.Membership {
			before := says(rs, 1, 0)
			before.Location = "b"
			return []mesh.Membership{says(rs, 0, 1), before}
		}, "0 1"},
		{"of different locations", "a b", func(rs []mesh.Record) []mesh.Membership {
			return []mesh.Membership{says(rs, 0, 1), says(rs, 1, 0)}
		}, "0 1"},
		{"without a location", "- -", func(rs []mesh.Record) []mesh.Membership {
			return []mesh.Membership{says(rs, 0, 1), says(rs, 1, 0)}
		}, "0 1"},
		{"of itself, and of strangers", "a a", func(rs []mesh.Record) []mesh.Membership {
			m := says(rs, 0, 0)
			m.Met = append(m.Met, mesh.ShortID{0xff})
			return []mesh.Membership{m}
		}, "0 1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rs := located(tt.locations)
			mesh.Locate(rs, tt.said(rs))
			if got := segments(rs); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// All nodes come to the same, in whatever order they have heard of it.
func TestLocateOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rs, said := drawMemberships(t)
		other := rapid.Permutation(rs).Draw(t, "records")
		mesh.Locate(rs, said)
		mesh.Locate(other, rapid.Permutation(said).Draw(t, "said"))
		byID := func(a, b mesh.Record) int { return a.ID().Compare(b.ID()) }
		slices.SortFunc(rs, byID)
		slices.SortFunc(other, byID)
		if diff := cmp.Diff(segments(rs), segments(other)); diff != "" {
			t.Fatal(diff)
		}
		for i := range rs {
			if rs[i].Segment != other[i].Segment {
				t.Fatalf("%s: got segments %v and %v", rs[i].Name, rs[i].Segment, other[i].Segment)
			}
		}
	})
}

// drawMemberships draws nodes of a few locations, and whom each says that it has met.
func drawMemberships(t *rapid.T) ([]mesh.Record, []mesh.Membership) {
	rs := located(strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "a", "b", "-"}), 1, 12).Draw(t, "locations"), " "))
	var said []mesh.Membership
	for i := range rs {
		met := rapid.SliceOfNDistinct(rapid.IntRange(0, len(rs)-1), 0, len(rs), rapid.ID[int]).Draw(t, "met")
		said = append(said, says(rs, i, met...))
	}
	return rs, said
}

var liarAddress = netip.MustParsePrefix("192.168.250.9/32")

// A node with a wrong location, whatever it says that it has met, changes nothing for the
// others: to them it is a node without a location.
func TestWrongLocationHarmsNobody(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		liar := record(100)
		liar.InternalIPs = prefixes("192.168.250.9/24")
		liar.Gateway = rapid.SampledFrom([]mesh.GatewayPreference{mesh.GatewayAuto, mesh.GatewayPrefer}).Draw(t, "wish")
		liar.Term = mesh.GatewayTerm{Since: rapid.Int64Range(0, 2).Draw(t, "term")}
		liar.Claim.Confirmed = true // stronger than all others
		said := everybodyMet(w.records)
		in := mesh.Input{Cluster: w.cluster, Verdicts: w.verdicts, Clients: w.clients, Records: append(slices.Clone(w.records), liar)}
		last := &in.Records[len(w.records)]
		mesh.Locate(in.Records, said)
		honest := slices.Clone(in.Records)

		last.Location = rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "wrong location")
		all := make([]int, len(w.records))
		for i := range all {
			all[i] = i
		}
		mesh.Locate(in.Records, append(said, says(in.Records, len(all), all...)))
		for _, r := range w.records {
			in.Self = r.ID()
			got := routesTo(mesh.Derive(in), last.ID())
			without := in
			without.Records = honest
			if want := routesTo(mesh.Derive(without), last.ID()); !reflect.DeepEqual(got, want) {
				t.Fatalf("%s, location %q (-want +got):\n%s", r.Name, r.Location, cmp.Diff(want, got, compareTopologies))
			}
		}
	})
}

// routesTo returns how a node reaches all others but the one with liarAddress.
func routesTo(top mesh.Topology, but mesh.ID) mesh.Topology {
	out := mesh.Topology{Seat: top.Seat, Neighbors: top.Neighbors}
	for _, r := range top.Routes {
		if r.ID != but {
			out.Routes = append(out.Routes, r)
		}
	}
	for _, p := range top.Peers {
		if p.ID != but {
			out.Peers = append(out.Peers, p)
		}
	}
	for i := range out.Neighbors { // one of them may carry what is for that one
		out.Neighbors[i].Prefixes = slices.DeleteFunc(out.Neighbors[i].Prefixes, func(p netip.Prefix) bool { return p == liarAddress })
	}
	return out
}

func TestUnmet(t *testing.T) {
	rs := located("a a a b")
	said := []mesh.Membership{says(rs, 0, 1), says(rs, 1, 0, 2), says(rs, 2, 1)}
	mesh.Locate(rs, said)
	if got, want := mesh.Unmet(rs[0].ID(), rs, said), []mesh.ID{rs[2].ID()}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := mesh.Unmet(rs[1].ID(), rs, said); len(got) != 0 {
		t.Errorf("the node in the middle: got %v, want none", got)
	}
}

// A location of more nodes than fit stays in one piece, and nobody is said to be missing.
func TestLargeLocation(t *testing.T) {
	rs := located(strings.Repeat("a ", 3*mesh.MaxMet))
	said := everybodyMet(rs)
	mesh.Locate(rs, said)
	for _, r := range rs {
		if r.Segment != rs[0].Segment {
			t.Fatalf("%s is in segment %v, and %s in %v", r.Name, r.Segment, rs[0].Name, rs[0].Segment)
		}
	}
	if got := mesh.Unmet(rs[0].ID(), rs, said); len(got) != 0 {
		t.Errorf("got %d nodes that the first one has not met, want none", len(got))
	}
}
