// SPDX-License-Identifier: Apache-2.0

package node

import (
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

const (
	// listenFirst is how long a node with a join list waits for somebody's state before
	// it takes itself for the first one.
	listenFirst = time.Minute
	// PruneAfter is how long after a start the last known members stand in for those that
	// have not been heard of.
	PruneAfter = time.Minute
	// aloneFor is how long a node waits for its first peer or neighbor before it is ready
	// without one: k3s must be able to start on a node whose others are down, and starts
	// best when the others are there.
	aloneFor = 20 * time.Second
	// meetFirst is how long a node waits until it has met one of its location. It would lose
	// what its pods send while it changes from tunnels of its own to the private network.
	meetFirst = 10 * time.Second
	// ClaimSettlePeriod is how long a new claim may still turn out to be somebody else's: a
	// node that starts at the same moment takes that long to be heard of, at the most.
	// Until then no pod may start, because pods can't move to other addresses. That goes
	// for the first node of a mesh too: one that joins it may have merged its state
	// before it claimed, and then wants the same slot.
	ClaimSettlePeriod = 3 * time.Second
)

// listened reports whether somebody has told what is claimed already, or nobody is there
// to do so.
func (in Input) listened() bool {
	return in.View.Merged || in.View.JoinEmpty || in.Now.Sub(in.Started) >= listenFirst
}

// mayPrune reports whether gossip has had time to say who is there. Nothing is taken away
// before.
func (in Input) mayPrune() bool {
	return in.View.Merged || in.Now.Sub(in.Started) >= PruneAfter
}

// claimWait returns how long it takes until the claim can be relied on. One from disk
// under which no pod ever ran may have become another node's meanwhile.
func (m *Memory) claimWait(in Input) time.Duration {
	if in.Promise.Ready {
		return 0
	}
	since := m.ClaimedAt
	if since.IsZero() {
		since = in.Started
	}
	wait := ClaimSettlePeriod - in.Now.Sub(since)
	if !in.listened() {
		wait = max(wait, listenFirst-in.Now.Sub(in.Started))
	}
	return max(wait, 0)
}

// readyWait returns how long a node that could carry pods waits until k3s may start: until
// its claim can be relied on, its first peers or neighbors are there, and it has met a node of
// its location, or there is nobody to wait for.
func (m *Memory) readyWait(in Input, t mesh.Topology) time.Duration {
	wait := m.claimWait(in)
	if len(t.Peers) == 0 && len(t.Neighbors) == 0 && !in.View.JoinEmpty {
		wait = max(wait, aloneFor-in.Now.Sub(in.Started))
	}
	if in.standsAlone() {
		wait = max(wait, meetFirst-in.Now.Sub(in.Started))
	}
	return max(wait, 0)
}
