// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"time"
)

// acceptStreams accepts streams, over TLS or not, until the listener is closed.
func (t *transport) acceptStreams(l *net.TCPListener, isTLS bool) {
	for {
		conn, err := l.AcceptTCP()
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
		t.tasks.Go(func() { t.accept(conn, isTLS) })
	}
}

// accept runs the handshake with the node that has connected, and hands the stream to
// memberlist or to the carrier. A host that only looks is answered here.
func (t *transport) accept(conn *net.TCPConn, isTLS bool) {
	s, err := t.acceptHandshake(conn, isTLS)
	if err != nil {
		t.mu.Lock()
		t.removePending(conn)
		t.mu.Unlock()
		conn.Close()
		t.unregister(conn)
		return
	}
	if s.peer.carries {
		t.acceptCarrier(conn, s)
		return
	}
	if !t.moveToProved(conn, s) {
		reset(conn)
		t.unregister(conn)
		return
	}
	if s.peer.looks {
		s.closed = func() {
			t.unregister(conn)
			t.removeProved(conn, s)
		}
		t.show(s)
		return
	}
	t.countOpening(s.peer.id, remote(conn).Addr())
	t.countStream(s)
	s.closed = func() {
		t.unregister(conn)
		t.removeProved(conn, s)
	}
	select {
	case t.streams <- s:
	case <-t.ctx.Done():
		s.Close()
	}
}

// acceptHandshake answers the hello of an unknown peer, and checks the peer.
func (t *transport) acceptHandshake(conn *net.TCPConn, isTLS bool) (*stream, error) {
	from := remote(conn)
	deadline := time.Now().Add(helloTimeout)
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	var peer net.Conn = conn
	if isTLS {
		o := t.newOpening(conn, deadline)
		defer o.lift()
		var err error
		if peer, err = o.acceptTLS(t.tls); err != nil {
			t.counters.add("stream-tls")
			t.log.at(slog.LevelDebug, "stream refused", "from", from, "err", err)
			return nil, err
		}
	}
	s, err := t.handshaker().respond(peer, t.ourHello())
	if err != nil {
		t.refuse(from, err)
		return nil, err
	}
	if s.peer.looks {
		return s, nil
	}
	if t.filter != nil && !t.filter("tcp", netip.AddrPortFrom(from.Addr(), s.peer.port)) {
		return nil, errNoAddress
	}
	place := netip.AddrPortFrom(from.Addr(), s.peer.port)
	if err := t.checkPeer(s.peer, place.String()); err != nil {
		return nil, err
	}
	t.mu.Lock()
	t.replays.resume(s.peer.id, s.peer.boot, s.peer.counter)
	t.addresses.setGuess(s.peer.id, place)
	t.mu.Unlock()
	t.noteMet(s.peer.id)
	return s, conn.SetDeadline(time.Time{})
}

// refuse counts and logs why a stream is refused.
func (t *transport) refuse(from netip.AddrPort, err error) {
	for sentinel, r := range map[error]struct {
		level           slog.Level // a warning only where the other side has the secret: anybody may send the rest
		reason, message string
	}{
		errSealed:  {slog.LevelInfo, "stream-sealed", "stream can't be decrypted with our secret"},
		errVersion: {slog.LevelInfo, "stream-version", "stream uses another version of the gossip format"},
		errProof:   {slog.LevelWarn, "stream-proof", "stream does not prove the identity that it claims"},
	} {
		if errors.Is(err, sentinel) {
			t.counters.add(r.reason)
			t.log.at(r.level, r.message, "from", from)
			return
		}
	}
	t.counters.add("stream-broken")
}

// reset closes a connection so that the other side sees an error. If it were closed
// normally, the other side would conclude that the secrets differ.
func reset(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	conn.Close()
}
