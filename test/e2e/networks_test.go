// SPDX-License-Identifier: Apache-2.0

//go:build !kernel

package e2e

import (
	"fmt"
	"testing"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/test/lab"
)

// TestHostKeepsItsNetwork gives a host a second card with a database behind it, first under
// the internal IP of another node, then in the cluster's pod range. The host reaches its
// database all the time, also over a restart of the daemon, and both nodes name the
// contradiction.
func TestHostKeepsItsNetwork(t *testing.T) {
	t.Parallel()
	m := settledMesh(t, lab.NAT, 2)
	server, other := m.nodes[0], m.nodes[1]
	m.card(server, "eth1", "database")
	m.commands(server, []string{"ip address add 10.60.0.1/16 dev eth1", "ip -n database address add 10.60.0.5/16 dev eth0"})
	reachesDatabase := func(server4, database string) {
		t.Helper()
		m.eventually(pingLimit, func() error {
			if out, err := server.Run(m.ctx, "ping", "-c", "1", "-W", "1", database); err != nil {
				return fmt.Errorf("from the server to %s: %w: %s", database, err, out)
			}
			if out, err := server.Run(m.ctx, "ip", "netns", "exec", "database", "ping", "-c", "1", "-W", "1", server4); err != nil {
				return fmt.Errorf("from the database to %s: %w: %s", server4, err, out)
			}
			return nil
		})
	}

	m.rewrite(other, "  internal-ip: 10.60.0.5/24")
	m.await(settleLimit, "aware of the other's internal IP in its network", notes("10.60.0.5/32 of node "+other.Name, "attached by eth1"), server)
	m.await(settleLimit, "aware of the server's network", notes("node "+server.Name+" does not reach 10.60.0.5/32", "meshd status on "+server.Name), other)
	reachesDatabase("10.60.0.1", "10.60.0.5")
	if m.routes(server, "10.60.0.5") {
		t.Error("the server routes its database's address into the mesh")
	}
	m.rewrite(other, "  internal-ip: none")
	m.await(settleLimit, "content", all(lacks(mesh.ProblemAddress), not(notes("10.60.0.5"))), server, other)
	if s := m.status(other); len(s.Node.InternalIPs) > 0 {
		t.Errorf("internal IPs though there are to be none: %v", s.Node.InternalIPs)
	}
	m.rewrite(other)

	pods := m.status(other).Node.PodCIDRs[0]
	host, database := pods.Addr().Next().String(), pods.Addr().Next().Next().String()
	m.commands(server, []string{
		fmt.Sprintf("ip address add %s/24 dev eth1", host), "ip -n database address flush dev eth0",
		fmt.Sprintf("ip -n database address add %s/24 dev eth0", database),
	})
	m.await(settleLimit, "aware of its network in the cluster's range", shows(mesh.ProblemRange, pods.String()+", to which this host is attached by eth1", "10.44.0.0/16"), server)
	m.await(settleLimit, "aware of the server's network", shows(mesh.ProblemAddress, "node "+server.Name+" does not reach "+pods.String(), "meshd status on "+server.Name), other)
	reachesDatabase(host, database)
	m.connected(pingLimit, m.nodes...)

	// A node that has run starts in such a network, too, and keeps it.
	m.must(server.Stop())
	reachesDatabase(host, database)
	m.start(server)
	m.await(settleLimit, "aware of its network in the cluster's range", shows(mesh.ProblemRange, pods.String()+", to which this host is attached by eth1", "10.44.0.0/16"), server)
	reachesDatabase(host, database)
	m.run(server, "ip", "address", "delete", host+"/24", "dev", "eth1")
	m.settle(settleLimit, m.nodes...)
	m.connected(pingLimit, m.nodes...)
	m.await(settleLimit, "content", all(lacks(mesh.ProblemRange), lacks(mesh.ProblemAddress)), m.nodes...)
}

// notes is shows for notes.
func notes(words ...string) func(control.Status) bool {
	return func(s control.Status) bool {
		s.Problems = s.Notes
		return shows(mesh.ProblemNote, words...)(s)
	}
}
