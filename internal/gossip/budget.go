// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"cmp"
	"fmt"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// maxAuthors limits how many nodes may have objects in the store: twice the largest mesh
// that was measured. It limits the store, and everything derived from it. Known nodes
// keep their place; only new nodes are refused. Nodes that have not connected to us may
// take at most maxUnmet of the places, because any host with the secret can invent
// thousands of them; the rest is for nodes that have connected.
const (
	maxAuthors = 1024
	maxUnmet   = maxAuthors * 3 / 4
)

// class groups objects that share a budget: those of one kind, except that revocations
// have a budget of their own, so that a node can't prevent its own revocation by making
// many tombstones.
type class byte

const classRevocation class = 0x10

func (o object) class() class {
	if t, ok := o.body.(tombstone); ok && t.upTo == mesh.Forever {
		return classRevocation
	}
	return class(o.key.kind)
}

// budget limits the objects of a class: each author has room of its own that no other
// node can use, and all authors share some more. So a node that makes too many objects
// uses up its own room and the shared room, but not that of others.
type budget struct{ own, shared int }

// budgets: a node has one record, and one object each that says by which paths it is reached,
// whom it has met, and whom it has reached; and it announces its settings once. It watches the
// nodes that carry its traffic, a few at a time. One node may be the one on
// which an administrator adds all clients, and removes them again.
var budgets = map[class]budget{
	class(kindRecord):     {own: 1},
	class(kindSettings):   {own: 1},
	class(kindPath):       {own: 1},
	class(kindMembership): {own: 1},
	class(kindReach):      {own: 1},
	class(kindVerdict):    {own: 16},
	class(kindClient):     {own: 4, shared: 1024},
	class(kindTombstone):  {own: 8, shared: 4096},
	classRevocation:       {own: 8, shared: 1024},
}

// String returns a class's name for messages.
func (c class) String() string {
	switch c {
	case class(kindClient):
		return "clients"
	case class(kindTombstone):
		return "forgotten nodes and removed clients"
	case classRevocation:
		return "revoked nodes"
	}
	return "nodes"
}

// holder is an author and one class of its objects.
type holder struct {
	author mesh.ID
	class  class
}

// usage is how much of the budgets is used.
type usage struct {
	held    map[holder]map[objectKey]struct{}
	shared  map[class]int   // objects beyond their authors' own room
	authors map[mesh.ID]int // objects of each author
	// mentions counts the objects in which a node or a client is the author or, except
	// for tombstones, the subject: only these can be covered by a tombstone about it.
	mentions map[mesh.ID]int
}

func newUsage() usage {
	return usage{
		held: make(map[holder]map[objectKey]struct{}), shared: make(map[class]int),
		authors: make(map[mesh.ID]int), mentions: make(map[mesh.ID]int),
	}
}

func (u *usage) add(o object) {
	h := holder{o.key.author, o.class()}
	if u.held[h] == nil {
		u.held[h] = make(map[objectKey]struct{}, 1)
	}
	u.held[h][o.key] = struct{}{}
	if len(u.held[h]) > budgets[h.class].own {
		u.shared[h.class]++
	}
	u.authors[h.author]++
	u.mentions[h.author]++
	if o.key.kind != kindTombstone && o.key.subject != h.author {
		u.mentions[o.key.subject]++
	}
}

func (u *usage) remove(o object) {
	h := holder{o.key.author, o.class()}
	if len(u.held[h]) > budgets[h.class].own {
		u.shared[h.class]--
	}
	delete(u.held[h], o.key)
	if len(u.held[h]) == 0 {
		delete(u.held, h)
	}
	decrement(u.authors, h.author)
	decrement(u.mentions, h.author)
	if o.key.kind != kindTombstone && o.key.subject != h.author {
		decrement(u.mentions, o.key.subject)
	}
}

func decrement(counts map[mesh.ID]int, id mesh.ID) {
	if counts[id]--; counts[id] == 0 {
		delete(counts, id)
	}
}

// isFullFor reports whether the store has no place for one more author.
func (s *store) isFullFor(author mesh.ID) bool {
	n := len(s.authors)
	return s.authors[author] == 0 && (n >= maxAuthors || n >= maxUnmet && !s.hasMet(author))
}

// hasRoom reports whether there is room for one more object of an author.
func (s *store) hasRoom(h holder) bool {
	b := budgets[h.class]
	return !s.isFullFor(h.author) && (len(s.held[h]) < b.own || s.shared[h.class] < b.shared)
}

// makeRoom returns fresh if there is room for an object, and full if not. For a verdict
// it makes room by dropping the author's least needed one. All nodes choose the same one,
// so that they agree on the gateways. If the least needed one is o itself, it returns
// stale. The same goes for revocations of a revoked author.
func (s *store) makeRoom(o object) outcome {
	h := holder{o.key.author, o.class()}
	within := len(s.held[h]) < budgets[h.class].own
	if h.class != classRevocation || s.forgottenUpTo[h.author] != mesh.Forever || within {
		if s.hasRoom(h) || h.author == s.self && within {
			return fresh
		}
		if _, ok := o.body.(verdict); !ok || len(s.held[h]) == 0 {
			return full
		}
	}
	least := s.leastNeeded(h)
	if compareNeed(o, least) >= 0 {
		return stale
	}
	s.erase(least)
	return fresh
}

// leastNeeded returns the object of a holder that is dropped first.
func (s *store) leastNeeded(h holder) (least object) {
	for key := range s.held[h] {
		if o := s.objects[key]; least.raw == nil || compareNeed(o, least) > 0 {
			least = o
		}
	}
	return least
}

// compareNeed orders objects of one author and class by how much they are needed: verdicts
// as compareVerdicts does, all others by their places.
func compareNeed(a, b object) int {
	if _, ok := a.body.(verdict); ok {
		return compareVerdicts(a, b)
	}
	return cmp.Compare(a.place, b.place)
}

// compareVerdicts orders verdicts of one author by how much they are needed: first the
// one on itself, then those on others, the newest first, because the sequence of its
// author's record increases with time.
func compareVerdicts(a, b object) int {
	v, w := a.body.(verdict), b.body.(verdict)
	rank := func(o object) int {
		if o.key.subject == o.key.author {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(w.by, v.by), cmp.Compare(w.Epoch, v.Epoch), cmp.Compare(a.place, b.place))
}

// fullest returns the author with the most objects of a class.
func (u *usage) fullest(c class) (author mesh.ID, count int) {
	for h, keys := range u.held {
		if h.class == c && (len(keys) > count || len(keys) == count && h.author.Compare(author) < 0) {
			author, count = h.author, len(keys)
		}
	}
	return author, count
}

// reportFull reports that there is no room for an object. Finding out who uses the room
// costs more than refusing the object, so it is not done every time. The caller holds
// g.mu.
func (g *Gossip) reportFull(o object) {
	g.counters.add("object-full")
	g.refused = holder{o.key.author, o.class()}
	if now := g.now(); g.full.IsZero() || now.Sub(g.full) >= noticeFor/4 {
		g.full = now
		g.transport.reportProblem("store", g.fullProblem(o))
	}
}

// resolveFull ends the problem as soon as there is room for what was refused. The caller holds
// g.mu.
func (g *Gossip) resolveFull() {
	if !g.full.IsZero() && g.store.hasRoom(g.refused) {
		g.notices.resolve("store", ProblemFull)
		g.full = time.Time{}
	}
}

// fullProblem describes who fills the store, and what helps. The caller holds g.mu.
func (g *Gossip) fullProblem(o object) mesh.Problem {
	p := mesh.Problem{Kind: ProblemFull, Node: g.nameOf(g.self)}
	if g.store.isFullFor(o.key.author) {
		n := len(g.store.authors)
		p.Text = fmt.Sprintf("this node knows %d nodes and accepts no more: new nodes are ignored", n)
		if n < maxAuthors {
			p.Text = fmt.Sprintf("this node knows %d nodes and accepts only %d more, if they connect to it themselves: other new nodes are ignored", n, maxAuthors-n)
		}
		p.Advice = "run meshd forget for nodes that are gone; if there are many that you don't know, change the secret, or set cluster.trust: list"
		return p
	}
	author, count := g.store.fullest(o.class())
	name := g.nameOf(author)
	p.Text = fmt.Sprintf("there is no more room for %v: %s has made %d of them", o.class(), name, count)
	p.Advice = fmt.Sprintf("if %s should not have made that many, run meshd revoke %s on another node: that also removes all that it has made", name, name)
	return p
}
