// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
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
		if !t.admitStream(source) {
			t.counters.add("stream-limit")
			reset(conn)
			continue
		}
		if !t.register(conn) {
			conn.Close()
			return
		}
		t.tasks.Go(func() { t.accept(conn, source) })
	}
}

// accept shakes hands with whoever has connected, and hands the stream to
// memberlist.
func (t *transport) accept(conn *net.TCPConn, source netip.Addr) {
	s, err := t.welcome(conn)
	if !t.finish(source, err == nil) && err == nil {
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
	s, err := welcome(conn, t.ring, t.random, t.self)
	if errors.Is(err, errSealed) {
		t.counters.add("stream-sealed")
		t.log.at(slog.LevelWarn, "stream does not open with our secret", "from", from)
		return nil, err
	}
	if err != nil {
		t.counters.add("stream-broken")
		return nil, err
	}
	if t.filter != nil && !t.filter(netip.AddrPortFrom(from.Addr(), s.peer.port)) {
		return nil, errNoPath
	}
	place := netip.AddrPortFrom(from.Addr(), s.peer.port)
	if err := t.judge(s.peer, place.String()); err != nil {
		return nil, err
	}
	t.mu.Lock()
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

// admitStream reserves a place among the streams that have yet to prove
// themselves.
func (t *transport) admitStream(source netip.Addr) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.waiting >= maxPendingStreams || t.pending[source] >= maxPendingPerSource {
		return false
	}
	t.waiting++
	t.pending[source]++
	return true
}

// finish gives that place back, and takes one among the streams that have.
func (t *transport) finish(source netip.Addr, proved bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiting--
	if t.pending[source]--; t.pending[source] == 0 {
		delete(t.pending, source)
	}
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
