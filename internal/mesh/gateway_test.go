// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/meshd/meshd/internal/mesh"
	"pgregory.net/rapid"
)

// twoLocations returns a cluster with n0 to n3 in location a, n4 and n5 in b, and n6
// without a location.
func twoLocations() mesh.Input {
	in := clusterOf(7)
	in.Cluster = cluster(true)
	in.Cluster.Mode, in.Cluster.Encapsulation = mesh.ModeLocation, mesh.EncapsulationAlways
	for i := range 6 {
		location := "a"
		if i > 3 {
			location = "b"
		}
		in.Records[i].Location = location
		in.Records[i].InternalIPs = prefixes(fmt.Sprintf("192.168.%d.%d/24", i/4+1, i+1))
	}
	return in
}

func verdict(in mesh.Input, author, subject int, state mesh.Health, epoch uint64) mesh.Verdict {
	return mesh.Verdict{Author: in.Records[author].Identity, Subject: in.Records[subject].ID(), State: state, Epoch: epoch}
}

// seats lists the gateways of location a, in the order of their seats.
func seats(in mesh.Input) string {
	var s []string
	for i := range 4 {
		in.Self = in.Records[i].ID()
		if seat := mesh.Derive(in).Seat; seat != mesh.None {
			s = append(s, fmt.Sprintf("%d:%s", seat, in.Records[i].Name))
		}
	}
	slices.Sort(s)
	return strings.Join(s, " ")
}

func TestGatewayChoice(t *testing.T) {
	tests := []struct {
		name   string
		change func(in *mesh.Input, rs []mesh.Record)
		want   string
	}{
		{"the strongest claim", func(*mesh.Input, []mesh.Record) {}, "0:n0"},
		{"a gateway already", func(_ *mesh.Input, rs []mesh.Record) { rs[2].Term = mesh.GatewayTerm{Seat: 0, Since: 7} }, "0:n2"},
		{"a gateway for longer", func(_ *mesh.Input, rs []mesh.Record) {
			rs[2].Term, rs[1].Term = mesh.GatewayTerm{Since: 7}, mesh.GatewayTerm{Since: 8}
		}, "0:n2"},
		{"an endpoint before a term", func(_ *mesh.Input, rs []mesh.Record) {
			rs[2].Term = mesh.GatewayTerm{Since: 7}
			rs[2].Endpoints = nil
		}, "0:n0"},
		{"preferred before endpoint and term", func(_ *mesh.Input, rs []mesh.Record) {
			rs[2].Term, rs[3].Gateway, rs[3].Endpoints = mesh.GatewayTerm{Since: 7}, mesh.GatewayPrefer, nil
		}, "0:n3"},
		{"never", func(_ *mesh.Input, rs []mesh.Record) {
			rs[0].Gateway, rs[1].Gateway = mesh.GatewayNever, mesh.GatewayNever
		}, "0:n2"},
		{"none", func(_ *mesh.Input, rs []mesh.Record) {
			for i := range rs {
				rs[i].Gateway = mesh.GatewayNever
			}
		}, ""},
		{"without addresses", func(_ *mesh.Input, rs []mesh.Record) { rs[0].Claim.Slot = mesh.None }, "0:n1"},
		{"two", func(in *mesh.Input, _ []mesh.Record) { in.Cluster.Gateways = 2 }, "0:n0 1:n1"},
		{"more seats than nodes", func(in *mesh.Input, _ []mesh.Record) { in.Cluster.Gateways = 9 }, "0:n0 1:n1 2:n2 3:n3"},
		{"a seat is kept", func(in *mesh.Input, rs []mesh.Record) {
			in.Cluster.Gateways, rs[3].Term = 2, mesh.GatewayTerm{Seat: 1, Since: 7}
		}, "0:n0 1:n3"},
		{"two of one seat", func(in *mesh.Input, rs []mesh.Record) {
			in.Cluster.Gateways = 2
			rs[3].Term, rs[2].Term = mesh.GatewayTerm{Seat: 1, Since: 7}, mesh.GatewayTerm{Seat: 1, Since: 6}
		}, "0:n3 1:n2"},
		{"a seat that is no more", func(in *mesh.Input, rs []mesh.Record) { rs[3].Term = mesh.GatewayTerm{Seat: 1, Since: 7} }, "0:n3"},
		{"down", func(in *mesh.Input, _ []mesh.Record) {
			in.Verdicts = []mesh.Verdict{verdict(*in, 3, 0, mesh.HealthDown, 1)}
		}, "0:n1"},
		{"down, and its seat stays empty", func(in *mesh.Input, rs []mesh.Record) {
			in.Cluster.Gateways = 4
			in.Verdicts = []mesh.Verdict{verdict(*in, 3, 1, mesh.HealthDown, 1)}
		}, "0:n0 1:n2 2:n3"},
		{"preferred, but down", func(in *mesh.Input, rs []mesh.Record) {
			rs[0].Gateway = mesh.GatewayPrefer
			in.Verdicts = []mesh.Verdict{verdict(*in, 3, 0, mesh.HealthDown, 1)}
		}, "0:n1"},
		{"draining goes before down", func(in *mesh.Input, rs []mesh.Record) {
			rs[2].Gateway, rs[3].Gateway = mesh.GatewayNever, mesh.GatewayNever
			in.Verdicts = []mesh.Verdict{verdict(*in, 3, 0, mesh.HealthDown, 1), verdict(*in, 1, 1, mesh.HealthDraining, 1)}
		}, "0:n1"},
		{"draining is replaced, though a seat stays empty", func(in *mesh.Input, rs []mesh.Record) {
			in.Cluster.Gateways = 4
			in.Verdicts = []mesh.Verdict{verdict(*in, 0, 0, mesh.HealthDraining, 1)}
		}, "0:n1 1:n2 2:n3"},
		{"all down: the best one", func(in *mesh.Input, rs []mesh.Record) {
			for i := range 4 {
				in.Verdicts = append(in.Verdicts, verdict(*in, 3, i, mesh.HealthDown, 1))
			}
			rs[2].Term = mesh.GatewayTerm{Since: 7}
		}, "0:n2"},
		{"up again, and preferred", func(in *mesh.Input, rs []mesh.Record) {
			rs[0].Gateway = mesh.GatewayPrefer
			in.Verdicts = []mesh.Verdict{verdict(*in, 3, 0, mesh.HealthDown, 1), verdict(*in, 0, 0, mesh.HealthUp, 2)}
		}, "0:n0"},
		{"up again, and so is another one", func(in *mesh.Input, rs []mesh.Record) {
			rs[2].Gateway, rs[3].Gateway = mesh.GatewayNever, mesh.GatewayNever
			rs[0].Replaced, rs[1].Replaced = 1, 2
			in.Verdicts = []mesh.Verdict{verdict(*in, 0, 0, mesh.HealthUp, 2), verdict(*in, 1, 1, mesh.HealthUp, 4)}
		}, "0:n0"},
		{"up again, and another one has never been down", func(in *mesh.Input, rs []mesh.Record) {
			rs[1].Gateway, rs[0].Replaced = mesh.GatewayNever, 1
			in.Verdicts = []mesh.Verdict{verdict(*in, 0, 0, mesh.HealthUp, 2)}
		}, "0:n2"},
		{"up again, said too early", func(in *mesh.Input, _ []mesh.Record) {
			up := verdict(*in, 0, 0, mesh.HealthUp, 2)
			up.Record = 2
			in.Verdicts = []mesh.Verdict{verdict(*in, 3, 0, mesh.HealthDown, 1), up}
		}, "0:n1"},
		{"only itself says that it is up", func(in *mesh.Input, _ []mesh.Record) {
			in.Verdicts = []mesh.Verdict{verdict(*in, 3, 0, mesh.HealthDown, 1), verdict(*in, 2, 0, mesh.HealthUp, 2)}
		}, "0:n1"},
		{"other modes have none", func(in *mesh.Input, _ []mesh.Record) { in.Cluster.Mode = mesh.ModeCross }, ""},
		{"a location of one", func(_ *mesh.Input, rs []mesh.Record) {
			rs[1].Location, rs[2].Location, rs[3].Location = "x", "y", "z"
		}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := twoLocations()
			tt.change(&in, in.Records[:4])
			if got := seats(in); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// Of several authors' verdicts with one epoch the lowest author's counts.
func TestLowestAuthorOfAnEpoch(t *testing.T) {
	in := twoLocations()
	in.Records[0].Gateway = mesh.GatewayPrefer
	for _, state := range []mesh.Health{mesh.HealthUp, mesh.HealthDraining} {
		for author := 1; author < 7; author++ {
			in.Verdicts = []mesh.Verdict{verdict(in, author, 0, mesh.HealthDown, 3), verdict(in, 0, 0, state, 3)}
			want := "0:n1"
			if state == mesh.HealthUp && in.Records[0].ID().Compare(in.Records[author].ID()) < 0 {
				want = "0:n0"
			}
			if got := seats(in); got != want {
				t.Errorf("%s of itself, down of n%d: got %s, want %s", state, author, got, want)
			}
		}
	}
}

// Which node serves after a verdict depends on how often nodes were replaced, by their
// own count, and not on an epoch, which any node can raise.
func TestHostileEpochDoesNotDecide(t *testing.T) {
	in := twoLocations()
	in.Verdicts = []mesh.Verdict{verdict(in, 1, 0, mesh.HealthDown, 1<<16), verdict(in, 0, 0, mesh.HealthUp, 1<<16+1)}
	if got := seats(in); got != "0:n0" {
		t.Errorf("up again after a verdict with a high epoch: got %s, want 0:n0", got)
	}
	in.Records[0].Replaced = 1
	if got := seats(in); got != "0:n1" {
		t.Errorf("replaced once: got %s, want 0:n1", got)
	}
}

func TestLocationWithoutGateway(t *testing.T) {
	in := twoLocations()
	for i := range 4 {
		in.Records[i].Gateway = mesh.GatewayNever
	}
	for i, want := range []struct {
		kind mesh.RouteKind
		to   int
	}{{mesh.RouteNone, 6}, {mesh.RouteLAN, 0}, {mesh.RouteLAN, 1}, {mesh.RouteLAN, 1}, {mesh.RouteNone, 0}, {mesh.RouteNone, 0}, {mesh.RouteNone, 0}} {
		in.Self = in.Records[i].ID()
		top := mesh.Derive(in)
		j := slices.IndexFunc(top.Routes, func(p mesh.Route) bool { return p.ID == in.Records[want.to].ID() })
		if got := top.Routes[j].Kind; got != want.kind {
			t.Errorf("route from n%d to n%d: got %s, want %s", i, want.to, got, want.kind)
		}
		if len(top.Problems) != 1 || top.Problems[0].Kind != mesh.ProblemGateway {
			t.Errorf("problems of n%d: got %v, want one %s", i, top.Problems, mesh.ProblemGateway)
		}
	}
}

// A replaced gateway keeps its own tunnels until its term ends.
func TestReplacedGatewayKeepsItsTunnels(t *testing.T) {
	in := twoLocations()
	in.Verdicts = []mesh.Verdict{verdict(in, 0, 0, mesh.HealthDraining, 1)}
	for _, since := range []int64{7, 0} {
		in.Records[0].Term.Since = since
		in.Self = in.Records[0].ID()
		top := mesh.Derive(in)
		if got, want := len(top.Peers) > 0, since > 0; got != want || top.Seat != mesh.None {
			t.Errorf("gateway since %d: has peers %v, want %v; seat %d, want none", since, got, want, top.Seat)
		}
		in.Self = in.Records[6].ID()
		for _, p := range mesh.Derive(in).Peers {
			if got, want := fmt.Sprint(p.AllowedIPs), "[10.4.0.1/32 10.42.0.0/24 192.168.1.1/32]"; p.Name == "n0" && got != want {
				t.Errorf("gateway since %d: n6 takes %s from n0, want %s", since, got, want)
			}
		}
	}
}

// The failure of a node changes only routes through it, in every mode, and, if it was a
// gateway, those of its successor.
func TestFailureMovesOnlyWhatHungOnIt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		if w.cluster.Mode == mesh.ModeLocation {
			w.settleTerms()
		}
		before := newWalker(w.cluster, w.records, w.verdicts...)
		lost := rapid.IntRange(0, len(w.records)-1).Draw(t, "lost")
		failed := before.hosts[w.records[lost].ID()]
		w.kill(lost)
		after := newWalker(w.cluster, w.records, w.verdicts...)
		moved := map[mesh.ID]bool{failed.id: true}
		for id, h := range before.hosts {
			if after.hosts[id].top.Seat != h.top.Seat {
				moved[id] = true
			}
		}
		gateway := failed.top.Seat != mesh.None
		if !gateway && len(moved) > 1 {
			t.Fatalf("%s failed, which was not a gateway, and other nodes' seats changed", failed.Name)
		}
		for id, h := range before.hosts {
			for _, p := range h.top.Routes {
				got := after.hosts[id].route(p.ID)
				through := moved[id] || moved[p.ID] || slices.Contains(p.Hops, failed.id)
				// Where there was no gateway, its successor may make nodes reachable.
				joins := gateway && p.Kind == mesh.RouteNone
				if !through && !joins && (got.Kind != p.Kind || !slices.Equal(got.Hops, p.Hops)) {
					t.Fatalf("%s failed: route from %s to %s was %s by way of %v, is %s by way of %v", failed.Name, h.Name, before.hosts[p.ID].Name, p.Kind, p.Hops, got.Kind, got.Hops)
				}
			}
		}
	})
}

// settleTerms gives a term to all nodes that are gateways, and to no others.
func (w *world) settleTerms() {
	for range 2 { // ending a term can move other nodes' seats
		k := newWalker(w.cluster, w.records, w.verdicts...)
		for i := range w.records {
			r := &w.records[i]
			switch seat := k.hosts[r.ID()].top.Seat; {
			case seat == mesh.None:
				r.Term = mesh.GatewayTerm{}
			case r.Term.Since == 0 || r.Term.Seat != seat:
				r.Term = mesh.GatewayTerm{Seat: seat, Since: int64(100 + i)}
			}
		}
	}
}

// TestLocationWithoutHealthyGateway: every node says that the gateways of a location are
// about to be gone, and what to do.
func TestLocationWithoutHealthyGateway(t *testing.T) {
	in := twoLocations()
	in.Records[2].Gateway, in.Records[3].Gateway = mesh.GatewayNever, mesh.GatewayNever
	problems := func() (texts []string) {
		for i := range in.Records {
			in.Self = in.Records[i].ID()
			for _, p := range mesh.Derive(in).Problems {
				if p.Kind == mesh.ProblemGateway {
					texts = append(texts, p.Text+" → "+p.Advice)
				}
			}
		}
		return texts
	}
	in.Verdicts = []mesh.Verdict{verdict(in, 1, 1, mesh.HealthDraining, 1)}
	if got := problems(); len(got) > 0 {
		t.Errorf("one of two drains: got %q, want no problem", got)
	}
	for _, state := range []mesh.Health{mesh.HealthDraining, mesh.HealthDown} {
		in.Verdicts = []mesh.Verdict{verdict(in, 1, 1, mesh.HealthDraining, 1), verdict(in, 0, 0, state, 1)}
		got := problems()
		if len(got) != len(in.Records) || !strings.Contains(got[0], "all gateways of location a are draining or down: n0, n1 → ") || !strings.Contains(got[0], "meshd drain --undo") {
			t.Errorf("the other one is %s: got %q, want a problem on each of %d nodes", state, got, len(in.Records))
		}
	}
}
