// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/test/lab"
)

// backends are the kinds of iptables that the kernel has. That of nftables is
// always there; ip_tables is a thing of the past on some.
func (m *testbed) backends(n *lab.Node) []string {
	m.t.Helper()
	m.run(n, "iptables-nft", "-S")
	if _, err := n.Run(m.ctx, "iptables-legacy", "-S"); err != nil {
		return []string{"nft"}
	}
	return []string{"nft", "legacy"}
}

// closed are the rules of a host as Docker, ufw or a careful person leave it: what no
// rule accepts is dropped. No IPv6 host works without neighbor discovery.
var closed = []string{"-P INPUT DROP", "-P FORWARD DROP"}

// foreignRule is another program's rule in a chain that also has meshd's.
const foreignRule = "-A FORWARD -s 10.99.0.0/24 -j ACCEPT"

// shut closes a host's firewall in both families.
func (m *testbed) shut(n *lab.Node, backend string) {
	m.t.Helper()
	for _, program := range []string{"iptables-" + backend, "ip6tables-" + backend} {
		for _, rule := range closed {
			m.run(n, program, strings.Fields(rule)...)
		}
	}
	m.run(n, "ip6tables-"+backend, "-A", "INPUT", "-p", "ipv6-icmp", "-j", "ACCEPT")
}

// tables returns all rules of iptables.
func (m *testbed) tables(n *lab.Node, backend string) string {
	m.t.Helper()
	return m.run(n, "iptables-"+backend, "-S") + m.run(n, "ip6tables-"+backend, "-S")
}

// TestClosedFirewall has every host drop what no rule accepts, before meshd starts. The
// same chains have another program's rule all the time.
func TestClosedFirewall(t *testing.T) {
	t.Parallel()
	backends := newMesh(t, lab.NAT, 1)
	for _, backend := range backends.backends(backends.nodes[0]) {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			m := newMesh(t, lab.Routed, 2)
			for i, n := range m.nodes {
				var join []string
				if i > 0 {
					join = append(join, m.nodes[0].Public().String())
				}
				m.must(n.Configure(lab.Config(n.Name, join, dualStack...), m.secret))
				m.shut(n, backend)
			}
			n := m.nodes[0]
			m.run(n, "iptables-"+backend, strings.Fields(foreignRule)...)
			before := m.tables(n, backend)
			if found := m.check(n); found != nil {
				t.Errorf("errors that check finds: got %+v, want none, because meshd opens these chains", found)
			}
			if found := m.run(n, binary, "check"); !strings.Contains(found, "FORWARD of iptables-"+backend+" drops") {
				t.Errorf("check: got %s, want what the firewall drops", found)
			}

			m.start(m.nodes...)
			m.settle(settleLimit, m.nodes...)
			m.connected(pingLimit, m.nodes...)
			near, far := m.pod(n, "near"), m.pod(m.nodes[1], "far")
			m.reaches(near, far)
			m.reaches(far, near)
			m.reachesOut(near, n)

			t.Run("restored", func(t *testing.T) { m.in(t).restored(n, backend, near, far) })
			for _, p := range []*lab.Pod{near, far} {
				m.must(p.Delete(m.ctx))
			}
			m.run(n, "iptables-"+backend, strings.Fields(foreignRule)...)
			m.must(n.Stop())
			if m.tables(n, backend) == before {
				t.Error("a stopped daemon has taken its rules away")
			}
			m.run(n, binary, "down")
			if diff := cmp.Diff(before, m.tables(n, backend)); diff != "" {
				t.Errorf("rules after down (-before +after):\n%s", diff)
			}
		})
	}
}

// reachesOut checks that a pod reaches its own node and the internet.
func (m *testbed) reachesOut(p *lab.Pod, n *lab.Node) {
	m.t.Helper()
	s, err := n.Status(m.ctx)
	m.must(err)
	for _, a := range append(s.Node.Overlay, lab.OutsideAddr) {
		m.run(p, "ping", "-n", "-q", "-c", "1", "-i", "0.2", "-w", "60", a.String())
	}
}

// restored flushes the chains and waits until meshd's rules are back.
func (m *testbed) restored(n *lab.Node, backend string, near, far *lab.Pod) {
	m.t.Helper()
	want := ourRules(m.tables(n, backend))
	if len(want) == 0 {
		m.t.Fatal("meshd has put no rules into iptables")
	}
	for _, chain := range []string{"FORWARD", "INPUT"} {
		m.run(n, "iptables-"+backend, "-F", chain)
		m.eventually(settleLimit, func() error {
			if diff := cmp.Diff(want, ourRules(m.tables(n, backend))); diff != "" {
				return fmt.Errorf("rules after the chain %s was flushed (-before +after):\n%s", chain, diff)
			}
			return nil
		})
	}
	m.connected(pingLimit, m.nodes...)
	m.reaches(near, far)
	m.reaches(far, near)
}

// ourRules returns the rules of iptables that meshd has added.
func ourRules(text string) []string {
	var ours []string
	for line := range strings.Lines(text) {
		if strings.Contains(line, "--comment meshd:") || strings.Contains(line, `--comment "meshd:`) {
			ours = append(ours, line)
		}
	}
	slices.Sort(ours)
	return ours
}

// TestDockerComes closes the firewall of a running mesh, as Docker does when it starts,
// with the chain that Docker leaves to others.
func TestDockerComes(t *testing.T) {
	t.Parallel()
	m := settledMesh(t, lab.NAT, 2)
	m.connected(pingLimit, m.nodes...)
	n := m.nodes[0]
	near, far := m.pod(n, "near"), m.pod(m.nodes[1], "far")
	m.reaches(near, far)
	if tables := m.run(n, "nft", "list", "tables"); strings.Contains(tables, "filter") {
		t.Errorf("tables of a host whose firewall is open: got %s, want none of iptables", tables)
	}
	for _, command := range []string{"-N DOCKER-USER", "-A DOCKER-USER -j RETURN", "-P FORWARD DROP", "-I FORWARD -j DOCKER-USER"} {
		m.run(n, "iptables-nft", strings.Fields(command)...)
	}
	m.eventually(settleLimit, func() error {
		ours := ourRules(m.run(n, "iptables-nft", "-S", "DOCKER-USER"))
		elsewhere := ourRules(m.run(n, "iptables-nft", "-S", "FORWARD"))
		if len(ours) != 4 || len(elsewhere) > 0 {
			return fmt.Errorf("rules of meshd in DOCKER-USER and FORWARD: got %q and %q, want four and none", ours, elsewhere)
		}
		return nil
	})
	m.reaches(near, far)
	m.reaches(far, near)
	m.reachesOut(near, n)

	m.run(n, "iptables-nft", "-P", "FORWARD", "ACCEPT")
	m.eventually(settleLimit, func() error {
		if ours := ourRules(m.tables(n, "nft")); len(ours) > 0 {
			return fmt.Errorf("rules of meshd when nothing is dropped: got %q, want none", ours)
		}
		return nil
	})
}

// hide hides a program from a host. All symbolic links in the path must be resolved.
func (m *testbed) hide(n *lab.Node, program string) {
	m.t.Helper()
	path, err := exec.LookPath(program)
	m.must(err)
	path, err = filepath.EvalSymlinks(path)
	m.must(err)
	m.run(n, "mount", "--bind", "/dev/null", path)
}

// awaitAdvice waits for a problem in the status with this text and advice.
func (m *testbed) awaitAdvice(n *lab.Node, kind mesh.ProblemKind, text, advice string) mesh.Problem {
	m.t.Helper()
	var found mesh.Problem
	m.await(settleLimit, fmt.Sprintf("aware of a problem %q with the advice %q", text, advice), func(s control.Status) bool {
		i := slices.IndexFunc(s.Problems, func(p mesh.Problem) bool {
			return p.Kind == kind && strings.Contains(p.Text, text) && strings.Contains(p.Advice, advice)
		})
		if i >= 0 {
			found = s.Problems[i]
		}
		return i >= 0
	}, n)
	return found
}

// TestFirewallThatMeshdLeaves checks that the status names firewalls that meshd doesn't
// change, with commands; once a person has run them, the problem is gone.
func TestFirewallThatMeshdLeaves(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		breaks []string
		hide   string
		text   string
		advice string
	}{
		{
			"nft",
			[]string{"nft add table inet mine", "nft add chain inet mine through { type filter hook forward priority 0 ; policy drop ; }"},
			"",
			"through of nft table inet mine drops", "nft insert rule inet mine through iifname meshd0 accept",
		},
		{
			"iptables is missing",
			[]string{"iptables-nft -P FORWARD DROP"},
			"iptables-nft",
			"FORWARD of iptables-nft drops", "iptables-nft -I FORWARD -i meshd0 -j ACCEPT",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := newMesh(t, lab.NAT, 1)
			n := m.nodes[0]
			for _, command := range tt.breaks {
				words := strings.Fields(command)
				m.run(n, words[0], words[1:]...)
			}
			if tt.hide != "" {
				m.hide(n, tt.hide)
			}
			found := m.check(n)
			if len(found) != 1 || !strings.Contains(found[0].Text, tt.text) || !strings.Contains(found[0].Advice, tt.advice) {
				t.Errorf("errors: got %+v, want one with %q and %q", found, tt.text, tt.advice)
			}
			m.start(n)
			p := m.awaitAdvice(n, netcfg.ProblemFirewall, tt.text, tt.advice)
			if tt.hide != "" {
				return
			}
			m.follow(n, p.Advice)
			m.await(settleLimit, "rid of the problem", func(s control.Status) bool { return len(s.Problems) == 0 }, n)
		})
	}
}

// TestIdleWithAFirewall checks that a daemon that has opened a firewall runs no program
// while nothing changes: the programs are removed, so running one would fail.
func TestIdleWithAFirewall(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 1)
	n := m.nodes[0]
	for _, backend := range m.backends(n) {
		m.shut(n, backend)
	}
	m.start(n)
	m.await(settleLimit, "ready", lab.Ready, n)
	for _, program := range []string{"iptables-nft", "iptables-legacy"} {
		if _, err := exec.LookPath(program); err == nil {
			m.hide(n, program)
		}
	}
	s, err := n.Status(m.ctx)
	m.must(err)
	m.eventually(settleLimit, func() error {
		m.must(n.Reload())
		now, err := n.Status(m.ctx)
		m.must(err)
		if now.Reconcile.Error != "" {
			return errors.New(now.Reconcile.Error)
		}
		if now.Reconcile.Runs < s.Reconcile.Runs+5 {
			return fmt.Errorf("got %d reconciles since, want five", now.Reconcile.Runs-s.Reconcile.Runs)
		}
		return nil
	})
	if now, err := n.Status(m.ctx); err != nil || len(now.Problems) > 0 {
		t.Errorf("problems: got %+v, %v, want none", now.Problems, err)
	}
}

// TestFirewallOfTheLAN has the rule of a VPN that takes the range of carrier-grade NAT for
// its own, on a host whose LAN is in that range: it drops what neighbors send.
func TestFirewallOfTheLAN(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		commands []string
		opens    bool // meshd opens it by itself
		text     string
	}{
		{
			"iptables",
			[]string{"iptables-nft -N ts-input", "iptables-nft -A ts-input -s 100.64.0.0/10 ! -i tailscale0 -j DROP", "iptables-nft -I INPUT -j ts-input"},
			true,
			"INPUT of iptables-nft drops packets to UDP port 51820, to UDP port 7946, to TCP port 7946, to UDP port 7947",
		},
		{
			"nft",
			[]string{
				"nft add table inet vpn", "nft add chain inet vpn in { type filter hook input priority 0 ; }",
				"nft add rule inet vpn in iifname != tailscale0 ip saddr 100.64.0.0/10 drop",
			},
			false,
			"in of nft table inet vpn drops packets to UDP port 51820, to UDP port 7946, to TCP port 7946, to UDP port 7947",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			v := newVillage(t, func(m *testbed) []*lab.Host {
				return m.site("home", lab.SiteOptions{Underlay: lab.Home, Subnets: []netip.Prefix{netip.MustParsePrefix("100.64.1.0/24")}}, "a", "b")
			})
			a, b := v.nodes[0], v.nodes[1]
			v.must(a.Configure(lab.Config("a", nil, append([]string{"  location: home"}, cluster(1, mesh.ModeLocation)...)...), v.secret))
			v.must(b.Configure(lab.Config("b", []string{a.Address().String()}, append([]string{"  location: home"}, cluster(1, mesh.ModeLocation)...)...), v.secret))
			v.commands(b, tt.commands)
			found := v.check(b)
			if tt.opens != (len(found) == 0) || !tt.opens && !strings.Contains(found[0].Text, tt.text) {
				t.Errorf("errors that check finds: got %+v, want %q", found, tt.text)
			}
			if text := v.run(b, "sh", "-c", binary+" check || true"); !strings.Contains(text, tt.text) || !strings.Contains(text, "on eth0") {
				t.Errorf("check: got %s, want %q in it", text, tt.text)
			}
			if !tt.opens && len(found) > 0 {
				v.follow(b, found[0].Advice)
			}
			v.live()
			v.full(v.nodes...)
		})
	}
}
