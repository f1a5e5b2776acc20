// SPDX-License-Identifier: Apache-2.0

package metrics

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

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/meshd/meshd/internal/httplimit"
)

// stale is after how long without a turn the loop counts as hung. Turns are at most
// some ten seconds apart.
const stale = time.Minute

// How many scrapers there may be: of one address, and in all. Prometheus keeps one
// connection; a kubelet's probe opens one each time.
const (
	maxPerSource = 8
	maxTotal     = 64
)

// requestTimeout bounds how long a request may take.
const requestTimeout = 30 * time.Second

// Server serves metrics and health.
type Server struct {
	http     *http.Server
	limiter  *httplimit.Limiter
	addr     netip.AddrPort
	listener net.Listener // nil while there is none
	done     sync.WaitGroup
	log      *slog.Logger
}

// NewServer returns a server that does not listen yet; see [Server.Keep].
func NewServer(m *Metrics, log *slog.Logger) *Server {
	return &Server{
		log: log, http: httplimit.NewServer(handler(m), requestTimeout, log),
		limiter: httplimit.New(httplimit.Options{PerSource: maxPerSource, Total: maxTotal, Logger: log}),
	}
}

func handler(m *Metrics) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answer(w, m.health()) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { answer(w, m.readiness()) })
	return mux
}

// health says whether the loop takes turns.
func (m *Metrics) health() error {
	_, turned := m.last()
	if turned.IsZero() {
		return errors.New("no turn of the loop has ended yet")
	}
	if since := time.Since(turned); since > stale {
		return fmt.Errorf("the last turn of the loop ended %s ago", since.Round(time.Second))
	}
	return nil
}

// readiness says whether the node can carry pods, and is as it should be.
func (m *Metrics) readiness() error {
	s, _ := m.last()
	switch {
	case m.health() != nil:
		return m.health()
	case !s.Node.Ready:
		return errors.New("this node is not ready yet")
	case s.Reconcile.Error != "":
		return fmt.Errorf("reconcile fails: %s", s.Reconcile.Error)
	}
	return nil
}

func answer(w http.ResponseWriter, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

// Keep has the server listen on the address, and nowhere else; on the zero one it
// does not listen. It is for one goroutine, and may be called as often as one likes.
func (s *Server) Keep(addr netip.AddrPort) error {
	if s.addr != addr && s.listener != nil {
		_ = s.listener.Close()
		s.done.Wait() // not for requests under way, which go on
		s.listener = nil
	}
	s.addr = addr
	if s.listener != nil || !addr.IsValid() {
		return nil
	}
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr))
	if err != nil {
		return fmt.Errorf("serve metrics: %w", err)
	}
	s.listener = l
	s.done.Go(func() {
		err := s.http.Serve(s.limiter.Listener(l))
		if !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			s.log.Error("metrics are not served any more", "err", err)
		}
	})
	return nil
}

// Close stops serving and waits for requests under way, at most as long as ctx lives.
func (s *Server) Close(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, s.http.Close())
	}
	s.done.Wait()
	return err
}
