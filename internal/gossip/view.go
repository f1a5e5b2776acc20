// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"fmt"
	"slices"

	"github.com/meshd/meshd/internal/mesh"
)

// View returns what is known now. It shares nothing with the Gossip that it came from.
func (g *Gossip) View() mesh.View {
	v := mesh.View{Counters: g.counters.snapshot()}
	v.Alive, v.RTT = g.members.snapshot()
	v.Alone = len(v.Alive) == 1
	v.MetAt = g.transport.metAt()
	g.mu.Lock()
	records := g.store.records()
	v.Verdicts, v.Clients, v.Paths = g.store.verdicts(), g.store.clients(), g.store.paths()
	v.Memberships, v.Reaches = g.store.memberships(), g.store.reaches()
	v.Cluster = g.effectiveSettings().applyTo(g.cluster)
	g.resolveFull()
	v.Problems = append(g.notices.problems(), g.settingsProblems()...)
	v.OwnSequence, v.Merged, v.JoinEmpty = g.ownSequence(), g.merged, g.joinEmpty()
	v.Forgotten = g.store.forgottenUpTo[g.self]
	v.Problems = append(v.Problems, g.joinProblems(v.Alone)...)
	revoked := v.Forgotten == mesh.Forever
	g.mu.Unlock()
	v.Records = slices.Grow(v.Records, len(records))
	counts := make(map[mesh.ID]bool, len(records))
	for _, r := range records {
		if r.Settings != g.ranges {
			v.Problems = append(v.Problems, mesh.Problem{
				Kind: ProblemSettings, Node: r.Name, Text: fmt.Sprintf("%s has other address ranges; its record is ignored", r.Name),
				Advice: "write the same cluster.overlay, cluster.pods and cluster.pod-prefix on all nodes, and restart meshd there",
			})
			continue
		}
		counts[r.ID()] = true
		v.Records = append(v.Records, clone(r))
	}
	v.Verdicts = mesh.WithinEpochStep(slices.DeleteFunc(v.Verdicts, func(v mesh.Verdict) bool {
		return !counts[mesh.IDOf(v.Author)] || !counts[v.Subject]
	}))
	v.Paths = slices.DeleteFunc(v.Paths, func(p mesh.PathRecord) bool { return !counts[p.Author] })
	v.Memberships = slices.DeleteFunc(v.Memberships, func(m mesh.Membership) bool { return !counts[m.Author] })
	v.Reaches = slices.DeleteFunc(v.Reaches, func(r mesh.Reach) bool { return !counts[r.Author] })
	mesh.Locate(v.Records, v.Memberships)
	mesh.Prove(v.Records, v.Reaches)
	for i := range v.Paths {
		p := &v.Paths[i]
		p.Candidates = slices.DeleteFunc(p.Candidates, func(c mesh.PathCandidate) bool { return !v.Cluster.Outside(c.Addr.Addr()) })
	}
	if revoked {
		v.Problems = append(v.Problems, mesh.Problem{
			Kind: ProblemRevoked, Node: g.self.String(), Text: "this node's identity was revoked",
			Advice: "if the node should return, remove its state directory, so that it gets a new identity",
		})
	}
	slices.SortFunc(v.Problems, mesh.Problem.Compare)
	v.Problems = slices.Compact(v.Problems)
	return v
}

// clone copies a record with its lists.
func clone(r mesh.Record) mesh.Record {
	r.Identity = slices.Clone(r.Identity)
	r.Endpoints = slices.Clone(r.Endpoints)
	r.InternalIPs = slices.Clone(r.InternalIPs)
	r.AllowedLocationIPs = slices.Clone(r.AllowedLocationIPs)
	r.Withheld = slices.Clone(r.Withheld)
	r.Serving = slices.Clone(r.Serving)
	r.Unserved = slices.Clone(r.Unserved)
	r.Linked = slices.Clone(r.Linked)
	return r
}
