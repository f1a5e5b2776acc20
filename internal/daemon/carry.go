// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/internal/probe"
)

const (
	// lookAtSelf is how often a gateway that is down looks whether it could work.
	lookAtSelf = 2 * time.Second
	// heardFresh is how old a sign of life may be for that.
	heardFresh = 3 * time.Second
)

// carriers is what this node knows of those who carry traffic for it, and of
// itself as one who does so for others.
type carriers struct {
	prober prober
	watch  probe.Watch
	hold   probe.Hold
	// draining is set by meshd drain. A restart ends it.
	draining bool
	// undone says that a person took it back, which needs no waiting.
	undone bool
}

// judge publishes what this node has to say of those who carry for it, and of
// itself. It counts from this turn on.
func (d *daemon) judge(t *turn) error {
	f := probe.Judge(probe.Situation{
		Now: t.now, Author: d.identity.Key.Public().(ed25519.PublicKey), Watch: d.carriers.watch, Results: d.carriers.prober.Results(),
		Pace:  probe.Pace(d.cfg.Probe),
		Alive: t.view.Alive, Heard: t.heard, Verdicts: t.view.Verdicts, Records: t.view.Records,
	})
	if f.Again > 0 {
		t.wakeIn(f.Again)
	}
	verdicts := f.Verdicts
	if v, ok := d.judgeSelf(t); ok {
		verdicts = append(verdicts, v)
	}
	d.gossip.Ask(append(f.Ask, t.ask...))
	for _, v := range verdicts {
		if err := d.say(v); err != nil {
			return err
		}
		d.log.Info("verdict", "role", v.Role, "peer", nameOf(t.view.Records, v.Subject), "state", v.State, "epoch", v.Epoch)
	}
	if len(verdicts) > 0 {
		t.view = d.gossip.View()
	}
	return nil
}

// say publishes a verdict. We may have said more of a node than gossip still
// shows, before it was forgotten; then the epoch has to go beyond that.
func (d *daemon) say(v mesh.Verdict) error {
	err := d.gossip.Judge(v)
	if said := (*gossip.EpochError)(nil); errors.As(err, &said) {
		v.Epoch = said.Exceed + 1
		err = d.gossip.Judge(v)
	}
	return err
}

// judgeSelf says that this node is draining, if a person wants that, or that it
// is up again after it was down. Then its record has said before that it is not
// in office: the others must not find it there the moment it is up.
func (d *daemon) judgeSelf(t *turn) (mesh.Verdict, bool) {
	c, standing := &d.carriers, d.standing(t.view)
	next := mesh.Verdict{Author: d.identity.Key.Public().(ed25519.PublicKey), Subject: d.identity.ID(), Role: mesh.RoleGateway, Epoch: standing.Epoch + 1}
	if isUp(standing) {
		c.hold.Raise(t.now)
		c.undone = false
		next.State = mesh.HealthDraining
		return next, c.draining
	}
	if c.draining {
		return mesh.Verdict{}, false
	}
	wait := time.Duration(0)
	if !c.undone {
		wait = c.hold.Fall(t.now)
	}
	switch {
	case wait > 0:
		t.wakeIn(wait)
	case d.memory.Own.Office.Since != 0:
		t.wakeIn(gather)
	case !c.undone && !d.fit(t):
		t.wakeIn(lookAtSelf)
	default:
		next.State, next.Record = mesh.HealthUp, d.memory.Own.Sequence
		return next, true
	}
	return mesh.Verdict{}, false
}

// standing returns the verdict on this node as a gateway that counts.
func (d *daemon) standing(v mesh.View) mesh.Verdict {
	return mesh.GatewayVerdicts(v.Verdicts, v.Records)[d.identity.ID()]
}

// isUp says whether a verdict, or that there is none, lets a node be a gateway.
func isUp(v mesh.Verdict) bool { return v.State == "" || v.State == mesh.HealthUp }

// fit says whether this node could be a gateway: it forwards, and hears others
// of its location and from outside, each on their own network. Who is not alive
// anyway need not be heard on the LAN.
func (d *daemon) fit(t *turn) bool {
	_, last := d.published.get()
	if !forwards(last.desired, last.observed) {
		return false
	}
	var beside, outside []mesh.ID
	for _, r := range t.view.Records {
		switch id := r.ID(); {
		case id == d.identity.ID():
		case r.Location != d.memory.Own.Location:
			outside = append(outside, id)
		case t.view.Alive[id]:
			beside = append(beside, id)
		}
	}
	hears := func(ids []mesh.ID) bool {
		t.ask = append(t.ask, ids[:min(len(ids), 3)]...)
		fresh := func(id mesh.ID) bool { return t.now.Sub(t.heard[id]) <= heardFresh }
		return len(ids) == 0 || slices.ContainsFunc(ids, fresh)
	}
	near, far := hears(beside), hears(outside)
	return near && far
}

// forwards says whether the kernel forwards as it should, and no firewall that we
// can't change is known to keep it from that.
func forwards(desired, observed netcfg.State) bool {
	if observed.FilterErr == nil && len(netcfg.Problems(observed, desired)) > 0 {
		return false
	}
	return !slices.ContainsFunc(desired.Sysctls, func(s netcfg.Sysctl) bool {
		return strings.Contains(s.Key, "forward") && !slices.Contains(observed.Sysctls, s)
	})
}

// watchCarriers says whom to probe from now on, after what the turn has derived,
// and what the answers tell of the LAN. That is when the host has its routes:
// without them a probe would leave in plain text, by the default route.
func (d *daemon) watchCarriers(t *turn) {
	c := &d.carriers
	c.watch = probe.Choose(probe.Around{
		Cluster: t.input.Cluster, Self: t.input.Self, Records: t.view.Records, Topology: t.topology, Alive: t.view.Alive,
		Blamed: blamed(t.view.Verdicts, t.input.Self),
	})
	if !node.HasAddresses(t.observed, t.desired) {
		c.watch = probe.Watch{}
	}
	c.prober.Aim(c.watch.Aims(), probe.Pace(d.cfg.Probe))
	t.watch, t.results = c.watch, c.prober.Results()
	for _, n := range probe.Filtered(t.watch, t.results, t.view.Alive, t.now) {
		t.problems = append(t.problems, filteredProblem(d.memory.Own, nameOf(t.view.Records, n.ID), n))
	}
	if err := c.prober.Err(); err != nil {
		t.problems = append(t.problems, mesh.Problem{
			Kind: ProblemProbe, Node: d.memory.Own.Name, Text: fmt.Sprintf("gateways can't be watched: %v", err),
			Advice: "give meshd CAP_NET_RAW, as the packaged unit does",
		})
	}
	t.problems = append(t.problems, lostGateways(t)...)
	down := !isUp(d.standing(t.view)) && !c.draining
	settled := t.view.Merged || t.view.JoinEmpty
	if wait := d.memory.Term.Decide(d.memory.Own.Office, t.topology.Seat, node.TermConditions{Down: down, Settled: settled, Now: t.now}); wait > 0 {
		t.wakeIn(wait)
	}
}

// newVerdicts says whether gossip brought one since a turn. That turn is taken at
// once: until everybody has, packets go to a gateway that is not there.
func (d *daemon) newVerdicts(t turn) bool {
	return t.err == nil && !slices.EqualFunc(d.gossip.View().Verdicts, t.view.Verdicts, func(a, b mesh.Verdict) bool {
		return a.Epoch == b.Epoch && a.State == b.State && a.Subject == b.Subject && a.Role == b.Role && a.Author.Equal(b.Author)
	})
}

// ProblemProbe is that nobody watches those who carry traffic for this node.
const ProblemProbe mesh.ProblemKind = "no-probes"

// lostGateways finds locations whose gateway does not live, as gossip sees it, and
// that nobody has relieved: no other node there may be one, or none could say so.
func lostGateways(t *turn) []mesh.Problem {
	if t.input.Cluster.Mode != mesh.ModeLocation {
		return nil
	}
	records := make(map[mesh.ID]mesh.Record, len(t.input.Records))
	for _, r := range t.input.Records {
		records[r.ID()] = r
	}
	own := records[t.input.Self].Location
	lost := make(map[mesh.ID]bool)
	var problems []mesh.Problem
	for _, p := range t.topology.Paths {
		for _, hop := range p.Hops {
			r, seen := records[hop], lost[hop]
			if t.view.Alive[hop] || seen || r.Location == "" || r.Location != own && r.Location != records[p.ID].Location {
				continue
			}
			lost[hop] = true
			problems = append(problems, mesh.Problem{
				Kind: mesh.ProblemGateway, Node: r.Name,
				Text:   fmt.Sprintf("location %s has no gateway: %s does not live, and no other node there has taken over", r.Location, r.Name),
				Advice: fmt.Sprintf("start %s again, or set node.gateway to auto on another node of %s", r.Name, r.Location),
			})
		}
	}
	return problems
}

// filteredProblem words what is wrong with a LAN that drops what it does not
// know, and what helps.
func filteredProblem(own mesh.Record, neighbor string, n probe.Neighbor) mesh.Problem {
	return mesh.Problem{
		Kind: mesh.ProblemNeighbor, Node: own.Name,
		Text: fmt.Sprintf("node %s answers at %v and not at its overlay address: the network of location %s drops packets whose addresses it did not give out, so pods don't reach each other there",
			neighbor, n.Internal, own.Location),
		Advice: "set cluster.encapsulation: always and a higher cluster.generation on all nodes; or turn off that check in the network (clouds call it source/destination check or IP forwarding)",
	}
}

// blamed returns the relays that this node has found down.
func blamed(verdicts []mesh.Verdict, author mesh.ID) []mesh.ID {
	var out []mesh.ID
	for _, v := range verdicts {
		if v.Role == mesh.RoleRelay && v.State == mesh.HealthDown && mesh.IDOf(v.Author) == author {
			out = append(out, v.Subject)
		}
	}
	return out
}

// nameOf returns a node's name, or its fingerprint if nothing is known of it.
func nameOf(records []mesh.Record, id mesh.ID) string {
	i := slices.IndexFunc(records, func(r mesh.Record) bool { return r.ID() == id })
	if i < 0 {
		return id.String()
	}
	return records[i].Name
}
