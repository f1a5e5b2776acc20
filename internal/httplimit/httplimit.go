// SPDX-License-Identifier: Apache-2.0

// Package httplimit limits the resources that unauthenticated hosts can use up on an HTTP
// server: the number of connections, from one source and in total, the time that each may
// take, and the bytes that it may send. Without these limits idle connections could use
// up the file descriptors of the whole process, and gossip could not accept any more.
//
// A [Limiter] wraps the listeners of one server, which share the limits. A [Server] is an
// HTTP server with a limiter, on changing addresses. A source that has reached its own
// limit loses its oldest connection for a new one. When the total is reached, a new
// connection replaces the oldest one of the source that has the most, if that has more
// than the new one's source.
package httplimit

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/time/rate"
)

// Bounds of one request. What the daemon serves takes milliseconds.
const (
	headerTimeout  = 5 * time.Second
	idleTimeout    = 30 * time.Second
	maxHeaderBytes = 16 << 10
	maxBody        = 64 << 10
	// logEvery is how often closed connections are logged at most.
	logEvery = time.Minute
)

// Options are the limits on connections.
type Options struct {
	PerSource int // from one IPv4 address, or one IPv6 /64
	Total     int // New lowers it to an eighth of the process's file descriptors
	// PerAddress reports whether an IPv6 address is a source by itself, because its host can't
	// choose other addresses of its /64. nil for none.
	PerAddress func(netip.Addr) bool
	Logger     *slog.Logger
}

// Limiter counts and limits the connections of one server.
type Limiter struct {
	Options
	logLimit *rate.Limiter

	mu     sync.Mutex
	total  int
	conns  map[netip.Prefix][]*conn // by source, the oldest first
	closed int                      // since the last log line
}

// New returns a limiter without connections.
func New(o Options) *Limiter {
	var descriptors syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &descriptors); err == nil {
		o.Total = min(o.Total, max(int(min(descriptors.Cur, 1<<20)/8), 1))
	}
	return &Limiter{Options: o, logLimit: rate.NewLimiter(rate.Every(logEvery), 1), conns: make(map[netip.Prefix][]*conn)}
}

// Listener returns a listener with the limits. Its Accept closes connections beyond them
// and waits for the next one.
func (l *Limiter) Listener(inner net.Listener) net.Listener {
	return &listener{Listener: inner, limiter: l}
}

type listener struct {
	net.Listener
	limiter *Limiter
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if admitted, ok := l.limiter.admit(c); ok {
			return admitted, nil
		}
		abort(c)
	}
}

// conn is an admitted connection.
type conn struct {
	net.Conn
	limiter *Limiter
	source  netip.Prefix
	since   time.Time
	once    sync.Once
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.limiter.mu.Lock()
		defer c.limiter.mu.Unlock()
		c.limiter.remove(c)
	})
	return c.Conn.Close()
}

// abort closes a connection with a reset, so that the kernel keeps no state of it.
func abort(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}

// admit counts a new connection, and closes an old one in its place if a limit is
// reached. It returns false if the new one must be closed.
func (l *Limiter) admit(inner net.Conn) (*conn, bool) {
	c := &conn{Conn: inner, limiter: l, source: l.source(inner), since: time.Now()}
	l.mu.Lock()
	own := len(l.conns[c.source])
	var victim *conn
	switch {
	case own >= l.PerSource:
		victim = l.conns[c.source][0]
	case l.total >= l.Total:
		victim = l.victim(own)
	}
	ok := victim != nil || l.total < l.Total
	if victim != nil {
		l.remove(victim)
	}
	if ok {
		l.total++
		l.conns[c.source] = append(l.conns[c.source], c)
	}
	if !ok || victim != nil {
		l.logClosed(c.source)
	}
	l.mu.Unlock()
	if victim != nil {
		abort(victim.Conn)
	}
	return c, ok
}

// victim returns the connection to close for a new one whose source has own connections:
// the oldest one of the source that has the most, or nil if none has more than own. Of
// several such sources it takes the one whose oldest connection is older.
func (l *Limiter) victim(own int) (victim *conn) {
	most := own
	for _, conns := range l.conns {
		if n := len(conns); n > most || n == most && victim != nil && conns[0].since.Before(victim.since) {
			most, victim = n, conns[0]
		}
	}
	return victim
}

// remove stops counting a connection, if it is still counted.
func (l *Limiter) remove(c *conn) {
	conns := l.conns[c.source]
	for i, o := range conns {
		if o != c {
			continue
		}
		l.total--
		if len(conns) == 1 {
			delete(l.conns, c.source)
			return
		}
		l.conns[c.source] = append(conns[:i:i], conns[i+1:]...)
		return
	}
}

// logClosed logs that connections were closed, at most once per logEvery.
func (l *Limiter) logClosed(source netip.Prefix) {
	l.closed++
	if l.Logger != nil && l.logLimit.Allow() {
		l.Logger.LogAttrs(context.Background(), slog.LevelWarn, "too many HTTP connections: some were closed",
			slog.Any("source", source), slog.Int("closed", l.closed), slog.Int("total", l.total))
		l.closed = 0
	}
}

// source returns the prefix by which a connection is counted. All connections of a unix
// socket have the same source.
func (l *Limiter) source(c net.Conn) netip.Prefix {
	at, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return netip.Prefix{}
	}
	a, bits := at.Addr().Unmap().WithZone(""), 64
	if a.Is4() || l.PerAddress != nil && l.PerAddress(a) {
		bits = a.BitLen()
	}
	return netip.PrefixFrom(a, bits).Masked()
}
