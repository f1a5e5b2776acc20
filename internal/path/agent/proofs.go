// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/path/rawudp"
)

// Of a try to reach a node as a stranger does: how many Echoes are sent, how long each may
// take, and how many tries there are at a time.
const (
	tryEchoes = 3
	tryFor    = 700 * time.Millisecond
	maxTries  = 4
)

// Proofs are what an agent has found out besides paths.
type Proofs struct {
	Met   map[mesh.ID]time.Time // when each node was met last on the private network
	Tried []mesh.Tried          // in order
}

// proofs is what is known of one peer besides the path to it.
type proofs struct {
	meeting *path.Meeting
	trials  map[netip.AddrPort]*trial
	echoing *rate.Limiter // Echoes of the peer that are answered
}

// trial is one address at which this node finds out whether strangers reach a peer.
type trial struct {
	path.Trial
	running bool
}

// tried is what has come of a try.
type tried struct {
	peer   mesh.ID
	addr   netip.AddrPort
	number uint32
	answer []byte // a datagram; nil for none
	err    error  // the Echoes could not be sent
}

func (a *Agent) newProofs(peer mesh.ID) proofs {
	every, burst := path.EchoPace()
	return proofs{
		meeting: path.NewMeeting(a.self, path.ShortOf(peer), a.fresh()),
		trials:  map[netip.AddrPort]*trial{},
		echoing: rate.NewLimiter(rate.Every(every), burst),
	}
}

// setProofs sets where to meet a peer, and where to try to reach it.
func (p *peer) setProofs() {
	p.meeting.SetAddrs(p.Private)
	maps.DeleteFunc(p.trials, func(at netip.AddrPort, _ *trial) bool { return !slices.Contains(p.Try, at) })
	for _, at := range p.Try {
		if p.trials[at] == nil {
			p.trials[at] = &trial{}
		}
	}
}

// nextProof returns when something is to be asked of a peer; false for never.
func (a *Agent) nextProof(p *peer) (next time.Time, ok bool) {
	if p.keys == nil {
		return time.Time{}, false
	}
	next, ok = p.meeting.Next()
	for _, t := range p.trials {
		if !t.running && a.trying < maxTries && (!ok || t.Due().Before(next)) {
			next, ok = t.Due(), true
		}
	}
	return next, ok
}

// prove asks a peer what is due.
func (a *Agent) prove(ctx context.Context, now time.Time, p *peer) {
	if to, msg, ok := p.meeting.Step(now); ok && p.sending.AllowN(now, 1) {
		a.send(p, path.Action{Path: path.Path{Kind: path.LAN, Addr: to}, Message: msg}, netip.Addr{})
	}
	for _, at := range slices.SortedFunc(maps.Keys(p.trials), netip.AddrPort.Compare) {
		if t := p.trials[at]; !t.running && a.trying < maxTries && !now.Before(t.Due()) {
			t.running = true
			a.try(ctx, p, at)
		}
	}
}

// try sends Echoes from a new socket, and waits for an answer.
func (a *Agent) try(ctx context.Context, p *peer, at netip.AddrPort) {
	a.trying++
	a.number++
	result := tried{peer: p.ID, addr: at, number: a.number}
	var sealed [tryEchoes][]byte
	for i := range sealed {
		sealed[i] = p.keys.Seal(path.Message{Op: path.Echo, Number: a.number}, a.o.Counter())
	}
	a.wg.Go(func() {
		result.answer, result.err = a.exchange(ctx, at, sealed)
		select {
		case a.tried <- result:
		case <-a.done:
		}
	})
}

func (a *Agent) exchange(ctx context.Context, to netip.AddrPort, sealed [tryEchoes][]byte) ([]byte, error) {
	c, err := a.o.Dial(to)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	buf := make([]byte, maxDatagram)
	for _, datagram := range sealed {
		if _, err := c.Write(datagram); err != nil {
			return nil, err
		}
		if err := c.SetReadDeadline(time.Now().Add(tryFor)); err != nil {
			return nil, err
		}
		// An error is a time that is over, or an ICMP message, which anybody can send.
		if n, err := c.Read(buf); err == nil {
			return buf[:n], nil
		}
	}
	return nil, nil
}

// takeTried takes what has come of a try.
func (a *Agent) takeTried(now time.Time, r tried) {
	a.trying--
	i := slices.IndexFunc(a.peers, func(p *peer) bool { return p.ID == r.peer })
	if i < 0 {
		return
	}
	p := a.peers[i]
	t := p.trials[r.addr]
	if t == nil {
		return
	}
	t.running = false
	before, known := t.Reached()
	if r.err != nil { // this host has no way there
		t.Postpone(now)
		return
	}
	from, m, ok := a.open(r.answer)
	t.Done(now, ok && from == p && m.Op == path.Echoed && m.Number == r.number)
	if after, knownNow := t.Reached(); before != after || known != knownNow {
		a.notify()
	}
}

// takeEcho takes an Echo or an Echoed that has arrived at WireGuard's port.
func (a *Agent) takeEcho(now time.Time, p *peer, m path.Message, d rawudp.Datagram) {
	if slices.Contains(p.Private, d.From) && a.o.OnLAN(d.Link) {
		before := p.meeting.Met()
		p.meeting.Receive(now, m)
		if p.meeting.Met() != before && now.Sub(before) > metNews {
			a.notify()
		}
	}
	if m.Op == path.Echo && p.echoing.AllowN(now, 1) && p.sending.AllowN(now, 1) {
		answer := path.Message{Op: path.Echoed, Look: m.Look, Number: m.Number, Seen: d.From}
		a.send(p, path.Action{Path: path.Path{Kind: path.Direct, Addr: d.From}, Message: answer}, d.To)
	}
}

// metNews is how long ago a node was met last for it to be news that it is again.
const metNews = time.Minute

// Proofs returns what was found out. It is empty when the agent has ended.
func (a *Agent) Proofs() Proofs {
	var all Proofs
	a.inRun(func() { all = a.proofs() })
	return all
}

func (a *Agent) proofs() Proofs {
	all := Proofs{Met: map[mesh.ID]time.Time{}}
	for _, p := range a.peers {
		if met := p.meeting.Met(); !met.IsZero() {
			all.Met[p.ID] = met
		}
		for at, t := range p.trials {
			if reached, known := t.Reached(); known {
				all.Tried = append(all.Tried, mesh.Tried{Subject: p.ID, Addr: at, Reached: reached})
			}
		}
	}
	slices.SortFunc(all.Tried, mesh.Tried.Compare)
	return all
}
