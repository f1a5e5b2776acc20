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

// Limits on open connections: from one address, which sends a request a second, and in
// total.
const (
	maxPerSource = 16
	maxTotal     = 256
)

// requestTimeout bounds how long a request and its answer may take.
const requestTimeout = 10 * time.Second

// Requester is the host that sends a request.
type Requester struct {
	Addr   netip.Addr  // its source address, which WireGuard has checked
	Key    wgtypes.Key // the public key that it claims to have
	Silent []string    // public keys of nodes that don't answer it
}

// Source returns a client's current configuration; ok is false if the asker is not a
// client.
type Source func(Requester) (config control.ClientConfig, ok bool)

// ServerOptions configure a server.
type ServerOptions struct {
	Source   Source
	IsClient func(netip.Addr) bool // reports whether an address belongs to one client alone
	Cluster  string                // the cluster's name
	Identity ed25519.PrivateKey    // of this node; it signs the answers
	Logger   *slog.Logger
}

// NewServer returns a server that answers clients. It does not listen on any address yet.
func NewServer(o ServerOptions) *httplimit.Server {
	return httplimit.NewServer("answer clients", o.handler(), requestTimeout,
		httplimit.Options{PerSource: maxPerSource, Total: maxTotal, PerAddress: o.IsClient, Logger: o.Logger})
}

func (o ServerOptions) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+configPath, func(w http.ResponseWriter, r *http.Request) {
		from, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil {
			http.Error(w, "unknown source address", http.StatusBadRequest)
			return
		}
		q, err := parseQuestion(o.Cluster, r.URL.Query())
		if err != nil {
			http.Error(w, err.Error()+"; is meshd on this client older than on the nodes?", http.StatusBadRequest)
			return
		}
		status, body := http.StatusForbidden, []byte("you are not a client\n")
		if config, ok := o.Source(Requester{Addr: from.Addr().Unmap(), Key: q.client, Silent: r.URL.Query()["silent"]}); ok {
			status = http.StatusOK
			if body, err = json.Marshal(config); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
		}
		q.sign(w.Header(), o.Identity, status, body)
		w.WriteHeader(status)
		_, _ = w.Write(body) // it fails only if the client has closed the connection
	})
	return mux
}
