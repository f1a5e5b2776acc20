// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"slices"

	"github.com/meshd/meshd/internal/mesh"
)

// A revoked node's tombstones go with it, its revocations of others among them.
// Who is revoked then follows from the revocations as from a graph, from those
// whom nobody revokes to the others. In a circle, such as two nodes that revoke
// each other, only what a lower fingerprint says of a higher one counts: what
// remains has no circles, and its answer is the same on all nodes.
//
// There is no better rule at hand. Clocks can be set, and whoever has the
// secret can make as many identities as it likes; only cluster.trust: list tells
// the nodes whom to believe.

// revocations says whom each author revokes, in either order.
type revocations map[mesh.ID][]mesh.ID

// revocations returns those that are held, whether they count or not.
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

// revoked returns who is.
func (g revocations) revoked() map[mesh.ID]bool {
	circle := g.circles()
	counts := func(author, target mesh.ID) bool {
		c, ok := circle[target]
		return !ok || c != circle[author] || author.Compare(target) < 0
	}
	// by has for each author who revokes it: only these decide whether what
	// it says counts.
	by := make(revocations, len(g))
	for author, targets := range g {
		for _, t := range targets {
			if _, speaks := g[t]; speaks && counts(author, t) {
				by[t] = append(by[t], author)
			}
		}
	}
	silenced := make(map[mesh.ID]bool, len(g)) // those revoked by somebody who counts
	done := make(map[mesh.ID]bool, len(g))
	var judge func(author mesh.ID) bool
	judge = func(author mesh.ID) bool {
		if !done[author] {
			done[author] = true // before the others: there are no circles
			silenced[author] = slices.ContainsFunc(by[author], func(other mesh.ID) bool { return !judge(other) })
		}
		return silenced[author]
	}
	out := make(map[mesh.ID]bool)
	for author, targets := range g {
		if judge(author) {
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

// matter returns whose revocations matter, given who is revoked: of those who are
// not, and of those who are as far as they may turn against them. Whatever else
// revoked nodes have revoked is dropped, and nothing changes by that.
func (g revocations) matter(revoked map[mesh.ID]bool) map[mesh.ID]bool {
	speak := make(map[mesh.ID]bool, len(g))
	by := make(revocations)
	var next []mesh.ID
	for author, targets := range g {
		if !revoked[author] {
			next = append(next, author)
			continue
		}
		for _, t := range targets {
			by[t] = append(by[t], author)
		}
	}
	for len(next) > 0 {
		id := next[0]
		next = next[1:]
		if !speak[id] {
			speak[id] = true
			next = append(next, by[id]...)
		}
	}
	return speak
}

// circles numbers the strongly connected components of the authors (Tarjan
// 1972), each by one of its members.
func (g revocations) circles() map[mesh.ID]int {
	var (
		index   = make(map[mesh.ID]int, len(g)) // order of discovery, from 1
		low     = make(map[mesh.ID]int, len(g))
		circle  = make(map[mesh.ID]int, len(g))
		stack   []mesh.ID
		explore func(mesh.ID)
	)
	explore = func(a mesh.ID) {
		index[a] = len(index) + 1
		low[a] = index[a]
		stack = append(stack, a)
		for _, t := range g[a] {
			if _, speaks := g[t]; !speaks || circle[t] > 0 {
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
			circle[last] = index[a]
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
	return circle
}
