// SPDX-License-Identifier: Apache-2.0

// Package probe watches the nodes that carry traffic for this node, its gateway and the
// carrier of its clients, and those that serve a network which this node could serve, and decides when one of them must be replaced. They are probed with ICMP echo
// requests along the path that the traffic takes. The remote kernel answers them, so a
// gateway whose daemon is dead still counts as up, and one that does not forward counts
// as down.
//
// [Choose] decides whom to watch, and [Evaluate] what the answers mean; both are pure
// functions. Package ping sends the requests. The result is a mesh.Verdict, never a changed
// route: both ends of a path must switch to the same gateway, so all nodes act on the
// verdict and none on its own probes.
//
// # Who watches whom
//
// A node whose traffic goes through a gateway watches that gateway, up to two other
// nodes of its LAN, and up to three remote nodes whose tunnels end at that gateway. A
// node that clients reach through a carrier watches that one. Where no other node could
// take over, nothing is sent for that. The server of a network that several nodes of one
// location name is watched by the others of them: each could take over, and is on the same
// private network. All others need not send anything.
//
// Each node also asks up to two neighbors on its LAN now and then, both at their overlay and
// their internal address: a firewall may let one of them pass alone, see [Blocked].
//
// # When a gateway is down
//
// It is dead when it is silent and this node is not cut off itself. It does not forward
// when all remote nodes behind it are silent, while gossip still hears one of them
// outside of the mesh. So a verdict means that another gateway would do better. When the
// only other location dies, gossip does not hear it either, and the gateway is not
// blamed.
//
// The server of a network is dead when it is silent and gossip does not hear it either, while
// another node is heard. What is behind it answers no other node's requests, so a server that
// lives and does not forward is not found out here: it has to notice that itself, see package node.
//
// With the defaults, interval = 250 ms and n = 4 misses:
//
//	  0 ms  the gateway dies, just after it has answered
//	250 ms  request 1 is lost               ─┐
//	500 ms  request 2 is lost; ask remote    │ n requests
//	        nodes for a sign of life         │
//	750 ms  request 3 is lost                │
//	  1.0 s request 4 is lost               ─┘
//	  1.1 s request 4 is overdue (grace): verdict, epoch + 1
//	  1.2 s the verdict has reached all nodes; they derive again, and the new
//	        gateway and its peers shake hands
//
// That takes at most n intervals and the grace time, and at least one interval less. For
// remote nodes add two round trips.
//
// A gateway that does not forward gets 1.5 s more, in which it may find another path to
// the remote nodes; 0.25 s if they are behind several tunnels.
//
// A gateway that has never worked for this node gets ten times as long, because its
// tunnels have to come up first and firewalls may drop echo requests. It counts as down
// if nothing behind it has ever answered through it and one of two things holds. Either
// it answers itself, and gossip hears a remote node that has answered through another
// gateway; or it does not answer itself, while the rest of the LAN does.
//
// # Why it does not flap
//
// Only the gateway itself publishes that it is up again. It waits 10 s the first time
// and twice as long after each relapse, see [HoldDown]. After that it is a candidate again:
// the current gateway keeps its term, unless the configuration prefers the other one.
package probe

import (
	"net/netip"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// Pace is how often targets are probed, and after how many misses in a row a target is
// silent.
type Pace struct {
	Interval time.Duration
	Misses   int
}

// Target identifies what is probed. Results are kept for the combination of all three:
// what was answered through one gateway proves nothing about another.
type Target struct {
	Addr   netip.Addr
	Source netip.Addr // of the requests; invalid to let the kernel choose
	Via    mesh.ID    // the gateway that carries the requests; zero for none
}

// ScheduledTarget is a target and how often it is probed.
type ScheduledTarget struct {
	Target
	Slow bool // every slowInterval instead of every interval
}

// Result is what is known about a target.
type Result struct {
	// Misses counts the most recent requests that were not answered in time. FirstMiss
	// and LastMiss are when the first and the last of them were sent.
	Misses              int
	FirstMiss, LastMiss time.Time
	// Answered is when the last request was sent that was answered; zero for none.
	Answered time.Time
	RTT      time.Duration // of the last answer
	// Known reports whether the address has ever answered, on any path. If so, it does
	// not filter echo requests.
	Known bool
}

// slowInterval is how often targets are probed that no failover depends on.
const slowInterval = 5 * time.Second
