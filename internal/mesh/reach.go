// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// MaxTried is how many addresses a Reach has at most: more don't fit a packet. That is for
// some seven nodes; of a large mesh, each node tries three on average.
const MaxTried = 20

// Reach is what a node says of addresses at which it has tried to reach others unasked: from
// a port with which they have never exchanged anything. A firewall or NAT that only lets in
// answers drops that. The author signs it.
type Reach struct {
	Author   ID
	Sequence uint64  // the highest one counts
	Tried    []Tried // by subject and address, each once; at most MaxTried
}

// Tried is one address of a node, and whether the node answered there.
type Tried struct {
	Subject ID
	Addr    netip.AddrPort
	Reached bool
}

// Compare orders by subject and address.
func (t Tried) Compare(o Tried) int {
	return cmp.Or(t.Subject.Compare(o.Subject), t.Addr.Compare(o.Addr))
}

// Check returns why other nodes would refuse what a node says that it has tried.
func (r Reach) Check() error {
	if len(r.Tried) > MaxTried {
		return fmt.Errorf("%d addresses tried, at most %d", len(r.Tried), MaxTried)
	}
	for i, t := range r.Tried {
		switch c := (PathCandidate{Addr: t.Addr, Kind: CandidateConfigured}); {
		case t.Subject == r.Author:
			return errors.New("a node has tried to reach itself")
		case i > 0 && r.Tried[i-1].Compare(t) >= 0:
			return errors.New("addresses are not in order")
		default:
			if err := c.Check(); err != nil {
				return err
			}
		}
	}
	return nil
}

// reachAuthors is how many nodes try to reach each one, and enough are two that did.
const (
	reachAuthors = 3
	reachEnough  = 2
)

// ReachDuty returns the living nodes that a node is to try to reach: those of which it is
// among the first reachAuthors by rendezvous. Nodes of one location don't try each other,
// because they may not need to pass what keeps others out.
func ReachDuty(self ID, records []Record, alive map[ID]bool) []ID {
	var others []*node
	var own *node
	for _, n := range nodes(records) {
		if n.id == self {
			own = n
		} else if alive[n.id] {
			others = append(others, n)
		}
	}
	if own == nil {
		return nil
	}
	type duty struct {
		subject ID
		weight  uint64
	}
	var duties []duty
	for _, s := range others {
		if s.SameLocation(own.Record) {
			continue
		}
		weight := func(author ID) uint64 { return mix(mix(low64(s.id)) ^ low64(author)) }
		mine, before := weight(self), 0
		for _, o := range others {
			if o != s && weight(o.id) > mine && !o.SameLocation(s.Record) {
				if before++; before >= reachAuthors {
					break
				}
			}
		}
		if before < reachAuthors {
			duties = append(duties, duty{s.id, mine})
		}
	}
	slices.SortFunc(duties, func(a, b duty) int { return cmp.Or(cmp.Compare(b.weight, a.weight), a.subject.Compare(b.subject)) })
	var out []ID
	for _, d := range duties[:min(len(duties), MaxTried)] {
		out = append(out, d.subject)
	}
	slices.SortFunc(out, ID.Compare)
	return out
}

// Prove sets which records are closed: nobody may be sent to their endpoints because of what
// they say of themselves. A node is open if reachEnough others have reached one of its
// endpoints, or all of those who have tried, if they are fewer; and if those who have not
// are not more. So neither one node that lies nor one that is cut off decides. A node that
// nobody else can try to reach is believed.
func Prove(records []Record, said []Reach) {
	ns := nodes(records)
	subjects := make(map[ID]*node, len(ns))
	locations := make(map[string]int)
	for _, n := range ns {
		subjects[n.id] = n
		if n.Location != "" {
			locations[n.Location]++
		}
	}
	reached, tried := make(map[ID]int), make(map[ID]int)
	for _, r := range said {
		author := subjects[r.Author]
		if author == nil {
			continue
		}
		spoken := make(map[ID]bool) // whether it was reached, by subject
		for _, t := range r.Tried {
			if s := subjects[t.Subject]; s != nil && s != author && !s.SameLocation(author.Record) && s.hasEndpoint(t.Addr) {
				spoken[t.Subject] = spoken[t.Subject] || t.Reached
			}
		}
		for id, ok := range spoken {
			tried[id]++
			if ok {
				reached[id]++
			}
		}
	}
	for i := range records {
		id, beside := records[i].ID(), 1
		if l := records[i].Location; l != "" {
			beside = locations[l]
		}
		enough := max(1, min(reachEnough, tried[id]))
		open := reached[id] >= enough && 2*reached[id] >= tried[id]
		records[i].Closed = !open && len(ns) > beside
	}
}

// hasEndpoint reports whether an address may be one of a node's endpoints. Names are resolved
// by each node by itself, so any address may be that of a name.
func (r *Record) hasEndpoint(a netip.AddrPort) bool {
	return slices.ContainsFunc(r.Endpoints, func(e Endpoint) bool {
		addr, err := netip.ParseAddr(e.Host)
		return e.Port == a.Port() && (err != nil || addr.Unmap() == a.Addr())
	})
}

// IsOpen reports whether others may count on reaching a node unasked.
func (r *Record) IsOpen() bool { return len(r.Endpoints) > 0 && !r.Closed }
