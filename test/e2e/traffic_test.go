// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/test/lab"
)

// packetPeriod makes 200 packets a second in each direction.
const packetPeriod = 5 * time.Millisecond

// slowPeriod is for six hosts with several conversations on a slow machine.
const slowPeriod = 20 * time.Millisecond

// conversation is an exchange of packets between two pods.
type conversation struct {
	*lab.Exchange
	m    *testbed
	name string
}

// converse begins a conversation between two pods that reach each other.
func (m *testbed) converse(a, b *lab.Pod) conversation {
	m.t.Helper()
	return m.converseEach(packetPeriod, a, b)
}

// converseEach begins a conversation with another period.
func (m *testbed) converseEach(period time.Duration, a, b *lab.Pod) conversation {
	m.t.Helper()
	m.reaches(a, b)
	e, err := lab.StartExchange(party(a), party(b), period)
	m.must(err)
	return conversation{e, m, a.Name + " and " + b.Name}
}

func party(p *lab.Pod) lab.Party { return lab.Party{At: p.Do, Addr: p.Addresses[0]} }

// reaches waits until all addresses of another pod have answered.
func (m *testbed) reaches(from, to *lab.Pod) {
	m.t.Helper()
	for _, a := range to.Addresses {
		m.run(from, "ping", "-n", "-q", "-c", "1", "-i", "0.2", "-w", "60", a.String())
	}
}

// goesOn waits until each side has received half a second's worth of packets.
func (c conversation) goesOn(t *testing.T) {
	t.Helper()
	const enough = 100
	a, b := c.Received()
	c.m.in(t).eventually(settleLimit, func() error {
		nowA, nowB := c.Received()
		if nowA < a+enough || nowB < b+enough {
			return fmt.Errorf("between %s: got %d and %d packets since, want %d", c.name, nowA-a, nowB-b, enough)
		}
		return nil
	})
}

// end ends the conversation. With the kernel's WireGuard, every packet must have arrived.
func (c conversation) end(implementation netcfg.Implementation) {
	c.m.t.Helper()
	sent, lost := c.Stop()
	c.m.t.Logf("%s WireGuard: %d of %d packets between %s were lost", implementation, lost, sent, c.name)
	if implementation == netcfg.Kernel && lost > 0 {
		c.m.t.Errorf("packets between %s: %d of %d were lost, want none", c.name, lost, sent)
	}
}

// TestTrafficOverRestarts stops a daemon in every way while its pod exchanges packets.
func TestTrafficOverRestarts(t *testing.T) {
	t.Parallel()
	m := settledMesh(t, lab.NAT, 2)
	n := m.nodes[0]
	implementation := m.settle(settleLimit, m.nodes...)[0].Device.Implementation
	talk := m.converse(m.pod(n, "near"), m.pod(m.nodes[1], "far"))
	next := nextBinary(t, m.ctx)
	for _, end := range []struct {
		name string
		do   func() error
	}{
		{"killed", n.Kill},
		{"restarted", n.Stop},
		{"upgraded", func() error {
			err := n.Stop()
			n.Upgrade(next)
			return err
		}},
	} {
		t.Run(end.name, func(t *testing.T) {
			m := m.in(t)
			talk.goesOn(t)
			m.must(end.do())
			if implementation == netcfg.Kernel {
				talk.goesOn(t) // there is no daemon now
			}
			m.start(n)
			m.settle(settleLimit, m.nodes...)
			talk.goesOn(t)
		})
	}
	talk.end(implementation)
	if s := m.settle(settleLimit, m.nodes...)[0]; s.Version != nextVersion {
		t.Errorf("version after the upgrade: got %q, want %q", s.Version, nextVersion)
	}
}

// nextVersion is the version of the other build of meshd.
const nextVersion = "next"

// nextBinary returns another build of meshd: the one in the variable MESHD_NEXT, or one
// built from the tree.
func nextBinary(t *testing.T, ctx context.Context) string {
	t.Helper()
	if path := os.Getenv("MESHD_NEXT"); path != "" {
		return path
	}
	path := filepath.Join(t.TempDir(), "meshd")
	out, err := exec.CommandContext(ctx, "go", "build", "-ldflags", "-X main.version="+nextVersion, "-o", path, "../../cmd/meshd").CombinedOutput()
	if err != nil {
		t.Fatalf("build another meshd: %v: %s", err, out)
	}
	return path
}

// TestAllowedIPMoves has two nodes of one location serve the same network. The one that
// carries it stops serving it, so it moves to the other one; then that one stops too, so it
// is gone. The pods of all nodes exchange packets meanwhile.
func TestAllowedIPMoves(t *testing.T) {
	t.Parallel()
	const network = "10.77.0.0/24"
	m := newMesh(t, lab.Routed, 3)
	observer, servers := m.nodes[0], m.nodes[1:]
	configure := func(n *lab.Node, more ...string) {
		// Their LAN is the lab's internet.
		more = append([]string{"  location: office", fmt.Sprintf("  internal-ip: %s/32", n.Public())}, more...)
		m.must(n.Configure(lab.Config(n.Name, []string{observer.Public().String()}, more...), m.secret))
	}
	for _, n := range servers {
		configure(n, "  allowed-location-ips: ["+network+"]")
	}
	m.start(m.nodes...)
	all := m.settle(settleLimit, m.nodes...)
	m.connected(pingLimit, observer, servers[0])
	m.connected(pingLimit, observer, servers[1])

	near := m.pod(observer, "near")
	var talks []conversation
	for _, n := range servers {
		talks = append(talks, m.converse(near, m.pod(n, "far-"+n.Name)))
	}
	// whose returns the node whose peer has the network in its allowed IPs.
	whose := func() *lab.Node {
		for line := range strings.Lines(m.run(observer, "wg", "show", device, "allowed-ips")) {
			allowed := strings.Fields(line)[1:]
			for i, s := range all[1:] {
				if slices.Contains(allowed, network) && slices.Contains(allowed, s.Node.Overlay[0].String()+"/32") {
					return servers[i]
				}
			}
		}
		return nil
	}
	awaitOwner := func(want *lab.Node) {
		m.eventually(settleLimit, func() error {
			if got := whose(); got != want {
				return fmt.Errorf("%s is behind %s, want %s", network, nameOf(got), nameOf(want))
			}
			return nil
		})
	}
	m.eventually(settleLimit, func() error {
		if whose() == nil {
			return fmt.Errorf("%s is behind nobody", network)
		}
		return nil
	})
	first := whose()
	second := servers[0]
	if second == first {
		second = servers[1]
	}
	for _, step := range []struct{ from, to *lab.Node }{{first, second}, {second, nil}} {
		m.must(step.from.Stop())
		configure(step.from)
		m.start(step.from)
		awaitOwner(step.to)
		m.settle(settleLimit, m.nodes...)
		for _, talk := range talks {
			talk.goesOn(t)
		}
	}
	for _, talk := range talks {
		talk.end(all[0].Device.Implementation)
	}
}

func nameOf(n *lab.Node) string {
	if n == nil {
		return "nobody"
	}
	return n.Name
}
