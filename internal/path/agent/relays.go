// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"crypto/ecdh"
	"net/netip"
	"slices"
	"time"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/path/rawudp"
)

// Relay is a node that forwards datagrams between others.
type Relay struct {
	ID      mesh.ID
	PathKey *ecdh.PublicKey  // X25519; nil while unknown
	Addrs   []netip.AddrPort // of its relay, in the order in which they are tried
	// Preferred relays go before all others, else the nearest ones do.
	Preferred bool
}

// relays is what the agent knows of relays, and of how this node uses them.
type relays struct {
	all     []Relay
	keep    int
	secrets [][32]byte
	at      map[netip.AddrPort]place
	addrs   []path.RelayAddr // the address of each that is used

	binder path.Binder
	due    time.Time // when to step the binder, if nothing happens before
	bound  []path.BoundRelay
	// forgot has the relays that have asked who this node is since they last bound it: they
	// have forgotten its sessions, too.
	forgot map[path.Short]bool
}

// place is what is at an address: a relay, also for a while after it has gone from the list. It may still
// forward, and what comes from there is not of the peer's own address.
type place struct {
	relay path.Short
	gone  time.Time // zero while it is in the list
}

const (
	keepPlace = 10 * time.Minute
	maxPlaces = 4096
)

// addr returns the address of a relay that is used.
func (r *relays) addr(relay path.Short) netip.AddrPort {
	i := slices.IndexFunc(r.addrs, func(a path.RelayAddr) bool { return a.Relay == relay })
	if i < 0 {
		return netip.AddrPort{}
	}
	return r.addrs[i].Addr
}

// SetRelays sets the relays there are, and to how many of them this node
// stays bound whether or not it has anything to send, see path.Binder. Secrets are those of
// the cluster, any of which relays may use.
func (a *Agent) SetRelays(all []Relay, keep int, secrets [][32]byte) {
	a.inRun(func() {
		a.relays.all, a.relays.keep, a.relays.secrets = all, keep, secrets
		a.setNodes()
	})
}

// setBinder tells the binder of the relays with which messages can be exchanged.
func (a *Agent) setBinder(now time.Time) {
	r := &a.relays
	before := r.at
	r.at = make(map[netip.AddrPort]place)
	var addrs []path.RelayAddr
	var preferred []path.Short
	for _, relay := range r.all {
		short := path.ShortOf(relay.ID)
		if p := a.byShort[short]; p == nil || p.keys == nil {
			continue
		}
		if relay.Preferred {
			preferred = append(preferred, short)
		}
		for _, addr := range relay.Addrs {
			r.at[addr] = place{relay: short}
			addrs = append(addrs, path.RelayAddr{Relay: short, Addr: addr})
		}
	}
	for addr, old := range before {
		if old.gone.IsZero() {
			old.gone = now
		}
		if _, there := r.at[addr]; !there && len(r.at) < maxPlaces && now.Sub(old.gone) < keepPlace {
			r.at[addr] = old
		}
	}
	r.binder.SetRelays(addrs, r.keep, preferred...)
	r.addrs = r.binder.Addrs()
	r.due = now
}

// candidates returns the paths to try to a peer.
func (a *Agent) candidates(p *peer) []path.Candidate {
	all := slices.Clone(p.Candidates)
	for _, id := range p.Relays {
		relay := path.ShortOf(id)
		if addr := a.relays.addr(relay); addr.IsValid() && id != p.ID {
			all = append(all, path.Candidate{Path: relayed(relay, addr), Open: true})
		}
	}
	return all
}

// relayed returns the path through a relay at an address, which may be that of a stream.
func relayed(relay path.Short, at netip.AddrPort) path.Path {
	p := path.At(at)
	p.Kind, p.Relay = max(p.Kind, path.Relayed), relay
	return p
}

// setCandidates tells all machines which paths to try, and what is to pass there.
func (a *Agent) setCandidates(now time.Time) {
	for _, p := range a.peers {
		if p.machine != nil {
			p.machine.SetCandidates(now, a.candidates(p))
			p.machine.SetMTU(p.MTU)
			p.due = now
		}
	}
}

// relayOf returns the relay of a path, nil for a path without one.
func (a *Agent) relayOf(p path.Path) *peer {
	if p.Relay == (path.Short{}) {
		return nil
	}
	return a.byShort[p.Relay]
}

// wantRelay has this node bind to a relay through which it sends or receives.
func (a *Agent) wantRelay(now time.Time, relay path.Short) {
	a.relays.binder.Want(now, relay)
	a.stepBinder(now)
}

// stepBinder sends the Binds that are due.
func (a *Agent) stepBinder(now time.Time) {
	r := &a.relays
	for _, b := range r.binder.Step(now) {
		a.sendRelay(now, b.RelayAddr, b.Message)
	}
	r.due = r.binder.Next(now)
	if soon := now.Add(minWait); r.due.Before(soon) {
		r.due = soon
	}
	if addrs := r.binder.Addrs(); !slices.Equal(addrs, r.addrs) {
		r.addrs = addrs
		a.setCandidates(now)
	}
	before := r.bound
	r.bound = r.binder.Bound(now)
	if slices.Equal(r.bound, before) {
		return
	}
	a.notify()
	isBound := func(b path.BoundRelay) bool {
		return slices.ContainsFunc(r.bound, func(o path.BoundRelay) bool { return o.Relay == b.Relay })
	}
	if slices.ContainsFunc(before, func(b path.BoundRelay) bool { return b.Kept && !isBound(b) }) {
		a.askAll(now)
	}
	for _, b := range r.bound {
		if !slices.ContainsFunc(before, func(o path.BoundRelay) bool { return o.RelayAddr == b.RelayAddr }) {
			a.tellSessions(now, b, sessionFor, a.peers...)
		}
	}
}

// sendRelay sends a message to a relay, from the address at which the relay's datagrams
// arrive.
func (a *Agent) sendRelay(now time.Time, to path.RelayAddr, m path.Message) {
	relay := a.byShort[to.Relay]
	if relay == nil || relay.keys == nil || !relay.sending.AllowN(now, 1) {
		return
	}
	a.send(relay, path.Action{Path: relayed(to.Relay, to.Addr), Message: m}, relay.localFor(now, to.Addr))
}

// takeBound takes a relay's answer.
func (a *Agent) takeBound(now time.Time, relay *peer, m path.Message, d rawudp.Datagram) {
	short := path.ShortOf(relay.ID)
	relay.arrived(now, d, true)
	a.relays.binder.Receive(now, short, m)
	a.stepBinder(now)
	if m.Token != (path.Token{}) {
		return
	}
	forgot := a.relays.forgot[short]
	delete(a.relays.forgot, short)
	for _, b := range a.relays.bound {
		switch {
		case b.Relay != short:
		case forgot:
			a.tellSessions(now, b, sessionFor, a.peers...)
		default:
			used := slices.DeleteFunc(slices.Clone(a.peers), func(p *peer) bool { return !p.used })
			a.tellSessions(now, b, repeatFor, used...)
		}
	}
}

// takeWho takes a datagram that a relay has sealed for whoever is here. It may have come
// before, for all that it leads to is a Bind to that relay, once a second.
func (a *Agent) takeWho(now time.Time, relay path.Short, b []byte) {
	p := a.byShort[relay]
	if p == nil || p.PathKey == nil {
		return
	}
	for _, secret := range a.relays.secrets {
		keys, err := path.WhoOpener(a.o.Cluster, secret, relay, p.PathKey)
		if err != nil {
			continue
		}
		if m, err := keys.Open(b); err == nil && m.Op == path.Who {
			a.relays.forgot[relay] = true
			a.relays.binder.Receive(now, relay, m)
			a.stepBinder(now)
			return
		}
	}
}

// session is one of WireGuard with a peer.
type session struct {
	index   uint32 // with which this node sends
	begun   time.Time
	unknown bool // to a relay
}

// WireGuard has up to three sessions with a peer, the one before and the next one among
// them, and forgets each after three minutes.
const (
	maxSessions = 3
	sessionFor  = 3 * time.Minute
	// repeatFor is for how long a session with traffic is told again whenever this node binds again,
	// which is twice: a datagram may be lost.
	repeatFor = 45 * time.Second
	// sessionEvery is how often either end begins one at most (Rekey-Timeout in section 6.1 of
	// the WireGuard paper). What comes faster has a forged source.
	sessionEvery = 5 * time.Second
)

// early is a message that began a session with somebody whom the agent did not know yet: WireGuard
// speaks as soon as it has a peer, and the agent is told of the peer a moment later.
type early struct {
	from  netip.AddrPort
	index uint32
	at    time.Time
}

const (
	earlyFor = 10 * time.Second
	maxEarly = 128
)

// takeSession notes the index in a peer's message that begins a session. Of whom the message
// is can't be read, but from where it came. What comes from a relay may be of several
// peers: the relay says of whom, see takeBegun.
func (a *Agent) takeSession(now time.Time, from netip.AddrPort, index uint32) {
	if _, isRelay := a.relays.at[from]; isRelay {
		return
	}
	if p := a.peerAt(from); p != nil {
		a.addSession(now, p, index)
		return
	}
	if len(a.early) == maxEarly {
		a.early = a.early[1:]
	}
	a.early = append(a.early, early{from, index, now})
}

// takeEarly notes the sessions of peers that the agent has come to know.
func (a *Agent) takeEarly(now time.Time) {
	a.early = slices.DeleteFunc(a.early, func(e early) bool {
		if now.Sub(e.at) >= earlyFor {
			return true
		}
		p := a.peerAt(e.from)
		if p != nil {
			a.addSession(now, p, e.index)
		}
		return p != nil
	})
}

// peerAt returns the only peer with which WireGuard talks at an address, or else the only one for
// which the address is tried; nil if there is none, or several.
func (a *Agent) peerAt(from netip.AddrPort) *peer {
	uses := func(p *peer) bool { return p.use.Addr == from || p.traffic.Endpoint == from }
	tries := func(p *peer) bool {
		return slices.ContainsFunc(p.Candidates, func(c path.Candidate) bool { return c.Path.Addr == from })
	}
	for _, is := range []func(*peer) bool{uses, tries} {
		var found []*peer
		for _, p := range a.peers {
			if p.machine != nil && is(p) {
				found = append(found, p)
			}
		}
		switch len(found) {
		case 0:
		case 1:
			return found[0]
		default:
			return nil
		}
	}
	return nil
}

// takeBegun takes what a relay says of a session that has begun through it. If that is wrong,
// other relays pass packets to the wrong node, which can't read them, until the next session
// begins; so it counts only if the peer is reached through that relay.
func (a *Agent) takeBegun(now time.Time, relay *peer, m path.Message) {
	p := a.byShort[m.Node]
	if p == nil || p.machine == nil || !slices.Contains(p.Relays, relay.ID) && p.use.Relay != path.ShortOf(relay.ID) {
		return
	}
	a.addSession(now, p, m.Number)
}

// addSession notes a session with a peer, and tells it to the relays: so it goes on when the
// path fails.
func (a *Agent) addSession(now time.Time, with *peer, index uint32) {
	if slices.ContainsFunc(with.sessions, func(s session) bool { return s.index == index }) {
		return
	}
	// WireGuard draws an index at random. One that stands for somebody else was read on the way, by
	// whoever wants to have what is for him.
	if slices.ContainsFunc(a.peers, func(p *peer) bool { return p.hasSession(now, index) }) {
		return
	}
	if len(with.sessions) == maxSessions {
		if now.Sub(with.sessions[0].begun) < sessionEvery {
			return
		}
		with.sessions = with.sessions[1:]
	}
	with.sessions = append(with.sessions, session{index: index, begun: now})
	a.tellRelays(now, repeatFor, with) // older ones were told before
}

// hasSession reports whether an index stands for the peer.
func (p *peer) hasSession(now time.Time, index uint32) bool {
	return slices.ContainsFunc(p.sessions, func(s session) bool { return s.index == index && now.Sub(s.begun) < sessionFor })
}

// tellRelays is tellSessions for one peer and all relays.
func (a *Agent) tellRelays(now time.Time, age time.Duration, p *peer) {
	for _, b := range a.relays.bound {
		a.tellSessions(now, b, age, p)
	}
}

// tellSessions tells a relay which index stands for which peer, for all sessions that are
// younger than an age: where packets go through the relay, and where they may have to if the path
// fails. Where there is no traffic, none have to.
func (a *Agent) tellSessions(now time.Time, relay path.BoundRelay, age time.Duration, peers ...*peer) {
	for _, p := range peers {
		if p.use.Relay != relay.Relay && (!p.used || !isAmong(p.Relays, relay.Relay)) {
			continue
		}
		for _, s := range p.sessions {
			if now.Sub(s.begun) < age {
				a.sendRelay(now, relay.RelayAddr, path.Message{Op: path.Row, Number: s.index, Node: path.ShortOf(p.ID)})
			}
		}
	}
}

// isAmong reports whether one of the nodes is the relay.
func isAmong(nodes []mesh.ID, relay path.Short) bool {
	return slices.ContainsFunc(nodes, func(id mesh.ID) bool { return path.ShortOf(id) == relay })
}

// unknownEvery is how often a relay's Unknown is taken: relays send them at half that pace.
const unknownEvery = time.Second / 2

// takeUnknown takes a relay's word that it does not know a session. A session that this node
// knows is told to it once more. If that is in vain, or any of the peers beyond the relay
// may be meant, their machines decide.
func (a *Agent) takeUnknown(now time.Time, relay *peer, index uint32) {
	short := path.ShortOf(relay.ID)
	addr := a.relays.addr(short)
	if !addr.IsValid() || now.Sub(relay.unknown) < unknownEvery {
		return
	}
	relay.unknown = now
	meant := a.peers
	for _, p := range a.peers {
		i := slices.IndexFunc(p.sessions, func(s session) bool { return s.index == index })
		if i < 0 {
			continue
		}
		a.sendRelay(now, path.RelayAddr{Relay: short, Addr: addr}, path.Message{Op: path.Row, Number: index, Node: path.ShortOf(p.ID)})
		if !p.sessions[i].unknown {
			p.sessions[i].unknown = true
			return
		}
		meant = []*peer{p}
		break
	}
	for _, p := range meant {
		if p.machine != nil {
			p.machine.Unknown(now, short)
			a.step(now, p)
		}
	}
}
