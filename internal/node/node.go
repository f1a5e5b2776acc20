// SPDX-License-Identifier: Apache-2.0

// Package node holds what one node decides for itself, in pure functions: no I/O, no
// clock, no logging. What all nodes must decide alike is in package mesh.
//
// A turn of the daemon has three parts, and calls one function for each:
//
//	Announce   what this node tells the others: its record, and verdicts
//	Configure  what this host should have: peers, routes, rules
//	Conclude   what follows from what the host then has: handshakes to begin, whether
//	           pods may start, whom to probe, whom to have forgotten, problems
//
// They take an [Input], which is what the turn has read, and a [Memory]. Time is an
// argument, and what there is to do is a result. Package daemon reads, does it, and notes
// in the memory what was done.
//
// They are made of small state machines, of one file each: the own record, the terms as a
// gateway and as the server of networks, the ways to these, this node's health as a gateway, a
// duplicate of this node, the time after the start, handshakes, sessions, routers among the clients, and the absence of
// others.
package node

import (
	"crypto/ed25519"
	"net/netip"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/probe"
)

// Input is what a turn has read.
type Input struct {
	Now     time.Time
	Started time.Time // when this daemon was
	Self    Identity
	Config  Config
	Promise Promise
	View    mesh.View
	Facts   netcfg.Facts
	// LastHeard is when something came from each node last, outside of the mesh.
	LastHeard map[mesh.ID]time.Time
	Results   map[probe.Target]probe.Result
	// InUse says what uses the addresses of Promise.Claim on this host, "" for nothing. It
	// has to be known where WouldMove says so.
	InUse string
	// Resolved has the addresses of hosts in the records that are names. Configure needs it.
	Resolved map[string][]netip.Addr
	Paths    Paths
}

// Identity is who this node is.
type Identity struct {
	Public    ed25519.PublicKey
	WireGuard wgtypes.Key // private
	Instance  uint64      // of this daemon, higher than those of all that were started before
}

// ID returns the node's fingerprint.
func (i Identity) ID() mesh.ID { return mesh.IDOf(i.Public) }

// Promise is what this node has on disk of what it told others: after a crash it still
// stands by it.
type Promise struct {
	Sequence uint64     // of its last record
	Claim    mesh.Claim // Slot is mesh.None for none
	Ready    bool       // pods may have run with this claim
	// Duplicate means that the daemon stopped last because this identity ran elsewhere, too.
	Duplicate bool
}

// Memory is what a node remembers from turn to turn. Whoever takes a turn keeps it, and
// notes in it what was done: that the own record was published, when the claim was made,
// and what sessions the device has.
type Memory struct {
	Own        mesh.Record // as published last
	ClaimedAt  time.Time   // when this daemon made its claim; zero if the claim came from disk
	Sessions   Sessions
	Handshakes Handshakes
	Absences   Absences
	// Clients holds where those whose tunnels end here were last. It is kept on disk: a host that
	// boots at another address tells them, see tellClients.
	Clients map[wgtypes.Key]netip.AddrPort
	Routers Routers

	met          map[mesh.ID]met // on the private network; nil until looked at
	internalIPs  []netip.Prefix  // to be kept as long as the host has them
	withheldNext time.Time       // when the record's Withheld may change again

	duplicate duplicate
	moves     moves
	term      term
	serving   serving
	ways      ways
	terms     map[mesh.ID]noted // of gateways
	health    health
	udp       udp
	troubles  map[mesh.ID]pathTrouble
	unreached time.Time   // since when some peer that lives is not reached without a relay; zero if none
	watch     probe.Watch // whose probes Input.Results has
}

// soon asks for another turn as soon as the loop can take one.
const soon = time.Nanosecond

// soonest returns the shorter of two waits, of which 0 is none.
func soonest(a, b time.Duration) time.Duration {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}
