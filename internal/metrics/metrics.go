// SPDX-License-Identifier: Apache-2.0

// Package metrics serves the daemon's state to monitoring over HTTP. /metrics has what
// meshd status shows, and some counters, in Prometheus' text format; /healthz reports
// whether the daemon's loop runs, and /readyz whether this node can carry pods.
package metrics

import (
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/meshd/meshd/internal/control"
)

// Metrics collects the results of the turns of the daemon's loop. Make one with [New].
type Metrics struct {
	now       func() time.Time
	registry  *prometheus.Registry
	durations prometheus.Histogram
	results   *prometheus.CounterVec
	routes    prometheus.Counter

	mu     sync.Mutex
	status control.Status
	turned time.Time // when the last turn ended
}

// New returns the metrics of a daemon of the given version before its first turn. It takes
// the clock as now.
func New(version string, now func() time.Time) *Metrics {
	m := &Metrics{
		now:      now,
		registry: prometheus.NewRegistry(),
		durations: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "meshd_reconcile_duration_seconds", Help: "How long turns of the loop took.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}),
		results: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "meshd_reconciles_total", Help: "Turns of the loop, by result: ok or error.",
		}, []string{"result"}),
		routes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "meshd_path_changes_total", Help: "How often the route to another node has changed: to another gateway, or to none.",
		}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "meshd_build_info", Help: "1, with the version.", ConstLabels: prometheus.Labels{"version": version},
	})
	build.Set(1)
	for _, result := range []string{resultOK, resultError} {
		m.results.WithLabelValues(result) // so that both series start with 0
	}
	m.registry.MustRegister(build, m.durations, m.results, m.routes, statusCollector{m},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Values of the label result.
const (
	resultOK    = "ok"
	resultError = "error"
)

// Turn records a turn of the loop: the status after it, and how long it took.
func (m *Metrics) Turn(s control.Status, took time.Duration) {
	result := resultOK
	if s.Reconcile.Error != "" {
		result = resultError
	}
	m.results.WithLabelValues(result).Inc()
	m.durations.Observe(took.Seconds())
	m.mu.Lock()
	defer m.mu.Unlock()
	m.routes.Add(float64(changedRoutes(m.status.Peers, s.Peers)))
	m.status, m.turned = s, m.now()
}

// changedRoutes counts the nodes in both lists whose route has changed.
func changedRoutes(before, after []control.Peer) int {
	routes := make(map[string]control.Route, len(before))
	for _, p := range before {
		routes[p.ID.String()] = p.Route
	}
	changed := 0
	for _, p := range after {
		old, ok := routes[p.ID.String()]
		if ok && (old.Kind != p.Route.Kind || !slices.Equal(old.Via, p.Route.Via)) {
			changed++
		}
	}
	return changed
}

// last returns the status after the last turn, and when that turn ended.
func (m *Metrics) last() (control.Status, time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.status, m.turned
}
