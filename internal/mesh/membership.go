// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// MaxMet is how many nodes a Membership names at most: more don't fit a packet.
const MaxMet = 96

// ShortID is the first half of a fingerprint. To find an identity with the one of another
// node takes 2^64 tries.
type ShortID [8]byte

// Short returns the first half of a fingerprint.
func (id ID) Short() ShortID { return ShortID(id[:8]) }

// Compare orders short fingerprints bytewise.
func (s ShortID) Compare(o ShortID) int { return slices.Compare(s[:], o[:]) }

// Membership is what a node says about the private network of its location: which nodes of
// the location it has exchanged probes with there. The node signs it, and everybody keeps it
// on disk, so that after a restart all nodes are at once where they were.
type Membership struct {
	Author   ID
	Sequence uint64 // the highest one counts
	Location string
	Met      []ShortID // sorted, at most MaxMet
}

// Check returns why other nodes would refuse what a node says of whom it has met.
func (m Membership) Check() error {
	switch {
	case !ValidText(m.Location, MaxName):
		return fmt.Errorf("location %q", m.Location)
	case len(m.Met) > MaxMet:
		return fmt.Errorf("%d nodes met, at most %d", len(m.Met), MaxMet)
	}
	for i := range m.Met {
		if i > 0 && m.Met[i-1].Compare(m.Met[i]) >= 0 {
			return errors.New("nodes are not in order")
		}
	}
	return nil
}

// IsFull reports whether the author may have met more nodes than it names.
func (m Membership) IsFull() bool { return len(m.Met) >= MaxMet }

// Locate sets the segment of each record. That several nodes name one location does not put
// them on one private network: a name may be wrong, and a node that is believed without
// proof could become the gateway of nodes that it does not reach. So two nodes are connected
// if each says that it has met the other one. A segment is a set of nodes of one location
// that are connected, if only through others of them. A node that has met nobody is a segment
// of its own, and has its own tunnels.
func Locate(records []Record, said []Membership) {
	ns := nodes(records)
	met := make(map[ID]*Membership, len(said))
	for i := range said {
		met[said[i].Author] = &said[i]
	}
	locations := make(map[string][]*node)
	for _, n := range ns {
		if n.Location != "" {
			locations[n.Location] = append(locations[n.Location], n)
		}
	}
	segments := make(map[ID]ID, len(ns))
	for _, members := range locations {
		for i, oldest := range segmentsOf(members, met) {
			segments[members[i].id] = oldest.id
		}
	}
	for i := range records {
		records[i].Segment = segments[records[i].ID()]
	}
}

// segmentsOf returns for each node of a location the node with the strongest claim in its
// segment.
func segmentsOf(members []*node, met map[ID]*Membership) []*node {
	index := make(map[ShortID]int, len(members))
	for i, n := range members {
		index[n.id.Short()] = i
	}
	parent := make([]int, len(members))
	for i := range parent {
		parent[i] = i
	}
	root := func(i int) int {
		for parent[i] != i {
			parent[i] = parent[parent[i]]
			i = parent[i]
		}
		return i
	}
	for i, n := range members {
		if m := met[n.id]; m != nil {
			for _, short := range m.Met {
				if j, ok := index[short]; ok && m.connects(n.Record, met[members[j].id], members[j].Record) {
					a, b := root(i), root(j)
					if compareClaims(members[b], members[a]) < 0 {
						a, b = b, a
					}
					parent[b] = a
				}
			}
		}
	}
	oldest := make([]*node, len(members))
	for i := range members {
		oldest[i] = members[root(i)]
	}
	return oldest
}

// connects reports whether two nodes say of each other that they have met where they are now.
func (m *Membership) connects(own *Record, other *Membership, theirs *Record) bool {
	return m != nil && other != nil && m.Location == own.Location && other.Location == theirs.Location && own.Location == theirs.Location &&
		m.names(theirs.ID()) && other.names(own.ID())
}

func (m *Membership) names(id ID) bool {
	_, ok := slices.BinarySearchFunc(m.Met, id.Short(), ShortID.Compare)
	return ok
}

// SameLAN reports whether two nodes are proved to be on one private network.
func (r *Record) SameLAN(o *Record) bool {
	return r.SameLocation(o) && r.Segment == o.Segment
}

// SameLocation reports whether two nodes name the same location.
func (r *Record) SameLocation(o *Record) bool { return r.Location != "" && r.Location == o.Location }

// Unmet returns the nodes of a node's segment with which it has no connection of its own: what
// they send each other on the private network may be lost. Of nodes that may have met more
// than they can name, nothing is known.
func Unmet(self ID, records []Record, said []Membership) []ID {
	met := make(map[ID]*Membership, len(said))
	for i := range said {
		met[said[i].Author] = &said[i]
	}
	i := slices.IndexFunc(records, func(r Record) bool { return r.ID() == self })
	if i < 0 || met[self] != nil && met[self].IsFull() {
		return nil
	}
	var out []ID
	for j := range records {
		id := records[j].ID()
		other := met[id]
		if id != self && records[i].SameLAN(&records[j]) && (other == nil || !other.IsFull()) && !met[self].connects(&records[i], other, &records[j]) {
			out = append(out, id)
		}
	}
	slices.SortFunc(out, ID.Compare)
	return out
}

// Nearest returns up to MaxMet of the nodes that a node has met, as short fingerprints. In a
// larger location both ends of a pair mostly keep or leave out the pair, because how much it
// is worth does not depend on who looks.
func Nearest(self ID, met []ID) []ShortID {
	met = slices.Clone(met)
	worth := func(id ID) uint64 { return mix(low64(self) ^ low64(id)) }
	slices.SortFunc(met, func(a, b ID) int { return cmp.Or(cmp.Compare(worth(b), worth(a)), a.Compare(b)) })
	out := make([]ShortID, 0, MaxMet)
	for _, id := range met[:min(len(met), MaxMet)] {
		out = append(out, id.Short())
	}
	slices.SortFunc(out, ShortID.Compare)
	return slices.Compact(out)
}
