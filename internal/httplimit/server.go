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

// Server is an HTTP server with limits, on addresses that come and go.
type Server struct {
	what      string
	http      *http.Server
	limiter   *Limiter
	log       *slog.Logger
	listeners map[netip.AddrPort]net.Listener
	done      sync.WaitGroup
}

// NewServer returns a server that does not listen yet; see [Server.Keep]. What it does is
// for errors, as "serve metrics". A request has at most so much time.
func NewServer(what string, h http.Handler, limit time.Duration, o Options) *Server {
	return &Server{
		what: what, http: NewHTTP(h, limit, o.Logger), limiter: New(o), log: o.Logger,
		listeners: make(map[netip.AddrPort]net.Listener),
	}
}

// Keep has the server listen on these addresses, and nowhere else; the zero one counts
// for none. It is for one goroutine, and may be called as often as one likes.
func (s *Server) Keep(addrs ...netip.AddrPort) error {
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
		return fmt.Errorf("%s: %w", s.what, err)
	}
	s.listeners[at] = l
	s.done.Go(func() {
		if err := s.http.Serve(s.limiter.Listener(l)); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			s.log.Error("no requests are answered any more", "to", s.what, "at", at, "err", err)
		}
	})
	return nil
}

// Close stops answering and waits for requests under way, at most as long as ctx lives.
func (s *Server) Close(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, s.http.Close())
	}
	s.done.Wait()
	return err
}
