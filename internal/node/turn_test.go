// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"crypto/ed25519"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

// machine is a host with a node on it, made of values.
type machine struct {
	config   Config
	self     Identity
	facts    netcfg.Facts
	memory   Memory
	promise  Promise
	stuck    bool // the kernel forwards nothing
	observed netcfg.State

	wanted    Configuration
	concluded Conclusion
}

// town is a number of machines that hear of each other at once. Time passes by steps.
type town struct {
	now      time.Time
	machines []*machine
	away     map[string]bool
	verdicts []mesh.Verdict
}

var founded = time.UnixMilli(1_800_000_000_000)

// newTown returns nodes a1 and a2 in location a, and b1, which stands alone.
func newTown() *town {
	w := &town{now: founded, away: make(map[string]bool)}
	for i, name := range []string{"a1", "a2", "b1"} {
		public := netip.AddrFrom4([4]byte{203, 0, 113, byte(i + 1)})
		m := &machine{config: config(), promise: Promise{Claim: mesh.Claim{Slot: mesh.None}}, memory: Memory{Handshakes: NewHandshakes(nil)}}
		m.config.Name, m.config.Encrypted, m.config.Cluster.Mode = name, false, mesh.ModeLocation
		m.config.Cluster.Gateways, m.config.Cluster.Encapsulation = 1, mesh.EncapsulationAlways
		m.config.Interface, m.config.ForgetAfter, m.config.Joins = "meshd0", time.Hour, true
		m.self = Identity{
			Public:   ed25519.NewKeyFromSeed(bytes.Repeat([]byte{byte(i + 1)}, ed25519.SeedSize)).Public().(ed25519.PublicKey),
			Instance: 1, WireGuard: wgtypes.Key{0: byte(8 * (i + 1)), 31: 64},
		}
		m.facts = netcfg.Facts{Addresses: []netip.Addr{public}, MTU: 1500, Uplinks: []netcfg.Uplink{{Link: "eth0", Source: netip.PrefixFrom(public, 24), MTU: 1500}}}
		if name != "b1" {
			m.config.Location = "a"
			internal := netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 1, byte(i + 1)}), 24)
			m.facts.Private = []netcfg.PrivateAddress{{Link: "eth1", Address: internal}}
			m.facts.Attached = []netcfg.LAN{{Link: "eth1", Address: internal}}
		}
		w.machines = append(w.machines, m)
	}
	return w
}

// view is what a node knows of the others.
func (w *town) view(m *machine) mesh.View {
	v := mesh.View{Cluster: m.config.Cluster, Alive: make(map[mesh.ID]bool), Merged: true, Verdicts: slices.Clone(w.verdicts)}
	for _, o := range w.machines {
		if o.memory.Own.Sequence > 0 {
			v.Records = append(v.Records, o.memory.Own)
		}
		if !w.away[o.config.Name] {
			v.Alive[o.self.ID()] = true
		}
	}
	slices.SortFunc(v.Records, func(a, b mesh.Record) int { return a.ID().Compare(b.ID()) })
	v.OwnSequence = m.memory.Own.Sequence
	return v
}

// pass has all nodes take a turn each step for a while.
func (w *town) pass(d, step time.Duration) {
	for end := w.now.Add(d); w.now.Before(end); w.now = w.now.Add(step) {
		for _, m := range w.machines {
			if !w.away[m.config.Name] {
				w.turn(m)
			}
		}
	}
}

// turn takes one as the daemon does, on a host that takes all that is wanted.
func (w *town) turn(m *machine) {
	in := Input{Now: w.now, Started: founded, Self: m.self, Config: m.config, Promise: m.promise, View: w.view(m), Facts: m.facts, LastHeard: make(map[mesh.ID]time.Time)}
	for id := range in.View.Alive {
		in.LastHeard[id] = w.now
	}
	a := m.memory.Announce(in)
	if a.RecordChanged {
		m.promise, m.memory.Own = a.Promise, a.Record
		if a.NewClaim {
			m.memory.ClaimedAt = w.now
		}
	}
	for _, v := range a.Verdicts {
		w.say(v)
	}
	in.Promise, in.View = m.promise, w.view(m)
	m.wanted = m.memory.Configure(in)
	m.observed = m.wanted.Desired
	m.observed.Peers = slices.Clone(m.observed.Peers)
	for i := range m.observed.Peers {
		m.observed.Peers[i].LastHandshake = w.now
	}
	if m.stuck {
		m.observed.Sysctls = nil
	}
	m.memory.Sessions, m.observed = m.memory.Sessions.Correct(m.observed, w.now)
	m.concluded = m.memory.Conclude(in, m.wanted, &m.observed)
	if m.concluded.HasAddresses && m.concluded.ReadyWait == 0 {
		m.promise.Ready = true
	}
}

// say adds a verdict to those that all know.
func (w *town) say(v mesh.Verdict) {
	w.verdicts = append(slices.DeleteFunc(w.verdicts, func(o mesh.Verdict) bool {
		return o.Author.Equal(v.Author) && o.Subject == v.Subject && o.Role == v.Role
	}), v)
}

// gateways are the nodes whose records say that they serve.
func (w *town) gateways() (names []string) {
	for _, m := range w.machines {
		if m.memory.Own.Term.Since != 0 {
			names = append(names, m.config.Name)
		}
	}
	return names
}

// peers are the names of a machine's peers.
func (w *town) peers(m *machine) (names []string) {
	for _, p := range m.wanted.Topology.Peers {
		for _, o := range w.machines {
			if o.self.ID() == p.ID {
				names = append(names, o.config.Name)
			}
		}
	}
	slices.Sort(names)
	return names
}

// TestTurns has three nodes find each other, replace a gateway, and forget a node.
func TestTurns(t *testing.T) {
	w := newTown()
	a1, a2, b1 := w.machines[0], w.machines[1], w.machines[2]
	serves := func(when string, want *machine) {
		t.Helper()
		if got := w.gateways(); !slices.Equal(got, []string{want.config.Name}) {
			t.Fatalf("%s: got gateways %v, want %s", when, got, want.config.Name)
		}
		if got := w.peers(b1); !slices.Equal(got, []string{want.config.Name}) {
			t.Fatalf("%s: b1 has peers %v, want %s", when, got, want.config.Name)
		}
	}
	w.pass(time.Minute, time.Second)
	slots := make(map[int]bool)
	for _, m := range w.machines {
		slots[m.promise.Claim.Slot] = true
		if !m.promise.Ready || len(m.concluded.Problems) > 0 || !m.wanted.Prune {
			t.Errorf("%s: got ready %t, problems %v, prune %t", m.config.Name, m.promise.Ready, m.concluded.Problems, m.wanted.Prune)
		}
	}
	if len(slots) != 3 || slots[mesh.None] {
		t.Errorf("got slots %v, want three", slices.Collect(maps.Keys(slots)))
	}
	serves("at first", a1)
	if heard := b1.wanted.Settings.LearnedEndpoints; len(heard) != 1 {
		t.Errorf("b1 has sessions with %v, want one", heard)
	}
	if got := a2.concluded.Watch.Gateway; got != a1.self.ID() {
		t.Errorf("a2 watches %v, want its gateway", got)
	}

	a1.stuck = true
	w.say(mesh.Verdict{Author: a2.self.Public, Subject: a1.self.ID(), Role: mesh.RoleGateway, State: mesh.HealthDown, Epoch: 1})
	w.pass(5*time.Second, time.Second)
	serves("after a verdict", a2)
	if a1.memory.Own.Replaced != 1 {
		t.Errorf("a1 was replaced %d times, want once", a1.memory.Own.Replaced)
	}
	up := func() mesh.Verdict {
		return mesh.GatewayVerdicts(w.verdicts, w.view(a1).Records)[a1.self.ID()]
	}
	w.pass(20*time.Second, time.Second)
	if v := up(); v.State != mesh.HealthDown {
		t.Errorf("the verdict on a1 while it does not forward: got %+v", v)
	}
	a1.stuck = false
	w.pass(5*time.Second, time.Second)
	serves("when the former one is up again", a2)
	if v := up(); v.State != mesh.HealthUp || v.Epoch != 2 || v.Record == 0 {
		t.Errorf("the verdict on a1: got %+v, want that it is up", v)
	}

	a2.memory.Drain(false)
	w.pass(3*time.Second, time.Second)
	if got := w.gateways(); len(got) != 2 {
		t.Errorf("just after one is drained: got gateways %v, want both", got)
	}
	w.pass(10*time.Second, time.Second)
	serves("when the other one is drained", a1)

	w.away["b1"] = true
	w.pass(time.Hour+absenceStep, time.Minute)
	first := a1
	if a2.self.ID().Compare(a1.self.ID()) < 0 {
		first = a2
	}
	if got := first.concluded.Forget; len(got) != 1 || got[0].Name != "b1" {
		t.Errorf("after an hour: got %v to be forgotten, want b1", got)
	}
}

// TestTurnsAgree: the same inputs have the same results, whatever the order of a map.
func TestTurnsAgree(t *testing.T) {
	run := func() (all []Configuration) {
		w := newTown()
		w.pass(10*time.Second, time.Second)
		for _, m := range w.machines {
			all = append(all, m.wanted)
		}
		return all
	}
	if first, second := run(), run(); !reflect.DeepEqual(first, second) {
		t.Errorf("got\n%+v\nand\n%+v", first, second)
	}
}

// TestParametersNotSet: a host whose kernel parameters can't be set drops what pods send.
// That is a problem, and the node is not ready.
func TestParametersNotSet(t *testing.T) {
	w := newTown()
	w.pass(time.Minute, time.Second)
	m := w.machines[1]
	problem := func() bool {
		return slices.ContainsFunc(m.concluded.Problems, func(p mesh.Problem) bool {
			return p.Kind == netcfg.ProblemParameter && p.Node == m.config.Name
		})
	}
	if !m.concluded.ParametersSet || problem() {
		t.Errorf("parameters are set: got ParametersSet %v, problems %v", m.concluded.ParametersSet, m.concluded.Problems)
	}
	m.stuck = true
	w.turn(m)
	if m.concluded.ParametersSet || !problem() {
		t.Errorf("parameters are not set: got ParametersSet %v, problems %v", m.concluded.ParametersSet, m.concluded.Problems)
	}
}

// TestUnknownHost: of a host that can't be observed, nothing is believed.
func TestUnknownHost(t *testing.T) {
	w := newTown()
	w.pass(time.Minute, time.Second)
	m := w.machines[1]
	in := Input{Now: w.now, Started: w.now, Self: m.self, Config: m.config, Promise: m.promise, View: w.view(m), Facts: m.facts}
	in.View.Merged = false
	wanted := m.memory.Configure(in)
	if wanted.Prune {
		t.Error("just after a start, before anybody was heard: got that what is not desired may go")
	}
	c := m.memory.Conclude(in, wanted, nil)
	if c.HasAddresses || c.ParametersSet || c.Watch.Gateway != (mesh.ID{}) || len(c.Handshakes.Initiate) > 0 || len(c.Problems) > 0 {
		t.Errorf("got %+v", c)
	}
}
