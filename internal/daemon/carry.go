// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"fmt"
	"slices"

	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/internal/probe"
)

// publishVerdicts tells what this node has to say of those who carry traffic for it, and of
// itself. A verdict that names our record waits until that is told.
func (d *daemon) publishVerdicts(a node.Announcement, view mesh.View) error {
	d.gossip.Ask(a.Ask)
	for _, v := range a.Verdicts {
		if v.Record > d.memory.Own.Sequence {
			continue
		}
		if err := d.say(v); err != nil {
			return err
		}
		d.log.Info("verdict", "role", v.Role, "peer", nameOf(view.Records, v.Subject), "state", v.State, "epoch", v.Epoch)
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

// watchCarriers says whom to probe from now on, after what the turn has derived,
// and what the answers tell of the LAN. That is when the host has its routes:
// without them a probe would leave in plain text, by the default route.
func (d *daemon) watchCarriers(t *turn) {
	d.memory.Watch = probe.Choose(probe.Around{
		Cluster: t.input.Cluster, Self: t.input.Self, Records: t.view.Records, Topology: t.topology, Alive: t.view.Alive,
		Blamed: blamed(t.view.Verdicts, t.input.Self),
	})
	if !node.HasAddresses(t.observed, t.desired) {
		d.memory.Watch = probe.Watch{}
	}
	d.prober.Aim(d.memory.Watch.Aims(), probe.Pace(d.cfg.Probe))
	t.watch, t.results = d.memory.Watch, d.prober.Results()
	for _, n := range probe.Filtered(t.watch, t.results, t.view.Alive, t.now) {
		t.problems = append(t.problems, filteredProblem(d.memory.Own, nameOf(t.view.Records, n.ID), n))
	}
	if err := d.prober.Err(); err != nil {
		t.problems = append(t.problems, mesh.Problem{
			Kind: ProblemProbe, Node: d.memory.Own.Name, Text: fmt.Sprintf("gateways can't be watched: %v", err),
			Advice: "give meshd CAP_NET_RAW, as the packaged unit does",
		})
	}
	t.problems = append(t.problems, lostGateways(t)...)
	if wait := d.memory.DecideTerm(d.input(t.view, t.facts, t.now), t.topology.Seat); wait > 0 {
		t.wakeIn(wait)
	}
	d.memory.NoteForwarding(t.desired, t.observed)
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
