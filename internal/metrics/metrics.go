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
	changes   prometheus.Counter // of paths
	direct    prometheus.Histogram

	mu     sync.Mutex
	status control.Status
	turned time.Time           // when the last turn ended
	paths  map[string]peerPath // by fingerprint
}

// peerPath is what was last seen of the path to a peer.
type peerPath struct {
	path     control.Path
	appeared time.Time // when the peer became alive; zero while it is away
	direct   bool      // it has answered directly since
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
			Name: "meshd_route_changes_total", Help: "How often the route to another node has changed: to another gateway, or to none.",
		}),
		changes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "meshd_path_changes_total", Help: "How often WireGuard's packets to a peer have changed to another path.",
		}),
		direct: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "meshd_time_to_direct_seconds", Help: "Time from when a WireGuard peer has appeared until it first answers directly, or on the LAN.",
			Buckets: []float64{.1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800},
		}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "meshd_build_info", Help: "1, with the version.", ConstLabels: prometheus.Labels{"version": version},
	})
	build.Set(1)
	for _, result := range []string{resultOK, resultError} {
		m.results.WithLabelValues(result) // so that both series start with 0
	}
	m.registry.MustRegister(build, m.durations, m.results, m.routes, m.changes, m.direct, statusCollector{m},
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
	m.notePaths()
}

// Paths records the paths to the other nodes, which change between turns, too.
func (m *Metrics) Paths(peers []control.Peer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status.Peers = peers
	m.notePaths()
}

// notePaths counts what has become of the paths.
func (m *Metrics) notePaths() {
	now, paths := m.now(), make(map[string]peerPath)
	for _, p := range m.status.Peers {
		if p.Path.Kind == "" {
			continue // it is not a WireGuard peer of this node
		}
		id := p.ID.String()
		before := m.paths[id]
		if isPath(before.path) && isPath(p.Path) && !samePath(before.path, p.Path) {
			m.changes.Inc()
		}
		next := peerPath{path: p.Path}
		kind := p.Path.Works()
		isDirect := kind == control.PathLAN || kind == control.PathDirect
		if p.Alive || isDirect { // gossip may take it for dead for a moment
			next.appeared, next.direct = before.appeared, before.direct
			if next.appeared.IsZero() {
				next.appeared = now
			}
			if isDirect && !next.direct {
				next.direct = true
				m.direct.Observe(now.Sub(next.appeared).Seconds())
			}
		}
		paths[id] = next
	}
	m.paths = paths
}

func isPath(p control.Path) bool { return p.Kind != "" && p.Kind != control.PathNone }

func samePath(a, b control.Path) bool {
	return a.Kind == b.Kind && a.Addr == b.Addr && a.Relay == b.Relay
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
