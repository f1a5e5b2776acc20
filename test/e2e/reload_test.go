// SPDX-License-Identifier: Apache-2.0

//go:build !kernel

package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/daemon"
	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/test/lab"
)

// routes reports whether a host has a route to a network through the mesh.
func (m *testbed) routes(n *lab.Node, network string) bool {
	m.t.Helper()
	return strings.Contains(m.run(n, "ip", "route", "show", "dev", device), network)
}

// TestReload reloads valid and invalid configurations.
func TestReload(t *testing.T) {
	t.Parallel()
	m := settledMesh(t, lab.NAT, 2)
	n, other := m.nodes[0], m.nodes[1]
	reaches := func(network string, want bool) {
		t.Helper()
		m.eventually(settleLimit, func() error {
			if got := m.routes(other, network); got != want {
				return fmt.Errorf("route to %s: got %t, want %t", network, got, want)
			}
			return nil
		})
	}
	serve := func(network string) string { return "  allowed-location-ips: [" + network + "]" }

	m.rewrite(n, serve("192.168.77.0/24"))
	reaches("192.168.77.0/24", true)

	// One key needs a restart: the other change does not count either.
	m.rewrite(n, serve("192.168.78.0/24"), "wireguard: {interface: other0}")
	m.await(settleLimit, "aware that a restart is needed", shows(daemon.ProblemConfiguration, "wireguard.interface", "restart"), n)
	// A file that can't be read, with its line.
	m.rewrite(n, serve("192.168.78.0/24"), "nodes: {}")
	s := m.await(settleLimit, "aware of the mistake", shows(daemon.ProblemConfiguration, lab.ConfigPath+":5: nodes", "did you mean node?"), n)[0]
	if shows(daemon.ProblemConfiguration, "wireguard.interface")(s) {
		t.Errorf("problems: got %+v, want those of the last reload alone", s.Problems)
	}
	if !m.routes(other, "192.168.77.0/24") || m.routes(other, "192.168.78.0/24") {
		t.Error("some of a configuration was taken over that was refused")
	}

	m.rewrite(n, serve("192.168.79.0/24"))
	m.await(settleLimit, "content", lacks(daemon.ProblemConfiguration), n)
	reaches("192.168.79.0/24", true)
	reaches("192.168.77.0/24", false)
	m.connected(pingLimit, m.nodes...)
	if got := strings.Count(n.Log(), "identity"); got < 1 || n.PID() == 0 {
		t.Errorf("the daemon did not run through: got log %s", n.Log())
	}
}

// settings returns a condition for await: these settings of the cluster are in force.
func settings(generation uint64, mode mesh.Mode, gateways int) func(control.Status) bool {
	return func(s control.Status) bool {
		return s.Cluster.Generation == generation && s.Cluster.Mode == mode && s.Cluster.Gateways == gateways
	}
}

// TestGenerations edits the files of three nodes one at a time. The mode cross is
// like full for nodes without a location, so that traffic goes on.
func TestGenerations(t *testing.T) {
	t.Parallel()
	m := settledMesh(t, lab.NAT, 3)
	a, b, c := m.nodes[0], m.nodes[1], m.nodes[2]
	second, third := "cluster: {generation: 2, mode: cross}", "cluster: {generation: 3, mode: cross, gateways: 2}"

	m.rewrite(a, second)
	m.await(settleLimit, "at generation 2", settings(2, mesh.ModeCross, 1), m.nodes...)
	m.await(settleLimit, "aware that its file is older", shows(gossip.ProblemSettings, "generation 2", "mode: cross"), b, c)
	m.await(settleLimit, "content", lacks(gossip.ProblemSettings), a)
	m.rewrite(b, second)
	m.await(settleLimit, "content", all(settings(2, mesh.ModeCross, 1), lacks(gossip.ProblemSettings)), b)

	// Adopted settings stay in force when no other node is there.
	for _, n := range m.nodes {
		m.must(n.Stop())
	}
	m.start(c)
	m.await(settleLimit, "at generation 2 alone", settings(2, mesh.ModeCross, 1), c)
	m.start(a, b)
	m.settle(settleLimit, m.nodes...)

	// One file has the same generation with other content: all nodes report it, and each
	// keeps its own settings.
	m.rewrite(c, "cluster: {generation: 2, mode: cross, gateways: 3}")
	m.await(settleLimit, "aware of the contradiction", shows(gossip.ProblemSettings, "gateways 1", "gateways 3", "higher cluster.generation"), m.nodes...)
	m.await(settleLimit, "true to its file", settings(2, mesh.ModeCross, 1), a, b)
	m.await(settleLimit, "true to its file", settings(2, mesh.ModeCross, 3), c)

	m.rewrite(b, third)
	m.await(settleLimit, "at generation 3", settings(3, mesh.ModeCross, 2), m.nodes...)
	m.rewrite(a, third)
	m.rewrite(c, third)
	m.await(settleLimit, "content", all(settings(3, mesh.ModeCross, 2), lacks(gossip.ProblemSettings)), m.nodes...)
	m.connected(pingLimit, m.nodes...)
}
