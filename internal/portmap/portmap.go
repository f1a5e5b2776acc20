// SPDX-License-Identifier: Apache-2.0

// Package portmap asks the router of a home for port mappings: others then reach a UDP port of
// this host at the router's public address without having been spoken to.
//
// There are three protocols, and no router has to speak any of them. They are tried in this
// order, and the one that has worked is asked first the next time:
//
//	PCP      RFC 6887, its MAP and ANNOUNCE
//	NAT-PMP  RFC 6886, which it replaces
//	UPnP     WANIPConnection 1 and 2 and WANPPPConnection 1 of an internet gateway device
//
// A [Mapper] has one goroutine that asks. What to ask when is decided by machine, a value
// without I/O or a clock; pcp, natpmp and upnp send the question and read the answer.
//
// Only what the gateway itself answers counts. Whatever else arrives leads at most to the
// gateway being asked, and a mapping is a claim: whether anybody gets in there is for others to
// find out.
package portmap

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/meshd/meshd/internal/loglimit"
)

// Protocol is how a mapping was asked for, in the words of a person.
type Protocol string

// The protocols, in the order in which they are tried.
const (
	PCP    Protocol = "PCP"
	NATPMP Protocol = "NAT-PMP"
	UPnP   Protocol = "UPnP"
)

// Target is what mappings are wanted for.
type Target struct {
	// Gateway is the next hop of the default route, and Source this host's address there, both
	// IPv4. Without a gateway it is not known now where to ask, and what there is stays.
	Gateway, Source netip.Addr
	// Ports are this host's UDP ports, those first that matter most. Without one no mapping is
	// wanted, and those there are, are removed.
	Ports []uint16
}

// Mapping is a mapping that a router has made.
type Mapping struct {
	Protocol  Protocol
	Gateway   netip.Addr
	Internal  netip.AddrPort // this host's
	External  netip.AddrPort // the router's; its address may be a private one
	Permanent bool           // it stays until somebody removes it
	Nonce     [12]byte       // of PCP: only who knows it may renew or remove the mapping
}

// Options are what a Mapper needs.
type Options struct {
	// Known are the mappings that were there when the last daemon ended. They are asked for anew.
	Known []Mapping
	// Save keeps the mappings for the next start. It is called when one has changed.
	Save   func([]Mapping) error
	Random io.Reader
	Logger *slog.Logger
}

// Mapper has a router keep mappings.
type Mapper struct {
	o       Options
	changed chan struct{}
	wake    chan struct{}
	done    chan struct{}
	logged  loglimit.Limiter

	mu      sync.Mutex
	machine machine
	shown   []Mapping // when Changed was told last
	saved   []Mapping
}

// Start starts a mapper, which does nothing before Want. It ends with ctx, and leaves the
// mappings at the router: a restart of the daemon loses nothing.
func Start(ctx context.Context, o Options) *Mapper {
	m := &Mapper{
		o: o, changed: make(chan struct{}, 1), wake: make(chan struct{}, 1), done: make(chan struct{}),
		machine: newMachine(o.Known), shown: slices.Clone(o.Known), saved: slices.Clone(o.Known),
	}
	go m.run(ctx)
	return m
}

// Wait waits until the mapper has ended.
func (m *Mapper) Wait() { <-m.done }

// Want sets what is wanted. It does not wait for the router.
func (m *Mapper) Want(t Target) {
	m.mu.Lock()
	changed := m.machine.want(t, time.Now())
	m.mu.Unlock()
	if changed {
		signal(m.wake)
		m.publish() // what was dropped
	}
}

// Mappings returns the mappings that there are, as far as is known, by port.
func (m *Mapper) Mappings() []Mapping {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.machine.mappings(time.Now())
}

// Changed receives a value when Mappings may return something else.
func (m *Mapper) Changed() <-chan struct{} { return m.changed }

func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run asks the router until ctx ends.
func (m *Mapper) run(ctx context.Context) {
	defer close(m.done)
	var listener sync.WaitGroup
	defer listener.Wait()
	listener.Go(func() { m.listen(ctx) })
	var at Target
	var asked map[Protocol]protocol
	for ctx.Err() == nil {
		m.mu.Lock()
		a, due, wait := m.machine.next(time.Now())
		m.mu.Unlock()
		if !due {
			m.sleep(ctx, wait)
			continue
		}
		if asked == nil || a.gateway != at.Gateway || a.source != at.Source {
			at = Target{Gateway: a.gateway, Source: a.source}
			asked = protocols(a.gateway, a.source, m.o.Random)
		}
		r := a.perform(ctx, asked[a.protocol])
		if ctx.Err() != nil {
			return
		}
		m.note(a, r)
		m.mu.Lock()
		m.machine.done(a, r, time.Now())
		m.mu.Unlock()
		m.publish()
	}
}

// sleep waits for a time, or without end for 0, unless something else is wanted before.
func (m *Mapper) sleep(ctx context.Context, d time.Duration) {
	var due <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		due = t.C
	}
	select {
	case <-ctx.Done():
	case <-m.wake:
	case <-due:
	}
}

// note logs what a router has refused, once. Most don't answer at all, and nobody needs to know.
func (m *Mapper) note(a action, r result) {
	if r.err == nil || errors.Is(r.err, errNoAnswer) || !m.logged.IsNew(time.Now(), a.kind, a.protocol, printable(r.err)) {
		return
	}
	m.o.Logger.Debug("router refuses a port mapping", "protocol", a.protocol, "gateway", a.gateway, "err", printable(r.err))
}

// maxQuoted is how much of a router's words is logged, in bytes.
const maxQuoted = 200

// printable returns an error's text in which nothing does a terminal any harm: routers explain
// themselves in words of their own.
func printable(err error) string {
	text := []byte(err.Error())
	for i, c := range text {
		if c < ' ' || c > '~' {
			text[i] = '?'
		}
	}
	return string(text[:min(len(text), maxQuoted)])
}

// publish saves the mappings, and says that they have changed, if they have.
func (m *Mapper) publish() {
	m.mu.Lock()
	defer m.mu.Unlock()
	all, kept := m.machine.mappings(time.Now()), m.machine.kept()
	if !slices.Equal(kept, m.saved) {
		m.saved = kept
		if err := m.o.Save(kept); err != nil && m.logged.IsNew(time.Now(), "save", err) {
			m.o.Logger.Warn("port mappings are not kept for the next start", "err", err)
		}
	}
	if slices.Equal(all, m.shown) {
		return
	}
	for _, n := range all {
		if !slices.Contains(m.shown, n) {
			m.o.Logger.Info("router maps a port", "protocol", n.Protocol, "gateway", n.Gateway, "internal", n.Internal, "external", n.External)
		}
	}
	if len(all) == 0 {
		m.o.Logger.Info("router maps no port any more")
	}
	m.shown = all
	signal(m.changed)
}
