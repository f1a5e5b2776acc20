// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
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
	return &daemon{identity: state.Identity{Key: key(0)}, memory: node.Memory{Own: records[0]}}, records
}

// viewOf is what gossip knows if all of these nodes are alive and heard.
func viewOf(records []mesh.Record, heard ...mesh.Record) mesh.View {
	v := mesh.View{Records: records, Alive: make(map[mesh.ID]bool)}
	for _, r := range heard {
		v.Alive[r.ID()] = true
	}
	return v
}

// TestRaise follows a gateway from its fall to its return.
func TestRaise(t *testing.T) {
	d, records := neighborhood()
	start := time.Unix(1_800_000_000, 0)
	verdicts := []mesh.Verdict{}
	say := func(author int, state mesh.Health, epoch uint64) {
		verdicts = []mesh.Verdict{{Author: records[author].Identity, Subject: records[0].ID(), Role: mesh.RoleGateway, State: state, Epoch: epoch}}
	}
	broken := netcfg.State{Sysctls: []netcfg.Sysctl{{Key: "net.ipv4.ip_forward", Value: "1"}}}
	heard := records[1:]
	step := func(at time.Duration, want string) {
		t.Helper()
		tn := turn{now: start.Add(at), view: viewOf(records, heard...), heard: make(map[mesh.ID]time.Time)}
		for _, r := range heard {
			tn.heard[r.ID()] = tn.now
		}
		tn.view.Verdicts = verdicts
		v, ok := d.judgeSelf(&tn)
		got := fmt.Sprintf("again in %v", tn.again)
		if ok {
			got = fmt.Sprintf("%s, epoch %d, record %d", v.State, v.Epoch, v.Record)
			say(0, v.State, v.Epoch)
		}
		if got != want {
			t.Errorf("after %v: got %s, want %s", at, got, want)
		}
	}
	step(0, "again in 0s")
	say(1, mesh.HealthDown, 4)
	d.memory.Own.Office = mesh.Office{Since: 1}
	step(time.Second, "again in 10s")
	step(5*time.Second, "again in 6s")
	step(11*time.Second, "again in 5ms") // the record has to say first that it is not in office
	d.memory.Own.Office, d.memory.Own.Sequence = mesh.Office{}, 8
	heard = records[1:3]
	step(12*time.Second, "again in 2s") // nobody outside is heard
	heard = records[3:]
	step(13*time.Second, "up, epoch 5, record 8") // nobody of the location lives
	step(14*time.Second, "again in 0s")

	say(2, mesh.HealthDown, 6)
	step(time.Minute, "again in 20s") // a relapse
	heard = records[1:]
	d.published.set(control.Status{}, turn{desired: broken})
	step(80*time.Second, "again in 2s") // it does not forward
	d.published.set(control.Status{}, turn{desired: broken, observed: broken})
	step(81*time.Second, "up, epoch 7, record 8")

	d.carriers.draining = true
	step(82*time.Second, "draining, epoch 8, record 0")
	step(83*time.Second, "again in 0s")
	say(1, mesh.HealthDown, 9)
	step(84*time.Second, "again in 0s") // nothing to say against that
	d.carriers.draining, d.carriers.undone = false, true
	step(85*time.Second, "up, epoch 10, record 8")
	step(86*time.Second, "again in 0s")

	say(0, mesh.HealthDraining, 11) // by a daemon that ran before this one
	step(87*time.Second, "again in 40s")
}

func TestDrained(t *testing.T) {
	d, records := neighborhood()
	self := d.identity.ID()
	turnOf := func(state mesh.Health, seat int, office ...int) turn {
		rs := append([]mesh.Record{}, records...)
		for _, i := range office {
			rs[i].Office = mesh.Office{Since: 1}
		}
		tn := turn{input: mesh.Input{Self: self, Records: rs, Cluster: mesh.Cluster{Mode: mesh.ModeLocation}}, topology: mesh.Topology{Seat: seat}}
		if state != "" {
			tn.input.Verdicts = []mesh.Verdict{{Author: records[0].Identity, Subject: self, Role: mesh.RoleGateway, State: state, Epoch: 1}}
		}
		return tn
	}
	gateway, member := turnOf("", 0, 0), turnOf("", mesh.None, 1)
	for _, tt := range []struct {
		name        string
		before, now turn
		undo        bool
		want        control.Drained
		done        bool
	}{
		{"not said yet", gateway, gateway, false, control.Drained{Gateway: true, Text: "The daemon has not said yet that this node is draining; see meshd status."}, false},
		{"said, the successor is silent", gateway, turnOf(mesh.HealthDraining, mesh.None, 0), false, control.Drained{Draining: true, Text: "This node is relieved, but its successor has not said that it is in office."}, false},
		{"relieved", gateway, turnOf(mesh.HealthDraining, mesh.None, 0, 2), false, control.Drained{Draining: true, Successors: []string{"a3"}, Text: "Relieved: the traffic of location a goes through a3 now."}, true},
		{"nobody else", gateway, turnOf(mesh.HealthDraining, 0, 0), false, control.Drained{Draining: true, Gateway: true, Text: "Nobody can relieve this node: it stays the gateway of location a."}, true},
		{"a member", member, turnOf(mesh.HealthDraining, mesh.None, 1), false, control.Drained{Draining: true, Successors: []string{"a2"}, Text: "This node was not a gateway, and will not become one before a restart or meshd drain --undo."}, true},
		{"undone", turnOf(mesh.HealthDraining, mesh.None, 1), turnOf(mesh.HealthUp, mesh.None, 1), true, control.Drained{Successors: []string{"a2"}, Text: "This node may be a gateway again."}, true},
		{"undone, and called back", turnOf(mesh.HealthDraining, mesh.None, 1), turnOf(mesh.HealthUp, 0, 1), true, control.Drained{Gateway: true, Successors: []string{"a2"}, Text: "This node is a gateway again."}, true},
		{"not undone yet", turnOf(mesh.HealthDraining, 0), turnOf(mesh.HealthDraining, 0), true, control.Drained{Draining: true, Gateway: true, Text: "This node does not say yet that it is up; see meshd status."}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.want.Successors == nil {
				tt.want.Successors = []string{}
			}
			got, done := drained(tt.before, tt.now, tt.undo)
			if diff := cmp.Diff(tt.want, got); diff != "" || done != tt.done {
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
		{"mode full", func(in *mesh.Input) { in.Cluster.Mode = mesh.ModeFull }, "This node is no gateway: there are none in mode full."},
		{"no location", func(in *mesh.Input) { in.Self = records[3].ID() }, "This node is no gateway: it has no location."},
		{"never", func(in *mesh.Input) { in.Records[0].Gateway = mesh.GatewayNever }, "This node is no gateway, and never will be: node.gateway is never."},
		{"alone in it", func(in *mesh.Input) { in.Records = in.Records[:1] }, "This node is no gateway: nobody else is in location a."},
	} {
		in := mesh.Input{Self: d.identity.ID(), Records: append([]mesh.Record{}, records...), Cluster: mesh.Cluster{Mode: mesh.ModeLocation}}
		tt.change(&in)
		if got := noGateways(turn{input: in}); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

// A gateway that is gone and that nobody relieves is named on both ends.
func TestLostGateways(t *testing.T) {
	_, records := neighborhood()
	id := func(i int) mesh.ID { return records[i].ID() }
	for _, tt := range []struct {
		name   string
		change func(tn *turn)
		want   []string
	}{
		{"all live", func(*turn) {}, nil},
		{"a member that is gone", func(tn *turn) { delete(tn.view.Alive, id(1)) }, nil},
		{"gone, as its members see it", func(tn *turn) { delete(tn.view.Alive, id(0)) }, []string{"a1"}},
		{"gone, from elsewhere", func(tn *turn) {
			delete(tn.view.Alive, id(0))
			tn.input.Self = id(3)
			tn.topology.Paths = []mesh.Path{{ID: id(0)}, {ID: id(1), Hops: []mesh.ID{id(0)}}, {ID: id(2), Hops: []mesh.ID{id(0)}}}
		}, []string{"a1"}},
		{"a relay that is gone", func(tn *turn) {
			delete(tn.view.Alive, id(3))
			tn.topology.Paths = []mesh.Path{{ID: id(1), Hops: []mesh.ID{id(3)}}}
		}, nil},
		{"another mode", func(tn *turn) { delete(tn.view.Alive, id(0)); tn.input.Cluster.Mode = mesh.ModeCross }, nil},
	} {
		tn := &turn{
			input:    mesh.Input{Self: id(1), Records: records, Cluster: mesh.Cluster{Mode: mesh.ModeLocation}},
			view:     viewOf(records, records...),
			topology: mesh.Topology{Paths: []mesh.Path{{ID: id(0)}, {ID: id(2)}, {ID: id(3), Hops: []mesh.ID{id(0)}}}},
		}
		tt.change(tn)
		var got []string
		for _, p := range lostGateways(tn) {
			got = append(got, p.Node)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}
