// SPDX-License-Identifier: Apache-2.0

package node

import (
	"crypto/ed25519"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

// TestAnnounce follows the own record of a node from its first start on.
func TestAnnounce(t *testing.T) {
	start := time.UnixMilli(1_800_000_000_000)
	public := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)).Public().(ed25519.PublicKey)
	addr := netip.MustParseAddr("203.0.113.1")
	in := Input{
		Now: start, Started: start, Self: Identity{Public: public, Instance: 1}, Config: config(),
		Promise: Promise{Claim: mesh.Claim{Slot: mesh.None}},
		View:    mesh.View{JoinEmpty: true, Cluster: config().Cluster},
		Facts:   netcfg.Facts{Addresses: []netip.Addr{addr}, MTU: 1500, Uplinks: make([]netcfg.Uplink, 1)},
	}
	var m Memory
	for _, step := range []struct {
		what     string
		change   func()
		news     bool
		sequence uint64 // of what is told
		slot     int
		ready    bool
	}{
		{"the first node claims a slot", func() {}, true, 1, 0, false},
		{"nothing new", func() { in.Promise.Ready = true }, false, 0, 0, false},
		{"it has moved", func() { in.Facts.Addresses = []netip.Addr{addr.Next()} }, true, 2, 0, true},
		{"another name", func() { in.Config.Name = "b" }, true, 3, 0, true},
		{"others have lost its record", func() { in.View.Records = nil }, true, 4, 0, true},
		{"others know a later one", func() { in.View.OwnSequence = 9 }, true, uint64(start.UnixMilli()), 0, true},
		{"its claim was forgotten", func() {
			in.View.Forgotten, in.View.OwnSequence, in.Now = in.Promise.Sequence, in.Promise.Sequence, start.Add(time.Minute)
		}, true, uint64(start.UnixMilli()) + 1, 0, true},
		{"it was revoked", func() { in.View.Forgotten, in.View.Records = mesh.Forever, nil }, false, 0, 0, false},
	} {
		step.change()
		out := m.Announce(in)
		if out.RecordChanged != step.news {
			t.Fatalf("%s: got news %t, want %t", step.what, out.RecordChanged, step.news)
		}
		if !out.RecordChanged {
			continue
		}
		if got := out.Promise; got.Sequence != step.sequence || got.Claim.Slot != step.slot || got.Ready != step.ready {
			t.Errorf("%s: got %+v, want sequence %d, slot %d, ready %t", step.what, got, step.sequence, step.slot, step.ready)
		}
		if out.Record.Sequence != out.Promise.Sequence || out.Record.Claim != out.Promise.Claim {
			t.Errorf("%s: the record says %+v, sequence %d, and on disk is %+v", step.what, out.Record.Claim, out.Record.Sequence, out.Promise)
		}
		if out.NewClaim && out.Record.Claim.Since != out.Record.Sequence {
			t.Errorf("%s: got a claim since %d, want %d", step.what, out.Record.Claim.Since, out.Record.Sequence)
		}
		m.Own, in.Promise = out.Record, out.Promise
		in.View.Records = []mesh.Record{out.Record}
	}
}

// TestFirstRecord: a daemon that starts goes on with what its former record said about
// where the node was seen, and about its term.
func TestFirstRecord(t *testing.T) {
	public := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)).Public().(ed25519.PublicKey)
	former := mesh.Record{Identity: public, Name: "former", Term: mesh.GatewayTerm{Since: 7}, Replaced: 2, NAT: true, Sequence: 5}
	got := firstRecord(Input{Self: Identity{Public: public, Instance: 8}, View: mesh.View{Records: []mesh.Record{former}}})
	if got.Term != former.Term || got.Replaced != 2 || !got.NAT || got.Instance != 8 || got.Name != "" || got.Sequence != 0 {
		t.Errorf("got %+v", got)
	}
}

// TestStrangeAddress checks that nobody is told of the address from which this node tries others.
func TestStrangeAddress(t *testing.T) {
	in := Input{
		Self: Identity{Public: ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)).Public().(ed25519.PublicKey)}, Config: config(),
		Promise: Promise{Claim: mesh.Claim{Slot: mesh.None}},
		View:    mesh.View{JoinEmpty: true, Cluster: config().Cluster}, Facts: withSpare,
	}
	strange := addrs("203.0.113.2")
	if got := in.StrangeAddresses(); !slices.Equal(got, strange) {
		t.Fatalf("got %v, want %v", got, strange)
	}
	var m Memory
	for _, e := range m.Announce(in).Record.Endpoints {
		if e.Host == strange[0].String() {
			t.Errorf("the record has the endpoint %v", e)
		}
	}
}
