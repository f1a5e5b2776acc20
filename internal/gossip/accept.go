// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"
)

// acceptStreams takes streams in, until the listener is closed.
func (t *transport) acceptStreams() {
	for {
		conn, err := t.tcp.AcceptTCP()
		if t.ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return
		}
		if err != nil {
			t.log.at(slog.LevelWarn, "accept gossip stream", "err", err)
			t.pause()
			continue
		}
		source := sourceOf(remote(conn).Addr())
		if !t.admitStream(conn, source) {
			t.counters.add("stream-limit")
			reset(conn)
			continue
		}
		if !t.register(conn) {
			conn.Close()
			return
		}
		t.tasks.Go(func() { t.accept(conn) })
	}
}

// accept shakes hands with whoever has connected, and hands the stream to
// memberlist.
func (t *transport) accept(conn *net.TCPConn) {
	s, err := t.welcome(conn)
	if !t.finish(conn, err == nil) && err == nil {
		t.counters.add("stream-limit")
		reset(conn)
		t.forget(conn)
		return
	}
	if err != nil {
		conn.Close()
		t.forget(conn)
		return
	}
	s.closed = func() {
		t.forget(conn)
		t.mu.Lock()
		t.accepted--
		t.mu.Unlock()
	}
	select {
	case t.streams <- s:
	case <-t.ctx.Done():
		s.Close()
	}
}

// welcome answers the hello of a stranger, and judges him.
func (t *transport) welcome(conn *net.TCPConn) (*stream, error) {
	from := remote(conn)
	if err := conn.SetDeadline(time.Now().Add(helloTimeout)); err != nil {
		return nil, err
	}
	s, err := welcome(conn, t.keys(), t.random, t.ourHello())
	if errors.Is(err, errSealed) {
		t.counters.add("stream-sealed")
		t.log.at(slog.LevelWarn, "stream does not open with our secret", "from", from)
		return nil, err
	}
	if err != nil {
		t.counters.add("stream-broken")
		return nil, err
	}
	if t.filter != nil && !t.filter("tcp", netip.AddrPortFrom(from.Addr(), s.peer.port)) {
		return nil, errNoPath
	}
	place := netip.AddrPortFrom(from.Addr(), s.peer.port)
	if err := t.judge(s.peer, place.String()); err != nil {
		return nil, err
	}
	t.mu.Lock()
	t.replays.resume(s.peer.id, s.peer.boot, s.peer.counter)
	t.paths.suppose(s.peer.id, place)
	t.observe(s.peer.id, s.peer.you, t.now())
	t.mu.Unlock()
	return s, conn.SetDeadline(time.Time{})
}

// sourceOf is what counts as one source of streams: an IPv6 host has a whole
// /64 to itself.
func sourceOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return a
	}
	return must(a.WithZone("").Prefix(64)).Addr()
}

// pendingStream is a stream that has yet to prove itself.
type pendingStream struct {
	conn   *net.TCPConn
	source netip.Addr
}

// admitStream reserves a place among the streams that have yet to prove
// themselves. If all are taken, the oldest one loses its own: an honest stream
// needs it for a round trip or two, so that those who sit there in silence,
// from however many addresses, don't keep it out.
func (t *transport) admitStream(conn *net.TCPConn, source netip.Addr) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	same := 0
	for _, p := range t.pending {
		if p.source == source {
			same++
		}
	}
	if same >= maxPendingPerSource {
		return false
	}
	if len(t.pending) >= maxPendingStreams {
		t.counters.add("stream-limit")
		reset(t.pending[0].conn) // which ends its accept
		t.pending = slices.Delete(t.pending, 0, 1)
	}
	t.pending = append(t.pending, pendingStream{conn, source})
	return true
}

// finish gives that place back, and takes one among the streams that have.
func (t *transport) finish(conn *net.TCPConn, proved bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pending = slices.DeleteFunc(t.pending, func(p pendingStream) bool { return p.conn == conn })
	if !proved || t.accepted >= maxStreams {
		return false
	}
	t.accepted++
	return true
}

// reset closes a connection so that the other side sees an error, not the
// silence by which it would recognise another secret.
func reset(conn *net.TCPConn) {
	_ = conn.SetLinger(0)
	conn.Close()
}
