// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"cmp"
	"slices"
	"time"

	"github.com/meshd/meshd/internal/path"
)

const (
	// refreshAfter is by how much a session in the kernel may end too early before it is written
	// again. Nodes bind again every 20 s, which moves the end of all their sessions.
	refreshAfter = 45 * time.Second
	// late is by how much it may end too late: times that are read are not exact.
	late = 2 * time.Second
	// dying is how long before its end a session is left alone. Whatever deletes a session that has
	// ended meanwhile fails, and all that is written with it.
	dying = 3 * time.Second
)

// Change leads from one table to another. Its parts are carried out in their order.
type Change struct {
	Chains   []Chain   // to add, or to replace the rules of
	New      []string  // the names of those that are to be added
	Remove   []Session // to remove; those with the key of one in Add are replaced
	Add      []Session
	Obsolete []string // chains to remove once no session leads to them
	// Again is after how long something is left to do.
	Again time.Duration
}

// IsEmpty reports whether there is nothing to do now.
func (c Change) IsEmpty() bool {
	return len(c.Chains) == 0 && len(c.Remove) == 0 && len(c.Add) == 0 && len(c.Obsolete) == 0
}

// Diff returns what leads from the table that the kernel has to the one that it is to have.
func Diff(have, want Table, now time.Time) Change {
	var c Change
	c.diffChains(have.Chains, want.Chains)
	old := make(map[Session]Session, len(have.Sessions))
	for _, s := range have.Sessions {
		old[s.key()] = s
	}
	for _, s := range want.Sessions {
		had, there := old[s.key()]
		delete(old, s.key())
		differs := had.Chain != s.Chain || s.Until.Sub(had.Until) > refreshAfter || had.Until.Sub(s.Until) > late
		switch {
		case s.Until.Sub(now) < dying || there && !differs:
		case !there:
			c.Add = append(c.Add, s)
		case had.Until.Sub(now) < dying:
			c.Again = dying
		default:
			c.Remove, c.Add = append(c.Remove, had), append(c.Add, s)
		}
	}
	for _, s := range old {
		if s.Until.Sub(now) >= dying {
			c.Remove = append(c.Remove, s)
		}
	}
	slices.SortFunc(c.Remove, Session.Compare)
	return c
}

// key returns the session without what is not part of its key.
func (s Session) key() Session { return Session{Local: s.Local, From: s.From, Index: s.Index} }

func (c *Change) diffChains(have, want []Chain) {
	for _, w := range want {
		i := slices.IndexFunc(have, func(h Chain) bool { return h.Name == w.Name })
		if i < 0 {
			c.New = append(c.New, w.Name)
		}
		if i < 0 || !slices.EqualFunc(have[i].Rules, w.Rules, func(a, b Rule) bool { return a.Hash == b.Hash }) {
			c.Chains = append(c.Chains, w)
		}
	}
	for _, h := range have {
		if !slices.ContainsFunc(want, func(w Chain) bool { return w.Name == h.Name }) {
			c.Obsolete = append(c.Obsolete, h.Name)
		}
	}
}

// Adopt returns what a relay knows with what the kernel knows beyond that: the relay was killed
// before it had written down sessions that had begun. Whoever may write the table may also write
// what a relay knows.
func Adopt(all []path.Kept, have Table) []path.Kept {
	of := make(map[Way][]Session)
	for _, s := range have.Sessions {
		w := Way{s.Local, s.From}
		of[w] = append(of[w], s)
	}
	all = slices.Clone(all)
	for i, k := range all {
		known := make(map[uint32]bool, len(k.Rows))
		for _, row := range k.Rows {
			known[row.Index] = true
		}
		rows := slices.Clone(k.Rows)
		for _, s := range of[WayTo(k)] {
			if to, ok := ReceiverOf(s.Chain); ok && !known[s.Index] {
				rows = append(rows, path.KeptRow{Index: s.Index, To: to, Until: s.Until})
			}
		}
		slices.SortStableFunc(rows, func(a, b path.KeptRow) int {
			return cmp.Or(b.Until.Compare(a.Until), cmp.Compare(a.Index, b.Index))
		})
		all[i].Rows = rows
	}
	return all
}
