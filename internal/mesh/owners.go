// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
)

// FirstRelease is 2026-11-01, in milliseconds since 1970. A clock that is behind it was
// never set: small computers without a clock of their own start in 1970. All nodes have to
// agree on it, so it stays as it is.
const FirstRelease int64 = 1_793_491_200_000

// The classes of claims, in order of precedence.
const (
	confirmed   = iota // its owner has met others who knew of no better claim
	provisional        // its owner may have been alone all the time
	undated            // by a clock that was never set: its time says nothing
)

// rank returns a claim's class, and its time within the class.
func (c Claim) rank() (class int, time int64) {
	switch {
	case c.Time < FirstRelease:
		return undated, 0
	case c.Confirmed:
		return confirmed, c.Time
	}
	return provisional, c.Time
}

// Compare orders claims by precedence: the confirmed ones first, then the older ones. It
// returns 0 where only the nodes' IDs decide.
func (c Claim) Compare(o Claim) int {
	class, time := c.rank()
	otherClass, otherTime := o.rank()
	return cmp.Or(cmp.Compare(class, otherClass), cmp.Compare(time, otherTime))
}

// compareClaims orders records by precedence of their claims, then by ID. It is a total
// order, so all nodes that have the same records agree on every owner.
func compareClaims(a, b *node) int {
	return cmp.Or(a.Claim.Compare(b.Claim), a.id.Compare(b.id))
}

// node is a record with its ID, which costs a hash.
type node struct {
	*Record
	id ID
}

// nodes returns the records sorted by ID. Of several records of one identity it keeps the
// one with the highest sequence.
func nodes(records []Record) []*node {
	slab := make([]node, len(records))
	ns := make([]*node, len(records))
	for i := range records {
		slab[i] = node{Record: &records[i], id: records[i].ID()}
		ns[i] = &slab[i]
	}
	slices.SortFunc(ns, func(a, b *node) int {
		return cmp.Or(a.id.Compare(b.id), cmp.Compare(b.Sequence, a.Sequence))
	})
	return slices.CompactFunc(ns, func(a, b *node) bool { return a.id == b.id })
}

// SlotOwners returns who owns each claimed slot: of all nodes that claim it, the one whose
// claim goes first, see Claim.Compare, and of equal ones the one with the lowest ID. It is
// a pure function of the records, so nodes with equal records agree on the owners, in
// whatever order the records came.
func SlotOwners(records []Record) map[int]ID {
	owners := make(map[int]ID)
	for slot, n := range claimOwners(nodes(records)) {
		owners[slot] = n.id
	}
	return owners
}

func claimOwners(ns []*node) map[int]*node {
	owners := make(map[int]*node, len(ns))
	for _, n := range ns {
		if n.Claim.Slot == None {
			continue
		}
		if o, ok := owners[n.Claim.Slot]; !ok || compareClaims(n, o) < 0 {
			owners[n.Claim.Slot] = n
		}
	}
	return owners
}

// ClaimInput is what a node knows when it chooses its own claim.
type ClaimInput struct {
	Cluster Cluster
	Self    ID
	Name    string
	Records []Record // of all nodes; the node's own one is ignored
	Current Claim    // what this node has claimed; read from disk after a start
	Void    bool     // Current counts no more, so its time starts again
	InUse   string   // what uses the addresses of Current on this host; "" for nothing
	Static  int      // the slot that the configuration names, or None
	GiveUp  bool     // a person asked for a slot other than Current
	First   bool     // the join list names nobody else, so this is a mesh's first node
	// Listened is true once the state of some member has been merged, or if there is no
	// other member. Until then a node claims nothing.
	Listened bool
	// Met is true once the state of some member has been merged while this node had
	// Current.
	Met bool
	Now int64 // milliseconds since 1970
}

// NextClaim returns the claim that a node should make. It returns s.Current wherever
// possible, with problems that say what conflicts with it. A new claim has no Since yet.
//
// A claim that is lost moves to another slot if nothing uses its addresses. One in use
// stays, because running pods are never renumbered automatically: the problem says what a
// person can do. Once the person gives the claim up, NextClaim returns another one, or
// None and the reason.
//
// All nodes end with a slot of their own and the same view of it: a claim's precedence
// rises once at most and never falls, and who loses moves to a slot that is free.
func NextClaim(s ClaimInput) (Claim, []Problem) {
	others := make([]*node, 0, len(s.Records))
	for _, n := range nodes(s.Records) {
		if n.id != s.Self {
			others = append(others, n)
		}
	}
	taken := claimOwners(others)
	if s.Void {
		// A node that claimed the slot in the meantime has the stronger claim.
		s.Current = s.newClaim(s.Current.Slot)
	}
	self := &node{Record: &Record{Claim: s.Current}, id: s.Self}

	switch {
	case s.Current.Slot == None:
	case s.GiveUp:
		// Take another one even if no other node claims this one.
		if _, ok := taken[s.Current.Slot]; !ok {
			taken[s.Current.Slot] = &node{Record: &Record{Name: s.Name}, id: s.Self}
		}
	default:
		owner, contested := taken[s.Current.Slot]
		fits := s.Current.Slot < s.Cluster.Slots()
		wanted := s.Static == None || s.Static == s.Current.Slot
		lost := contested && compareClaims(owner, self) < 0
		switch {
		case fits && wanted && !lost:
			return s.confirm(others), nil
		case s.InUse != "":
			return s.Current, []Problem{s.currentClaimProblem(owner, lost, fits)}
		}
	}
	if !s.Listened {
		return Claim{Slot: None}, nil
	}
	if s.Static == None {
		return s.pickFreeSlot(taken)
	}
	if owner, ok := taken[s.Static]; ok {
		return Claim{Slot: None}, []Problem{s.staticSlotTaken(owner)}
	}
	return s.newClaim(s.Static), nil
}

// newClaim claims a slot now.
func (s ClaimInput) newClaim(slot int) Claim {
	if slot == None {
		return Claim{Slot: None}
	}
	return Claim{Slot: slot, Time: s.Now}
}

// confirm returns the current claim, which this node owns, confirmed if others have heard
// of it. A confirmed claim gets a time that is not before those of the claims that were
// confirmed earlier, whatever this host's clock says.
func (s ClaimInput) confirm(others []*node) Claim {
	c := s.Current
	if c.Confirmed || !s.Met {
		return c
	}
	c.Confirmed, c.Time = true, s.Now
	for _, n := range others {
		if n.Claim.Confirmed {
			c.Time = max(c.Time, n.Claim.Time)
		}
	}
	if c.Time < FirstRelease {
		return s.Current // wait until the clock is set
	}
	return c
}

// staticSlotTaken describes that the slot in the configuration is not free.
func (s ClaimInput) staticSlotTaken(owner *node) Problem {
	p := Problem{Kind: ProblemSlot, Node: s.Name}
	if owner.id == s.Self {
		p.Text = fmt.Sprintf("node.pod-cidr names slot %d (%s), which is the one to be given up", s.Static, FormatPrefixes(s.Cluster.PodCIDRs(s.Static)))
		p.Advice = "name another pod-cidr, or leave it out, and reload meshd"
		return p
	}
	p.Text = fmt.Sprintf("node.pod-cidr names slot %d (%s), which belongs to node %s", s.Static, FormatPrefixes(s.Cluster.PodCIDRs(s.Static)), owner.Name)
	p.Advice = fmt.Sprintf("name another pod-cidr, or leave it out, and restart meshd; if node %[1]s is gone for good, run: meshd forget %[1]s", owner.Name)
	return p
}

// pickFreeSlot chooses a free slot. The first node of a mesh takes the first one. Others
// take one that depends on their identity: nodes that have not heard of each other, as in
// two halves of a mesh that began apart, seldom choose the same.
func (s ClaimInput) pickFreeSlot(taken map[int]*node) (Claim, []Problem) {
	if _, ok := taken[0]; !ok && s.First && s.Cluster.Slots() > 0 {
		return s.newClaim(0), nil
	}
	free := make([]int, 0, s.Cluster.Slots())
	for slot := range s.Cluster.Slots() {
		if _, ok := taken[slot]; !ok {
			free = append(free, slot)
		}
	}
	if len(free) == 0 {
		return Claim{Slot: None}, []Problem{{
			Kind: ProblemExhausted, Node: s.Name,
			Text:   fmt.Sprintf("all %d slots of the cluster are taken", s.Cluster.Slots()),
			Advice: "run meshd forget for nodes that are gone, or choose wider cluster.pods and cluster.overlay ranges",
		}}
	}
	return s.newClaim(free[binary.BigEndian.Uint64(s.Self[:])%uint64(len(free))]), nil
}

// currentClaimProblem describes what conflicts with a claim whose addresses are in use.
func (s ClaimInput) currentClaimProblem(owner *node, lost, fits bool) Problem {
	p := Problem{Kind: ProblemSlot, Node: s.Name}
	renumber := fmt.Sprintf("to give %[1]s and its pods other addresses, run on %[1]s: meshd renumber", s.Name)
	switch {
	case !fits:
		p.Text = fmt.Sprintf("slot %d does not fit into the cluster's ranges any more", s.Current.Slot)
		p.Advice = "set cluster.pods, cluster.pod-prefix and cluster.overlay back; or, " + renumber
	case lost:
		p.Text = fmt.Sprintf("slot %d (%s) belongs to node %s, whose claim is stronger: other nodes send that traffic there; but it is in use here: %s",
			s.Current.Slot, FormatPrefixes(s.Cluster.PodCIDRs(s.Current.Slot)), owner.Name, s.InUse)
		p.Advice = renumber
	default:
		p.Text = fmt.Sprintf("node.pod-cidr names slot %d, but the node runs with slot %d", s.Static, s.Current.Slot)
		p.Advice = fmt.Sprintf("set node.pod-cidr to [%s]; or, %s", FormatPrefixes(s.Cluster.PodCIDRs(s.Current.Slot)), renumber)
	}
	return p
}
