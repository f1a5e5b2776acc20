// SPDX-License-Identifier: Apache-2.0

// Package probe watches those who carry traffic for this node, and says when
// one of them must be relieved. It sends echo requests along the way that the
// traffic takes; the far kernel answers them, so that a dead daemon is not a
// dead gateway, and a gateway that lives without forwarding is one.
//
// A [Prober] sends and counts. [Choose] says whom to watch and [Judge] what to
// make of the answers; both are pure functions. What comes out is a
// mesh.Verdict, never a changed route: both ends of a path must turn to the
// same gateway, so everybody acts on the verdict and nobody on a probe.
//
// # Who watches whom
//
// A node that hangs on a gateway watches that gateway, up to two other nodes of
// its LAN, and up to three nodes beyond whose tunnels end at that gateway. A
// node that talks through a relay watches the relay. Where nobody could take
// over, nothing is sent.
//
// # When a gateway is down
//
// It is dead when it is silent and this node is not cut off itself. It does not
// forward when all beyond it are silent, and gossip hears one of them at this
// moment outside of the mesh. That is what a verdict says: there is a better
// way. When the only other location dies nobody hears it, so nobody blames the
// gateway between.
//
// With the defaults, interval = 250 ms and n = 4 misses:
//
//	  0 ms  the gateway dies, just after it has answered
//	250 ms  request 1 is lost               ─┐
//	500 ms  request 2 is lost; ask those     │ n requests
//	        beyond for a sign of life        │
//	750 ms  request 3 is lost                │
//	  1.0 s request 4 is lost               ─┘
//	  1.1 s request 4 is overdue (patience): verdict, epoch + 1
//	  1.2 s the verdict is everywhere; every node derives anew, the new gateway
//	        and its peers shake hands
//
// That is n intervals and patience at the most, and one interval less at the
// least. For those beyond, two round trips come on top.
//
// A gateway that has never worked for this node gets ten times as long, since
// its tunnels have to come up, and firewalls may drop echo requests. Nothing
// beyond it has ever answered through it, and either it answers itself, and gossip
// hears a node beyond that has answered through another gateway, or it does not,
// while the rest of the LAN does.
//
// # Why it does not flap
//
// Only the gateway itself says that it is up again. See [Hold]: it waits 10 s
// for the first time and twice as long with each relapse. It then is a gateway
// that could be, not the one that is: who is in office stays, unless the
// configuration prefers the other one.
package probe

import (
	"net/netip"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// Target is an address that gets echo requests. Results belong to all of it:
// what was answered through one gateway says nothing about another.
type Target struct {
	Addr   netip.Addr
	Source netip.Addr // where requests come from; invalid for what the kernel chooses
	Via    mesh.ID    // the gateway that is to carry them; zero for none
}

// Aim is a target and how often it is probed.
type Aim struct {
	Target
	Slow bool // every slowly, not every interval
}

// Result is what is known of a target.
type Result struct {
	// Misses counts the requests, the last ones, that were not answered in
	// time. FirstMiss and LastMiss are when the outermost of them were sent.
	Misses              int
	FirstMiss, LastMiss time.Time
	// Answered is when the last request was sent that was answered; zero if
	// there was none.
	Answered time.Time
	// Since is when the answers began that go on to this day, without as many
	// misses as make a target silent; zero while it is silent.
	Since time.Time
	RTT   time.Duration // of the last answer
	// Known says that the address has answered before, along whatever way: who
	// is silent there does not filter echo requests.
	Known bool
}

const (
	// slowly is how often targets are probed that no failover depends on.
	slowly = 2 * time.Second
	// patience is how long after two round trips an answer counts as missed. It
	// covers a host that is busy for a moment; on a LAN answers take less than 1 ms.
	patience = 100 * time.Millisecond
	// maxPending is how many unanswered requests of a target are remembered: an
	// answer may take that many intervals.
	maxPending = 64
)
