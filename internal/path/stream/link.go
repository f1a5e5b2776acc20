// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/wait"
)

// Why a stream ends, besides errors of the network.
var (
	errIdle     = errors.New("the other node has not used it for long")
	errReplaced = errors.New("the other node has opened a new one")
)

// link is what outlives the streams to one node: the sockets that WireGuard knows, and the
// frames that wait.
type link struct {
	node    mesh.ID
	dialled bool
	own     *local // to the node's own WireGuard
	relay   *local // to the node's relay; nil if the node has dialled
	out     *queue
	relayed [][]byte // for the relay here, until flush
	ctx     context.Context
	cancel  context.CancelFunc
	readers sync.WaitGroup
	next    chan struct{} // fires when waiting is set

	mu      sync.Mutex
	conn    net.Conn // the stream in use; nil for none
	since   time.Time
	waiting net.Conn // takes the place of conn when that has ended
	err     error
}

// newLink opens the sockets of a link. The caller has to call close in the end.
func (c *Carrier) newLink(node mesh.ID, dialled bool) (*link, error) {
	own, err := openLocal(c.o.WireGuard)
	if err != nil {
		return nil, err
	}
	l := &link{node: node, dialled: dialled, own: own, out: newQueue(), next: make(chan struct{}, 1)}
	if dialled {
		if l.relay, err = openLocal(c.o.WireGuard); err != nil {
			return nil, errors.Join(err, own.udp.Close())
		}
	}
	l.ctx, l.cancel = context.WithCancel(c.ctx)
	l.readLocal(l.own, frameOwn)
	if dialled {
		l.readLocal(l.relay, frameRelayed)
	}
	return l, nil
}

// readLocal queues what WireGuard sends, until the link is closed.
func (l *link) readLocal(from *local, kind frameKind) {
	context.AfterFunc(l.ctx, func() { _ = from.udp.Close() })
	l.readers.Go(func() {
		from.readAll(func(datagrams ...[]byte) { l.out.put(kind, datagrams...) })
	})
}

// close ends the link and waits for its readers.
func (l *link) close() {
	l.cancel()
	l.readers.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting != nil {
		_ = l.waiting.Close()
	}
}

// replace makes a stream the one in use, as soon as the one before has ended.
func (l *link) replace(conn net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting != nil {
		_ = l.waiting.Close()
	}
	l.waiting = conn
	if l.conn != nil {
		_ = l.conn.Close()
	}
	select {
	case l.next <- struct{}{}:
	default:
	}
}

// isOpen reports whether there is a stream.
func (l *link) isOpen() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conn != nil
}

// isUnused reports whether there is no stream, and none that is about to be used.
func (l *link) isUnused() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conn == nil && l.waiting == nil
}

func (l *link) status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Status{Node: l.node, Dialled: l.dialled, Own: l.own.addr, Dropped: l.out.drops(), Err: l.err}
	if l.relay != nil {
		s.Relay = l.relay.addr
	}
	if l.conn != nil {
		s.Since = l.since
		if p, ok := l.conn.(interface{ Proxy() string }); ok {
			s.Proxy = p.Proxy()
		}
	}
	return s
}

// redial keeps a stream open to the link's node.
func (c *Carrier) redial(l *link) {
	pause := redialMin
	for l.ctx.Err() == nil {
		began := time.Now()
		ctx, cancel := context.WithTimeout(l.ctx, dialTimeout)
		conn, err := c.o.Dial(ctx, l.node)
		cancel()
		if err == nil {
			l.replace(conn)
			err = c.run(l)
		}
		l.mu.Lock()
		l.err = err
		l.mu.Unlock()
		if time.Since(began) > redialMax {
			pause = redialMin
		}
		_ = wait.Sleep(l.ctx, pause/2+rand.N(pause))
		pause = min(2*pause, redialMax)
	}
}

// serve runs the streams that the link's node opens, until it has not opened one for a while.
func (c *Carrier) serve(l *link) {
	for {
		select {
		case <-l.next:
			err := c.run(l)
			l.mu.Lock()
			l.err = err
			l.mu.Unlock()
		case <-time.After(lingerFor):
			if c.remove(l) {
				return
			}
		case <-l.ctx.Done():
			return
		}
	}
}

// remove forgets an accepted link, unless a stream has come in the meantime.
func (c *Carrier) remove(l *link) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !l.isUnused() {
		return false
	}
	if c.accepted[l.node] == l {
		delete(c.accepted, l.node)
		c.notify()
	}
	return true
}

// begin makes the waiting stream the one in use. The frames in the queue are too old for it.
func (l *link) begin() net.Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.out.clear()
	l.conn, l.waiting, l.since = l.waiting, nil, time.Now()
	return l.conn
}

// end returns why a stream has ended, of the errors of its two directions.
func (l *link) end(errs ...error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn = nil
	if l.waiting != nil {
		return errReplaced
	}
	for _, err := range errs {
		if err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
	}
	return net.ErrClosed
}

// run passes frames both ways over the waiting stream until it ends.
func (c *Carrier) run(l *link) error {
	conn := l.begin()
	if conn == nil {
		return nil
	}
	ctx, cancel := context.WithCancel(l.ctx)
	defer cancel()
	closed := make(chan struct{})
	context.AfterFunc(ctx, func() {
		_ = conn.Close()
		close(closed)
	})
	tune(conn)
	c.o.Logger.Info("stream for datagrams opened", "peer", l.node, "dialled", l.dialled)

	var writeErr error
	var writer sync.WaitGroup
	writer.Go(func() {
		defer cancel()
		writeErr = l.write(ctx, conn)
	})
	readErr := c.read(l, conn)
	cancel()
	writer.Wait()
	<-closed
	err := l.end(readErr, writeErr)
	c.o.Logger.Info("stream for datagrams closed", "peer", l.node, "dialled", l.dialled, "err", err)
	return err
}

// tune bounds what the kernel holds of a TCP stream, and how long it waits for the other side.
// Without these options a stream works, but is slower to notice trouble.
func tune(conn net.Conn) {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, maxUnsent)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(ackTimeout.Milliseconds()))
	})
}

// write sends the frames that wait, and keepalives while there are none.
func (l *link) write(ctx context.Context, conn net.Conn) error {
	buf := make([]byte, chunk)
	unsent := deadline{set: conn.SetWriteDeadline, after: ackTimeout}
	quiet := time.NewTimer(keepalive)
	defer quiet.Stop()
	for {
		for n := l.out.take(buf); n > 0; n = l.out.take(buf) {
			if err := unsent.extend(); err != nil {
				return err
			}
			if _, err := conn.Write(buf[:n]); err != nil {
				return err
			}
		}
		quiet.Reset(keepalive)
		select {
		case <-l.out.ready:
		case <-quiet.C:
			l.out.put(frameKeepalive, nil)
		case <-ctx.Done():
			return nil
		}
	}
}

// deadline is one of a connection that moves with the clock. Each change of it costs a change of
// a timer, so it is changed once in deadlineStep.
type deadline struct {
	set   func(time.Time) error
	after time.Duration
	next  time.Time // when it is changed again
}

// extend moves the deadline to between after and deadlineStep more from now.
func (d *deadline) extend() error {
	now := time.Now()
	if now.Before(d.next) {
		return nil
	}
	d.next = now.Add(deadlineStep)
	return d.set(d.next.Add(d.after))
}

// watched is a stream that ends when nothing comes for deadAfter.
type watched struct {
	net.Conn
	silent deadline
}

func (w *watched) Read(b []byte) (int, error) {
	if err := w.silent.extend(); err != nil {
		return 0, err
	}
	return w.Conn.Read(b)
}

// read passes on the frames that come.
func (c *Carrier) read(l *link, conn net.Conn) error {
	used := time.Now()
	return frameReader{
		got: func(kind frameKind, payload []byte) error {
			if kind != frameKeepalive {
				used = time.Now()
			} else if !l.dialled && time.Since(used) > idleAfter {
				return errIdle
			}
			c.deliver(l, kind, payload)
			return nil
		},
		flush: func() { c.flush(l) },
	}.readAll(&watched{conn, deadline{set: conn.SetReadDeadline, after: deadAfter}})
}

// deliver passes on one frame, or prepares that for flush.
func (c *Carrier) deliver(l *link, kind frameKind, payload []byte) {
	switch {
	case len(payload) == 0:
	case kind == frameOwn:
		l.own.add(payload)
	case kind == frameRelayed && l.dialled:
		l.relay.add(payload)
	case kind == frameRelayed && c.o.Relay != nil:
		l.relayed = append(l.relayed, payload)
	case kind == frameGossip:
		c.o.Gossip(l.node, payload)
	}
}

// flush passes on the datagrams that have come since it was called last.
func (c *Carrier) flush(l *link) {
	l.own.flush()
	if l.dialled {
		l.relay.flush()
	}
	if len(l.relayed) > 0 {
		c.o.Relay(l.relayed, path.StreamAddr(l.node))
		l.relayed = l.relayed[:0]
	}
}
