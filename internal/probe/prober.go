// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	mathrand "math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/icmp"
)

// Options say how to probe. Pace is needed.
type Options struct {
	Pace
	Logger *slog.Logger // default: no logging
}

// Pace is how often targets are probed, and how many misses in a row make one
// silent.
type Pace struct {
	Interval time.Duration
	Misses   int
}

// Prober sends echo requests to a set of targets that changes, and counts the
// answers.
type Prober struct {
	log     *slog.Logger
	id      int
	cookie  []byte // tells our answers from those to somebody else's requests
	changed chan struct{}
	cancel  context.CancelFunc
	tasks   sync.WaitGroup

	mu      sync.Mutex
	book    *book
	sweeps  map[*sweep]bool
	sockets map[bool]*socket // by: is it of IPv4
	broken  error            // why the last socket could not be opened
	closed  bool
}

// Start begins to probe; there are no targets yet. It ends with ctx, or with Stop.
func Start(ctx context.Context, o Options) *Prober {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Prober{
		log: o.Logger, cookie: make([]byte, 8),
		changed: make(chan struct{}, 1),
		book:    newBook(o.Pace),
		sweeps:  make(map[*sweep]bool),
		sockets: make(map[bool]*socket),
	}
	_, _ = rand.Read(p.cookie) // never fails, see crypto/rand
	p.id = int(binary.BigEndian.Uint16(p.cookie))
	ctx, p.cancel = context.WithCancel(ctx)
	p.tasks.Go(func() { p.run(ctx) })
	return p
}

// Stop ends the prober and waits until nothing of it runs any more.
func (p *Prober) Stop() {
	p.cancel()
	p.tasks.Wait()
}

// Changed fires when somebody should look at the results again: a target has
// answered for the first time, has become suspect or silent, or is well again.
func (p *Prober) Changed() <-chan struct{} { return p.changed }

// Aim replaces the targets and the pace. A new interval counts from the next
// request on.
func (p *Prober) Aim(aims []Aim, pace Pace) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.book.aim(aims)
	p.book.Pace = pace
}

// Results returns what is known of the targets now.
func (p *Prober) Results() map[Target]Result {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.book.results(time.Now())
}

// Err says why there are no answers to be had, nil if nothing is known to be
// wrong.
func (p *Prober) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.broken
}

// run sends requests, and looks at the answers as soon as a missing one is a
// miss.
func (p *Prober) run(ctx context.Context) {
	defer p.close()
	levels := make(map[Target]level)
	for ctx.Err() == nil {
		interval := p.send()
		late := min(patience, interval)
		if pause(ctx, late) != nil {
			return
		}
		p.mu.Lock()
		now := p.book.levels(time.Now())
		p.mu.Unlock()
		if !maps.Equal(now, levels) {
			p.signal()
		}
		levels = now
		// Nodes that were started by one event must not probe in step for ever.
		if pause(ctx, interval-late+jitter(interval)) != nil {
			return
		}
	}
}

// jitter is up to a twentieth of the interval, either way.
func jitter(interval time.Duration) time.Duration {
	tenth := max(interval/10, 1)
	return mathrand.N(tenth) - tenth/2
}

// send sends what is due, and returns how long it is until the next time.
func (p *Prober) send() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	for t, r := range p.book.due(time.Now()) {
		p.request(t, r.sequence)
	}
	return p.book.Interval
}

// request sends one request; p.mu is held. The answer that does not come tells
// of an error.
func (p *Prober) request(t Target, sequence uint16) {
	v4 := t.Addr.Is4()
	s := p.sockets[v4]
	if s == nil {
		if s = p.open(v4); s == nil {
			return
		}
	}
	if err := s.send(t, icmp.Echo{ID: p.id, Seq: int(sequence), Data: p.cookie}); err != nil {
		p.log.Debug("probe", "err", err)
	}
}

// open opens a socket and reads from it; p.mu is held. It returns nil if it
// can't.
func (p *Prober) open(v4 bool) *socket {
	if p.closed {
		return nil
	}
	s, err := openSocket(v4)
	if err != nil {
		if p.broken == nil {
			p.log.Error("probe", "err", err)
		}
		p.broken = err
		return nil
	}
	p.broken = nil
	p.sockets[v4] = s
	p.tasks.Go(func() { p.read(s) })
	return s
}

// read takes answers from a socket until it is closed. One that breaks is
// opened again with the next request.
func (p *Prober) read(s *socket) {
	buf := make([]byte, 1500)
	for {
		from, e, err := s.receive(buf)
		if err != nil {
			p.drop(s, err)
			return
		}
		if e.ID == p.id && bytes.Equal(e.Data, p.cookie) {
			p.answer(from, uint16(e.Seq))
		}
	}
}

func (p *Prober) answer(from netip.Addr, sequence uint16) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if p.book.answer(from, sequence, now) {
		return
	}
	for s := range p.sweeps {
		s.answer(from, sequence, now)
	}
}

// drop closes a socket that broke.
func (p *Prober) drop(s *socket, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.log.Warn("probe", "err", err)
	delete(p.sockets, s.v4)
	_ = s.close() // it is broken as it is
}

// close closes the sockets, which ends their readers.
func (p *Prober) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	var err error
	for _, s := range p.sockets {
		err = errors.Join(err, s.close())
	}
	if err != nil {
		p.log.Debug("close ICMP sockets", "err", err)
	}
}

// signal leaves one value in the channel, unless there is one already.
func (p *Prober) signal() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// pause waits for d or the end of ctx, whose error it then returns.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// sweep is one request to each of many targets.
type sweep struct {
	waiting map[uint16]request
	targets map[uint16]netip.Addr
	rtt     map[netip.Addr]time.Duration
	done    chan struct{} // closed when nobody is waited for
}

func (s *sweep) answer(from netip.Addr, sequence uint16, now time.Time) {
	r, ok := s.waiting[sequence]
	if !ok || s.targets[sequence] != from {
		return
	}
	s.rtt[from] = now.Sub(r.at)
	if delete(s.waiting, sequence); len(s.waiting) == 0 {
		close(s.done)
	}
}

// sweepTogether is how many requests of a sweep are sent at once, and
// sweepSpacing the time until the next ones: a burst would be lost in the queues.
const (
	sweepTogether = 50
	sweepSpacing  = 20 * time.Millisecond
)

// Sweep sends one request to each target and returns the round trips of those
// that answer before all have, or ctx ends.
func (p *Prober) Sweep(ctx context.Context, targets []Target) (map[netip.Addr]time.Duration, error) {
	s := &sweep{
		waiting: make(map[uint16]request), targets: make(map[uint16]netip.Addr),
		rtt: make(map[netip.Addr]time.Duration), done: make(chan struct{}),
	}
	if len(targets) == 0 {
		return s.rtt, nil
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, fmt.Errorf("probe: %w", context.Canceled)
	}
	sequences := make([]uint16, len(targets))
	for i, t := range targets {
		p.book.sequence++
		sequences[i] = p.book.sequence
		s.waiting[p.book.sequence], s.targets[p.book.sequence] = request{}, t.Addr
	}
	p.sweeps[s] = true
	p.mu.Unlock()
	for i := range slices.Chunk(indices(len(targets)), sweepTogether) {
		p.mu.Lock()
		for _, k := range i {
			s.waiting[sequences[k]] = request{sequences[k], time.Now()}
			p.request(targets[k], sequences[k])
		}
		p.mu.Unlock()
		if pause(ctx, sweepSpacing) != nil {
			break
		}
	}
	select {
	case <-s.done:
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.sweeps, s)
	return s.rtt, p.broken
}

// indices returns 0 to n-1.
func indices(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}
