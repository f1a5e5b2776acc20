// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/meshd/meshd/internal/mesh"
)

// members is what memberlist tells us. Its methods are called under
// memberlist's lock: they copy, signal without waiting, and call nothing of
// memberlist's.
type members struct {
	self   mesh.ID
	signal func()

	mu    sync.Mutex
	alive map[mesh.ID]bool // without ourselves
	rtt   map[mesh.ID]time.Duration
}

var (
	_ memberlist.EventDelegate = (*members)(nil)
	_ memberlist.AliveDelegate = (*members)(nil)
	_ memberlist.PingDelegate  = (*members)(nil)
)

// NotifyJoin notes that a node is alive.
func (m *members) NotifyJoin(n *memberlist.Node) { m.set(n.Name, true) }

// NotifyLeave notes that a node is not alive any more.
func (m *members) NotifyLeave(n *memberlist.Node) { m.set(n.Name, false) }

// NotifyUpdate has nothing to note: what nodes say of themselves is in their
// records.
func (m *members) NotifyUpdate(*memberlist.Node) {}

func (m *members) set(name string, alive bool) {
	id, err := nodeID(name)
	if err != nil || id == m.self {
		return
	}
	m.mu.Lock()
	if alive {
		m.alive[id] = true
	} else {
		delete(m.alive, id)
		delete(m.rtt, id)
	}
	m.mu.Unlock()
	m.signal()
}

// NotifyAlive refuses members whose name and address don't belong together.
func (m *members) NotifyAlive(n *memberlist.Node) error {
	id, err := nodeID(n.Name)
	if err != nil {
		return err
	}
	if !n.Addr.Equal(syntheticIP(id)) || n.Port != syntheticPort || len(n.Meta) > 0 {
		return fmt.Errorf("check member %s: its address is not made of its name", n.Name)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.alive[id] && len(m.alive) >= maxSenders {
		return fmt.Errorf("check member %s: there are too many", n.Name)
	}
	return nil
}

// AckPayload returns nothing.
func (m *members) AckPayload() []byte { return nil }

// NotifyPingComplete notes a round trip.
func (m *members) NotifyPingComplete(n *memberlist.Node, rtt time.Duration, _ []byte) {
	id, err := nodeID(n.Name)
	if err != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.alive[id] {
		m.rtt[id] = rtt
	}
}

// others returns the nodes that are alive, without ourselves, in random order.
func (m *members) others() []mesh.ID {
	m.mu.Lock()
	defer m.mu.Unlock()
	ids := slices.Collect(maps.Keys(m.alive))
	rand.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	return ids
}

func (m *members) alone() bool { return m.count() == 1 }

// count returns how many nodes are alive, with ourselves.
func (m *members) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return 1 + len(m.alive)
}

func (m *members) snapshot() (alive map[mesh.ID]bool, rtt map[mesh.ID]time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	alive = maps.Clone(m.alive)
	alive[m.self] = true
	return alive, maps.Clone(m.rtt)
}
