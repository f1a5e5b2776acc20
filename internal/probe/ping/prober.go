// SPDX-License-Identifier: Apache-2.0

// Package ping sends the ICMP echo requests of package probe and counts the answers.
package ping

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

	"github.com/meshd/meshd/internal/loglimit"
	"github.com/meshd/meshd/internal/probe"
	"github.com/meshd/meshd/internal/wait"
)

// Options configure a Prober. Pace is required.
type Options struct {
	probe.Pace
	Logger *slog.Logger // default: no logging
}

// Prober sends echo requests to a changing set of targets and counts the answers.
type Prober struct {
	log     *slog.Logger
	id      int    // of our echo requests
	cookie  []byte // payload of our requests, to ignore replies to other processes
	changed chan struct{}
	cancel  context.CancelFunc
	tasks   sync.WaitGroup

	mu      sync.Mutex
	table   *probe.Table
	rounds  map[*pingRound]bool
	sockets map[bool]*socket // true for IPv4
	openErr map[bool]error   // of the last attempt to open a socket, where it failed; true for IPv4
	said    loglimit.Limiter // for the log
	closed  bool
}

// Start returns a running Prober without targets. It ends with ctx or Stop.
func Start(ctx context.Context, o Options) *Prober {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Prober{
		log: o.Logger, cookie: make([]byte, 8),
		changed: make(chan struct{}, 1),
		table:   probe.NewTable(o.Pace),
		rounds:  make(map[*pingRound]bool),
		sockets: make(map[bool]*socket),
		openErr: make(map[bool]error),
	}
	_, _ = rand.Read(p.cookie) // never fails, see crypto/rand
	p.id = int(binary.BigEndian.Uint16(p.cookie))
	ctx, p.cancel = context.WithCancel(ctx)
	p.tasks.Go(func() { p.run(ctx) })
	return p
}

// Stop ends the prober and waits for its goroutines.
func (p *Prober) Stop() {
	p.cancel()
	p.tasks.Wait()
}

// Changed receives a value when the results should be read again: a target has answered
// for the first time, has become suspect or silent, or answers again.
func (p *Prober) Changed() <-chan struct{} { return p.changed }

// SetTargets replaces the targets and the pace. A new interval takes effect after the next
// request.
func (p *Prober) SetTargets(aims []probe.ScheduledTarget, pace probe.Pace) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.table.SetTargets(aims)
	maps.DeleteFunc(p.openErr, func(v4 bool, _ error) bool { // nobody is to be asked there any more
		return !slices.ContainsFunc(aims, func(t probe.ScheduledTarget) bool { return t.Addr.Is4() == v4 })
	})
	p.table.Pace = pace
}

// Results returns the current results of all targets.
func (p *Prober) Results() map[probe.Target]probe.Result {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.table.Results(time.Now())
}

// Err returns the error that keeps requests from being sent, nil for none.
func (p *Prober) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return errors.Join(p.openErr[true], p.openErr[false])
}

// run sends requests, and compares the levels as soon as an unanswered one counts as
// missed.
func (p *Prober) run(ctx context.Context) {
	defer p.close()
	levels := make(map[probe.Target]probe.Level)
	for ctx.Err() == nil {
		interval := p.send()
		late := min(probe.Grace, interval)
		if wait.Sleep(ctx, late) != nil {
			return
		}
		p.mu.Lock()
		now := p.table.Levels(time.Now())
		p.mu.Unlock()
		if !maps.Equal(now, levels) {
			p.signal()
		}
		levels = now
		// Without jitter, nodes that started at the same moment would send in step for ever.
		if wait.Sleep(ctx, interval-late+jitter(interval)) != nil {
			return
		}
	}
}

// jitter returns a random duration of up to a twentieth of the interval, plus or minus.
func jitter(interval time.Duration) time.Duration {
	tenth := max(interval/10, 1)
	return mathrand.N(tenth) - tenth/2
}

// send sends the due requests and returns the time until the next ones.
func (p *Prober) send() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	for t, r := range p.table.TakeDue(time.Now()) {
		p.request(t, r.Sequence)
	}
	return p.table.Interval
}

// request sends one request; p.mu is held. It returns no error: the missing answer has
// the same effect.
func (p *Prober) request(t probe.Target, sequence uint16) {
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

// open opens a socket and starts to read from it; p.mu is held. It returns nil if that
// fails.
func (p *Prober) open(v4 bool) *socket {
	if p.closed {
		return nil
	}
	s, err := openSocket(v4)
	if err != nil {
		p.openErr[v4] = err
		return nil
	}
	delete(p.openErr, v4)
	p.sockets[v4] = s
	p.tasks.Go(func() { p.read(s) })
	return s
}

// read reads answers from a socket until it is closed. After an error the next request
// opens a new socket.
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
	if p.table.RecordAnswer(from, sequence, now) {
		return
	}
	for s := range p.rounds {
		s.answer(from, sequence, now)
	}
}

// drop closes a socket after an error.
func (p *Prober) drop(s *socket, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	if p.said.IsNew(time.Now(), err) {
		p.log.Warn("probe", "err", err)
	}
	delete(p.sockets, s.v4)
	_ = s.close() // the first error is logged already
}

// close closes the sockets, which ends the goroutines that read them.
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

// signal makes Changed receive a value, unless one is waiting already.
func (p *Prober) signal() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// pingRound is the state of one call of PingOnce. Requests are keyed by sequence number.
type pingRound struct {
	waiting map[uint16]probe.Request
	targets map[uint16]netip.Addr
	rtt     map[netip.Addr]time.Duration
	done    chan struct{} // closed when all targets have answered
}

func (s *pingRound) answer(from netip.Addr, sequence uint16, now time.Time) {
	r, ok := s.waiting[sequence]
	if !ok || s.targets[sequence] != from {
		return
	}
	s.rtt[from] = now.Sub(r.At)
	if delete(s.waiting, sequence); len(s.waiting) == 0 {
		close(s.done)
	}
}

// A sweep sends pingBurst requests at a time and then waits for pingSpacing, because
// queues would drop a larger burst.
const (
	pingBurst   = 50
	pingSpacing = 20 * time.Millisecond
)

// PingOnce sends one request to each target. It waits until all have answered or ctx ends,
// and returns the round-trip times.
func (p *Prober) PingOnce(ctx context.Context, targets []probe.Target) (map[netip.Addr]time.Duration, error) {
	s := &pingRound{
		waiting: make(map[uint16]probe.Request), targets: make(map[uint16]netip.Addr),
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
		sequences[i] = p.table.NextSequence()
		s.waiting[sequences[i]], s.targets[sequences[i]] = probe.Request{}, t.Addr
	}
	p.rounds[s] = true
	p.mu.Unlock()
	for burst := range slices.Chunk(indices(len(targets)), pingBurst) {
		p.mu.Lock()
		for _, i := range burst {
			s.waiting[sequences[i]] = probe.Request{Sequence: sequences[i], At: time.Now()}
			p.request(targets[i], sequences[i])
		}
		p.mu.Unlock()
		if wait.Sleep(ctx, pingSpacing) != nil {
			break
		}
	}
	select {
	case <-s.done:
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.rounds, s)
	return s.rtt, errors.Join(p.openErr[true], p.openErr[false])
}

// indices returns 0 to n-1.
func indices(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}
