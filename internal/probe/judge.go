// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"cmp"
	"crypto/ed25519"
	"slices"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

const (
	// suspicion is after how many misses nodes are asked for a sign of life, so
	// that it is there when a verdict needs it.
	suspicion = 2
	// lookSoon is how soon to judge again while somebody is suspected, because
	// signs of life come without an event. After lookLong misses beyond those that
	// make a target silent there is no haste any more: the far end is dead.
	lookSoon = 50 * time.Millisecond
	lookLong = 8
	// unproven is how many times as many misses a gateway gets that has never
	// worked: its tunnels have to come up first.
	unproven = 10
	// relaySteady is how long a relay has to answer again before it is used.
	relaySteady = 10 * time.Second
)

// Situation is what Judge looks at.
type Situation struct {
	Now     time.Time
	Author  ed25519.PublicKey // this node
	Watch   Watch
	Results map[Target]Result
	Pace
	// Alive is what gossip says; it is late by seconds.
	Alive map[mesh.ID]bool
	// Heard is when something authenticated came from a node last, outside of
	// the mesh.
	Heard    map[mesh.ID]time.Time
	Verdicts []mesh.Verdict // all there are
}

// Findings are what Judge makes of a situation.
type Findings struct {
	Verdicts []mesh.Verdict // to be published
	Ask      []mesh.ID      // who should give a sign of life outside of the mesh now; sorted
	// Again is how soon to judge again at the latest, 0 for no wish.
	Again time.Duration
}

// Judge says what the answers mean for the gateway and the relays.
func Judge(s Situation) Findings {
	var f Findings
	if g := s.Watch.Gateway; g != (mesh.ID{}) && s.standing(g, mesh.RoleGateway).State != mesh.HealthDown {
		if s.dead(&f) || s.blackhole(&f) || s.useless(&f) {
			f.Verdicts = append(f.Verdicts, s.verdict(g, mesh.RoleGateway, mesh.HealthDown))
		}
	}
	for _, r := range s.Watch.Relays {
		s.relay(&f, r)
	}
	slices.SortFunc(f.Ask, mesh.ID.Compare)
	f.Ask = slices.Compact(f.Ask)
	return f
}

// silence is a set of targets that answer no more.
type silence struct {
	misses      int // the least of all
	since, last time.Time
	rtt         time.Duration
}

// silenceOf says how long targets have all been silent. Those that have never
// answered don't count, unless even is set: they may be filtered. It is false
// if none counts.
func (s Situation) silenceOf(targets []Target, even bool) (silence, bool) {
	var out silence
	found := false
	for _, t := range targets {
		r, ok := s.Results[t]
		if !ok || r.Answered.IsZero() && !even {
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

// dead says whether the gateway is silent and this node is not cut off itself.
// The rest of the LAN is the witness. Without one, or when gossip has buried the
// gateway as well, anybody outside will do.
func (s Situation) dead(f *Findings) bool {
	w := s.Watch
	buried := !s.Alive[w.Gateway]
	quiet, ok := s.silenceOf(w.targets(w.Gateway, mesh.ID{}), buried)
	if !ok || quiet.misses < suspicion {
		return false
	}
	s.ask(f, w.Outside, quiet)
	if quiet.misses < s.Misses {
		return false
	}
	witnesses, answer := s.witnesses(quiet)
	return answer || (witnesses == 0 || buried) && s.hears(w.Outside, quiet)
}

// witnesses counts the addresses of the rest of the LAN that have ever answered,
// and says whether one has since a silence.
func (s Situation) witnesses(quiet silence) (n int, answer bool) {
	for _, id := range s.Watch.Beside {
		for _, t := range s.Watch.targets(id, mesh.ID{}) {
			if r := s.Results[t]; !r.Answered.IsZero() {
				n++
				answer = answer || !r.Answered.Before(quiet.last)
			}
		}
	}
	return n, answer
}

// blackhole says whether the gateway lives and does not forward: nothing beyond
// it answers in a family, though a node there is heard outside of the mesh. Of a
// gateway that is silent itself, nobody can say that: our way to it may be cut.
func (s Situation) blackhole(f *Findings) bool {
	if quiet, ok := s.silenceOf(s.Watch.targets(s.Watch.Gateway, mesh.ID{}), false); ok && quiet.misses >= suspicion {
		return false
	}
	for _, v4 := range []bool{true, false} {
		targets := slices.DeleteFunc(s.beyond(), func(t Target) bool { return t.Addr.Is4() != v4 })
		quiet, ok := s.silenceOf(targets, false)
		if !ok || quiet.misses < suspicion {
			continue
		}
		s.ask(f, s.Watch.Beyond, quiet)
		if quiet.misses >= s.Misses && s.hears(s.beyondWith(targets, func(r Result) bool { return !r.Answered.IsZero() }), quiet) {
			return true
		}
	}
	return false
}

// useless says whether the gateway has never worked for this node, and another
// one may: it answers and nothing beyond it ever did, though a node there is
// heard outside of the mesh and answers pings; or it has never answered itself,
// and that of the whole LAN only it has not.
func (s Situation) useless(f *Findings) bool {
	targets := s.beyond()
	quiet, ok := s.silenceOf(targets, true)
	if !ok || quiet.misses < unproven*s.Misses || len(s.beyondWith(targets, func(r Result) bool { return !r.Answered.IsZero() })) > 0 {
		return false
	}
	gateway := s.Watch.targets(s.Watch.Gateway, mesh.ID{})
	if near, ok := s.silenceOf(gateway, false); ok {
		s.ask(f, s.Watch.Beyond, quiet)
		return near.misses < suspicion && s.hears(s.beyondWith(targets, func(r Result) bool { return r.Known }), quiet)
	}
	near, ok := s.silenceOf(gateway, true)
	_, answer := s.witnesses(near)
	return ok && near.misses >= unproven*s.Misses && answer
}

// beyond returns the targets that are reached through the gateway.
func (s Situation) beyond() []Target {
	var out []Target
	for _, id := range s.Watch.Beyond {
		out = append(out, s.Watch.targets(id, s.Watch.Gateway)...)
	}
	return out
}

// ask has nodes asked for a sign of life because others are silent.
func (s Situation) ask(f *Findings, ids []mesh.ID, quiet silence) {
	f.Ask = append(f.Ask, ids...)
	again := lookSoon
	if quiet.misses > s.Misses+lookLong {
		again = slowly
	}
	if f.Again == 0 || again < f.Again {
		f.Again = again
	}
}

// beyondWith returns the nodes beyond of which one of the targets has such a
// result.
func (s Situation) beyondWith(targets []Target, such func(Result) bool) []mesh.ID {
	var out []mesh.ID
	for _, id := range s.Watch.Beyond {
		for _, t := range s.Watch.targets(id, s.Watch.Gateway) {
			if slices.Contains(targets, t) && such(s.Results[t]) {
				out = append(out, id)
			}
		}
	}
	return out
}

// hears says whether one of the nodes was heard in spite of a silence. What was
// on its way when the silence began doesn't count.
func (s Situation) hears(ids []mesh.ID, quiet silence) bool {
	from := quiet.since.Add(s.Interval + quiet.rtt)
	return slices.ContainsFunc(ids, func(id mesh.ID) bool { return s.Heard[id].After(from) })
}

// relay judges a relay, for this node's pairs alone: it is down when it is
// silent while another peer answers, and up when it has answered for a while.
func (s Situation) relay(f *Findings, id mesh.ID) {
	targets := s.Watch.targets(id, mesh.ID{})
	if s.standing(id, mesh.RoleRelay).State == mesh.HealthDown {
		steady := func(t Target) bool {
			since := s.Results[t].Since
			return !since.IsZero() && s.Now.Sub(since) >= relaySteady
		}
		if len(targets) > 0 && !slices.ContainsFunc(targets, func(t Target) bool { return !steady(t) }) {
			f.Verdicts = append(f.Verdicts, s.verdict(id, mesh.RoleRelay, mesh.HealthUp))
		}
		return
	}
	quiet, ok := s.silenceOf(targets, !s.Alive[id])
	if !ok || quiet.misses < s.Misses {
		return
	}
	for _, p := range s.Watch.Peers {
		for _, t := range s.Watch.targets(p, mesh.ID{}) {
			if r := s.Results[t]; !r.Answered.IsZero() && !r.Answered.Before(quiet.last) {
				f.Verdicts = append(f.Verdicts, s.verdict(id, mesh.RoleRelay, mesh.HealthDown))
				return
			}
		}
	}
}

// verdict makes the next verdict on a node.
func (s Situation) verdict(subject mesh.ID, role mesh.Role, state mesh.Health) mesh.Verdict {
	return mesh.Verdict{
		Author: s.Author, Subject: subject, Role: role, State: state,
		Epoch: s.standing(subject, role).Epoch + 1,
	}
}

// standing returns the verdict that counts for this node.
func (s Situation) standing(subject mesh.ID, role mesh.Role) mesh.Verdict {
	return Standing(s.Verdicts, mesh.IDOf(s.Author), subject, role)
}

// Standings returns what Standing does for each node on which there is a verdict in a
// role. It looks at each verdict once.
func Standings(verdicts []mesh.Verdict, reader mesh.ID, role mesh.Role) map[mesh.ID]mesh.Verdict {
	bySubject := make(map[mesh.ID][]mesh.Verdict)
	for _, v := range verdicts {
		bySubject[v.Subject] = append(bySubject[v.Subject], v)
	}
	out := make(map[mesh.ID]mesh.Verdict, len(bySubject))
	for subject, about := range bySubject {
		if v := Standing(about, reader, subject, role); v.State != "" {
			out[subject] = v
		}
	}
	return out
}

// Standing returns the verdict on a node that counts for the reader: of a
// gateway, the one of the highest epoch, then of the lowest author; of a relay,
// the reader's own. It is one without a state if there is none.
func Standing(verdicts []mesh.Verdict, reader, subject mesh.ID, role mesh.Role) mesh.Verdict {
	var out mesh.Verdict
	for _, v := range verdicts {
		if v.Subject != subject || v.Role != role || role == mesh.RoleRelay && mesh.IDOf(v.Author) != reader {
			continue
		}
		if out.State == "" || cmp.Or(cmp.Compare(v.Epoch, out.Epoch), mesh.IDOf(out.Author).Compare(mesh.IDOf(v.Author))) > 0 {
			out = v
		}
	}
	return out
}
