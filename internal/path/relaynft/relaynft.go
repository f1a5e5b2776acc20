// SPDX-License-Identifier: Apache-2.0

// Package relaynft has the kernel forward what a relay would forward itself, as far as it can: it
// keeps the table netdev meshd of nftables as package forward wants it. Package relayudp forwards the rest.
//
//	relay's table ┐
//	routes, links ┴─► forward.Wanted ─┐
//	kernel ──────────► forward.Table ─┴─► forward.Diff ─► kernel
//
// The kernel is read each time something has changed: nothing is remembered of what was written.
// The table stays when the daemon stops, so that sessions go on, and its sessions end by
// themselves; see Adopt and Remove.
//
// Chains are written as text by nft(8), with sigs.k8s.io/knftables, as those of package host are.
// Sessions come and go with each handshake, and one is only a key and the name of a chain: they
// are written by netlink, with google/nftables, which starts no process.
package relaynft

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	mdlayher "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/loglimit"
	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/path/forward"
	"github.com/meshd/meshd/internal/wait"
)

const (
	// minPause is how long the forwarder waits at least between two looks at the kernel, and
	// pauseFactor how long beside what the last one took, up to maxPause: on a host that is busy with
	// other things each look takes long.
	minPause    = 50 * time.Millisecond
	pauseFactor = 9
	maxPause    = 2 * time.Second
	// lookEvery is how often it looks if nothing has changed: the ends of sessions move, and somebody
	// may have changed the table.
	lookEvery = 10 * time.Second
	// countEvery is how often counters are read.
	countEvery = time.Second
	// shareFor is for how long the limit stays divided as it is: the kernel's begins anew after each
	// change, with all that may be forwarded at once.
	shareFor = time.Minute
	// It tries again after an error at first after minRetry, then ever later.
	minRetry = time.Second
	maxRetry = time.Minute
	// lastLook is how long the last look may take.
	lastLook = 10 * time.Second
	// reopenDelay is how long it waits before a broken socket of events is opened again.
	reopenDelay = time.Second

	netlinkTimeout = 30 * time.Second
)

// UserSpace is the relay that forwards what the kernel does not: relayudp.Relay.
type UserSpace interface {
	// Kept returns the nodes that are bound now.
	Kept() []path.Kept
	// Changed receives a value when that has changed.
	Changed() <-chan struct{}
	// Offered returns how many bytes it was to forward.
	Offered() uint64
	// SetRate sets how many bytes a second it forwards.
	SetRate(bytes uint64)
}

// Options says for which relay the kernel forwards.
type Options struct {
	Port    uint16 // the relay's
	MaxRate uint64 // bytes a second that kernel and user space forward together; 0 for no limit
	Relay   UserSpace
	Logger  *slog.Logger
}

// Forwarder keeps the table.
type Forwarder struct {
	o        Options
	nl       *netlink.Handle
	table    *table
	logged   loglimit.Limiter
	userRate uint64    // what user space may forward, as set last
	share    uint64    // of the kernel, see forward.Share
	shared   time.Time // when that was changed last
	offered  uint64    // to user space, as read last

	mu     sync.Mutex
	counts forward.Counts // as read last
	total  forward.Counts // since Open
}

// Open opens the connections to the kernel, and changes nothing there. It needs CAP_NET_ADMIN.
func Open(o Options) (*Forwarder, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	if err := nl.SetSocketTimeout(netlinkTimeout); err != nil {
		nl.Close()
		return nil, fmt.Errorf("set timeout of rtnetlink: %w", err)
	}
	t, err := openTable()
	if err != nil {
		nl.Close()
		return nil, err
	}
	f := &Forwarder{o: o, nl: nl, table: t, share: forward.FirstShare}
	_, user := forward.Divide(o.MaxRate, f.share) // the kernel may forward already
	f.setRate(user)
	// What was forwarded before is not counted. After an error all is.
	f.counts, err = t.count()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Close closes the connections to the kernel. The table stays.
func (f *Forwarder) Close() error {
	f.nl.Close()
	return f.table.Close()
}

// Adopt returns what a relay knows with what the kernel knows beyond that, see forward.Adopt.
func Adopt(all []path.Kept) ([]path.Kept, error) {
	t, err := openTable()
	if err != nil {
		return all, err
	}
	have, _, err := t.read()
	if err = errors.Join(err, t.Close()); err != nil {
		return all, err
	}
	return forward.Adopt(all, have), nil
}

// Remove removes the table: the kernel forwards nothing any more. It reports whether there was one.
func Remove() (bool, error) {
	t, err := openTable()
	if err != nil {
		return false, err
	}
	removed, err := t.remove()
	return removed, errors.Join(err, t.Close())
}

// Counts returns what the kernel has done since Open.
func (f *Forwarder) Counts() forward.Counts {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.total
}

// Serve keeps the table until ctx ends, and leaves it as it is to be then: sessions that have begun a
// moment before are to go on, too.
func (f *Forwarder) Serve(ctx context.Context) {
	changed := make(chan struct{}, 1)
	var watching sync.WaitGroup
	watching.Go(func() { f.watch(ctx, changed) })
	defer watching.Wait()
	defer f.lookLast(context.WithoutCancel(ctx))
	count := time.NewTicker(countEvery)
	defer count.Stop()
	retry := minRetry
	for {
		began := time.Now()
		next, err := f.look(ctx)
		if ctx.Err() != nil {
			return
		}
		pause := min(max(minPause, pauseFactor*time.Since(began)), maxPause)
		if err != nil {
			f.warn("the kernel does not forward for other nodes, this process does", err)
			pause, next = retry, 0
			retry = min(2*retry, maxRetry)
		} else {
			retry = minRetry
		}
		if wait.Sleep(ctx, pause) != nil {
			return
		}
		due := time.NewTimer(next)
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				due.Stop()
				return
			case <-count.C:
				waiting = !f.count()
			case <-changed:
				waiting = false
			case <-f.o.Relay.Changed():
				waiting = false
			case <-due.C:
				waiting = false
			}
		}
		due.Stop()
	}
}

func (f *Forwarder) lookLast(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lastLook)
	defer cancel()
	if _, err := f.look(ctx); err != nil {
		f.warn("the kernel does not forward for other nodes until the next start", err)
	}
}

// warn logs what is wrong, but not again and again.
func (f *Forwarder) warn(message string, err error) {
	if f.logged.IsNew(time.Now(), message, err) {
		f.o.Logger.Warn(message, "err", err)
	}
}

// look reads all that the table follows from, and the table, and changes what differs. It returns after
// how long to look again if nothing happens before.
func (f *Forwarder) look(ctx context.Context) (next time.Duration, err error) {
	in := forward.Input{Port: f.o.Port, Bound: f.o.Relay.Kept()}
	user := uint64(0)
	if f.o.MaxRate > 0 {
		in.Rate, user = forward.Divide(f.o.MaxRate, f.share)
	}
	in.Hops = readHops(f.nl, in.Bound)
	if in.Addresses, err = readAddresses(f.nl); err != nil {
		return 0, err
	}
	if in.Links, err = readLinks(f.nl); err != nil {
		return 0, err
	}
	have, whole, err := f.table.read()
	if err != nil {
		return 0, err
	}
	want := forward.Wanted(in)
	if !whole && len(want.Sessions) == 0 {
		f.setRate(f.o.MaxRate)
		return lookEvery, nil
	}
	if !whole {
		have = forward.Table{}
	}
	c := forward.Diff(have, want, time.Now())
	if user < f.userRate { // before the kernel may forward more
		f.setRate(user)
	}
	if !c.IsEmpty() {
		if err := f.table.apply(ctx, c, whole); err != nil {
			return 0, err
		}
	}
	f.setRate(user)
	if c.Again > 0 {
		return c.Again, nil
	}
	return lookEvery, nil
}

// setRate sets what user space may forward, if there is a limit.
func (f *Forwarder) setRate(rate uint64) {
	if f.o.MaxRate > 0 && rate != f.userRate {
		f.userRate = rate
		f.o.Relay.SetRate(rate)
	}
}

// count reads the counters, and reports whether the limit is to be divided in another way.
func (f *Forwarder) count() bool {
	now, err := f.table.count()
	if err != nil {
		f.warn("what the kernel forwards for other nodes is not counted", err)
		return false
	}
	offered := f.o.Relay.Offered()
	f.mu.Lock()
	more := now.Since(f.counts)
	f.counts, f.total = now, f.total.Plus(more)
	f.mu.Unlock()
	userOffered := offered - f.offered
	f.offered = offered
	if f.o.MaxRate == 0 || time.Since(f.shared) < shareFor {
		return false
	}
	before := f.share
	if f.share = forward.Share(f.o.MaxRate, more.Offered, userOffered, before); f.share == before {
		return false
	}
	f.shared = time.Now()
	return true
}

// watched are the netlink multicast groups that report changes of links, addresses, routes and rules for
// routes. Neighbours are the kernel's business: it resolves them as it forwards.
var watched = []uint{
	unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
	unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE,
}

// watch puts a value into the channel when something has changed, until ctx ends. Its socket is opened
// again when it breaks.
func (f *Forwarder) watch(ctx context.Context, changed chan<- struct{}) {
	for {
		err := receive(ctx, changed)
		if ctx.Err() != nil {
			return
		}
		f.warn("read netlink event socket", err)
		if wait.Sleep(ctx, reopenDelay) != nil {
			return
		}
		signal(changed) // for what was missed
	}
}

// receive signals each event until its socket breaks or ctx ends.
func receive(ctx context.Context, changed chan<- struct{}) error {
	c, err := mdlayher.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return err
	}
	for _, group := range watched {
		if err := c.JoinGroup(uint32(group)); err != nil {
			return errors.Join(err, c.Close())
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer func() {
		if stop() {
			_ = c.Close()
		}
	}()
	for {
		// ENOBUFS means that the kernel dropped events.
		if _, err := c.Receive(); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return err
		}
		signal(changed)
	}
}

// signal puts a value into the channel unless there is one already.
func signal(changed chan<- struct{}) {
	select {
	case changed <- struct{}{}:
	default:
	}
}
