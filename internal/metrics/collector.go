// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"cmp"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshd/meshd/internal/control"
)

// describe returns the description of a metric without constant labels.
func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// The metrics that are read from a status.
var (
	descReady        = describe("meshd_node_ready", "Whether this node can carry pods.")
	descRole         = describe("meshd_node_role", "1, with the role of this node in its location. Absent where there are no gateways.", "role")
	descPeers        = describe("meshd_peers", "Other nodes, by whether gossip finds them alive.", "state")
	descPaths        = describe("meshd_paths", "WireGuard peers of this node, by the kind of the path to them: none if they don't answer on any.", "kind")
	descRelayNodes   = describe("meshd_relay_nodes", "Nodes that can be reached through this relay now. Absent where this node is not a relay, as the others are.")
	descRelayed      = describe("meshd_relayed_bytes_total", "Bytes of sealed packets that this relay has forwarded between others.")
	descRelayDropped = describe("meshd_relay_dropped_total", "Datagrams that this relay has not forwarded, by reason.", "reason")
	descClients      = describe("meshd_clients", "Clients that were added and not removed.")
	descProblems     = describe("meshd_problems", "Problems that meshd status shows, by kind.", "kind")
	descDropped      = describe("meshd_dropped_total", "Packets, streams and objects that were dropped, by reason.", "reason")
	descWrites       = describe("meshd_host_writes_total", "Calls that changed something on the host.")
	descAlive        = describe("meshd_peer_alive", "Whether gossip finds a node alive.", "peer")
	descHandshake    = describe("meshd_peer_last_handshake_timestamp_seconds", "Unix time of WireGuard's last handshake with a peer. Absent before the first one.", "peer")
	descReceived     = describe("meshd_peer_received_bytes_total", "Bytes that WireGuard has received from a peer.", "peer")
	descSent         = describe("meshd_peer_sent_bytes_total", "Bytes that WireGuard has sent to a peer.", "peer")
	descRTT          = describe("meshd_gossip_round_trip_seconds", "The last round-trip time of gossip to a node.", "peer")
)

// statusCollector exports the last status as metrics.
type statusCollector struct{ m *Metrics }

// Describe implements prometheus.Collector.
func (statusCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descReady, descRole, descPeers, descPaths, descClients, descProblems, descDropped, descWrites,
		descAlive, descHandshake, descReceived, descSent, descRTT, descRelayNodes, descRelayed, descRelayDropped,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c statusCollector) Collect(ch chan<- prometheus.Metric) {
	s, turned := c.m.last()
	if turned.IsZero() {
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	gauge(descReady, number(s.Node.Ready))
	if s.Node.Role != "" {
		gauge(descRole, 1, string(s.Node.Role))
	}
	states := map[string]int{"alive": 0, "absent": 0}
	for _, p := range s.Peers {
		states[stateOf(p)]++
	}
	for state, n := range states {
		gauge(descPeers, float64(n), state)
	}
	for kind, n := range paths(s.Peers) {
		gauge(descPaths, float64(n), string(kind))
	}
	if r := s.Relay; r != nil {
		gauge(descRelayNodes, float64(r.Nodes))
		counter(descRelayed, float64(r.Bytes))
		for reason, n := range r.Dropped {
			counter(descRelayDropped, float64(n), reason)
		}
	}
	gauge(descClients, float64(len(s.Clients)))
	kinds := make(map[string]int)
	for _, p := range s.Problems {
		kinds[string(p.Kind)]++
	}
	for kind, n := range kinds {
		gauge(descProblems, float64(n), kind)
	}
	for _, c := range s.Counters {
		counter(descDropped, float64(c.Count), c.Reason)
	}
	counter(descWrites, float64(s.Reconcile.Writes))
	for name, p := range byName(labelled(s.Peers)) {
		gauge(descAlive, number(p.Alive), name)
		if p.RTT > 0 {
			gauge(descRTT, p.RTT.Duration().Seconds(), name)
		}
		if !p.Endpoint.IsValid() {
			continue // it is not a WireGuard peer of this node
		}
		counter(descReceived, float64(p.Received), name)
		counter(descSent, float64(p.Sent), name)
		if !p.LastHandshake.IsZero() {
			gauge(descHandshake, float64(p.LastHandshake.UnixMilli())/1000, name)
		}
	}
}

// maxLabelled bounds the number of nodes with time series of their own: as many as gossip
// knows of at most. Nodes choose their names themselves, and a hostile one must not fill the
// database with thousands.
const maxLabelled = 1024

// labelled returns the nodes that get time series of their own. If there are too many, it
// prefers nodes with a handshake, then alive ones.
func labelled(peers []control.Peer) []control.Peer {
	if len(peers) <= maxLabelled {
		return peers
	}
	rank := func(p control.Peer) int { return 2*int(number(p.LastHandshake.IsZero())) + int(number(!p.Alive)) }
	sorted := slices.Clone(peers)
	slices.SortStableFunc(sorted, func(a, b control.Peer) int { return cmp.Compare(rank(a), rank(b)) })
	return sorted[:maxLabelled]
}

// byName returns the nodes by label. The label is the name; if several nodes have one
// name, all but the first also have their fingerprint in it.
func byName(peers []control.Peer) map[string]control.Peer {
	out := make(map[string]control.Peer, len(peers))
	for _, p := range peers {
		name := p.Name
		if _, taken := out[name]; taken {
			name += " " + p.ID.String()
		}
		out[name] = p
	}
	return out
}

// paths counts the peers by the kind of the path on which they answer.
func paths(peers []control.Peer) map[control.PathKind]int {
	counts := map[control.PathKind]int{
		control.PathNone: 0, control.PathLAN: 0, control.PathDirect: 0, control.PathRelayed: 0, control.PathTCP: 0,
	}
	for _, p := range peers {
		if kind := p.Path.Works(); kind != "" { // it is a WireGuard peer of this node
			counts[kind]++
		}
	}
	return counts
}

func stateOf(p control.Peer) string {
	if p.Alive {
		return "alive"
	}
	return "absent"
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
