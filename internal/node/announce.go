// SPDX-License-Identifier: Apache-2.0

package node

import (
	"crypto/ed25519"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/probe"
)

// Input is what a turn has read.
type Input struct {
	Now     time.Time
	Started time.Time // when this daemon was
	Self    Identity
	Config  Config
	Promise Promise
	View    mesh.View
	Facts   netcfg.Facts
	// Heard is when something came from each node last, outside of the mesh.
	Heard   map[mesh.ID]time.Time
	Results map[probe.Target]probe.Result
	// Resolved has the addresses of hosts in the records that are names. Configure needs it.
	Resolved map[string][]netip.Addr
}

// Identity is who this node is.
type Identity struct {
	Public    ed25519.PublicKey
	WireGuard wgtypes.Key // private
	Instance  uint64      // of this daemon, higher than those of all that were started before
}

// ID returns the node's fingerprint.
func (i Identity) ID() mesh.ID { return mesh.IDOf(i.Public) }

// Promise is what this node has on disk of what it told others: after a crash it still
// stands by it.
type Promise struct {
	Sequence uint64     // of its last record
	Claim    mesh.Claim // Slot is mesh.None for none
	Ready    bool       // pods may have run with this claim
}

// Memory is what a node remembers from turn to turn. Whoever takes a turn keeps it, and
// notes in it what has been done.
type Memory struct {
	Own     mesh.Record // as published last
	Claimed time.Time   // when this daemon made its claim; zero if the claim came from disk
	moves   moves

	duplicate  duplicate
	term       term
	health     health
	watch      probe.Watch // whose probes Results has
	Sessions   Sessions
	Handshakes Handshakes
	Absences   Absences
}

// start returns how far the node is after its start.
func (m *Memory) start(in Input) start {
	return start{Now: in.Now, Started: in.Started, Claimed: m.Claimed, Ready: in.Promise.Ready, View: in.View}
}

// Announcement is what a node tells the others, and what has to be on disk before.
type Announcement struct {
	// Greet asks the others where they see this node now: its addresses have changed.
	Greet bool
	// News reports whether Record has to be told. First Promise has to be on disk.
	News     bool
	Record   mesh.Record
	Promise  Promise
	Claimed  bool // the claim is a new one
	Problems []mesh.Problem

	Verdicts []mesh.Verdict // to be published when Record is
	Ask      []mesh.ID      // who should give a sign of life outside of the mesh
	Again    time.Duration  // how soon to announce again at the latest; 0 for no wish
}

// Announce works out what this node says of itself, and of those who carry traffic for it.
func (m *Memory) Announce(in Input) Announcement {
	out := m.announceRecord(in)
	own := m.Own
	if out.News {
		own = out.Record
	}
	found := probe.Judge(probe.Situation{
		Now: in.Now, Author: in.Self.Public, Watch: m.watch, Results: in.Results, Pace: in.Config.Pace,
		Alive: in.View.Alive, Heard: in.Heard, Verdicts: in.View.Verdicts, Records: in.View.Records,
	})
	self := m.judgeSelf(in, own)
	out.Verdicts = append(found.Verdicts, self.verdicts...)
	out.Ask = append(found.Ask, self.ask...)
	out.Again = sooner(found.Again, self.again)
	return out
}

// sooner returns the shorter of two waits, of which 0 is none.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

// announceRecord works out what this node says of itself.
func (m *Memory) announceRecord(in Input) Announcement {
	var out Announcement
	if in.View.Forgotten == mesh.Forever {
		return out // revoked: nobody would listen
	}
	var claim mesh.Claim
	claim, out.Problems = mesh.NextClaim(m.Situation(in))
	if m.Own.Identity == nil {
		m.Own = firstRecord(in)
	}
	out.Greet = m.moves.look(in.Facts.Addresses, in.Now)
	next := nextRecord(in.Config, surroundings{
		facts: in.Facts, observed: m.moves.since(in.View.Observed),
		voices: in.Config.voices(m.Own, in.Facts, in.Now.Sub(in.Started)),
	}, m.Own)
	next.Claim = claim
	m.term.stamp(&next)
	// Tell it again if it has gone: whoever has revoked this node may be revoked.
	told := slices.ContainsFunc(in.View.Records, func(r mesh.Record) bool { return r.ID() == in.Self.ID() })
	if told && reflect.DeepEqual(next, m.Own) && m.Own.Sequence >= in.View.OwnSequence && m.Own.Sequence > 0 {
		return out
	}
	next.Sequence = NextSequence(in.Promise.Sequence, in.View.OwnSequence, in.Now)
	out.News, out.Claimed = true, claim != in.Promise.Claim
	if out.Claimed && claim.Slot != mesh.None {
		next.Claim.Since = next.Sequence
	}
	out.Record = next
	out.Promise = Promise{
		Sequence: next.Sequence, Claim: next.Claim,
		Ready: in.Promise.Ready && claim.Slot == in.Promise.Claim.Slot,
	}
	return out
}

// Situation returns what this node decides its claim by.
func (m *Memory) Situation(in Input) mesh.Situation {
	return mesh.Situation{
		Cluster:  in.View.Cluster,
		Self:     in.Self.ID(),
		Name:     in.Config.Name,
		Records:  in.View.Records,
		Current:  in.Promise.Claim,
		Ready:    in.Promise.Ready,
		Void:     in.Promise.Claim.Since <= in.View.Forgotten && in.View.Forgotten > 0,
		Static:   in.Config.Slot,
		Listened: m.start(in).listened(),
		Now:      in.Now.UnixMilli(),
	}
}

// firstRecord returns the record to start from: what this node said of itself before this
// daemon started, about where it was seen and about its term.
func firstRecord(in Input) mesh.Record {
	r := mesh.Record{Identity: in.Self.Public, Key: in.Self.WireGuard.PublicKey(), Instance: in.Self.Instance}
	for _, old := range in.View.Records {
		if old.ID() == in.Self.ID() {
			r.Endpoints, r.NAT, r.Office, r.Replaced = old.Endpoints, old.NAT, old.Office, old.Replaced
		}
	}
	return r
}
