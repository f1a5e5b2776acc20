// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/meshd/meshd/internal/mesh"
)

// tried returns what node i says of its tries to reach node j.
func tried(rs []mesh.Record, i, j int, reached bool) mesh.Reach {
	e := rs[j].Endpoints[0]
	addr := netip.AddrPortFrom(netip.MustParseAddr(e.Host), e.Port)
	return mesh.Reach{Author: rs[i].ID(), Tried: []mesh.Tried{{Subject: rs[j].ID(), Addr: addr, Reached: reached}}}
}

func TestProve(t *testing.T) {
	const yes, no = true, false
	tests := []struct {
		name      string
		locations string
		said      func(rs []mesh.Record) []mesh.Reach
		closed    bool // the first node
	}{
		{"nobody is there who could try", "-", func([]mesh.Record) []mesh.Reach { return nil }, false},
		{"only nodes of its own location are", "a a", func([]mesh.Record) []mesh.Reach { return nil }, false},
		{"nobody has tried", "a a -", func([]mesh.Record) []mesh.Reach { return nil }, true},
		{"the only one has reached it", "- -", func(rs []mesh.Record) []mesh.Reach { return []mesh.Reach{tried(rs, 1, 0, yes)} }, false},
		{"the only one has not", "- -", func(rs []mesh.Record) []mesh.Reach { return []mesh.Reach{tried(rs, 1, 0, no)} }, true},
		{"one of two", "- - -", func(rs []mesh.Record) []mesh.Reach {
			return []mesh.Reach{tried(rs, 1, 0, yes), tried(rs, 2, 0, no)}
		}, true},
		{"two of three", "- - - -", func(rs []mesh.Record) []mesh.Reach {
			return []mesh.Reach{tried(rs, 1, 0, yes), tried(rs, 2, 0, no), tried(rs, 3, 0, yes)}
		}, false},
		{"two of five", "- - - - - -", func(rs []mesh.Record) []mesh.Reach {
			return []mesh.Reach{tried(rs, 1, 0, yes), tried(rs, 2, 0, no), tried(rs, 3, 0, yes), tried(rs, 4, 0, no), tried(rs, 5, 0, no)}
		}, true},
		{"its own word", "- -", func(rs []mesh.Record) []mesh.Reach { return []mesh.Reach{tried(rs, 0, 0, yes)} }, true},
		{"the word of its own location", "a a -", func(rs []mesh.Record) []mesh.Reach {
			return []mesh.Reach{tried(rs, 1, 0, yes), tried(rs, 2, 0, no)}
		}, true},
		{"at an address where it was once", "- -", func(rs []mesh.Record) []mesh.Reach {
			r := tried(rs, 1, 0, yes)
			r.Tried[0].Addr = netip.MustParseAddrPort("203.0.113.1:51820")
			return []mesh.Reach{r}
		}, true},
		{"at one of its addresses", "- -", func(rs []mesh.Record) []mesh.Reach {
			rs[0].Endpoints = append(rs[0].Endpoints, mesh.Endpoint{Host: "2001:db8::1", Port: 51820})
			r := tried(rs, 1, 0, yes)
			r.Tried = append(r.Tried, mesh.Tried{Subject: rs[0].ID(), Addr: netip.MustParseAddrPort("[2001:db8::1]:51820")})
			return []mesh.Reach{r}
		}, false},
		{"by a name", "- -", func(rs []mesh.Record) []mesh.Reach {
			r := tried(rs, 1, 0, yes)
			rs[0].Endpoints[0].Host = "n0.example.com"
			return []mesh.Reach{r}
		}, false},
		{"by a node that is gone", "- -", func(rs []mesh.Record) []mesh.Reach {
			r := tried(rs, 1, 0, yes)
			r.Author = mesh.ID{0xff}
			return []mesh.Reach{r}
		}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rs := located(tt.locations)
			mesh.Prove(rs, tt.said(rs))
			if got := rs[0].Closed; got != tt.closed {
				t.Errorf("got closed %v, want %v", got, tt.closed)
			}
		})
	}
}

// One node changes nothing by what it says of a node of which three others say the same.
func TestProveAgainstOneLiar(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rs := located(strings.Repeat("- ", 5))
		open := rapid.Bool().Draw(t, "open")
		said := []mesh.Reach{tried(rs, 1, 0, open), tried(rs, 2, 0, open), tried(rs, 3, 0, open)}
		said = append(said, tried(rs, 4, 0, !open))
		mesh.Prove(rs, rapid.Permutation(said).Draw(t, "said"))
		if rs[0].Closed == open {
			t.Fatalf("got closed %v, although three say that it is open: %v", rs[0].Closed, open)
		}
	})
}

// Three living nodes of other locations try each node, or all if they are fewer. When one dies,
// another one takes its place and the others go on.
func TestReachDuty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rs := located(strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "-", "-"}), 2, 20).Draw(t, "locations"), " "))
		alive := map[mesh.ID]bool{}
		for _, r := range rs {
			alive[r.ID()] = true
		}
		authors := func() map[mesh.ID]map[mesh.ID]bool {
			out := map[mesh.ID]map[mesh.ID]bool{}
			for _, r := range rs {
				if !alive[r.ID()] {
					continue
				}
				for _, subject := range mesh.ReachDuty(r.ID(), rs, alive) {
					if out[subject] == nil {
						out[subject] = map[mesh.ID]bool{}
					}
					out[subject][r.ID()] = true
				}
			}
			return out
		}
		before := authors()
		for i := range rs {
			able := 0
			for j := range rs {
				if i != j && !rs[i].SameLocation(&rs[j]) {
					able++
				}
			}
			if got := len(before[rs[i].ID()]); got != min(3, able) {
				t.Fatalf("%s: got %d authors, want %d", rs[i].Name, got, min(3, able))
			}
		}
		dead := rs[rapid.IntRange(0, len(rs)-1).Draw(t, "dead")].ID()
		delete(alive, dead)
		after := authors()
		for subject, by := range before {
			for id := range by {
				if subject != dead && id != dead && !after[subject][id] {
					t.Fatalf("%v tried %v, and no more since %v has died", id, subject, dead)
				}
			}
		}
	})
}

// A node that others don't reach serves clients and locations last.
func TestClosedComesLast(t *testing.T) {
	in := twoLocations()
	in.Records[0].Closed = true
	if got := seats(in); got != "0:n1" {
		t.Errorf("gateway: got %s, want n1", got)
	}
	for _, id := range mesh.Homes(in) {
		if id == in.Records[0].ID() {
			t.Error("clients are to reach a node that others don't")
		}
	}
}
