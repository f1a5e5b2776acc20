// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// observationTable holds what other nodes say of our own address. It does no I/O and reads no
// clock.
//
// Only who has proved its identity in a stream's greeting has a voice, one for
// each family of addresses: who dials says which address it dialled, and who is
// dialled says where the stream came from. Packets say nothing of the kind: whoever
// has the secret can send them in the name of any node.
type observationTable struct {
	said map[observationKey]observation
	// remembered are the addresses in our last record, with the time of the start:
	// a restart must not look like a change.
	remembered map[netip.Addr]time.Time
}

type observationKey struct {
	by   mesh.ID
	four bool
}

// observation is what one node says.
type observation struct {
	addr  netip.Addr // that we have
	from  netip.Addr // where its stream came from, or went to
	at    time.Time
	gotIn time.Time // when a stream of its last got in at our gossip port there; zero for never
}

func newObservationTable() *observationTable {
	return &observationTable{said: make(map[observationKey]observation), remembered: make(map[netip.Addr]time.Time)}
}

// hear takes in what a node says, and reports whether that is news.
func (v *observationTable) hear(by mesh.ID, said observation) bool {
	key := observationKey{by, said.addr.Is4()}
	old, known := v.said[key]
	if !known && len(v.said) >= maxSenders {
		delete(v.said, v.oldest())
	}
	same := known && old.addr == said.addr
	if same && said.gotIn.IsZero() {
		said.gotIn = old.gotIn
	}
	v.said[key] = said
	return !same || old.gotIn.IsZero() != said.gotIn.IsZero()
}

// has reports whether a node has said anything.
func (v *observationTable) has(id mesh.ID) bool {
	for _, four := range []bool{true, false} {
		if _, ok := v.said[observationKey{id, four}]; ok {
			return true
		}
	}
	return false
}

// oldest returns whose voice was heard longest ago.
func (v *observationTable) oldest() (key observationKey) {
	var at time.Time
	for k, said := range v.said {
		if at.IsZero() || said.at.Before(at) {
			key, at = k, said.at
		}
	}
	return key
}

// remember takes the addresses in our last record for open for a while.
func (v *observationTable) remember(own mesh.Record, now time.Time) {
	for _, e := range own.Endpoints {
		if a, err := netip.ParseAddr(e.Host); err == nil && e.Source == mesh.EndpointObserved {
			v.remembered[a] = now
		}
	}
}

// isOpen reports whether strangers get in where a voice has us.
func (v *observationTable) isOpen(said observation, now time.Time) bool {
	since := func(t time.Time) bool { return !t.IsZero() && now.Sub(t) <= openFor }
	return since(said.gotIn) || since(v.remembered[said.addr])
}

// observations returns all that is said, by node.
func (v *observationTable) observations(now time.Time) []mesh.Observation {
	all := make([]mesh.Observation, 0, len(v.said))
	for k, said := range v.said {
		all = append(all, mesh.Observation{By: k.by, Addr: said.addr, From: said.from, At: said.at, Open: v.isOpen(said, now)})
	}
	slices.SortFunc(all, func(a, b mesh.Observation) int {
		return cmp.Or(a.By.Compare(b.By), a.Addr.Compare(b.Addr))
	})
	return all
}

// noteObservation takes in what a node says that has proved its identity: that it sees
// our streams come from an address, or that it has dialled one and got in.
func (t *transport) noteObservation(s *stream, dialled bool) {
	addr := s.peer.you.Addr()
	if !addr.IsValid() || !t.trusts(s.peer.id) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.addresses.inside(addr) {
		return
	}
	said := observation{addr: addr, from: remote(s.Conn).Addr(), at: t.now()}
	if dialled && s.peer.you.Port() == t.self.port {
		said.gotIn = said.at
	}
	if t.observations.hear(s.peer.id, said) {
		t.changed()
	}
}

// hasMet reports whether a node has proved its identity in a greeting.
func (t *transport) hasMet(id mesh.ID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.observations.has(id)
}

// recognise notes an address of our own configuration as ours: we have dialled it
// and reached ourselves.
func (t *transport) recognise(addr netip.AddrPort) {
	t.mu.Lock()
	defer t.mu.Unlock()
	said := observation{addr: addr.Addr(), from: addr.Addr(), at: t.now(), gotIn: t.now()}
	if t.observations.hear(t.self.id, said) {
		t.changed()
	}
}

// dialBack dials the address from which a node has greeted us, at its gossip port,
// if that is due. If we get in, there is no NAT in between that lets in only who
// was spoken to, and the node's address is one for everybody: our greeting tells
// it so.
func (t *transport) dialBack(to mesh.ID, at netip.AddrPort) {
	if !t.trusts(to) {
		return
	}
	t.mu.Lock()
	due := t.addresses.dialBack(to, at, t.now())
	t.mu.Unlock()
	if !due {
		return
	}
	select {
	case t.dialling <- struct{}{}:
	default:
		return // so many at once are no mesh's; the node will greet again
	}
	defer func() { <-t.dialling }()
	if s, err := t.dial(t.ctx, at); err == nil {
		s.Close()
	}
}
