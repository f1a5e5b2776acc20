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

// members is what memberlist reports, by fingerprint: a node that has changed its name is
// two members for a while.
type members struct {
	self   mesh.ID
	signal func()

	mu      sync.Mutex
	current int                  // number of the listener in use
	alive   map[mesh.ID]presence // without ourselves
	rtt     map[mesh.ID]time.Duration
}

// presence holds the names under which a node is alive, each with the number of the
// listener that reported it last.
type presence map[string]int

func newMembers(self mesh.ID, signal func()) *members {
	return &members{self: self, signal: signal, alive: make(map[mesh.ID]presence), rtt: make(map[mesh.ID]time.Duration)}
}

// listener receives the events of one memberlist, as long as it is the latest one. Its
// methods are called under memberlist's lock: they copy, signal without blocking, and
// never call memberlist.
type listener struct {
	*members
	number int
	name   string // our own name in that memberlist
}

var (
	_ memberlist.EventDelegate = listener{}
	_ memberlist.AliveDelegate = listener{}
	_ memberlist.PingDelegate  = listener{}
)

// listen returns the listener for a new memberlist. What the previous one has reported
// stays until dropStale.
func (m *members) listen(name string) listener {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.current++
	return listener{m, m.current, name}
}

// dropStale forgets the nodes that only earlier listeners reported. It reports whether
// there were any.
func (m *members) dropStale() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := len(m.alive)
	for id, names := range m.alive {
		maps.DeleteFunc(names, func(_ string, heard int) bool { return heard < m.current })
		if len(names) == 0 {
			delete(m.alive, id)
			delete(m.rtt, id)
		}
	}
	return len(m.alive) < before
}

// NotifyJoin records that a member is alive.
func (l listener) NotifyJoin(n *memberlist.Node) { l.set(n.Name, true) }

// NotifyLeave records that a member is no longer alive.
func (l listener) NotifyLeave(n *memberlist.Node) { l.set(n.Name, false) }

// NotifyUpdate does nothing: what nodes say about themselves is in their records.
func (listener) NotifyUpdate(*memberlist.Node) {}

func (l listener) set(name string, alive bool) {
	id, err := nodeID(name)
	if err != nil || id == l.self {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.number != l.current {
		return
	}
	names := l.alive[id]
	switch {
	case alive && names == nil:
		l.alive[id] = presence{name: l.number}
	case alive:
		names[name] = l.number
	default:
		if delete(names, name); len(names) == 0 {
			delete(l.alive, id)
			delete(l.rtt, id)
		}
	}
	l.signal()
}

// NotifyAlive refuses members whose name and address don't match, and our own earlier
// names.
func (l listener) NotifyAlive(n *memberlist.Node) error {
	id, err := nodeID(n.Name)
	if err != nil {
		return err
	}
	if !n.Addr.Equal(syntheticIP(id)) || n.Port != syntheticPort || len(n.Meta) > 0 {
		return fmt.Errorf("check member %s: its address does not match its name", n.Name)
	}
	if id == l.self && n.Name != l.name {
		return fmt.Errorf("check member %s: it is an earlier name of this node", n.Name)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch names := l.alive[id]; {
	case names == nil && len(l.alive) >= maxSenders:
		return fmt.Errorf("check member %s: there are too many", n.Name)
	case len(names) >= maxNames && names[n.Name] == 0:
		return fmt.Errorf("check member %s: it has too many names", n.Name)
	}
	return nil
}

// maxNames limits how many names of one node are alive at the same time. A node that
// changes its name leaves the old one behind until that is found dead.
const maxNames = 16

// AckPayload returns nothing.
func (listener) AckPayload() []byte { return nil }

// NotifyPingComplete records a round-trip time.
func (l listener) NotifyPingComplete(n *memberlist.Node, rtt time.Duration, _ []byte) {
	id, err := nodeID(n.Name)
	if err != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.alive[id] != nil {
		l.rtt[id] = rtt
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

// isAlive reports whether another node is alive.
func (m *members) isAlive(id mesh.ID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.alive[id] != nil
}

func (m *members) alone() bool { return m.count() == 1 }

// count returns how many nodes are alive, including this one.
func (m *members) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return 1 + len(m.alive)
}

func (m *members) snapshot() (alive map[mesh.ID]bool, rtt map[mesh.ID]time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	alive = map[mesh.ID]bool{m.self: true}
	for id := range m.alive {
		alive[id] = true
	}
	return alive, maps.Clone(m.rtt)
}
