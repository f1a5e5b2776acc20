// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"crypto/ed25519"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/internal/state"
)

// neighborhood is a location a of three nodes and somebody outside. The daemon
// under test is the first one.
func neighborhood() (*daemon, []mesh.Record) {
	key := func(i int) ed25519.PrivateKey {
		return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{byte(i + 1)}, ed25519.SeedSize))
	}
	var records []mesh.Record
	for i, name := range []string{"a1", "a2", "a3", "far"} {
		r := mesh.Record{Identity: key(i).Public().(ed25519.PublicKey), Name: name, Sequence: 7, Location: "a", Claim: mesh.Claim{Slot: i}}
		if name == "far" {
			r.Location = ""
		}
		records = append(records, r)
	}
	return &daemon{self: self{Identity: state.Identity{Key: key(0)}}, memory: node.Memory{Own: records[0]}}, records
}

func TestDrained(t *testing.T) {
	d, records := neighborhood()
	self := d.self.ID()
	turnOf := func(state mesh.Health, seat int, gateways ...int) turn {
		rs := append([]mesh.Record{}, records...)
		for _, i := range gateways {
			rs[i].Term = mesh.GatewayTerm{Since: 1}
		}
		tn := turn{wanted: node.Configuration{Input: mesh.Input{Self: self, Records: rs, Cluster: mesh.Cluster{Mode: mesh.ModeLocation}}, Topology: mesh.Topology{Seat: seat}}}
		if state != "" {
			tn.wanted.Input.Verdicts = []mesh.Verdict{{Author: records[0].Identity, Subject: self, State: state, Epoch: 1}}
		}
		return tn
	}
	gateway, member := turnOf("", 0, 0), turnOf("", mesh.None, 1)
	network := netip.MustParsePrefix("10.77.0.0/16")
	// serving is a turn in which one node serves a network that a1 names, too, and one says so.
	serving := func(tn turn, serves, says int) turn {
		tn.wanted.Topology.Shared = []mesh.SharedNetwork{{Network: network, Server: records[serves].ID()}}
		tn.wanted.Input.Records[says].Serving = []mesh.NetworkTerm{{Network: network, Since: 1}}
		return tn
	}
	server := serving(turnOf("", mesh.None), 0, 0)
	for _, tt := range []struct {
		name        string
		before, now turn
		undo        bool
		want        control.Drained
		done        bool
	}{
		{"not said yet", gateway, gateway, false, control.Drained{Gateway: true, Text: "This node has not announced yet that it is draining; see meshd status."}, false},
		{"said, the successor is silent", gateway, turnOf(mesh.HealthDraining, mesh.None, 0), false, control.Drained{Draining: true, Text: "This node is no longer the gateway, but its successor has not announced yet that it has taken over."}, false},
		{"replaced", gateway, turnOf(mesh.HealthDraining, mesh.None, 0, 2), false, control.Drained{Draining: true, Successors: []string{"a3"}, Text: "Replaced: the traffic of location a goes through a3 now."}, true},
		{"nobody else", gateway, turnOf(mesh.HealthDraining, 0, 0), false, control.Drained{Draining: true, Gateway: true, Text: "No other node can replace this one: it stays the gateway of location a."}, true},
		{"a member", member, turnOf(mesh.HealthDraining, mesh.None, 1), false, control.Drained{Draining: true, Successors: []string{"a2"}, Text: "This node was not a gateway, and will not become one before a restart or meshd drain --undo."}, true},
		{"serves, not said yet", server, server, false, control.Drained{Networks: []netip.Prefix{network}, Text: "This node has not announced yet that it is draining; see meshd status."}, false},
		{"served, the successor is silent", server, serving(turnOf(mesh.HealthDraining, mesh.None), 1, 0), false, control.Drained{Draining: true, Text: "This node no longer serves 10.77.0.0/16, but its successor has not announced yet that it has taken over."}, false},
		{"served, replaced", server, serving(turnOf(mesh.HealthDraining, mesh.None), 1, 1), false, control.Drained{Draining: true, Successors: []string{"a2"}, Text: "Replaced: 10.77.0.0/16 is reached through a2 now."}, true},
		{"served, nobody else", server, serving(turnOf(mesh.HealthDraining, mesh.None), 0, 0), false, control.Drained{Draining: true, Networks: []netip.Prefix{network}, Text: "No other node can replace this one: 10.77.0.0/16 stays reached through it."}, true},
		{
			"a gateway that served, replaced as both", serving(turnOf("", 0, 0), 0, 0), serving(turnOf(mesh.HealthDraining, mesh.None, 0, 2), 1, 1), false,
			control.Drained{Draining: true, Successors: []string{"a2", "a3"}, Text: "Replaced: the traffic of location a goes through a3 now, 10.77.0.0/16 is reached through a2 now."},
			true,
		},
		{
			"a gateway that served, replaced as the server", serving(turnOf("", 0, 0), 0, 0), serving(turnOf(mesh.HealthDraining, mesh.None, 0), 1, 1), false,
			control.Drained{Draining: true, Successors: []string{"a2"}, Text: "This node is no longer the gateway, but its successor has not announced yet that it has taken over."},
			false,
		},
		{"another one serves", serving(turnOf("", mesh.None), 1, 1), serving(turnOf(mesh.HealthDraining, mesh.None), 1, 1), false, control.Drained{Draining: true, Text: "This node carried no traffic that others could carry, and will not before a restart or meshd drain --undo."}, true},
		{"undone, another one serves", server, serving(turnOf(mesh.HealthUp, mesh.None), 1, 1), true, control.Drained{Successors: []string{"a2"}, Text: "This node may carry traffic of other nodes again."}, true},
		{"undone", turnOf(mesh.HealthDraining, mesh.None, 1), turnOf(mesh.HealthUp, mesh.None, 1), true, control.Drained{Successors: []string{"a2"}, Text: "This node may be a gateway again."}, true},
		{"undone, and called back", turnOf(mesh.HealthDraining, mesh.None, 1), turnOf(mesh.HealthUp, 0, 1), true, control.Drained{Gateway: true, Successors: []string{"a2"}, Text: "This node is a gateway again."}, true},
		{"not undone yet", turnOf(mesh.HealthDraining, 0), turnOf(mesh.HealthDraining, 0), true, control.Drained{Draining: true, Gateway: true, Text: "This node has not announced yet that it is up; see meshd status."}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.want.Successors == nil {
				tt.want.Successors = []string{}
			}
			got, done := drainResult(tt.before, tt.now, tt.undo)
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateComparable(netip.Prefix{})); diff != "" || done != tt.done {
				t.Errorf("done: got %t, want %t (-want +got):\n%s", done, tt.done, diff)
			}
		})
	}
}

func TestNoGateways(t *testing.T) {
	d, records := neighborhood()
	for _, tt := range []struct {
		name   string
		change func(in *mesh.Input)
		want   string
	}{
		{"a location", func(*mesh.Input) {}, ""},
		{"mode full", func(in *mesh.Input) { in.Cluster.Mode = mesh.ModeFull }, "This node is not a gateway: there are none in mode full."},
		{"no location", func(in *mesh.Input) { in.Self = records[3].ID() }, "This node is not a gateway: it has no location."},
		{"never", func(in *mesh.Input) { in.Records[0].Gateway = mesh.GatewayNever }, "This node is not a gateway and never becomes one: node.gateway is never."},
		{"alone in it", func(in *mesh.Input) { in.Records = in.Records[:1] }, "This node is not a gateway: no other node is on the private network of location a."},
	} {
		in := mesh.Input{Self: d.self.ID(), Records: append([]mesh.Record{}, records...), Cluster: mesh.Cluster{Mode: mesh.ModeLocation}}
		tt.change(&in)
		if got := whyNotGateway(turn{wanted: node.Configuration{Input: in}}); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

// TestNoSuccessor: the last gateway of a location is not drained.
func TestNoSuccessor(t *testing.T) {
	d, records := neighborhood() // a1, a2 and a3 in location a, and one elsewhere
	down := func(i int, state mesh.Health) mesh.Verdict {
		return mesh.Verdict{Author: records[i].Identity, Subject: records[i].ID(), State: state, Epoch: 1}
	}
	// serve has one node serve a network that a1 and another one name.
	serve := func(tn *turn, server, other int) {
		network := netip.MustParsePrefix("10.77.0.0/16")
		for _, i := range []int{0, other} {
			tn.wanted.Input.Records[i].AllowedLocationIPs = []netip.Prefix{network}
		}
		tn.wanted.Topology.Shared = []mesh.SharedNetwork{{Network: network, Server: records[server].ID()}}
	}
	for _, tt := range []struct {
		name   string
		change func(tn *turn)
		want   []string // parts of the text
	}{
		{"others", func(*turn) {}, nil},
		{"one is left", func(tn *turn) { delete(tn.view.Alive, records[1].ID()) }, nil},
		{"all are dead", func(tn *turn) { clear(tn.view.Alive) }, []string{"location a", "a2 (it is not alive)", "a3 (it is not alive)"}},
		{"all are dead, but it is not a gateway", func(tn *turn) {
			clear(tn.view.Alive)
			tn.wanted.Topology.Seat = mesh.None
		}, nil},
		{"one may not, one drains", func(tn *turn) {
			tn.wanted.Input.Records[1].Gateway = mesh.GatewayNever
			tn.wanted.Input.Verdicts = []mesh.Verdict{down(2, mesh.HealthDraining)}
		}, []string{"a2 (its node.gateway is never)", "a3 (it is draining; run there: meshd drain --undo)"}},
		{"they have no address", func(tn *turn) {
			for i := range tn.wanted.Input.Records {
				tn.wanted.Input.Records[i].Claim.Slot = mesh.None
			}
		}, []string{"a2 (it has no address)"}},
		{"another one serves the network, too", func(tn *turn) {
			tn.wanted.Topology.Seat = mesh.None
			serve(tn, 0, 1)
		}, nil},
		{"the other one that serves the network is down", func(tn *turn) {
			tn.wanted.Topology.Seat = mesh.None
			serve(tn, 0, 1)
			tn.wanted.Input.Verdicts = []mesh.Verdict{down(1, mesh.HealthDown)}
		}, []string{"this node serves 10.77.0.0/16", "a2 (it is down)"}},
		{"the other one that serves the network has no way there", func(tn *turn) {
			tn.wanted.Topology.Seat = mesh.None
			serve(tn, 0, 1)
			tn.wanted.Input.Records[1].Unserved = tn.wanted.Input.Records[1].AllowedLocationIPs
		}, []string{"a2 (its host has no way there)"}},
		{"another one that is down serves it now", func(tn *turn) {
			tn.wanted.Topology.Seat = mesh.None
			serve(tn, 1, 1)
			tn.wanted.Input.Verdicts = []mesh.Verdict{down(1, mesh.HealthDown)}
		}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tn := turn{view: mesh.View{Alive: make(map[mesh.ID]bool)}}
			tn.wanted.Input = mesh.Input{Self: d.self.ID(), Records: append([]mesh.Record{}, records...)}
			for i := range tn.wanted.Input.Records {
				tn.wanted.Input.Records[i].Claim = mesh.Claim{Slot: i, Since: 1}
				tn.view.Alive[records[i].ID()] = true
			}
			tt.change(&tn)
			got := noSuccessor(tn)
			if (got == "") != (tt.want == nil) {
				t.Errorf("got %q", got)
			}
			for _, part := range tt.want {
				if !strings.Contains(got, part) {
					t.Errorf("got %q, want it to say %q", got, part)
				}
			}
		})
	}
}

// TestServerIsDrained: where there are no gateways, a node that serves a network is drained, too.
func TestServerIsDrained(t *testing.T) {
	d, records := neighborhood()
	tn := turn{wanted: node.Configuration{Input: mesh.Input{Self: d.self.ID(), Records: records, Cluster: mesh.Cluster{Mode: mesh.ModeFull}}}}
	tn.wanted.Topology.Shared = []mesh.SharedNetwork{{Network: netip.MustParsePrefix("10.77.0.0/16"), Server: records[1].ID()}}
	if got := whyNotGateway(tn); got != "" {
		t.Errorf("got %q, want that it can be drained", got)
	}
}

// TestVerdictOnUntoldRecord: when our record can't be saved, and so is not told, a verdict
// that names it names the former one, unless by that our term goes on.
func TestVerdictOnUntoldRecord(t *testing.T) {
	for _, tt := range []struct {
		name    string
		term    mesh.GatewayTerm
		serving []mesh.NetworkTerm
		want    []uint64
	}{
		{"the term has ended", mesh.GatewayTerm{}, nil, []uint64{7}},
		{"the term goes on", mesh.GatewayTerm{Since: 1}, nil, nil},
		{"the term as the server of a network goes on", mesh.GatewayTerm{}, []mesh.NetworkTerm{{Since: 1}}, nil},
	} {
		d, records := neighborhood()
		network := &fakeNetwork{trace: &trace{names: make(map[mesh.ID]string), sections: []*section{{}}}, changed: make(chan struct{}, 1)}
		d.gossip, d.log.Logger = network, slog.New(slog.DiscardHandler)
		d.memory.Own.Term, d.memory.Own.Serving = tt.term, tt.serving
		up := mesh.Verdict{Author: records[0].Identity, Subject: records[0].ID(), State: mesh.HealthUp, Epoch: 1, Record: 8}
		if err := d.publishVerdicts(node.Announcement{Verdicts: []mesh.Verdict{up}}, mesh.View{Records: records}); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		var got []uint64
		for _, v := range network.view.Verdicts {
			got = append(got, v.Record)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: got verdicts that name the records %v, want %v", tt.name, got, tt.want)
		}
	}
}
