// SPDX-License-Identifier: Apache-2.0

package connect

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/httplimit"
	"github.com/meshd/meshd/internal/mesh"
)

// How many clients may ask at once: from one address, which asks once a second, and in
// all.
const (
	maxPerSource = 16
	maxTotal     = 256
)

// requestTimeout bounds how long a question and its answer may take.
const requestTimeout = 10 * time.Second

// Asker is who asks.
type Asker struct {
	Addr   netip.Addr  // as WireGuard has checked it
	Key    wgtypes.Key // as it says
	Silent []string    // public keys of nodes that don't answer it
}

// Source says how a client is to be configured now; ok is false for who is no client.
type Source func(Asker) (config control.ClientConfig, ok bool)

// ServerOptions say for whom a server answers, and how.
type ServerOptions struct {
	Source   Source
	IsClient func(netip.Addr) bool // whether an address is a client's, and no other's
	Cluster  string                // its name
	Identity ed25519.PrivateKey    // of this node; it signs the answers
	Logger   *slog.Logger
}

// Server answers clients.
type Server struct {
	http      *http.Server
	limiter   *httplimit.Limiter
	log       *slog.Logger
	listeners map[netip.Addr]net.Listener
	done      sync.WaitGroup
}

// NewServer returns a server that does not listen yet; see [Server.Keep].
func NewServer(o ServerOptions) *Server {
	return &Server{
		log: o.Logger, listeners: make(map[netip.Addr]net.Listener),
		http:    httplimit.NewServer(o.handler(), requestTimeout, o.Logger),
		limiter: httplimit.New(httplimit.Options{PerSource: maxPerSource, Total: maxTotal, Whole: o.IsClient, Logger: o.Logger}),
	}
}

func (o ServerOptions) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+configPath, func(w http.ResponseWriter, r *http.Request) {
		from, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil {
			http.Error(w, "who asks?", http.StatusBadRequest)
			return
		}
		q, err := parseQuestion(o.Cluster, r.URL.Query())
		if err != nil {
			http.Error(w, err.Error()+"; is meshd on this client older than on the nodes?", http.StatusBadRequest)
			return
		}
		status, body := http.StatusForbidden, []byte("you are no client\n")
		if config, ok := o.Source(Asker{Addr: from.Addr().Unmap(), Key: q.client, Silent: r.URL.Query()["silent"]}); ok {
			status = http.StatusOK
			if body, err = json.Marshal(config); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
		}
		q.sign(w.Header(), o.Identity, status, body)
		w.WriteHeader(status)
		_, _ = w.Write(body) // who has gone misses it
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
			if err := s.http.Serve(s.limiter.Listener(l)); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
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
