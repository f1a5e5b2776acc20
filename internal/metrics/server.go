// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/meshd/meshd/internal/httplimit"
)

// stale is how long no turn may end before the loop counts as hung. Turns are at most about
// ten seconds apart.
const stale = time.Minute

// Limits on open connections: from one address, and in total. Prometheus keeps one
// connection; a kubelet's probe opens a new one each time.
const (
	maxPerSource = 8
	maxTotal     = 64
)

// requestTimeout bounds how long a request may take.
const requestTimeout = 30 * time.Second

// NewServer returns a server of metrics and health. It does not listen on any address
// yet.
func NewServer(m *Metrics, log *slog.Logger) *httplimit.Server {
	return httplimit.NewServer("serve metrics", handler(m), requestTimeout, httplimit.Options{PerSource: maxPerSource, Total: maxTotal, Logger: log})
}

func handler(m *Metrics) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answer(w, m.health()) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { answer(w, m.readiness()) })
	return mux
}

// health returns an error if the loop has stopped running.
func (m *Metrics) health() error {
	_, turned := m.last()
	if turned.IsZero() {
		return errors.New("no turn of the loop has ended yet")
	}
	if since := m.now().Sub(turned); since > stale {
		return fmt.Errorf("the last turn of the loop ended %s ago", since.Round(time.Second))
	}
	return nil
}

// readiness returns an error if the node can't carry pods or its last turn has failed.
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
