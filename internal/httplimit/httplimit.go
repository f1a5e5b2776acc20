// SPDX-License-Identifier: Apache-2.0

// Package httplimit bounds what a stranger can cost an HTTP server: how many
// connections there are, from one source and in all, how long each may take, and how
// much it may send. Without it, idle connections use up the descriptors of the whole
// process, and gossip accepts nothing more.
//
// A [Server] has the limits on each address that it listens on. A [Limiter] wraps the
// listeners of one server, which share them. When all places are taken, a newcomer gets
// that of the oldest connection of the source that has the most, which is its own if it
// has its share: who sits on many connections loses them to who needs one.
package httplimit

import (
	"context"
	"log/slog"
	"net"
	"net/http"
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
	// logEvery is how often it is logged that connections were closed.
	logEvery = time.Minute
)

// NewHTTP returns a server that gives each request little room, and at most so much
// time. Reading has as much as answering: when the time to read is over, net/http ends
// the context of a request that is still being answered.
func NewHTTP(h http.Handler, limit time.Duration, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           http.MaxBytesHandler(h, maxBody),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       limit,
		WriteTimeout:      limit,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// Options say how many connections there may be.
type Options struct {
	PerSource int // of one address, in IPv6 of one /64
	Total     int // at most an eighth of the process's descriptors, whatever it says
	// Whole reports whether an IPv6 address counts by itself: whoever has it can't
	// choose others of its /64. nil for none.
	Whole  func(netip.Addr) bool
	Logger *slog.Logger
}

// Limiter counts the connections of one server.
type Limiter struct {
	Options
	limit *rate.Limiter // of the log

	mu     sync.Mutex
	total  int
	conns  map[netip.Prefix][]*conn // by source, the oldest first
	closed int                      // since it was logged last
}

// New returns a limiter without connections.
func New(o Options) *Limiter {
	var descriptors syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &descriptors); err == nil {
		o.Total = min(o.Total, max(int(min(descriptors.Cur, 1<<20)/8), 1))
	}
	return &Limiter{Options: o, limit: rate.NewLimiter(rate.Every(logEvery), 1), conns: make(map[netip.Prefix][]*conn)}
}

// Listener returns l with the limits. Accept closes connections beyond them, and goes
// on to the next one.
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

// abort closes a connection without a farewell: the kernel keeps nothing of it.
func abort(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}

// admit gives a connection a place, if it may have one.
func (l *Limiter) admit(inner net.Conn) (*conn, bool) {
	c := &conn{Conn: inner, limiter: l, source: l.source(inner), since: time.Now()}
	l.mu.Lock()
	own := len(l.conns[c.source])
	var out *conn
	switch {
	case own >= l.PerSource:
		out = l.conns[c.source][0]
	case l.total >= l.Total:
		out = l.victim(own)
	}
	ok := out != nil || l.total < l.Total
	if out != nil {
		l.remove(out)
	}
	if ok {
		l.total++
		l.conns[c.source] = append(l.conns[c.source], c)
	}
	if !ok || out != nil {
		l.complain(c.source)
	}
	l.mu.Unlock()
	if out != nil {
		abort(out.Conn)
	}
	return c, ok
}

// victim is the oldest connection of the source that has the most, if that has more
// than a newcomer's source. Of several such sources it is the one whose oldest
// connection is older.
func (l *Limiter) victim(own int) (out *conn) {
	most := own
	for _, conns := range l.conns {
		if n := len(conns); n > most || n == most && out != nil && conns[0].since.Before(out.since) {
			most, out = n, conns[0]
		}
	}
	return out
}

// remove takes a connection's place back, if it has one still.
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

// complain logs now and then that connections were closed.
func (l *Limiter) complain(source netip.Prefix) {
	l.closed++
	if l.Logger != nil && l.limit.Allow() {
		l.Logger.LogAttrs(context.Background(), slog.LevelWarn, "too many HTTP connections: some were closed",
			slog.Any("source", source), slog.Int("closed", l.closed), slog.Int("total", l.total))
		l.closed = 0
	}
}

// source is what a connection counts for. Those of a unix socket are all of one.
func (l *Limiter) source(c net.Conn) netip.Prefix {
	at, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return netip.Prefix{}
	}
	a, bits := at.Addr().Unmap().WithZone(""), 64
	if a.Is4() || l.Whole != nil && l.Whole(a) {
		bits = a.BitLen()
	}
	return netip.PrefixFrom(a, bits).Masked()
}
