// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"slices"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

const (
	// unmetAfter is how long a node that gossip hears may be silent on the private network
	// until it counts as gone from there: some Echoes are lost in that time, not all.
	unmetAfter = time.Minute
	// awayAfter is how long gossip hears nothing of a node that was away. A node of a large
	// mesh is heard every few seconds.
	awayAfter = 30 * time.Second
)

// met is what this node knows of one that it has met on the private network.
type met struct {
	at    time.Time // when it answered last, or was back after it had been away
	heard time.Time // when gossip heard it last
}

// Membership returns which nodes of its location this node has met on the private network. One
// that is not heard by gossip either is not gone from the network: it is down, or this node is
// cut off. After a start all are there that were before.
func (m *Memory) Membership(in Input) mesh.Membership {
	before := m.met
	if before == nil {
		before = m.metBefore(in)
	}
	m.met = make(map[mesh.ID]met)
	var ids []mesh.ID
	for _, r := range in.View.Records {
		id := r.ID()
		if id == in.Self.ID() || in.Config.Location == "" || r.Location != in.Config.Location {
			continue
		}
		s, known := before[id]
		// An answer of long ago must not bring back a node that has gone.
		if answered := in.Paths.Met[id]; answered.After(s.at) && in.Now.Sub(answered) < unmetAfter {
			s.at, known = answered, true
		}
		heard := in.LastHeard[id]
		if heard.Sub(s.heard) > awayAfter && heard.After(s.at) {
			s.at = heard
		}
		s.heard = heard
		if !known || heard.Sub(s.at) >= unmetAfter {
			continue
		}
		m.met[id] = s
		ids = append(ids, id)
	}
	return mesh.Membership{Location: in.Config.Location, Met: mesh.Nearest(in.Self.ID(), ids)}
}

// metBefore returns the nodes that this one had met before this daemon started.
func (m *Memory) metBefore(in Input) map[mesh.ID]met {
	out := make(map[mesh.ID]met)
	for _, said := range in.View.Memberships {
		if said.Author != in.Self.ID() || said.Location != in.Config.Location {
			continue
		}
		for _, r := range in.View.Records {
			if slices.Contains(said.Met, r.ID().Short()) {
				out[r.ID()] = met{}
			}
		}
	}
	return out
}

// standsAlone reports whether other nodes of this node's location live, and it has met none.
func (in Input) standsAlone() bool {
	own, ok := ownRecord(in)
	if !ok || own.Encrypted || in.View.Cluster.Mode == mesh.ModeFull {
		return false
	}
	others := false
	for i := range in.View.Records {
		r := &in.View.Records[i]
		if id := r.ID(); id == own.ID() || !in.View.Alive[id] || !r.SameLocation(&own) {
			continue
		}
		if r.SameLAN(&own) {
			return false
		}
		others = true
	}
	return others
}

// membershipProblems reports nodes of the own location that live and don't answer on the
// private network, once they have had time to.
func membershipProblems(in Input) []mesh.Problem {
	own, ok := ownRecord(in)
	if !ok || own.Location == "" || own.Encrypted || in.View.Cluster.Mode == mesh.ModeFull || in.Now.Sub(in.Started) < unmetAfter {
		return nil
	}
	unmet := mesh.Unmet(own.ID(), in.View.Records, in.View.Memberships)
	var silent, elsewhere []string
	for i := range in.View.Records {
		r := &in.View.Records[i]
		switch id := r.ID(); {
		case id == own.ID() || !in.View.Alive[id] || r.Encrypted || !r.SameLocation(&own):
		case !r.SameLAN(&own):
			elsewhere = append(elsewhere, r.Name)
		case slices.Contains(unmet, id):
			silent = append(silent, r.Name)
		}
	}
	slices.Sort(silent)
	slices.Sort(elsewhere)
	ports := fmt.Sprintf("let UDP %d pass between the internal IPs of both", in.Config.ListenPort)
	var problems []mesh.Problem
	if len(silent) > 0 {
		problems = append(problems, mesh.Problem{
			Kind: mesh.ProblemNeighbor, Node: own.Name,
			Text: fmt.Sprintf("node %s and these of location %s don't answer each other on the private network, although others reach both: %s",
				own.Name, own.Location, mesh.Some(silent, namesInProblem)),
			Advice: ports + "; what they send each other may be lost until then",
		})
	}
	if in.standsAlone() && len(elsewhere) > 0 {
		problems = append(problems, mesh.Problem{
			Kind: mesh.ProblemNeighbor, Node: own.Name,
			Text: fmt.Sprintf("no node of location %s answers node %s on the private network, so it stands alone, with tunnels: %s",
				own.Location, own.Name, mesh.Some(elsewhere, namesInProblem)),
			Advice: fmt.Sprintf("if %s is in another network, give it another node.location; else %s", own.Name, ports),
		})
	}
	return problems
}

// namesInProblem is how many nodes a problem names.
const namesInProblem = 5
