// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/meshd/meshd/internal/mesh"
	"pgregory.net/rapid"
)

// sharedNetwork is one that several nodes name in these tests.
func sharedNetwork() netip.Prefix { return netip.MustParsePrefix("172.30.0.0/16") }

// server returns the name of the node to which all others route a network, as n6 outside and each node
// of the location see it.
func server(t rapid.TB, in mesh.Input, network netip.Prefix) string {
	t.Helper()
	names := make(map[mesh.ID]string)
	for _, r := range in.Records {
		names[r.ID()] = r.Name
	}
	var seen []string
	for _, r := range in.Records {
		in.Self = r.ID()
		for _, s := range mesh.Derive(in).Shared {
			if s.Network == network {
				seen = append(seen, names[s.Server])
			}
		}
	}
	slices.Sort(seen)
	if seen = slices.Compact(seen); len(seen) != 1 {
		t.Fatalf("who serves %v: got %v, want one node on which all agree", network, seen)
	}
	in.Self = in.Records[6].ID()
	outside := mesh.Derive(in)
	i := slices.IndexFunc(outside.Peers, func(p mesh.Peer) bool { return slices.Contains(p.AllowedIPs, network) })
	if i < 0 || in.Cluster.Mode != mesh.ModeLocation && outside.Peers[i].Name != seen[0] {
		t.Fatalf("n6 routes %v: got %v, want to %s", network, outside.Peers, seen[0])
	}
	return seen[0]
}

// TestServerOfNetwork: who serves a network that n1 and n2 name, in every mode. n0 is the gateway.
func TestServerOfNetwork(t *testing.T) {
	network := sharedNetwork()
	term := func(since int64) []mesh.NetworkTerm { return []mesh.NetworkTerm{{Network: network, Since: since}} }
	for _, tt := range []struct {
		name   string
		change func(in *mesh.Input, rs []mesh.Record)
		want   string
	}{
		{"the strongest claim", func(*mesh.Input, []mesh.Record) {}, "n1"},
		{"the one that serves it", func(_ *mesh.Input, rs []mesh.Record) { rs[2].Serving = term(7) }, "n2"},
		{"the one that serves it for longer", func(_ *mesh.Input, rs []mesh.Record) { rs[1].Serving, rs[2].Serving = term(8), term(7) }, "n2"},
		{"a term for another network", func(_ *mesh.Input, rs []mesh.Record) {
			rs[2].Serving = []mesh.NetworkTerm{{Network: netip.MustParsePrefix("172.31.0.0/16"), Since: 7}}
		}, "n1"},
		{"the first one is down", func(in *mesh.Input, _ []mesh.Record) {
			in.Verdicts = []mesh.Verdict{verdict(*in, 2, 1, mesh.HealthDown, 1)}
		}, "n2"},
		{"the one that serves it is down", func(in *mesh.Input, rs []mesh.Record) {
			rs[2].Serving = term(7)
			in.Verdicts = []mesh.Verdict{verdict(*in, 1, 2, mesh.HealthDown, 1)}
		}, "n1"},
		{"the one that serves it is draining", func(in *mesh.Input, rs []mesh.Record) {
			rs[2].Serving = term(7)
			in.Verdicts = []mesh.Verdict{verdict(*in, 2, 2, mesh.HealthDraining, 1)}
		}, "n1"},
		{"the one that serves it has lost its way there", func(_ *mesh.Input, rs []mesh.Record) {
			rs[2].Serving, rs[2].Unserved = term(7), []netip.Prefix{network}
		}, "n1"},
		{"both have lost their way", func(_ *mesh.Input, rs []mesh.Record) {
			rs[2].Serving, rs[1].Unserved, rs[2].Unserved = term(7), []netip.Prefix{network}, []netip.Prefix{network}
		}, "n2"},
		{"down is better than without a way", func(in *mesh.Input, rs []mesh.Record) {
			rs[2].Unserved = []netip.Prefix{network}
			in.Verdicts = []mesh.Verdict{verdict(*in, 2, 1, mesh.HealthDown, 1)}
		}, "n1"},
		{"draining is better than down", func(in *mesh.Input, rs []mesh.Record) {
			rs[2].Serving = term(7)
			in.Verdicts = []mesh.Verdict{verdict(*in, 1, 2, mesh.HealthDown, 1), verdict(*in, 1, 1, mesh.HealthDraining, 1)}
		}, "n1"},
		{"both are down", func(in *mesh.Input, rs []mesh.Record) {
			rs[2].Serving = term(7)
			in.Verdicts = []mesh.Verdict{verdict(*in, 1, 2, mesh.HealthDown, 1), verdict(*in, 2, 1, mesh.HealthDown, 1)}
		}, "n2"},
		{"the one that serves it has no address", func(_ *mesh.Input, rs []mesh.Record) {
			rs[2].Serving, rs[2].Claim.Slot = term(7), mesh.None
		}, "n1"},
	} {
		for _, mode := range []mesh.Mode{mesh.ModeFull, mesh.ModeCross, mesh.ModeLocation} {
			for _, linked := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, %s, linked %t", tt.name, mode, linked), func(t *testing.T) {
					in := twoLocations()
					in.Cluster.Mode = mode
					for i := 1; i < 3; i++ {
						in.Records[i].AllowedLocationIPs = []netip.Prefix{network}
						if linked {
							in.Records[i].Linked = []mesh.LinkedNetwork{{Network: network, Cluster: "west"}}
						}
					}
					if linked {
						in.Records[1].Location = ""
					}
					tt.change(&in, in.Records)
					if got := server(t, in, network); got != tt.want {
						t.Errorf("got %s, want %s", got, tt.want)
					}
				})
			}
		}
	}
}

// TestNotShared: what one node names alone, or nodes of two locations name, nobody can take over.
func TestNotShared(t *testing.T) {
	for _, names := range [][]int{{1}, {1, 4}, {1, 2, 4}, {1, 6}} {
		in := twoLocations()
		for _, i := range names {
			in.Records[i].AllowedLocationIPs = []netip.Prefix{sharedNetwork()}
		}
		for _, r := range in.Records {
			in.Self = r.ID()
			if got := mesh.Derive(in).Shared; len(got) > 0 {
				t.Errorf("nodes %v name it: %s has %v, want nothing shared", names, r.Name, got)
			}
		}
	}
}

// TestServerKeepsNetwork: whatever is said of the nodes, all agree on who serves a network. It is healthy if one
// of them is, and once it has said in its record that it serves, it stays until a verdict is on it.
func TestServerKeepsNetwork(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		network := sharedNetwork()
		in := twoLocations()
		in.Cluster.Mode = rapid.SampledFrom([]mesh.Mode{mesh.ModeFull, mesh.ModeCross, mesh.ModeLocation}).Draw(t, "mode")
		index := make(map[string]int)
		for i := range 4 {
			in.Records[i].AllowedLocationIPs = []netip.Prefix{network}
			index[in.Records[i].Name] = i
		}
		epoch := uint64(0)
		now := int64(10)
		health := map[int]mesh.Health{}
		before := -1
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			i := rapid.IntRange(0, 3).Draw(t, "node")
			health[i] = rapid.SampledFrom([]mesh.Health{mesh.HealthUp, mesh.HealthDraining, mesh.HealthDown}).Draw(t, "state")
			epoch++
			in.Verdicts = append(in.Verdicts, verdict(in, i, i, health[i], epoch))
			serves := index[server(t, in, network)]
			up := func(i int) bool { return health[i] == "" || health[i] == mesh.HealthUp }
			for j := range 4 {
				if up(j) && !up(serves) {
					t.Fatalf("n%d serves and is %s, while n%d is up", serves, health[serves], j)
				}
			}
			if before >= 0 && up(before) && serves != before {
				t.Fatalf("n%d serves, though n%d has served before and is up", serves, before)
			}
			// The records follow: a term begins with serving, and ends when that does, or with a verdict.
			now++
			for j := range 4 {
				switch {
				case j != serves, health[j] == mesh.HealthDown:
					in.Records[j].Serving = nil
				case in.Records[j].Serving == nil:
					in.Records[j].Serving = []mesh.NetworkTerm{{Network: network, Since: now}}
				}
			}
			if got := index[server(t, in, network)]; up(serves) && got != serves {
				t.Fatalf("after the records: n%d serves, want n%d", got, serves)
			}
			before = serves
			if in.Records[serves].Serving == nil {
				before = -1
			}
		}
	})
}
