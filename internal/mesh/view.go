// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"net/netip"
	"time"
)

// Forever stands for a sequence above all others: a node that is forgotten up to it is
// revoked, and no record of its identity counts any more.
const Forever = ^uint64(0)

// View is what a node knows at one moment.
type View struct {
	Records  []Record     // that count, our own among them, by fingerprint
	Verdicts []Verdict    // of those nodes on each other, by subject, role and author
	Clients  []Client     // those that were not removed, by ID
	Paths    []PathRecord // of those nodes, without candidates inside the mesh, by author

	// Records have what follows from these: Segment and Closed.
	Memberships []Membership // of those nodes, by author
	Reaches     []Reach      // of those nodes, by author

	Alive map[ID]bool

	// Cluster are the settings in use: our configuration's, except that
	// generation, mode, encapsulation and gateways are those of the highest
	// generation that anybody has told.
	Cluster Cluster

	// OwnSequence is the highest sequence of a record of ours that anybody has
	// shown, or up to which we are forgotten. A record must go beyond it.
	OwnSequence uint64
	// Forgotten is the sequence up to which we are forgotten, and with our
	// records the claims that they made; 0 for not at all, Forever if we are revoked.
	Forgotten uint64

	RTT map[ID]time.Duration
	// MetAt is where gossip met each node last outside of the mesh.
	MetAt map[ID]netip.Addr

	Alone     bool // nobody else is alive
	JoinEmpty bool // the join list names nobody, or only ourselves
	Merged    bool // the state of some member was taken in since the start

	Problems []Problem         // sorted
	Counters map[string]uint64 // what was dropped, by reason
}
