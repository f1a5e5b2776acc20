// SPDX-License-Identifier: Apache-2.0

package connect

import (
	"crypto/ed25519"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/httplimit"
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

// NewServer returns a server that answers clients. It does not listen yet.
func NewServer(o ServerOptions) *httplimit.Server {
	return httplimit.NewServer("answer clients", o.handler(), requestTimeout,
		httplimit.Options{PerSource: maxPerSource, Total: maxTotal, Whole: o.IsClient, Logger: o.Logger})
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
