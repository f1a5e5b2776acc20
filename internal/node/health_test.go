// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

// location returns the records of three nodes of a location a, the first of which is the
// one under test, and of a node elsewhere.
func location() (records []mesh.Record) {
	for i, name := range []string{"a1", "a2", "a3", "far"} {
		key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{byte(i + 1)}, ed25519.SeedSize))
		r := mesh.Record{Identity: key.Public().(ed25519.PublicKey), Name: name, Sequence: 7, Location: "a", Claim: mesh.Claim{Slot: i}}
		if name == "far" {
			r.Location = ""
		}
		records = append(records, r)
	}
	return records
}

// TestRaise follows a gateway from its fall to its return.
func TestRaise(t *testing.T) {
	records := location()
	var m Memory
	own := records[0]
	start := time.Unix(1_800_000_000, 0)
	verdicts := []mesh.Verdict{}
	say := func(author int, state mesh.Health, epoch uint64) {
		verdicts = []mesh.Verdict{{Author: records[author].Identity, Subject: records[0].ID(), State: state, Epoch: epoch}}
	}
	broken := netcfg.State{Sysctls: []netcfg.Sysctl{{Key: "net.ipv4.ip_forward", Value: "1"}}}
	heard := records[1:]
	step := func(at time.Duration, want string) {
		t.Helper()
		in := Input{
			Now: start.Add(at), Self: Identity{Public: own.Identity}, LastHeard: make(map[mesh.ID]time.Time),
			View: mesh.View{Records: records, Alive: make(map[mesh.ID]bool), Verdicts: verdicts},
		}
		for _, r := range heard {
			in.View.Alive[r.ID()], in.LastHeard[r.ID()] = true, in.Now
		}
		out := m.verdictOnSelf(in, own)
		got := fmt.Sprintf("again in %v", out.recheckAfter)
		for _, v := range out.verdicts {
			got = fmt.Sprintf("%s, epoch %d, record %d", v.State, v.Epoch, v.Record)
			say(0, v.State, v.Epoch)
		}
		if got != want {
			t.Errorf("after %v: got %s, want %s", at, got, want)
		}
	}
	step(0, "again in 0s")
	say(1, mesh.HealthDown, 4)
	own.Term = mesh.GatewayTerm{Since: 1}
	step(time.Second, "again in 10s")
	step(5*time.Second, "again in 6s")
	step(11*time.Second, "again in 1ns") // the record has to say first that its term has ended
	own.Term, own.Sequence = mesh.GatewayTerm{}, 8
	heard = records[1:3]
	step(12*time.Second, "again in 2s") // nobody outside is heard
	heard = records[3:]
	step(13*time.Second, "up, epoch 5, record 8") // nobody of the location lives
	step(14*time.Second, "again in 0s")

	say(2, mesh.HealthDown, 6)
	step(time.Minute, "again in 20s") // a relapse
	heard = records[1:]
	m.health.look(forwards(broken, netcfg.State{}), start)
	step(80*time.Second, "again in 2s") // it does not forward
	m.health.look(forwards(broken, broken), start)
	step(81*time.Second, "up, epoch 7, record 8")

	m.Drain(false)
	step(82*time.Second, "draining, epoch 8, record 0")
	step(83*time.Second, "again in 0s")
	say(1, mesh.HealthDown, 9)
	step(84*time.Second, "again in 0s") // nothing to say against that
	m.Drain(true)
	step(85*time.Second, "up, epoch 10, record 8")
	step(86*time.Second, "again in 0s")

	say(0, mesh.HealthDraining, 11) // by a daemon that ran before this one
	step(87*time.Second, "again in 40s")
}

// TestServerThatForwardsNothing: the server of a network that sees that it forwards nothing says that it is
// down. It is up again only after its record has said that its term has ended.
func TestServerThatForwardsNothing(t *testing.T) {
	records := location()
	own := records[0]
	var m Memory
	start := time.Unix(1_800_000_000, 0)
	in := Input{Self: Identity{Public: own.Identity}, View: mesh.View{Records: records}, LastHeard: make(map[mesh.ID]time.Time)}
	step := func(at time.Duration, forwards bool, want string) {
		t.Helper()
		in.Now = start.Add(at)
		for _, r := range records {
			in.LastHeard[r.ID()] = in.Now
		}
		m.health.look(forwards, in.Now)
		out := m.verdictOnSelf(in, own)
		got := fmt.Sprintf("again in %v", out.recheckAfter)
		for _, v := range out.verdicts {
			got = fmt.Sprintf("%s, epoch %d, record %d", v.State, v.Epoch, v.Record)
			in.View.Verdicts = []mesh.Verdict{v}
		}
		if got != want {
			t.Errorf("after %v: got %s, want %s", at, got, want)
		}
	}
	step(0, false, "again in 0s")
	step(time.Minute, false, "again in 0s") // nobody would notice: it serves nothing
	own.Serving = []mesh.NetworkTerm{{Network: netip.MustParsePrefix("10.77.0.0/16"), Since: 1}}
	step(61*time.Second, true, "again in 0s")
	step(62*time.Second, false, "again in 2s")
	step(63*time.Second, false, "again in 1s")
	step(64*time.Second, false, "down, epoch 1, record 0")
	step(65*time.Second, true, "again in 10s")
	step(75*time.Second, true, "again in 1ns")
	own.Serving, own.Sequence = nil, 8
	step(76*time.Second, true, "up, epoch 2, record 8")
}
