// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"slices"

	"github.com/meshd/meshd/internal/mesh"
)

// If a node is revoked, its tombstones don't count any more, including its own
// revocations of others. The revocations therefore form a graph, which is resolved from
// the nodes that no other one revokes. In a cycle, such as two nodes that revoke each
// other, only revocations by a lower fingerprint of a higher one count: what remains has
// no cycles, and all nodes compute the same result.
//
// No better rule is available. Clocks can be set to any time, and a host with the secret
// can create any number of identities; only cluster.trust: list tells the nodes which
// ones to trust.

// revocations holds the nodes that each author revokes, in any order.
type revocations map[mesh.ID][]mesh.ID

// revocations returns all that are stored, whether they count or not.
func (s *store) revocations() revocations {
	g := make(revocations)
	for h, keys := range s.held {
		if h.class != classRevocation {
			continue
		}
		for key := range keys {
			g[h.author] = append(g[h.author], key.subject)
		}
	}
	return g
}

// revoked returns the nodes that are revoked.
func (g revocations) revoked() map[mesh.ID]bool {
	component := g.cycles()
	counts := func(author, target mesh.ID) bool {
		c, ok := component[target]
		return !ok || c != component[author] || author.Compare(target) < 0
	}
	// by holds for each author the authors that revoke it: only these decide whether its
	// own revocations count.
	by := make(revocations, len(g))
	for author, targets := range g {
		for _, t := range targets {
			if _, isAuthor := g[t]; isAuthor && counts(author, t) {
				by[t] = append(by[t], author)
			}
		}
	}
	revokedAuthor := make(map[mesh.ID]bool, len(g)) // authors that are revoked by one whose revocations count
	done := make(map[mesh.ID]bool, len(g))
	var isRevoked func(author mesh.ID) bool
	isRevoked = func(author mesh.ID) bool {
		if !done[author] {
			done[author] = true // before the recursion: there are no cycles left
			revokedAuthor[author] = slices.ContainsFunc(by[author], func(other mesh.ID) bool { return !isRevoked(other) })
		}
		return revokedAuthor[author]
	}
	out := make(map[mesh.ID]bool)
	for author, targets := range g {
		if isRevoked(author) {
			continue
		}
		for _, t := range targets {
			if counts(author, t) {
				out[t] = true
			}
		}
	}
	return out
}

// cycles numbers the strongly connected components of the authors (Tarjan 1972), each by
// one of its members.
func (g revocations) cycles() map[mesh.ID]int {
	var (
		index     = make(map[mesh.ID]int, len(g)) // order of discovery, from 1
		low       = make(map[mesh.ID]int, len(g))
		component = make(map[mesh.ID]int, len(g))
		stack     []mesh.ID
		explore   func(mesh.ID)
	)
	explore = func(a mesh.ID) {
		index[a] = len(index) + 1
		low[a] = index[a]
		stack = append(stack, a)
		for _, t := range g[a] {
			if _, isAuthor := g[t]; !isAuthor || component[t] > 0 {
				continue
			}
			if index[t] == 0 {
				explore(t)
			}
			low[a] = min(low[a], low[t])
		}
		if low[a] < index[a] {
			return
		}
		for {
			last := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			component[last] = index[a]
			if last == a {
				return
			}
		}
	}
	for a := range g {
		if index[a] == 0 {
			explore(a)
		}
	}
	return component
}
