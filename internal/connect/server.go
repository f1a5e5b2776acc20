// SPDX-License-Identifier: Apache-2.0

package connect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
)

const configPath = "/v1/config"

// Source says how the client that has an address is to be configured now, if the
// nodes with some public keys don't answer it; ok is false for who is no client.
type Source func(client netip.Addr, silent []string) (config control.ClientConfig, ok bool)

// Server answers clients.
type Server struct {
	http      *http.Server
	log       *slog.Logger
	listeners map[netip.Addr]net.Listener
	done      sync.WaitGroup
}

// NewServer returns a server that does not listen yet; see [Server.Keep].
func NewServer(source Source, log *slog.Logger) *Server {
	return &Server{log: log, listeners: make(map[netip.Addr]net.Listener), http: &http.Server{
		Handler:           handler(source),
		ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout:      10 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}}
}

func handler(source Source) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+configPath, func(w http.ResponseWriter, r *http.Request) {
		from, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil {
			http.Error(w, "who asks?", http.StatusBadRequest)
			return
		}
		config, ok := source(from.Addr().Unmap(), r.URL.Query()["silent"])
		if !ok {
			http.Error(w, "you are no client", http.StatusForbidden)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(config) // who has gone misses it
	})
	return mux
}

// Keep has the server listen on these addresses, and nowhere else. It is for one
// goroutine, and may be called as often as one likes.
func (s *Server) Keep(addrs []netip.Addr) error {
	wanted := make(map[netip.Addr]bool)
	var errs []error
	for _, a := range addrs {
		wanted[a] = true
		if s.listeners[a] != nil {
			continue
		}
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, mesh.ClientPort)))
		if err != nil {
			errs = append(errs, fmt.Errorf("answer clients: %w", err))
			continue
		}
		s.listeners[a] = l
		s.done.Go(func() {
			if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
				s.log.Error("clients are not answered any more", "err", err)
			}
		})
	}
	for a, l := range s.listeners {
		if !wanted[a] {
			_ = l.Close()
			delete(s.listeners, a)
		}
	}
	return errors.Join(errs...)
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
