// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"io"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/test/lab"
)

// says reports whether the status mentions something: in an error, or in a problem with
// its advice.
func says(s control.Status, texts ...string) bool {
	told := []string{s.Reconcile.Error}
	for _, p := range s.Problems {
		told = append(told, p.Text+" "+p.Advice)
	}
	return slices.ContainsFunc(told, func(one string) bool {
		return !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(one, text) })
	})
}

// well is a condition for Await: the node is ready and has no problems.
func well(s control.Status) bool {
	return lab.Ready(s) && s.Reconcile.Error == "" && len(s.Problems) == 0
}

func (m *testbed) commands(n *lab.Node, commands []string) {
	m.t.Helper()
	for _, command := range commands {
		words := strings.Fields(command)
		m.run(n, words[0], words[1:]...)
	}
}

// TestTakenPorts has another program listen on the daemon's ports.
func TestTakenPorts(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 1)
	n := m.nodes[0]
	t.Run("gossip", func(t *testing.T) {
		m := m.in(t)
		taken := m.listen(n, "tcp", ":7946")
		m.refuses(n, "7946", "gossip.bind")
		m.must(taken.Close())
	})
	t.Run("WireGuard", func(t *testing.T) {
		m := m.in(t)
		taken := m.listen(n, "udp", ":51820")
		m.start(n)
		m.await(settleLimit, "aware that its port is taken", func(s control.Status) bool { return says(s, "51820", "wireguard.listen-port") }, n)
		m.must(taken.Close())
		m.await(settleLimit, "well", well, n)
	})
	t.Run("metrics", func(t *testing.T) {
		m := m.in(t)
		m.must(n.Stop())
		taken := m.listen(n, "tcp", lab.MetricsAddress)
		m.start(n)
		m.await(settleLimit, "aware that its port is taken", func(s control.Status) bool { return says(s, "9586", "metrics.listen") }, n)
		m.must(taken.Close())
		m.await(settleLimit, "well", well, n)
	})
}

// TestLateAddress starts a daemon before DHCP has given the host the address that its
// configuration counts on.
func TestLateAddress(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.Routed, 1)
	n := m.nodes[0]
	m.must(n.Configure(lab.Config(n.Name, nil, "  location: office", "cluster: {mode: location}", `gossip: {bind: "192.168.77.1:7946"}`), m.secret))
	m.start(n)
	m.await(settleLimit, "aware of the missing address", func(s control.Status) bool {
		return says(s, "no private address", "node.internal-ip") && says(s, "gossip.bind is 192.168.77.1:7946", "not an address of this host")
	}, n)
	m.run(n, "ip", "address", "add", "192.168.77.1/24", "dev", lab.HostLink)
	m.await(settleLimit, "well in its location", func(s control.Status) bool { return well(s) && s.Node.Location == "office" }, n)
}

func (m *testbed) listen(n *lab.Node, network, address string) io.Closer {
	m.t.Helper()
	var c io.Closer
	m.must(n.Do(func() (err error) {
		if network == "udp" {
			c, err = net.ListenPacket(network, address)
		} else {
			c, err = net.Listen(network, address)
		}
		return err
	}))
	return c
}

// TestWithoutIPv6 has hosts on which IPv6 is switched off, as many clouds do.
func TestWithoutIPv6(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 2)
	for _, n := range m.nodes {
		m.commands(n, []string{"sysctl -q -w net.ipv6.conf.all.disable_ipv6=1", "sysctl -q -w net.ipv6.conf.default.disable_ipv6=1"})
		if found := m.check(n); found != nil {
			t.Errorf("errors on %s: got %+v, want none", n.Name, found)
		}
	}
	m.start(m.nodes...)
	m.settle(settleLimit, m.nodes...)
	m.connected(pingLimit, m.nodes...)
	m.reaches(m.pod(m.nodes[0], "near"), m.pod(m.nodes[1], "far"))
	m.await(settleLimit, "well", well, m.nodes...)
}

// TestUplinkGoesAndComes sets a host's only link down and up again. Its routes are gone
// until the test adds them again.
func TestUplinkGoesAndComes(t *testing.T) {
	t.Parallel()
	m := settledMesh(t, lab.NAT, 3)
	before := addresses(t, m.settle(settleLimit, m.nodes...))
	m.connected(pingLimit, m.nodes...)
	n := m.nodes[1]
	m.run(n, "ip", "link", "set", lab.HostLink, "down")
	m.await(settleLimit, "aware of one dead peer", lab.Sees(1), m.nodes[0], m.nodes[2])
	m.await(settleLimit, "alone, and aware of why", all(lab.Sees(0), shows(node.ProblemUplink, "no default route"), shows(gossip.ProblemJoin, "of the join list does", "gossip port")), n)
	m.commands(n, []string{"ip link set " + lab.HostLink + " up", "ip route add default via 192.168.2.254"})
	after := addresses(t, m.settle(settleLimit, m.nodes...))
	m.connected(pingLimit, m.nodes...)
	if !slices.Equal(before, after) {
		t.Errorf("addresses after the link came back: got %q, want %q", after, before)
	}
}

// refuses runs a daemon that must exit by itself and print the given texts.
func (m *testbed) refuses(n *lab.Node, texts ...string) {
	m.t.Helper()
	_, err := n.Meshd(m.ctx, "run")
	if err == nil {
		m.t.Fatal("the daemon ended without an error")
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			m.t.Errorf("what the daemon says: got %v, want %q in it", err, text)
		}
	}
}
