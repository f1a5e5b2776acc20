// SPDX-License-Identifier: Apache-2.0

package httplimit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// HTTP is an HTTP server that limits the size and the time of each request.
type HTTP struct {
	purpose string // for errors
	log     *slog.Logger
	server  *http.Server
	serving sync.WaitGroup
}

// NewHTTP returns a server without listeners. The purpose, for example "serve metrics",
// appears in errors. A request may take at most limit; that goes for reading, too, because
// net/http ends the context of a request when the time for reading it is over.
func NewHTTP(purpose string, h http.Handler, limit time.Duration, log *slog.Logger) *HTTP {
	return &HTTP{purpose: purpose, log: log, server: &http.Server{
		Handler:           http.MaxBytesHandler(h, maxBody),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       limit,
		WriteTimeout:      limit,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}}
}

// Serve answers at a listener in the background, until the listener or the server is
// closed.
func (s *HTTP) Serve(l net.Listener) {
	s.serving.Go(func() {
		if err := s.server.Serve(l); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			s.log.Error("the HTTP server has stopped", "purpose", s.purpose, "at", l.Addr(), "err", err)
		}
	})
}

// Close closes the listeners, and waits for requests in progress until ctx ends. Then it
// closes their connections.
func (s *HTTP) Close(ctx context.Context) error {
	err := s.server.Shutdown(ctx)
	if errors.Is(err, net.ErrClosed) {
		err = nil // a listener was closed before, which the server has not noticed yet
	}
	if err != nil {
		err = errors.Join(err, s.server.Close())
	}
	s.serving.Wait()
	return err
}

// Server is an HTTP server with limits on requests and connections, whose addresses may
// change.
type Server struct {
	*HTTP
	limiter   *Limiter
	listeners map[netip.AddrPort]net.Listener
}

// NewServer returns a server that does not listen yet; see [Server.EnsureListening]. The
// other arguments are those of [NewHTTP].
func NewServer(purpose string, h http.Handler, limit time.Duration, o Options) *Server {
	return &Server{HTTP: NewHTTP(purpose, h, limit, o.Logger), limiter: New(o), listeners: make(map[netip.AddrPort]net.Listener)}
}

// EnsureListening makes the server listen on exactly these addresses; invalid ones are
// ignored. It is idempotent and retries addresses that failed before. It must not be called
// by several goroutines.
func (s *Server) EnsureListening(addrs ...netip.AddrPort) error {
	wanted := make(map[netip.AddrPort]bool)
	for _, a := range addrs {
		if a.IsValid() {
			wanted[a] = true
		}
	}
	for a, l := range s.listeners {
		if !wanted[a] {
			_ = l.Close()
			delete(s.listeners, a)
		}
	}
	var errs []error
	for a := range wanted {
		if s.listeners[a] == nil {
			errs = append(errs, s.listen(a))
		}
	}
	return errors.Join(errs...)
}

func (s *Server) listen(at netip.AddrPort) error {
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return fmt.Errorf("%s: %w", s.purpose, err)
	}
	s.listeners[at] = l
	s.Serve(s.limiter.Listener(l))
	return nil
}
