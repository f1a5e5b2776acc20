// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"crypto/ed25519"
	"slices"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

const (
	// suspectAfter is after how many misses other nodes are asked for a sign of life, so
	// that it has arrived when a verdict needs it.
	suspectAfter = 2
	// recheckSoon is how soon Evaluate must run again while a target is suspect, because
	// signs of life come without an event. After recheckSoonMisses more misses than make a
	// target silent, it runs again after recheckLater: the remote end is dead.
	recheckSoon       = 50 * time.Millisecond
	recheckSoonMisses = 8
	recheckLater      = 2 * time.Second
	// pathTime is how long a gateway gets to find another path to nodes that are silent to it, and pathsTime
	// if they are behind several tunnels: these hardly fail all at once.
	pathTime  = 1500 * time.Millisecond
	pathsTime = 250 * time.Millisecond
	// unprovenFactor multiplies the misses allowed to a gateway that has never worked:
	// its tunnels have to come up first. One that has been a gateway for tunnelsUp before it carried
	// anything, because the one that it replaced works, has had the time.
	unprovenFactor = 10
	tunnelsUp      = 4 * time.Second
	cutOffShows    = 30 * time.Second
)

// EvaluateInput is the input of Evaluate.
type EvaluateInput struct {
	Now     time.Time
	Author  ed25519.PublicKey // this node
	Watch   Watch
	Results map[Target]Result
	Pace
	// Since is when this node learned of the present term of the watched gateway; zero if it has none.
	Since time.Time
	// Alive is gossip's view, which is late by seconds.
	Alive map[mesh.ID]bool
	// LastHeard is when an authenticated packet last came from a node outside of the mesh.
	LastHeard map[mesh.ID]time.Time
	Verdicts  []mesh.Verdict // all known ones
	Records   []mesh.Record  // of all nodes
}

// Findings are the result of Evaluate.
type Findings struct {
	Verdicts     []mesh.Verdict // to be published
	RequestSigns []mesh.ID      // nodes to ask now for a sign of life outside of the mesh; sorted
	// Again is when Evaluate must run again at the latest; 0 if it need not.
	RecheckAfter time.Duration
}

// Evaluate works out what follows from the results, and returns the verdicts to publish.
func Evaluate(s EvaluateInput) Findings {
	var f Findings
	if g := s.Watch.Gateway; g != (mesh.ID{}) && !s.isDown(g) {
		if s.dead(&f) || s.blackhole(&f) || s.useless(&f) {
			f.Verdicts = append(f.Verdicts, s.down(g))
		}
	}
	if c := s.Watch.Carrier; c != (mesh.ID{}) && !s.isDown(c) && s.carrierDead() {
		f.Verdicts = append(f.Verdicts, s.down(c))
	}
	for _, id := range s.Watch.Servers {
		said := slices.ContainsFunc(f.Verdicts, func(v mesh.Verdict) bool { return v.Subject == id })
		if !said && !s.isDown(id) && s.serverDead(&f, id) {
			f.Verdicts = append(f.Verdicts, s.down(id))
		}
	}
	slices.SortFunc(f.RequestSigns, mesh.ID.Compare)
	f.RequestSigns = slices.Compact(f.RequestSigns)
	return f
}

// silence describes targets that all do not answer.
type silence struct {
	misses int           // the fewest of a target
	since  time.Time     // the latest first miss of a target
	last   time.Time     // the earliest last miss of a target
	rtt    time.Duration // the longest of a target
}

// silenceOf returns the time in which all the targets have been silent. Targets that have
// never answered, because a firewall may drop the requests, are counted only if unproven
// is set. It returns false if no target counts.
func (s EvaluateInput) silenceOf(targets []Target, unproven bool) (silence, bool) {
	var out silence
	found := false
	for _, t := range targets {
		r, ok := s.Results[t]
		if !ok || r.Answered.IsZero() && !unproven {
			continue
		}
		if !found || r.Misses < out.misses {
			out.misses = r.Misses
		}
		if r.FirstMiss.After(out.since) {
			out.since = r.FirstMiss
		}
		if !found || r.LastMiss.Before(out.last) {
			out.last = r.LastMiss
		}
		out.rtt = max(out.rtt, r.RTT)
		found = true
	}
	return out, found
}

// dead reports whether the gateway is silent and this node is not cut off itself. An
// answer from the rest of the LAN proves the latter. If no other node of the LAN has ever
// answered, or if the gateway is dead in gossip too, hearing a node of another location
// is enough.
func (s EvaluateInput) dead(f *Findings) bool {
	w := s.Watch
	deadInGossip := !s.Alive[w.Gateway]
	quiet, ok := s.silenceOf(w.targetsOf(w.Gateway, mesh.ID{}), deadInGossip)
	if !ok || quiet.misses < suspectAfter {
		return false
	}
	s.ask(f, w.Unprobed, quiet)
	if quiet.misses < s.Misses {
		return false
	}
	witnesses, answer := s.witnesses(w.LAN, quiet)
	return answer || (witnesses == 0 || deadInGossip) && s.hears(w.Unprobed, quiet)
}

// witnesses counts the addresses of nodes that have ever answered, and reports whether one
// has answered during a silence.
func (s EvaluateInput) witnesses(ids []mesh.ID, quiet silence) (n int, answer bool) {
	for _, id := range ids {
		for _, t := range s.Watch.targetsOf(id, mesh.ID{}) {
			if r := s.Results[t]; !r.Answered.IsZero() {
				n++
				answer = answer || !r.Answered.Before(quiet.last)
			}
		}
	}
	return n, answer
}

// blackhole reports whether the gateway is alive but does not forward: in one family no
// remote node answers through it, though one of them is heard outside of the mesh, and it
// has had time to find other paths to them. If the gateway itself is silent, the result
// is false: the path to it may be cut.
func (s EvaluateInput) blackhole(f *Findings) bool {
	if quiet, ok := s.silenceOf(s.Watch.targetsOf(s.Watch.Gateway, mesh.ID{}), false); ok && quiet.misses >= suspectAfter {
		return false
	}
	for _, v4 := range []bool{true, false} {
		targets := slices.DeleteFunc(s.beyond(), func(t Target) bool { return t.Addr.Is4() != v4 })
		quiet, ok := s.silenceOf(targets, false)
		if !ok || quiet.misses < suspectAfter {
			continue
		}
		s.ask(f, s.Watch.Remote, quiet)
		silent := s.beyondWith(targets, func(r Result) bool { return !r.Answered.IsZero() })
		if quiet.misses >= s.Misses && s.Now.Sub(quiet.since) >= s.silenceLimit(silent) && s.hears(silent, quiet) {
			return true
		}
	}
	return false
}

// silenceLimit is how long nodes beyond may be silent, with the time that the gateway gets to find other
// paths to them.
func (s EvaluateInput) silenceLimit(ids []mesh.ID) time.Duration {
	limit := time.Duration(s.Misses) * s.Interval
	records := make(map[mesh.ID]mesh.Record, len(s.Records))
	for _, r := range s.Records {
		records[r.ID()] = r
	}
	for _, id := range ids {
		if segmentOf(id, records[id]) != segmentOf(ids[0], records[ids[0]]) {
			return limit + pathsTime
		}
	}
	return limit + pathTime
}

// useless reports whether the gateway has never worked for this node while another one
// may. Either it answers itself but no remote node ever has through it, though one is
// heard outside of the mesh and is known to answer pings. Or it has never answered
// itself, while the rest of the LAN answers. Where nothing has ever worked, nobody is known
// to answer: a gateway that was never replaced is then, once, and what answers through the
// next one is known from then on.
func (s EvaluateInput) useless(f *Findings) bool {
	targets := s.beyond()
	quiet, ok := s.silenceOf(targets, true)
	if !ok || quiet.misses < s.Misses || len(s.beyondWith(targets, func(r Result) bool { return !r.Answered.IsZero() })) > 0 {
		return false
	}
	waited := quiet.misses >= unprovenFactor*s.Misses
	tunnelled := !s.Since.IsZero() && quiet.since.Sub(s.Since) >= tunnelsUp
	if !waited && !tunnelled {
		return false
	}
	gateway := s.Watch.targetsOf(s.Watch.Gateway, mesh.ID{})
	if near, ok := s.silenceOf(gateway, false); ok {
		s.ask(f, s.Watch.Remote, quiet)
		first := waited && s.neverReplaced(s.Watch.Gateway)
		known := s.beyondWith(targets, func(r Result) bool { return r.Known || first })
		return near.misses < suspectAfter && (waited || s.Now.Sub(quiet.since) >= s.silenceLimit(known)) && s.hears(known, quiet)
	}
	near, ok := s.silenceOf(gateway, true)
	_, answer := s.witnesses(s.Watch.LAN, near)
	return ok && waited && near.misses >= unprovenFactor*s.Misses && answer
}

// neverReplaced reports whether no verdict has ever ended a node's term as a gateway.
func (s EvaluateInput) neverReplaced(id mesh.ID) bool {
	return !slices.ContainsFunc(s.Records, func(r mesh.Record) bool { return r.ID() == id && r.Replaced > 0 })
}

// beyond returns the targets that are reached through the gateway.
func (s EvaluateInput) beyond() []Target {
	var out []Target
	for _, id := range s.Watch.Remote {
		out = append(out, s.Watch.targetsOf(id, s.Watch.Gateway)...)
	}
	return out
}

// ask adds nodes to ask for a sign of life because of a silence, and sets when to judge
// again.
func (s EvaluateInput) ask(f *Findings, ids []mesh.ID, quiet silence) {
	f.RequestSigns = append(f.RequestSigns, ids...)
	again := recheckSoon
	if quiet.misses > s.Misses+recheckSoonMisses {
		again = recheckLater
	}
	if f.RecheckAfter == 0 || again < f.RecheckAfter {
		f.RecheckAfter = again
	}
}

// beyondWith returns the remote nodes that have one of the targets with a result for
// which match is true.
func (s EvaluateInput) beyondWith(targets []Target, match func(Result) bool) []mesh.ID {
	var out []mesh.ID
	for _, id := range s.Watch.Remote {
		for _, t := range s.Watch.targetsOf(id, s.Watch.Gateway) {
			if slices.Contains(targets, t) && match(s.Results[t]) {
				out = append(out, id)
			}
		}
	}
	return out
}

// hears reports whether one of the nodes was heard during a silence. Packets that were
// already on their way when the silence began don't count.
func (s EvaluateInput) hears(ids []mesh.ID, quiet silence) bool {
	from := quiet.since.Add(s.Interval + quiet.rtt)
	return slices.ContainsFunc(ids, func(id mesh.ID) bool { return s.LastHeard[id].After(from) })
}

// carrierDead reports whether the carrier is silent and dead in gossip, while another peer
// answers. That it is silent alone is not enough: the verdict counts for all nodes, and
// perhaps only this one has no path to it.
func (s EvaluateInput) carrierDead() bool {
	if s.Alive[s.Watch.Carrier] {
		return false
	}
	quiet, ok := s.silenceOf(s.Watch.targetsOf(s.Watch.Carrier, mesh.ID{}), true)
	if !ok || quiet.misses < s.Misses {
		return false
	}
	_, answer := s.witnesses(s.Watch.Peers, quiet)
	return answer
}

// serverDead reports whether the server of a network is silent, inside the mesh and outside of it,
// while this node is not cut off itself. One that gossip hears lives, and perhaps only this node has no path to it.
// For one that is dead in gossip it does not matter when it was heard last.
func (s EvaluateInput) serverDead(f *Findings, id mesh.ID) bool {
	quiet, ok := s.silenceOf(s.Watch.targetsOf(id, mesh.ID{}), !s.Alive[id])
	if !ok || quiet.misses < suspectAfter {
		return false
	}
	s.ask(f, s.Watch.Others, quiet)
	s.ask(f, []mesh.ID{id}, quiet)
	lives := s.Alive[id] && s.hears([]mesh.ID{id}, quiet)
	return quiet.misses >= s.Misses && !lives && (s.hears(s.Watch.Others, quiet) || s.besideAnswers(id, quiet) || s.outlived(id, quiet))
}

// besideAnswers reports whether, while a node of the own LAN is silent, another one there answers.
func (s EvaluateInput) besideAnswers(id mesh.ID, quiet silence) bool {
	var own, silent mesh.Record
	for _, r := range s.Records {
		switch r.ID() {
		case mesh.IDOf(s.Author):
			own = r
		case id:
			silent = r
		}
	}
	if s.Watch.Gateway == (mesh.ID{}) || !own.SameLAN(&silent) {
		return false
	}
	beside := append([]mesh.ID{s.Watch.Gateway}, s.Watch.LAN...)
	_, answer := s.witnesses(slices.DeleteFunc(beside, func(o mesh.ID) bool { return o == id }), quiet)
	return answer
}

// outlived reports whether a node is dead in gossip and has been silent for so long that all nodes were dead
// in gossip if this one were cut off. That is all to go by if other nodes are heard inside of the mesh only.
func (s EvaluateInput) outlived(id mesh.ID, quiet silence) bool {
	return !s.Alive[id] && s.Now.Sub(quiet.since) >= cutOffShows && slices.ContainsFunc(s.Watch.Others, func(o mesh.ID) bool { return s.Alive[o] })
}

// down returns a verdict whose epoch exceeds those of all verdicts on its subject, also of
// those that don't count yet.
func (s EvaluateInput) down(subject mesh.ID) mesh.Verdict {
	next := mesh.Verdict{Author: s.Author, Subject: subject, State: mesh.HealthDown, Epoch: 1}
	for _, v := range s.Verdicts {
		if v.Subject == subject {
			next.Epoch = max(next.Epoch, v.Epoch+1)
		}
	}
	return next
}

// isDown reports whether the verdict on a node that counts is that it is down.
func (s EvaluateInput) isDown(id mesh.ID) bool {
	return mesh.GatewayVerdicts(s.Verdicts, s.Records)[id].State == mesh.HealthDown
}
