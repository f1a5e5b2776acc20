// SPDX-License-Identifier: Apache-2.0

// Package agent runs the path machines of package path: one for each WireGuard peer, on real
// packets and the real clock.
//
//	datagrams from WireGuard's port ─► open ─► Machine ─► seal ─► datagrams from that port
//	calls by gossip                 ─►               ─►        calls by gossip
//	what WireGuard counts           ─►               ─►        WireGuard's endpoint of the peer
//
// Besides, it runs the Binder, which keeps this node bound to relays, and tells those relays
// which sessions WireGuard has begun: see relays.go.
//
// One goroutine owns all machines, so they need no locks. It is woken by what arrives and by
// the time that a machine names, and reads the device once for all peers: ten times a
// second while one of them has traffic or changes its path, else once a second.
//
// A new agent takes the endpoints that WireGuard has as paths in use. So traffic goes on
// as before when the daemon starts again.
package agent

import (
	"context"
	"crypto/ecdh"
	"errors"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/loglimit"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/path/rawudp"
)

// How often the device is read.
const (
	activeRead = 100 * time.Millisecond
	idleRead   = time.Second
)

// askEvery is how often all paths are probed at most, because one has failed.
const askEvery = 10 * time.Second

// minWait is the least time between two steps of a machine that nothing has woken.
const minWait = 5 * time.Millisecond

// What a flood may cost. A hundred peers that all look for paths send a tenth of it. Opening
// takes two microseconds, so that a flood of what does not open takes some 2 % of a core. Long
// ones take as much time as several of shortLen.
const (
	maxOpen      = 10_000 // datagrams a second
	maxOpenBurst = 2_000
	maxQueue     = 1_024 // datagrams
	maxCalls     = 64
	// Punching sends most: ten probes a second to each of some twenty addresses, and as
	// many answers.
	maxSend      = 400 // datagrams a second to one peer
	maxSendBurst = 400
	shortLen     = 512 // bytes; most have 90
	maxDatagram  = path.MaxDatagram
)

// Port is WireGuard's UDP port.
type Port interface {
	Send(rawudp.Packet) error
	// Serve calls got with each datagram that arrives, until the port is closed. Got doesn't
	// keep the payload, and may be called by several goroutines.
	Serve(got func(rawudp.Datagram)) error
}

// Device is the WireGuard device.
type Device interface {
	// Traffic returns the state of all peers. Its error wraps fs.ErrNotExist while there is no device.
	Traffic() (map[wgtypes.Key]path.Traffic, error)
	// SetEndpoint changes a peer's endpoint. It never adds a peer.
	SetEndpoint(peer wgtypes.Key, to netip.AddrPort) error
}

// Peer is a node to find paths to.
type Peer struct {
	ID         mesh.ID
	Key        wgtypes.Key      // of WireGuard
	PathKey    *ecdh.PublicKey  // X25519; nil while unknown, then the peer is left alone
	Candidates []path.Candidate // the paths to try, but for those through relays
	// Relays are those through which to try: relays to which the peer is bound, and those to
	// which this node is. Only those that SetRelays has named are used.
	Relays []mesh.ID

	// MTU is that of the tunnel: no longer packets are sent inside. 0 for unknown.
	MTU int

	// NoTunnel means that it is not a peer of WireGuard: no path to it is looked for.
	NoTunnel bool
	// Private are its addresses on the private network of this node's location, where the
	// two are to meet.
	Private []netip.AddrPort
	// Try are its addresses at which this node is to find out whether strangers reach it.
	Try []netip.AddrPort
}

// Options are what an agent needs. Own, Inside, OnLAN and Dial may be missing.
type Options struct {
	Cluster string
	Self    mesh.ID
	Key     wgtypes.Key      // WireGuard's public key of this node
	PathKey *ecdh.PrivateKey // X25519
	// Counter returns the next counter for Seal, never the same one with one PathKey.
	Counter func() uint64
	Port    Port
	Device  Device
	// Call carries a sealed message to a node by gossip. It must not block.
	Call func(to mesh.ID, sealed []byte)
	// Own returns how many bytes of WireGuard's in both directions are gossip's, see path.Traffic.
	Own func(peer mesh.ID) (sent, received uint64)
	// Inside reports whether a link is a device of the mesh. What arrives by one has travelled
	// through a tunnel, and says nothing of a path beneath it.
	Inside func(link int) bool
	// OnLAN reports whether a link is one of this host's private network. Without it no node
	// is met.
	OnLAN func(link int) bool
	// Dial opens a new UDP socket that sends to an address and receives from it, and from which
	// nothing was sent to anybody. Without it no peer may have addresses to Try.
	Dial   func(to netip.AddrPort) (net.Conn, error)
	Logger *slog.Logger
}

// Agent finds and keeps the paths to all peers. Its methods are safe for concurrent use.
type Agent struct {
	o         Options
	self      path.Short
	wg        sync.WaitGroup
	err       error // of Serve
	done      chan struct{}
	do        chan func() // what methods have run do
	datagrams chan rawudp.Datagram
	calls     chan call
	tried     chan tried
	changed   chan struct{}
	opening   *rate.Limiter
	logged    loglimit.Limiter

	// The rest belongs to run.
	peers   []*peer // by ID, and relays that are no peers
	byShort map[path.Short]*peer
	read    time.Time // when the device is read next
	wanted  []Peer    // as set last
	relays  relays
	early   []early                    // the oldest first
	asked   time.Time                  // when all paths were probed, as one has failed
	trying  int                        // how many tries to reach a peer are under way
	number  uint32                     // of the last try
	loops   map[string]chan<- struct{} // who waits for a datagram to this node itself, see Hairpin
}

// call is a sealed message that gossip has carried.
type call struct {
	from   mesh.ID
	sealed []byte
}

// Start starts an agent without peers. It ends when ctx does, or when the port can't be
// read; then call Wait.
func Start(ctx context.Context, o Options) *Agent {
	a := newAgent(o)
	ctx, cancel := context.WithCancel(ctx)
	a.wg.Go(func() {
		defer cancel()
		a.err = o.Port.Serve(a.received)
	})
	a.wg.Go(func() {
		defer close(a.done)
		a.run(ctx)
	})
	return a
}

func newAgent(o Options) *Agent {
	if o.Own == nil {
		o.Own = func(mesh.ID) (sent, received uint64) { return 0, 0 }
	}
	if o.Inside == nil {
		o.Inside = func(int) bool { return false }
	}
	if o.OnLAN == nil {
		o.OnLAN = func(int) bool { return false }
	}
	a := &Agent{
		o:         o,
		self:      path.ShortOf(o.Self),
		done:      make(chan struct{}),
		do:        make(chan func()),
		datagrams: make(chan rawudp.Datagram, maxQueue),
		calls:     make(chan call, maxCalls),
		tried:     make(chan tried),
		changed:   make(chan struct{}, 1),
		opening:   rate.NewLimiter(maxOpen, maxOpenBurst),
		relays:    relays{forgot: make(map[path.Short]bool)},
		loops:     make(map[string]chan<- struct{}),
	}
	a.number = a.fresh()
	a.relays.binder.CountFrom(a.fresh())
	return a
}

// fresh returns a number from which messages can be counted: hardly one that came near it was sent
// before the daemon was started again, so that recorded answers to those answer nothing now.
func (a *Agent) fresh() uint32 { return rand.Uint32() }

// Wait waits until the agent has ended, for which its port must be closed, too. It returns
// the error of the port, if there was one.
func (a *Agent) Wait() error {
	a.wg.Wait()
	return a.err
}

// SetPeers sets the peers to find paths to. Peers that stay keep what is known of them.
func (a *Agent) SetPeers(peers []Peer) {
	a.inRun(func() {
		a.wanted = peers
		a.setNodes()
		now := time.Now()
		a.readDevice(now)
		a.takeEarly(now)
	})
}

// inRun has run call a function, and waits for it. It returns false without having done so if
// the agent has ended.
func (a *Agent) inRun(f func()) bool {
	done := make(chan struct{})
	select {
	case a.do <- func() { defer close(done); f() }:
		<-done
		return true
	case <-a.done:
		return false
	}
}

// Called takes what Call has carried from a node. It does not block.
func (a *Agent) Called(from mesh.ID, sealed []byte) {
	select {
	case a.calls <- call{from, slices.Clone(sealed)}:
	default: // the peer calls again
	}
}

// Changed returns a channel that receives after a path in use, whether it is proved, its MTU, an
// address in Seen, or what Bound returns has changed, or a session is to be begun anew.
func (a *Agent) Changed() <-chan struct{} { return a.changed }

func (a *Agent) notify() {
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// received takes what arrives at the port, while there is room for it.
func (a *Agent) received(d rawudp.Datagram) {
	if !a.isForUs(d.Payload) || len(d.Payload) > maxDatagram || !a.opening.AllowN(time.Now(), 1+len(d.Payload)/shortLen) {
		return
	}
	d.Payload = slices.Clone(d.Payload)
	select {
	case a.datagrams <- d:
	default:
	}
}

// isForUs reports whether a datagram may be one that the agent takes: a sealed one, to this
// node or to anybody, or one that begins a session of WireGuard.
func (a *Agent) isForUs(b []byte) bool {
	h, err := path.ParseHeader(b)
	if err != nil {
		_, ok := path.SessionIndex(b)
		return ok
	}
	return h.To == a.self || h.To == path.Short{}
}

func (a *Agent) run(ctx context.Context) {
	a.read = time.Now().Add(idleRead)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(time.Until(a.next()))
		select {
		case <-ctx.Done():
			return
		case f := <-a.do:
			f()
		case d := <-a.datagrams:
			a.takeDatagram(time.Now(), d)
		case c := <-a.calls:
			a.takeCall(time.Now(), c)
		case r := <-a.tried:
			a.takeTried(time.Now(), r)
		case <-timer.C:
			a.takeQueued()
			a.wake(ctx, time.Now())
		}
	}
}

// takeQueued takes what has arrived. Where this process gets little time, the answers would else wait while
// their probes are counted as missed.
func (a *Agent) takeQueued() {
	for range len(a.datagrams) {
		a.takeDatagram(time.Now(), <-a.datagrams)
	}
}

// next returns when something is to be done although nothing happens.
func (a *Agent) next() time.Time {
	next := a.read
	if a.relays.due.Before(next) {
		next = a.relays.due
	}
	for _, p := range a.peers {
		if p.machine != nil && p.due.Before(next) {
			next = p.due
		}
		if due, ok := a.nextProof(p); ok && due.Before(next) {
			next = due
		}
	}
	return next
}

func (a *Agent) wake(ctx context.Context, now time.Time) {
	if !now.Before(a.read) {
		a.readDevice(now)
	}
	if !now.Before(a.relays.due) {
		a.stepBinder(now)
	}
	for _, p := range a.peers {
		if p.machine != nil && !now.Before(p.due) {
			a.step(now, p)
		}
		if due, ok := a.nextProof(p); ok && !now.Before(due) {
			a.prove(ctx, now, p)
		}
	}
}

// readDevice shows each machine what WireGuard has counted. A peer that WireGuard doesn't
// have, yet, has no machine.
func (a *Agent) readDevice(now time.Time) {
	a.read = now.Add(idleRead)
	all, err := a.o.Device.Traffic()
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			a.log("WireGuard's counters can't be read", "err", err)
		}
		return
	}
	for _, p := range a.peers {
		t, ok := all[p.Key]
		t.Endpoint = netip.AddrPortFrom(t.Endpoint.Addr().Unmap(), t.Endpoint.Port())
		t.OwnSent, t.OwnReceived = a.o.Own(p.ID)
		switch {
		case !ok || p.keys == nil || p.NoTunnel:
			p.machine = nil
			continue
		case p.machine == nil:
			a.startMachine(now, p, t)
		case t == p.traffic:
			if p.machine.IsActive(now) {
				a.readSoon(now)
			}
			continue
		}
		p.traffic = t
		p.machine.Observe(now, t)
		a.step(now, p)
	}
	a.restPeers()
}

func (a *Agent) readSoon(now time.Time) {
	if soon := now.Add(activeRead); soon.Before(a.read) {
		a.read = soon
	}
}

// log logs what is wrong now, but not again and again.
func (a *Agent) log(message string, args ...any) {
	if a.logged.IsNew(time.Now(), append([]any{message}, args...)...) {
		a.o.Logger.Warn(message, args...)
	}
}
