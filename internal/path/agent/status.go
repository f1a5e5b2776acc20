// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"time"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/path"
)

// State is whether a path to a peer is looked for, or why not.
type State int

// The states of a peer.
const (
	Probed    State = iota
	NoKey           // its path key is unknown
	Ambiguous       // another node's fingerprint begins with the same bytes
	NotInWireGuard
)

// PeerStatus is what an agent knows of a peer.
type PeerStatus struct {
	ID          mesh.ID
	State       State
	path.Report                  // empty if State is not Probed
	Seen        []netip.AddrPort // where the peer sees this node, at most one by each family
	// Unopened counts the datagrams in the peer's name that its key did not open. They are
	// forged, or repeated, or the key is unknown or has changed.
	Unopened uint64
}

// Status returns what is known of all peers of WireGuard, by ID. It is empty when the agent has ended.
func (a *Agent) Status() []PeerStatus {
	var all []PeerStatus
	a.inRun(func() { all = a.status(time.Now()) })
	return all
}

// Bound returns the relays to which this node is bound. It is empty when the agent has ended.
func (a *Agent) Bound() []path.BoundRelay {
	var bound []path.BoundRelay
	a.inRun(func() { bound = a.relays.binder.Bound(time.Now()) })
	return bound
}

func (a *Agent) status(now time.Time) []PeerStatus {
	all := make([]PeerStatus, 0, len(a.peers))
	for _, p := range a.peers {
		if !p.isPeer() || p.NoTunnel {
			continue
		}
		s := PeerStatus{ID: p.ID, State: p.state(), Unopened: p.unopened}
		if p.machine != nil {
			s.Report = p.machine.Report(now)
		}
		for _, at := range p.seen {
			if at.IsValid() && s.Proved && s.Path.Straight() { // what it saw before may be long ago
				s.Seen = append(s.Seen, at)
			}
		}
		all = append(all, s)
	}
	return all
}

func (p *peer) state() State {
	switch {
	case p.ambiguous:
		return Ambiguous
	case p.keys == nil:
		return NoKey
	case p.machine == nil:
		return NotInWireGuard
	default:
		return Probed
	}
}
