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
		if !t.register(conn) {
			conn.Close()
			return
		}
		t.admitStream(conn, remote(conn).Addr())
		t.tasks.Go(func() { t.accept(conn) })
	}
}

// accept shakes hands with whoever has connected, and hands the stream to
// memberlist.
func (t *transport) accept(conn *net.TCPConn) {
	s, err := t.welcome(conn)
	if err != nil {
		t.mu.Lock()
		t.leavePending(conn)
		t.mu.Unlock()
		conn.Close()
		t.forget(conn)
		return
	}
	if !t.prove(conn, s) {
		reset(conn)
		t.forget(conn)
		return
	}
	s.closed = func() {
		t.forget(conn)
		t.leave(conn, s)
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
	ours := t.ourHello()
	ours.you = from
	s, err := t.greeter().welcome(conn, ours)
	if err != nil {
		t.refuse(from, err)
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
	t.mu.Unlock()
	t.hearVoice(s, true)
	t.tasks.Go(func() { t.dialBack(s.peer.id, place) })
	return s, conn.SetDeadline(time.Time{})
}

// refuse counts and logs why a stream is not let in.
func (t *transport) refuse(from netip.AddrPort, err error) {
	for sentinel, r := range map[error]struct{ reason, message string }{
		errSealed:  {"stream-sealed", "stream does not open with our secret"},
		errVersion: {"stream-version", "stream speaks another version of the gossip format"},
		errProof:   {"stream-proof", "stream does not prove the identity that it claims"},
	} {
		if errors.Is(err, sentinel) {
			t.counters.add(r.reason)
			t.log.at(slog.LevelWarn, r.message, "from", from)
			return
		}
	}
	t.counters.add("stream-broken")
}

// reset closes a connection so that the other side sees an error, not the
// silence by which it would recognise another secret.
func reset(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	conn.Close()
}
