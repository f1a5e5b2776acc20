// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/test/lab"
)

// carrier is how the kernel shows that no process serves a persistent TUN device:
// its configuration stays, traffic waits.
var carrier = regexp.MustCompile(` linkdown|,LOWER_UP`)

func withoutCarrier(state map[string]string) map[string]string {
	for k, v := range state {
		state[k] = carrier.ReplaceAllString(v, "")
	}
	return state
}

// wholeHost returns the host's state, its CNI plugins, and the results of [parameters]
// and [tunnels].
func (m *testbed) wholeHost(n *lab.Node) map[string]string {
	m.t.Helper()
	state := withoutCarrier(m.hostState(n.Host))
	plugins, _ := n.Run(m.ctx, "find", lab.BinDir, "-printf", "%p %y %l\n") // it need not exist
	state["plugins"] = strings.Join(slices.Sorted(strings.Lines(plugins)), "")
	maps.Copy(state, m.parameters(n))
	maps.Copy(state, m.tunnels(n))
	return state
}

// parameterRoots are the directories of kernel parameters that matter to a mesh.
var parameterRoots = []string{
	"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv4/conf", "/proc/sys/net/ipv6/conf", "/proc/sys/net/bridge",
}

// parameters are the host's kernel parameters, by path.
func (m *testbed) parameters(n *lab.Node) map[string]string {
	m.t.Helper()
	all := map[string]string{}
	// Some can't be read, and bridges may have none.
	out, _ := n.Run(m.ctx, "grep", append([]string{"-rs", "."}, parameterRoots...)...)
	for line := range strings.Lines(out) {
		path, value, _ := strings.Cut(line, ":")
		all[path] = value
	}
	if len(all) == 0 {
		m.t.Fatal("no kernel parameter can be read")
	}
	return all
}

// tunnels are keys and peers of all of the host's WireGuard devices.
func (m *testbed) tunnels(n *lab.Node) map[string]string {
	m.t.Helper()
	all := map[string]string{}
	for _, what := range []string{"public-key", "listen-port", "fwmark", "preshared-keys", "endpoints", "allowed-ips", "persistent-keepalive"} {
		if out := m.run(n, "wg", "show", "all", what); out != "" {
			all["wg show all "+what] = strings.Join(slices.Sorted(strings.Lines(out)), "")
		}
	}
	return all
}

func TestStopChangesNothing(t *testing.T) {
	onUnderlays(t, func(t *testing.T, u lab.Underlay) {
		m := settledMesh(t, u, 2)
		n := m.nodes[0]
		m.pod(n, "one")
		status, err := n.Status(m.ctx)
		m.must(err)
		before := m.wholeHost(n)
		if len(m.tunnels(n)) == 0 {
			t.Fatal("the test sees no tunnel")
		}
		m.must(n.Stop())
		after := m.wholeHost(n)
		if status.Device.Implementation == netcfg.Userspace {
			// The peers are in the daemon there.
			for _, state := range []map[string]string{before, after} {
				maps.DeleteFunc(state, func(k, _ string) bool { return strings.HasPrefix(k, "wg ") })
			}
		}
		if diff := cmp.Diff(before, after); diff != "" {
			t.Errorf("the host after a stop (-before +after):\n%s", diff)
		}
		m.start(n)
		m.settle(settleLimit, m.nodes...)
		m.connected(pingLimit, m.nodes...)
	})
}

// foreign is configuration that is not meshd's, much of it similar to meshd's.
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

// foreignWireGuard is another program's device, for kernels with WireGuard.
var foreignWireGuard = []string{
	"umask 077; wg genkey > /run/foreign.key",
	"wg set foreign-wg listen-port 51999 private-key /run/foreign.key",
	"wg set foreign-wg peer $(wg genkey | wg pubkey) allowed-ips 10.95.0.0/24 endpoint 192.0.2.7:51820 persistent-keepalive 25",
	"ip address add 10.95.0.1/24 dev foreign-wg",
	"ip link set foreign-wg up",
}

// down runs meshd down and returns what it printed as removed.
func (m *testbed) down(n *lab.Node) []string {
	m.t.Helper()
	var down struct{ Removed []string }
	m.must(json.Unmarshal([]byte(m.run(n, binary, "down", "-o", "json")), &down))
	return down.Removed
}

// lasting are the kernel parameters that stay after down, and those that the
// kernel sets with them.
var lasting = regexp.MustCompile(`^/proc/sys/net/(ipv4/(ip_forward|conf/[^/]+/forwarding|conf/all/(send|accept)_redirects)|bridge/.*)$`)

func TestDownRemovesExactlyOurs(t *testing.T) {
	onUnderlays(t, func(t *testing.T, u lab.Underlay) {
		m := newMesh(t, u, 2)
		n := m.nodes[0]
		for _, command := range foreign {
			words := strings.Fields(command)
			m.run(n, words[0], words[1:]...)
		}
		// Without WireGuard in the kernel the foreign TUN device has to do.
		_, err := n.Run(m.ctx, "ip", "link", "add", "foreign-wg", "type", "wireguard")
		inKernel := err == nil
		if inKernel {
			for _, command := range foreignWireGuard {
				m.run(n, "sh", "-c", command)
			}
		}
		whole := func() map[string]string {
			state := m.wholeHost(n)
			maps.DeleteFunc(state, func(k, _ string) bool { return lasting.MatchString(k) })
			return state
		}
		before := whole()

		m.start(m.nodes...)
		status := m.settle(settleLimit, m.nodes...)[0]
		m.connected(pingLimit, m.nodes...)
		if got := status.Device.Implementation == netcfg.Kernel; got != inKernel {
			t.Errorf("WireGuard in the kernel: meshd says %t, ip %t", got, inKernel)
		}
		m.must(m.pod(n, "one").Delete(m.ctx))
		m.must(n.Stop())
		running := whole()
		for _, k := range []string{"ip -br link", "ip -4 route show table all", "nft -s list ruleset", "ls " + lab.ConfDir, "plugins"} {
			if running[k] == before[k] {
				t.Errorf("%s: a running meshd changes nothing that the test sees", k)
			}
		}
		if removed := m.down(n); len(removed) == 0 {
			t.Error("down says that it removed nothing")
		}
		if removed := m.down(n); len(removed) > 0 {
			t.Errorf("down once more: got %q, want that nothing is left to remove", removed)
		}
		if diff := cmp.Diff(before, whole()); diff != "" {
			t.Errorf("the host after down (-before +after):\n%s", diff)
		}
		if tables := m.run(n, "nft", "list", "tables"); strings.Contains(tables, " meshd") {
			t.Errorf("nft's tables after down: got %s, want none of meshd", tables)
		}
	})
}

// TestDownWhilePodsRun has down refuse as long as a pod is on the host, and remove nothing. With
// --force it removes everything but the bridge that the pod is on.
func TestDownWhilePodsRun(t *testing.T) {
	t.Parallel()
	m := settledMesh(t, lab.NAT, 1)
	n := m.nodes[0]
	m.pod(n, "one")
	m.must(n.Stop())
	before := m.wholeHost(n)
	_, err := n.Meshd(m.ctx, "down")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 4 || !strings.Contains(err.Error(), "the bridge kube-bridge (veth") {
		t.Errorf("down while a pod runs: got %v, want exit code 4 and the bridge", err)
	}
	if diff := cmp.Diff(before, m.wholeHost(n)); diff != "" {
		t.Errorf("the host after down was refused (-before +after):\n%s", diff)
	}
	m.run(n, binary, "down", "--force")
	m.run(n, "ip", "link", "show", "kube-bridge")
	if _, err := n.Run(m.ctx, "ip", "link", "show", device); err == nil {
		t.Errorf("%s is still there after down --force", device)
	}
}

// TestDeletedByHandIsBack deletes meshd's configuration piece by piece.
func TestDeletedByHandIsBack(t *testing.T) {
	onUnderlays(t, func(t *testing.T, u lab.Underlay) {
		m := settledMesh(t, u, 3)
		n := m.nodes[0]
		m.connected(pingLimit, m.nodes...)
		before := m.observed(n)
		status := m.settle(settleLimit, m.nodes...)
		for _, test := range []struct{ name, command string }{
			{"route", "ip route delete " + strings.Fields(m.run(n, "ip", "route", "show", "dev", device, "proto", "77"))[0] + " dev " + device},
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

// observed returns the host's state with its peers, without values that change when a
// device of the same name is created again.
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

// table returns family and name of the nft table that the node's firewall is in.
func table(m *testbed, n *lab.Node) string {
	m.t.Helper()
	for line := range strings.Lines(m.run(n, "nft", "list", "tables")) {
		if family, ok := strings.CutSuffix(strings.TrimSpace(line), " meshd"); ok && family != "table netdev" {
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

// TestIdleReconcileWritesNothing triggers turns until the daemon has taken several in a
// row without a write.
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
