// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/test/lab"
)

// carrier is how the kernel shows that nobody serves a persistent TUN device:
// its configuration stays, traffic waits.
var carrier = regexp.MustCompile(` linkdown|,LOWER_UP`)

func withoutCarrier(state map[string]string) map[string]string {
	for k, v := range state {
		state[k] = carrier.ReplaceAllString(v, "")
	}
	return state
}

func TestStopChangesNothing(t *testing.T) {
	onUnderlays(t, func(t *testing.T, u lab.Underlay) {
		m := settledMesh(t, u, 2)
		n := m.nodes[0]
		before := withoutCarrier(m.hostState(n.Host))
		m.must(n.Stop())
		if diff := cmp.Diff(before, withoutCarrier(m.hostState(n.Host))); diff != "" {
			t.Errorf("the host after a stop (-before +after):\n%s", diff)
		}
		m.start(n)
		m.settle(settleLimit, m.nodes...)
		m.connected(pingLimit, m.nodes...)
	})
}

// foreign is configuration that is not meshd's, much of it close to what is.
var foreign = []string{
	"ip link add foreign-br type bridge",
	"ip link set foreign-br up",
	"ip address add 10.98.0.1/24 dev foreign-br",
	"ip route add 10.99.0.0/24 via 10.98.0.2 proto static",
	"ip tuntap add foreign0 mode tun",
	"ip address add 10.97.0.1/32 dev foreign0",
	"ip link set foreign0 up",
	"ip route add 10.97.1.0/24 dev foreign0",
	"ip rule add from 10.99.0.0/24 lookup 99",
	"ip route add 10.96.0.0/24 dev foreign-br table 99",
	"nft add table inet foreign",
	"nft add chain inet foreign forward { type filter hook forward priority 0 ; }",
	"nft add rule inet foreign forward ip daddr 10.99.0.1 drop",
	"iptables -A FORWARD -s 10.99.0.0/24 -j ACCEPT",
	"mkdir -p /etc/cni/net.d /opt/cni/bin",
	"touch /etc/cni/net.d/20-foreign.conflist /opt/cni/bin/foreign",
}

func TestDownRemovesExactlyOurs(t *testing.T) {
	onUnderlays(t, func(t *testing.T, u lab.Underlay) {
		m := newMesh(t, u, 2)
		n := m.nodes[0]
		for _, command := range foreign {
			words := strings.Fields(command)
			m.run(n, words[0], words[1:]...)
		}
		before := withoutCarrier(m.hostState(n.Host))

		m.start(m.nodes...)
		m.settle(settleLimit, m.nodes...)
		m.connected(pingLimit, m.nodes...)
		m.must(n.Stop())
		if cmp.Equal(before, withoutCarrier(m.hostState(n.Host))) {
			t.Fatal("a running meshd changes nothing that the test sees")
		}
		if _, err := n.Meshd(m.ctx, "down"); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, withoutCarrier(m.hostState(n.Host))); diff != "" {
			t.Errorf("the host after down (-before +after):\n%s", diff)
		}
		if _, err := os.Stat(n.Path("/opt/cni/bin/foreign")); err != nil {
			t.Errorf("foreign plugin: %v", err)
		}
	})
}

// TestDeletedByHandIsBack deletes what meshd made, one thing after another.
func TestDeletedByHandIsBack(t *testing.T) {
	onUnderlays(t, func(t *testing.T, u lab.Underlay) {
		m := settledMesh(t, u, 3)
		n := m.nodes[0]
		m.connected(pingLimit, m.nodes...)
		before := m.observed(n)
		status := m.settle(settleLimit, m.nodes...)
		for _, test := range []struct{ name, command string }{
			{"route", "ip route delete " + status[1].Node.PodCIDRs[0].String() + " dev " + device},
			{"address", "ip address delete " + status[0].Node.Overlay[0].String() + "/32 dev " + device},
			{"rule", deleteRule(m, n)},
			{"table", "nft delete table " + table(m, n)},
			{"peer", "wg set " + device + " peer " + strings.Fields(m.run(n, "wg", "show", device, "peers"))[0] + " remove"},
			{"device", "ip link delete " + device},
		} {
			t.Run(test.name, func(t *testing.T) {
				m := m.in(t)
				words := strings.Fields(test.command)
				m.run(n, words[0], words[1:]...)
				m.eventually(settleLimit, func() error {
					if diff := cmp.Diff(before, m.observed(n)); diff != "" {
						return fmt.Errorf("the host after %s (-before +after):\n%s", test.command, diff)
					}
					return nil
				})
				m.connected(pingLimit, m.nodes...)
			})
		}
	})
}

// observed is the host's state with its peers, and without what differs from
// one device of the same name to the next.
func (m *testbed) observed(n *lab.Node) map[string]string {
	state := m.hostState(n.Host)
	delete(state, "ip -br link")
	// Without the device there are none, which is a state as well.
	peers, _ := n.Run(m.ctx, "wg", "show", device, "allowed-ips")
	for line := range strings.Lines(peers) {
		f := strings.Fields(line)
		slices.Sort(f[1:])
		state["allowed IPs of "+f[0]] = strings.Join(f[1:], " ")
	}
	return state
}

// table returns family and name of meshd's nft table.
func table(m *testbed, n *lab.Node) string {
	m.t.Helper()
	for line := range strings.Lines(m.run(n, "nft", "list", "tables")) {
		if family, ok := strings.CutSuffix(strings.TrimSpace(line), " meshd"); ok {
			return strings.TrimPrefix(family, "table ") + " meshd"
		}
	}
	m.t.Fatal("there is no nft table meshd")
	return ""
}

// deleteRule returns the command that deletes the first rule of meshd's table.
func deleteRule(m *testbed, n *lab.Node) string {
	m.t.Helper()
	chain := ""
	for line := range strings.Lines(m.run(n, "nft", append([]string{"-a", "list", "table"}, strings.Fields(table(m, n))...)...)) {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "chain "); ok {
			chain = strings.Fields(rest)[0]
			continue
		}
		_, handle, ok := strings.Cut(line, "# handle ")
		if ok && chain != "" && !strings.HasSuffix(strings.TrimSpace(strings.Split(line, "#")[0]), "{") {
			return fmt.Sprintf("nft delete rule %s %s handle %s", table(m, n), chain, handle)
		}
	}
	m.t.Fatal("there is no rule in nft table meshd")
	return ""
}

// TestControlSocketAnswersWhileReconcileFails puts a file where the CNI
// configuration directory has to be.
func TestControlSocketAnswersWhileReconcileFails(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 1)
	n := m.nodes[0]
	m.must(n.WriteFile(lab.ConfDir, "in the way\n", 0o644))
	m.start(n)
	failing := func(s control.Status) bool { return s.Reconcile.Error != "" }
	m.await(settleLimit, "failing to reconcile", failing, n)

	sockets := m.run(n, "find", lab.RunDir, "-type", "s", "-printf", "%m %u\n")
	if sockets != "600 root\n" {
		t.Errorf("control socket: got mode and owner %q, want 600 root", sockets)
	}
	m.run(n, "rm", lab.ConfDir)
	m.await(settleLimit, "ready without error", func(s control.Status) bool { return lab.Ready(s) && !failing(s) }, n)
}

// TestIdleReconcileWritesNothing has the daemon look again and again until it
// has looked several times in a row without a write.
func TestIdleReconcileWritesNothing(t *testing.T) {
	onUnderlays(t, func(t *testing.T, u lab.Underlay) {
		m := settledMesh(t, u, 3)
		m.connected(pingLimit, m.nodes...)
		n := m.nodes[0]
		const idleRuns = 5
		s, err := n.Status(m.ctx)
		m.must(err)
		m.eventually(settleLimit, func() error {
			m.must(syscall.Kill(n.PID(), syscall.SIGHUP))
			now, err := n.Status(m.ctx)
			m.must(err)
			if now.Reconcile.Error != "" {
				return errors.New(now.Reconcile.Error)
			}
			if now.Reconcile.Writes != s.Reconcile.Writes {
				s = now
				return fmt.Errorf("run %d: %d writes so far and no end", now.Reconcile.Runs, now.Reconcile.Writes)
			}
			if done := now.Reconcile.Runs - s.Reconcile.Runs; done < idleRuns {
				return fmt.Errorf("got %d reconciles in a row without a write, want %d", done, idleRuns)
			}
			return nil
		})
	})
}
