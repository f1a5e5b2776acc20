// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"maps"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/time/rate"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/path/rawudp"
)

// peer is what the agent knows of a peer, or of a relay that is no peer and has no Key.
type peer struct {
	Peer
	ambiguous bool       // another node has the same path.Short
	keys      *path.Keys // nil without PathKey, or if ambiguous
	machine   *path.Machine
	due       time.Time // when to step the machine, if nothing happens before
	traffic   path.Traffic
	sending   *rate.Limiter
	unopened  uint64
	seen      [2]netip.AddrPort // by IPv4, IPv6
	local     map[netip.AddrPort]local
	use       path.Path // when Changed was told last
	proved    bool
	used      bool      // there was traffic, when the machine was stepped last
	mtu       int       // then, of the path in use
	renew     time.Time // when the session was to be begun anew, then
	sessions  []session // that were begun last
	unknown   time.Time // of a relay, when its last Unknown was taken
	proofs
}

// isPeer reports whether WireGuard may have the peer: else it is a relay only.
func (p *peer) isPeer() bool { return p.Key != wgtypes.Key{} }

// local is the address of this host to which a peer sends from one of its addresses.
// WireGuard answers from the address at which packets came (sticky sockets). Probes do the
// same, else they would travel another way than WireGuard's packets.
type local struct {
	addr netip.Addr
	at   time.Time // when something arrived there
}

const (
	keepLocal = 30 * time.Second // as long as a NAT keeps a mapping, RFC 4787 REQ-5
	maxLocal  = 32
)

// setNodes replaces the peers and the relays.
func (a *Agent) setNodes() {
	all := slices.Clone(a.wanted)
	for _, r := range a.relays.all {
		if !slices.ContainsFunc(a.wanted, func(p Peer) bool { return p.ID == r.ID }) {
			all = append(all, Peer{ID: r.ID, PathKey: r.PathKey})
		}
	}
	known := make(map[mesh.ID]*peer, len(a.peers))
	for _, p := range a.peers {
		known[p.ID] = p
	}
	a.peers = nil
	before := make(map[*peer][]mesh.ID) // the relays through which peers were tried
	count := map[path.Short]int{a.self: 1}
	for _, want := range all {
		p := known[want.ID]
		if p == nil {
			p = &peer{sending: rate.NewLimiter(maxSend, maxSendBurst), local: map[netip.AddrPort]local{}, proofs: a.newProofs(want.ID)}
		}
		if p.Key != want.Key { // the keys stay: they remember which datagrams came
			p.machine, p.traffic, p.use, p.proved, p.sessions = nil, path.Traffic{}, path.Path{}, false, nil
			p.proofs = a.newProofs(want.ID)
		}
		if want.PathKey == nil {
			want.PathKey = p.PathKey // its path record is missing for a moment
		}
		if p.PathKey == nil || !p.PathKey.Equal(want.PathKey) {
			p.keys = nil
		}
		before[p] = p.Relays
		p.Peer, p.ambiguous = want, false
		p.setProofs()
		a.peers = append(a.peers, p)
		count[path.ShortOf(p.ID)]++
	}
	slices.SortFunc(a.peers, func(p, q *peer) int { return bytes.Compare(p.ID[:], q.ID[:]) })
	now := time.Now()
	a.byShort = make(map[path.Short]*peer, len(a.peers))
	for _, p := range a.peers {
		short := path.ShortOf(p.ID)
		if count[short] > 1 {
			p.ambiguous, p.keys = true, nil
			a.log("fingerprints begin with the same 8 bytes: no path to the node is looked for", "peer", p.ID)
		} else {
			a.byShort[short] = p
			a.deriveKeys(p)
		}
		if p.keys == nil || p.NoTunnel {
			p.machine = nil
		}
	}
	a.setBinder(now)
	a.setCandidates(now)
	for _, p := range a.peers {
		for _, b := range a.relays.bound {
			if isAmong(p.Relays, b.Relay) && !isAmong(before[p], b.Relay) {
				a.tellSessions(now, b, sessionFor, p)
			}
		}
	}
}

// deriveKeys derives the keys of a peer whose path key is new.
func (a *Agent) deriveKeys(p *peer) {
	if p.keys != nil || p.PathKey == nil {
		return
	}
	keys, err := path.NewKeys(a.o.Cluster, a.self, path.ShortOf(p.ID), a.o.PathKey, p.PathKey)
	if err != nil {
		a.log("a node's path key is refused", "peer", p.ID, "err", err)
		return
	}
	p.keys = keys
}

// startMachine makes the machine of a peer that WireGuard has.
func (a *Agent) startMachine(now time.Time, p *peer, before path.Traffic) {
	p.machine = path.NewMachine(bytes.Compare(a.o.Key[:], p.Key[:]) < 0, before, now)
	p.machine.CountFrom(a.fresh())
	p.machine.SetCandidates(now, a.candidates(p))
	p.machine.SetMTU(p.MTU)
}

// step lets a machine do what is due.
func (a *Agent) step(now time.Time, p *peer) {
	a.perform(now, p, p.machine.Step(now), netip.Addr{})
	p.due = p.machine.Next(now)
	if soon := now.Add(minWait); p.due.Before(soon) {
		p.due = soon
	}
	if p.machine.IsActive(now) {
		a.readSoon(now)
	}
	before := p.used
	if p.used = p.machine.IsUsed(now); p.used && !before {
		a.tellRelays(now, sessionFor, p)
	}
	if use, proved := p.machine.InUse(); use != p.use || proved != p.proved {
		a.o.Logger.Debug("path", "peer", p.ID, "path", use, "before", p.use, "proved", proved)
		if p.proved && !proved {
			a.askAll(now)
		}
		p.use, p.proved = use, proved
		for _, b := range a.relays.bound {
			if b.Relay == use.Relay {
				a.tellSessions(now, b, sessionFor, p)
			}
		}
		a.notify()
	}
	if mtu := p.machine.MTU(); mtu != p.mtu {
		a.o.Logger.Debug("MTU", "peer", p.ID, "path", p.use, "mtu", mtu, "tunnel", p.MTU)
		p.mtu = mtu
		a.notify()
	}
	if renew := p.machine.Renew(); renew.After(p.renew) {
		a.o.Logger.Debug("session is begun anew: a relay does not know it", "peer", p.ID, "path", p.use)
		p.renew = renew
		a.notify()
	}
}

// askAll probes all paths that have not answered a short time ago: what has cut one off, or a relay, may have
// cut off this host.
func (a *Agent) askAll(now time.Time) {
	if now.Sub(a.asked) < askEvery {
		return
	}
	a.asked = now
	for _, p := range a.peers {
		if p.machine != nil {
			a.perform(now, p, p.machine.Ask(now), netip.Addr{})
			p.due = now
		}
	}
}

// perform does what a machine wants. Answers leave from the local address at which the
// question came: a NAT or firewall on the way expects them from there.
func (a *Agent) perform(now time.Time, p *peer, actions []path.Action, asked netip.Addr) {
	for _, act := range actions {
		if act.Message.Op == 0 {
			if err := a.o.Device.SetEndpoint(p.Key, act.Path.Addr); err != nil { // the machine repeats it
				a.log("WireGuard's endpoint can't be written", "peer", p.ID, "err", err)
			}
			continue
		}
		relay := a.relayOf(act.Path)
		from := asked
		switch {
		case relay != nil:
			a.wantRelay(now, act.Path.Relay)
			from = relay.localFor(now, act.Path.Addr) // from where this node is bound
		case act.Message.Op != path.Pong:
			from = p.localFor(now, act.Path.Addr)
		}
		if p.sending.AllowN(now, 1) {
			a.send(p, act, from)
		}
	}
}

// localFor returns the local address from which to send, invalid for what the route says.
func (p *peer) localFor(now time.Time, to netip.AddrPort) netip.Addr {
	if l := p.local[to]; now.Sub(l.at) < keepLocal {
		return l.addr
	}
	return netip.Addr{}
}

func (a *Agent) send(p *peer, act path.Action, from netip.Addr) {
	sealed := p.keys.Seal(act.Message, a.o.Counter())
	if act.Path.Kind == path.None {
		a.o.Call(p.ID, sealed)
		return
	}
	packet := rawudp.Packet{Payload: sealed, From: from, To: act.Path.Addr, TTL: act.TTL, Whole: act.Message.Size > 0}
	// Without a route or an address family nothing is sent, and so nothing answered.
	if err := a.o.Port.Send(packet); err != nil {
		if !packet.Whole { // else it may be too long for the link
			delete(p.local, act.Path.Addr) // the address may be gone
		}
		a.o.Logger.Debug("probe is not sent", "peer", p.ID, "path", act.Path, "err", err)
	}
}

// takeDatagram takes a probe that has arrived at WireGuard's port.
func (a *Agent) takeDatagram(now time.Time, d rawudp.Datagram) {
	if index, ok := path.SessionIndex(d.Payload); ok {
		a.takeSession(now, d.From, index)
		return
	}
	if h, err := path.ParseHeader(d.Payload); err == nil && h.To != a.self {
		a.takeWho(now, h.From, d.Payload)
		return
	}
	if a.takeLoop(d.Payload) {
		return
	}
	p, m, ok := a.open(d.Payload)
	if !ok || a.o.Inside(d.Link) {
		return
	}
	switch m.Op {
	case path.Ping, path.Pong, path.Call, path.Called, path.Renew:
	case path.Unknown:
		a.takeUnknown(now, p, m.Number)
		return
	case path.Bound:
		a.takeBound(now, p, m, d)
		return
	case path.Begun:
		a.takeBegun(now, p, m)
		return
	case path.Echo, path.Echoed:
		a.takeEcho(now, p, m, d)
		return
	default:
		return // from a node to a relay
	}
	if p.machine == nil {
		return
	}
	over := a.over(p, d.From)
	if (m.Op == path.Ping || m.Op == path.Pong) && over.Kind == path.Direct {
		a.sawAt(p, m.Seen)
	}
	if relay := a.relayOf(over); relay != nil {
		a.wantRelay(now, over.Relay)
		relay.arrived(now, d, false)
	} else {
		p.arrived(now, d, m.This)
	}
	a.perform(now, p, p.machine.Receive(now, m, over), d.To)
	a.step(now, p)
}

// arrived notes where a message of the peer arrived. The path that the peer uses counts
// most: WireGuard's packets arrive there.
func (p *peer) arrived(now time.Time, d rawudp.Datagram, inUse bool) {
	before, known := p.local[d.From]
	if known && !inUse && before.addr != d.To && now.Sub(before.at) < keepLocal {
		return
	}
	if len(p.local) >= maxLocal {
		maps.DeleteFunc(p.local, func(_ netip.AddrPort, l local) bool { return now.Sub(l.at) >= keepLocal })
	}
	if len(p.local) < maxLocal || known {
		p.local[d.From] = local{d.To, now}
	}
}

// takeCall takes a call that gossip has carried. Whoever carried it can't have changed it.
func (a *Agent) takeCall(now time.Time, c call) {
	p, m, ok := a.open(c.sealed)
	if !ok || p.machine == nil || p.ID != c.from || m.Op != path.Call && m.Op != path.Called && m.Op != path.Renew {
		return
	}
	a.perform(now, p, p.machine.Receive(now, m, path.Path{}), netip.Addr{})
	a.step(now, p)
}

// open returns the message in a datagram, and who sealed it.
func (a *Agent) open(b []byte) (*peer, path.Message, bool) {
	h, err := path.ParseHeader(b)
	if err != nil {
		return nil, path.Message{}, false
	}
	p := a.byShort[h.From]
	if p == nil {
		return nil, path.Message{}, false
	}
	if p.keys == nil {
		p.unopened++
		return nil, path.Message{}, false
	}
	m, err := p.keys.Open(b)
	if err != nil {
		p.unopened++
		return nil, path.Message{}, false
	}
	return p, m, true
}

// over returns the path by which a datagram of a peer came. What the peer says of itself
// comes before what is said of relays, so that a relay can't pass off the peer's address
// as its own.
func (a *Agent) over(p *peer, from netip.AddrPort) path.Path {
	over := path.At(from)
	if at, ok := a.relays.at[from]; ok {
		over = relayed(at.relay, from)
		if used := a.relays.addr(at.relay); used.IsValid() {
			over = relayed(at.relay, used)
		}
	}
	for _, c := range p.Candidates {
		switch {
		case c.Path.Addr != from:
		case c.Path.Straight():
			return c.Path
		default:
			over = c.Path
		}
	}
	return over
}

// sawAt notes where a peer sees this node.
func (a *Agent) sawAt(p *peer, at netip.AddrPort) {
	if !at.IsValid() {
		return
	}
	seen := &p.seen[0]
	if at.Addr().Is6() {
		seen = &p.seen[1]
	}
	if *seen != at {
		*seen = at
		a.notify()
	}
}
