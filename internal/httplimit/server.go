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

// Server is an HTTP server with limits, whose addresses may change.
type Server struct {
	purpose   string // for errors
	http      *http.Server
	limiter   *Limiter
	log       *slog.Logger
	listeners map[netip.AddrPort]net.Listener
	done      sync.WaitGroup
}

// NewServer returns a server that does not listen yet; see [Server.EnsureListening]. The purpose, for
// example "serve metrics", appears in errors. A request may take at most limit.
func NewServer(purpose string, h http.Handler, limit time.Duration, o Options) *Server {
	return &Server{
		purpose: purpose, http: NewHTTP(h, limit, o.Logger), limiter: New(o), log: o.Logger,
		listeners: make(map[netip.AddrPort]net.Listener),
	}
}

// EnsureListening makes the server listen on exactly these addresses; invalid ones are ignored. It is
// idempotent and retries addresses that failed before. It must not be called by several
// goroutines.
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
	s.done.Go(func() {
		if err := s.http.Serve(s.limiter.Listener(l)); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			s.log.Error("the HTTP server has stopped", "purpose", s.purpose, "at", at, "err", err)
		}
	})
	return nil
}

// Close stops listening and waits for requests in progress until ctx ends.
func (s *Server) Close(ctx context.Context) error {
	err := Shutdown(ctx, s.http)
	s.done.Wait()
	return err
}

// Shutdown stops a server and waits for requests in progress until ctx ends. Then it closes
// their connections. It is no error that a listener was closed before: the server may not
// have noticed that yet.
func Shutdown(ctx context.Context, s *http.Server) error {
	err := s.Shutdown(ctx)
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	if err != nil {
		err = errors.Join(err, s.Close())
	}
	return err
}
