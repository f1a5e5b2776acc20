// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/test/lab"
)

// transferSize is many times the size of any queue or window.
const transferSize = 1 << 20

// transferLimit is for all transfers of a test, on a slow machine.
const transferLimit = 2 * time.Minute

// transfers makes a pod on each of the nodes, and sends size bytes both ways
// between each two nodes and each two pods, to every address of each.
func (m *testbed) transfers(size int, nodes ...*lab.Node) []*lab.Pod {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.ctx, transferLimit)
	defer cancel()
	all := m.await(settleLimit, "ready", lab.Ready, nodes...)
	var pods []*lab.Pod
	for _, n := range nodes {
		pods = append(pods, m.pod(n, "pod-"+n.Name))
	}
	for i, from := range pods {
		for j, to := range pods {
			if i == j {
				continue
			}
			m.reaches(from, to)
			for _, a := range to.Addresses {
				m.must(lab.Transfer(ctx, from.Do, lab.Party{At: to.Do, Addr: a}, size))
			}
			for _, a := range all[j].Node.Overlay {
				m.must(lab.Transfer(ctx, nodes[i].Do, lab.Party{At: nodes[j].Do, Addr: a}, size))
			}
		}
	}
	return pods
}

// TestUnderlayMTU silently drops packets that are too big for a link. Clouds have jumbo
// frames of 9001 bytes.
func TestUnderlayMTU(t *testing.T) {
	t.Parallel()
	for name, mtus := range map[string][]int{
		"1280":  {1280, 1280},
		"1500":  {1500, 1500},
		"9001":  {9001, 9001},
		"mixed": {1280, 1500, 9001},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMesh(t, lab.NAT, len(mtus))
			m.must(m.lab.BlockPathMTU(m.ctx))
			for i, n := range m.nodes {
				m.must(n.SetMTU(m.ctx, mtus[i]))
			}
			m.start(m.nodes...)
			for i, s := range m.settle(settleLimit, m.nodes...) {
				// Larger frames work inside a cloud, not on the internet.
				if got, want := s.Device.MTU, min(mtus[i], lab.UnderlayMTU)-wireguardOverhead; got != want {
					t.Errorf("MTU of %s: got %d, want %d", s.Device.Name, got, want)
				}
			}
			m.connected(pingLimit, m.nodes...)
			m.transfers(transferSize, m.nodes...)
		})
	}
}

func TestIPv6OnlyUnderlay(t *testing.T) {
	t.Parallel()
	m := settledMesh(t, lab.Routed6, 3)
	m.connected(pingLimit, m.nodes...)
	m.transfers(transferSize, m.nodes...)
}

func TestDualStackPods(t *testing.T) {
	onUnderlays(t, func(t *testing.T, u lab.Underlay) {
		m := newMesh(t, u, 2)
		for i, n := range m.nodes {
			var join []string
			if i > 0 {
				join = append(join, m.nodes[0].Public().String())
			}
			m.must(n.Configure(lab.Config(n.Name, join,
				"cluster:",
				"  overlay: [10.4.0.0/16, fd00:4::/112]",
				"  pods: [10.42.0.0/16, fd00:42::/48]",
				"  services: [10.43.0.0/16, fd00:43::/112]"), m.secret))
		}
		m.start(m.nodes...)
		m.settle(settleLimit, m.nodes...)
		m.connected(pingLimit, m.nodes...)
		for _, p := range m.transfers(transferSize, m.nodes...) {
			if len(p.Addresses) != 2 || !p.Addresses[0].Is4() || !p.Addresses[1].Is6() {
				t.Errorf("addresses of a pod: got %v, want one of each family", p.Addresses)
			}
		}
	})
}

// portMapping are the rules of a router that maps two public ports of host 2 to other
// ports inside, and drops everything else to these. It keeps no state, like the lab's NAT.
const portMapping = `
table ip mapping {
	chain enter {
		type filter hook prerouting priority raw + 10
		ip saddr 198.51.100.2 udp sport 51999 udp sport set 40000
		ip saddr 198.51.100.2 udp sport 7999 udp sport set 40001
		ip saddr 198.51.100.2 tcp sport 7999 tcp sport set 40001
	}
	chain between {
		type filter hook forward priority filter
		ip daddr 198.51.100.2 udp dport { 51999, 7999, 51820, 7946 } counter drop
		ip daddr 198.51.100.2 tcp dport { 7999, 7946 } counter drop
	}
	chain leave {
		type filter hook postrouting priority raw - 10
		ip daddr 198.51.100.2 udp dport 40000 udp dport set 51999
		ip daddr 198.51.100.2 udp dport 40001 udp dport set 7999
		ip daddr 198.51.100.2 tcp dport 40001 tcp dport set 7999
	}
}
`

// TestMappedPorts starts a node whose sockets have unusual ports, which the router maps to
// yet other public ports. It is the seed of a node that joins later.
func TestMappedPorts(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 3)
	a, mapped, late := m.nodes[0], m.nodes[1], m.nodes[2]
	m.must(m.lab.Outside().WriteFile("/run/mapping.nft", portMapping, 0o600))
	m.run(m.lab.Outside(), "nft", "-f", "/run/mapping.nft")
	outside := netip.AddrPortFrom(mapped.Public(), 40000)
	seed := netip.AddrPortFrom(mapped.Public(), 40001)
	m.must(mapped.Configure(lab.Config(mapped.Name, []string{a.Public().String()},
		"  endpoint: "+outside.String(), "  keepalive: 7s",
		"wireguard:", "  listen-port: 51999",
		"gossip:", "  bind: :7999", "  advertise: "+seed.String()), m.secret))
	m.must(late.Configure(lab.Config(late.Name, []string{seed.String()}), m.secret))
	m.start(a, mapped)
	m.settle(settleLimit, a, mapped)
	m.connected(pingLimit, a, mapped)
	m.start(late)
	m.settle(settleLimit, m.nodes...)
	m.connected(pingLimit, m.nodes...)

	m.endpoint(a, mapped, outside)
	m.endpoint(late, mapped, outside)
	m.endpoint(mapped, a, netip.AddrPortFrom(a.Public(), 51820))
	if got := strings.TrimSpace(m.run(mapped, "wg", "show", device, "listen-port")); got != "51999" {
		t.Errorf("listen port: got %s, want 51999", got)
	}
	m.eventually(settleLimit, func() error {
		intervals := strings.Fields(m.run(mapped, "wg", "show", device, "persistent-keepalive"))
		if len(intervals) != 4 || intervals[1] != "7" || intervals[3] != "7" {
			return fmt.Errorf("keepalive of both peers: got %q, want 7 seconds", intervals)
		}
		return nil
	})
}

// endpoint waits until a host's WireGuard has this endpoint for another node.
func (m *testbed) endpoint(from, to *lab.Node, want netip.AddrPort) {
	m.t.Helper()
	key := strings.TrimSpace(m.run(to, "wg", "show", device, "public-key"))
	m.eventually(settleLimit, func() error {
		for line := range strings.Lines(m.run(from, "wg", "show", device, "endpoints")) {
			if f := strings.Fields(line); f[0] == key && f[1] == want.String() {
				return nil
			} else if f[0] == key {
				return fmt.Errorf("endpoint of %s at %s: got %s, want %s", to.Name, from.Name, f[1], want)
			}
		}
		return fmt.Errorf("%s is no peer of %s", to.Name, from.Name)
	})
}

// TestFullModeOverTheLAN has two nodes of one location, whose tunnel goes over their
// LAN, and one elsewhere, which they reach at its public address.
func TestFullModeOverTheLAN(t *testing.T) {
	t.Parallel()
	v := newVillage(t, func(m *testbed) []*lab.Host {
		far, err := m.lab.Host(m.ctx, "far", lab.NAT)
		m.must(err)
		return append(m.site("a", lab.SiteOptions{Underlay: lab.NAT}, "a1", "a2"), far)
	})
	for _, n := range v.nodes {
		v.configure(n, cluster(1, mesh.ModeFull)...)
	}
	v.live()
	v.full(v.nodes...)
	a1, a2, far := v.nodes[0], v.nodes[1], v.nodes[2]
	at := func(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, 51820) }
	v.endpoint(a1, a2, at(a2.Address()))
	v.endpoint(a2, a1, at(a1.Address()))
	v.endpoint(far, a1, at(a1.Public()))
	v.endpoint(far, a2, at(a2.Public()))
	v.endpoint(a1, far, at(far.Public()))
	v.encrypted()
}

// TestNarrowPath has a network before one of three hosts carry less than the hosts' own links, and
// drop without a word what is too long. All three say so, and what to set; TCP passes meanwhile, and
// with what was set nothing is wrong any more.
func TestNarrowPath(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 3)
	a, b, c := m.nodes[0], m.nodes[1], m.nodes[2]
	m.must(m.lab.BlockPathMTU(m.ctx))
	m.must(c.Narrow(m.ctx, 1380))
	m.start(m.nodes...)
	for _, s := range m.settle(settleLimit, m.nodes...) {
		if got, want := s.Device.MTU, lab.UnderlayMTU-wireguardOverhead; got != want {
			t.Errorf("MTU of %s: got %d, want %d", s.Device.Name, got, want)
		}
	}
	m.connected(pingLimit, m.nodes...)
	// Without 20 bytes of IPv4, 8 of UDP and 32 of WireGuard 1320 are left, of which 16 times 82 are used.
	const fits = "1312"
	ctx, cancel := context.WithTimeout(m.ctx, transferLimit)
	defer cancel()
	early := make(chan error, 1)
	to := lab.Party{At: c.Do, Addr: m.status(c).Node.Overlay[0]}
	go func() { early <- lab.Transfer(ctx, a.Do, to, transferSize) }()
	m.await(settleLimit, "aware of the path to "+c.Name, shows(node.ProblemMTU, "the path to it", "wireguard.mtu: "+fits), a, b)
	m.await(settleLimit, "aware of its own network", shows(node.ProblemMTU, "all 2 other nodes", "wireguard.mtu: "+fits+" in the file of this host"), c)
	m.must(<-early)
	m.transfers(transferSize, m.nodes...)
	m.must(c.Configure(lab.Config(c.Name, []string{a.Public().String()}, "wireguard:", "  mtu: "+fits), m.secret))
	m.must(c.Reload())
	m.await(settleLimit, "without problems", func(s control.Status) bool { return len(s.Problems) == 0 }, m.nodes...)
	m.await(settleLimit, "sure that all passes", func(s control.Status) bool {
		return !slices.ContainsFunc(s.Peers, func(p control.Peer) bool { return p.Path.MTU == 0 })
	}, m.nodes...)
	m.connected(pingLimit, m.nodes...)
}
