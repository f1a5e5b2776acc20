// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/probe"
)

// Conclusion is what follows from what the host has.
type Conclusion struct {
	// HasAddresses reports whether the host has its addresses in the mesh. Without them,
	// packets to the mesh would leave in plain text by the default route.
	HasAddresses bool
	// ParametersSet reports whether the kernel parameters are as desired. Without them, the
	// host drops what its pods send and get.
	ParametersSet bool
	ClaimWait     time.Duration // until the claim can be relied on
	ReadyWait     time.Duration // until k3s may start, if the host can carry pods

	Handshakes   HandshakePlan // to peers without a session
	Watch        probe.Watch   // whom to probe from now on
	Forget       []mesh.Record // of nodes that have been away for too long
	Problems     []mesh.Problem
	RecheckAfter time.Duration // how soon to take the next turn at the latest; 0 for no wish
}

// Conclude works out what follows from what the host has after its configuration was
// applied. Observed is nil if that is not known.
func (m *Memory) Conclude(in Input, c Configuration, observed *netcfg.State) Conclusion {
	var out Conclusion
	var host netcfg.State
	if observed != nil {
		host = *observed
		unset := netcfg.ParameterProblems(host, c.Desired)
		out.ParametersSet = len(unset) == 0
		for _, p := range append(unset, netcfg.Problems(host, c.Desired)...) {
			p.Node = in.Config.Name
			out.Problems = append(out.Problems, p)
		}
		settled := in.Started
		if m.moves.last.After(settled) {
			settled = m.moves.last
		}
		out.Handshakes = m.Handshakes.next(handshakeInput{
			Now: in.Now, Self: m.Own, Topology: c.Topology, Alive: in.View.Alive, Observed: host,
			Proved: in.Paths.Proved, Renew: in.Paths.Renew, Settled: settled,
		})
		out.RecheckAfter = soonest(out.Handshakes.RecheckAfter, m.Routers.observe(sharing(c.Topology.AllClients), host.Peers, in.Now))
	}
	out.ClaimWait, out.ReadyWait = m.claimWait(in), m.readyWait(in, c.Topology)
	if out.HasAddresses = hasAddresses(host, c.Desired); out.HasAddresses {
		out.Watch = probe.Choose(probe.ChooseInput{
			Cluster: c.Input.Cluster, Self: c.Input.Self, Records: in.View.Records, Topology: c.Topology, Alive: in.View.Alive,
		})
	}
	m.watch = out.Watch
	for _, n := range probe.Blocked(m.watch, in.Results, in.View.Alive, in.Now) {
		out.Problems = append(out.Problems, blockedProblem(m.Own, NameOf(in.View.Records, n.ID), n))
	}
	out.Problems = append(out.Problems, lostGateways(in, c)...)
	out.Problems = append(out.Problems, membershipProblems(in)...)
	out.RecheckAfter = soonest(out.RecheckAfter, m.decideTerm(in, c.Topology.Seat))
	out.RecheckAfter = soonest(out.RecheckAfter, m.decideServing(in, c.Topology.Shared))
	out.RecheckAfter = soonest(out.RecheckAfter, m.health.look(forwards(c.Desired, host), in.Now))
	m.Absences.count(in.View, in.Self.ID(), in.Now)
	out.Forget = m.Absences.overdue(in.View, in.Self.ID(), in.Config.ForgetAfter)
	return out
}

// hasAddresses reports whether the device is up with the desired addresses, of which there
// has to be one.
func hasAddresses(observed, desired netcfg.State) bool {
	missing := func(a netip.Prefix) bool { return !slices.Contains(observed.Addresses, a) }
	return observed.Device != nil && observed.Device.Up && len(desired.Addresses) > 0 && !slices.ContainsFunc(desired.Addresses, missing)
}

// lostGateways finds locations whose gateway is not alive, as gossip sees it, and has no
// successor: no other node there may be a gateway, or none could say that it is.
func lostGateways(in Input, c Configuration) []mesh.Problem {
	if c.Input.Cluster.Mode != mesh.ModeLocation {
		return nil
	}
	records := in.recordsByID()
	own := records[c.Input.Self]
	lost := make(map[mesh.ID]bool)
	var problems []mesh.Problem
	for _, p := range c.Topology.Routes {
		for _, hop := range p.Hops {
			r, seen, end := records[hop], lost[hop], records[p.ID]
			if in.View.Alive[hop] || seen || !r.SameLAN(&own) && !r.SameLAN(&end) {
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

// blockedProblem words what is wrong with a LAN that drops packets of addresses that it
// does not know, or those of VXLAN, and what helps.
func blockedProblem(own mesh.Record, neighbor string, n probe.Neighbor) mesh.Problem {
	if n.Encapsulated {
		return mesh.Problem{
			Kind: mesh.ProblemNeighbor, Node: own.Name,
			Text: fmt.Sprintf("node %s answers at %v and not at its overlay address, through VXLAN: pods don't reach each other there",
				neighbor, n.Internal),
			Advice: fmt.Sprintf("let UDP %d pass between the internal IPs of both; or see what meshd status says on %s", netcfg.VXLANPort, neighbor),
		}
	}
	return mesh.Problem{
		Kind: mesh.ProblemNeighbor, Node: own.Name,
		Text: fmt.Sprintf("node %s answers at %v and not at its overlay address: the network of location %s drops packets whose addresses it did not give out, so pods don't reach each other there",
			neighbor, n.Internal, own.Location),
		Advice: "set cluster.encapsulation: always and a higher cluster.generation on all nodes; or turn off that check in the network (clouds call it source/destination check or IP forwarding)",
	}
}

// NameOf returns a node's name, or its fingerprint if nothing is known of it.
func NameOf(records []mesh.Record, id mesh.ID) string {
	i := slices.IndexFunc(records, func(r mesh.Record) bool { return r.ID() == id })
	if i < 0 {
		return id.String()
	}
	return records[i].Name
}
