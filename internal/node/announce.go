// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/probe"
)

// Announcement is what a node tells the others, and what has to be on disk before.
type Announcement struct {
	// RecordChanged reports whether Record has to be told. First Promise has to be on disk.
	RecordChanged bool
	Record        mesh.Record
	Promise       Promise
	NewClaim      bool // the claim is a new one
	Problems      []mesh.Problem

	Verdicts     []mesh.Verdict // to be published when Record is
	RequestSigns []mesh.ID      // who should give a sign of life outside of the mesh
	RecheckAfter time.Duration  // how soon to announce again at the latest; 0 for no wish
}

// Announce works out what this node says of itself, and of those who carry traffic for it.
func (m *Memory) Announce(in Input) Announcement {
	out := m.announceRecord(in)
	out.Problems = append(out.Problems, m.duplicate.problems(in.Config.Name, in.Now)...)
	own := m.Own
	if out.RecordChanged {
		own = out.Record
	}
	m.noteTerms(in)
	found := probe.Evaluate(probe.EvaluateInput{
		Now: in.Now, Author: in.Self.Public, Watch: m.watch, Results: in.Results, Pace: in.Config.Pace,
		Since: m.terms[m.watch.Gateway].at, Alive: in.View.Alive, LastHeard: in.LastHeard, Verdicts: in.View.Verdicts, Records: in.View.Records,
	})
	self := m.verdictOnSelf(in, own)
	out.Verdicts = append(found.Verdicts, self.verdicts...)
	out.RequestSigns = append(found.RequestSigns, self.requestSigns...)
	out.RecheckAfter = soonest(out.RecheckAfter, soonest(found.RecheckAfter, self.recheckAfter))
	return out
}

// announceRecord works out what this node says of itself.
func (m *Memory) announceRecord(in Input) Announcement {
	var out Announcement
	if in.View.Forgotten == mesh.Forever {
		return out // revoked: nobody would listen
	}
	var claim mesh.Claim
	claim, out.Problems = mesh.NextClaim(m.ClaimInput(in))
	if m.Own.Identity == nil {
		m.Own = firstRecord(in)
		m.internalIPs = in.lastInternalIPs()
	}
	out.RecheckAfter = m.ways.look(in)
	next := nextRecord(in.Config, surroundings{in.Facts, in.knownAddresses(), m.chooseInternalIPs(in), in.sightings(), in.mapped(in.Config.ListenPort)}, m.Own)
	m.moves.look(place{in.Facts.Addresses, in.Facts.Uplinks, next.Endpoints}, in.Now)
	next.Unserved = m.ways.lost
	next.Withheld, next.WithheldMore = m.withheld(in)
	next.Claim = claim
	m.term.stamp(&next)
	m.serving.stamp(&next)
	// Tell it again if it has gone: whoever has revoked this node may be revoked.
	_, told := ownRecord(in)
	if told && reflect.DeepEqual(next, m.Own) && m.Own.Sequence >= in.View.OwnSequence && m.Own.Sequence > 0 {
		return out
	}
	next.Sequence = NextSequence(in.Promise.Sequence, in.View.OwnSequence, in.Now)
	made := claim.Slot != mesh.None && claim.Since == 0
	out.RecordChanged, out.NewClaim = true, made || claim.Slot != in.Promise.Claim.Slot
	if made {
		next.Claim.Since = next.Sequence
	}
	out.Record = next
	out.Promise = Promise{
		Sequence: next.Sequence, Claim: next.Claim,
		Ready: in.Promise.Ready && claim.Slot == in.Promise.Claim.Slot,
	}
	return out
}

// ClaimInput returns what this node decides its claim by.
func (m *Memory) ClaimInput(in Input) mesh.ClaimInput {
	s := mesh.ClaimInput{
		Cluster:  in.View.Cluster,
		Self:     in.Self.ID(),
		Name:     in.Config.Name,
		Records:  in.View.Records,
		Current:  in.Promise.Claim,
		InUse:    in.InUse,
		Void:     in.Promise.Claim.Since <= in.View.Forgotten && in.View.Forgotten > 0,
		Static:   in.Config.Slot,
		First:    in.View.JoinEmpty,
		Listened: in.listened(),
		Met:      in.View.Merged && m.claimWait(in) == 0,
		Now:      in.Now.UnixMilli(),
	}
	told, ok := ownRecord(in)
	if !ok || told.Sequence <= in.Promise.Sequence {
		return s
	}
	// This node's disk was lost or restored, and others know what it claimed afterwards.
	// The slot on disk may be another node's by now.
	if told.Claim.Slot != mesh.None && (told.Claim.Slot == s.Current.Slot || in.InUse == "") {
		s.Current, s.Void = told.Claim, false
	} else {
		s.Void = true
	}
	return s
}

// WouldMove reports whether this node would give up its claim if nothing used the claim's
// addresses, so that somebody has to look.
func (m *Memory) WouldMove(in Input) bool {
	in.InUse = ""
	claim, _ := mesh.NextClaim(m.ClaimInput(in))
	return in.Promise.Claim.Slot != mesh.None && claim.Slot != in.Promise.Claim.Slot
}

// ownRecord returns what others know that this node has said of itself.
func ownRecord(in Input) (mesh.Record, bool) {
	i := slices.IndexFunc(in.View.Records, func(r mesh.Record) bool { return r.ID() == in.Self.ID() })
	if i < 0 {
		return mesh.Record{}, false
	}
	return in.View.Records[i], true
}

// firstRecord returns the record to start from: what this node said of itself before this
// daemon started, about where it was seen and about its terms.
func firstRecord(in Input) mesh.Record {
	r := mesh.Record{Identity: in.Self.Public, Key: in.Self.WireGuard.PublicKey(), Instance: in.Self.Instance}
	if old, ok := ownRecord(in); ok {
		r.Endpoints, r.NAT, r.Term, r.Replaced, r.Serving = old.Endpoints, old.NAT, old.Term, old.Replaced, old.Serving
	}
	return r
}

// lastInternalIPs returns the internal IPs that this node had before this daemon started.
func (in Input) lastInternalIPs() []netip.Prefix {
	for _, old := range in.View.Records {
		if old.ID() == in.Self.ID() {
			return old.InternalIPs
		}
	}
	return nil
}
