// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"net/netip"
	"testing"

	"github.com/meshd/meshd/test/lab"
)

// port is where echo servers listen.
const port = 7000

// pod makes a pod with the CNI configuration that meshd installed.
func (m *testbed) pod(n *lab.Node, name string) *lab.Pod {
	m.t.Helper()
	p, err := n.Pod(m.ctx, lab.Network, name)
	m.must(err)
	return p
}

// TestSourceAddresses checks which source address the far side sees: addresses of the mesh
// inside the mesh, the host's address outside of it.
func TestSourceAddresses(t *testing.T) {
	onUnderlays(t, func(t *testing.T, u lab.Underlay) {
		m := settledMesh(t, u, 2)
		m.connected(pingLimit, m.nodes...)
		a, b := m.nodes[0], m.nodes[1]
		one, two, far := m.pod(a, "one"), m.pod(a, "two"), m.pod(b, "far")
		m.sources(m.connections(0, one, two, far, lab.OutsideAddr, a.Public(), b.Public()))
		m.must(one.Delete(m.ctx))
	})
}

// connection is from a place to an address of another one.
type connection struct {
	name     string
	from, to lab.Place
	addr     netip.Addr
	want     netip.Addr // the source that the other one sees
}

// connections returns connections of all kinds between the outside, two nodes, two pods of
// the first node and one of the second, in the family of the i-th address of each.
func (m *testbed) connections(i int, one, two, far *lab.Pod, outside, publicA, publicB netip.Addr) []connection {
	m.t.Helper()
	a, b := m.nodes[0], m.nodes[1]
	all := m.settle(settleLimit, a, b)
	overlayA, overlayB := all[0].Node.Overlay[i], all[1].Node.Overlay[i]
	podOne, podTwo, podFar := one.Addresses[i], two.Addresses[i], far.Addresses[i]
	list := []connection{
		{"pod to the outside", one.Do, m.lab.Outside().Do, outside, publicA},
		{"host to the outside", a.Do, m.lab.Outside().Do, outside, publicA},
		{"pod to another node's public address", one.Do, b.Do, publicB, publicA},
		{"pod to pod on the same host", one.Do, two.Do, podTwo, podOne},
		{"pod to pod on another host", one.Do, far.Do, podFar, podOne},
		{"pod to another node's overlay address", one.Do, b.Do, overlayB, podOne},
		{"pod to its own node's overlay address", one.Do, a.Do, overlayA, podOne},
		{"host to a pod on another host", a.Do, far.Do, podFar, overlayA},
		{"host to another node's overlay address", a.Do, b.Do, overlayB, overlayA},
	}
	if b.Address() != b.Public() {
		list = append(list,
			connection{"pod to another node's internal IP", one.Do, b.Do, b.Address(), podOne},
			connection{"host to another node's internal IP", a.Do, b.Do, b.Address(), overlayA})
	}
	return list
}

func (m *testbed) sources(connections []connection) {
	for _, c := range connections {
		m.t.Run(c.name, func(t *testing.T) {
			echo, err := lab.ListenEcho(c.to, port)
			if err != nil {
				t.Fatal(err)
			}
			got, err := lab.SourceSeen(m.ctx, c.from, netip.AddrPortFrom(c.addr, port))
			if err := errors.Join(err, echo.Close()); err != nil {
				t.Fatal(err)
			}
			if got != c.want {
				t.Errorf("source seen: got %s, want %s", got, c.want)
			}
		})
	}
}

// outside6 is an IPv6 address outside of the mesh.
var outside6 = netip.MustParseAddr("2001:db8:0:1::1")

// TestSourceAddresses6 is the same for IPv6: the router drops packets whose source is not
// the host's own address.
func TestSourceAddresses6(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.Routed, 2)
	a, b := m.nodes[0], m.nodes[1]
	m.run(m.lab.Outside(), "ip", "address", "add", outside6.String()+"/128", "dev", "lo")
	m.must(a.Configure(lab.Config(a.Name, nil, dualStack...), m.secret))
	m.must(b.Configure(lab.Config(b.Name, []string{a.Public().String()}, dualStack...), m.secret))
	m.start(a, b)
	m.connected(pingLimit, a, b)
	one, two, far := m.pod(a, "one"), m.pod(a, "two"), m.pod(b, "far")
	m.podsConnected(one, two, far)
	m.sources(m.connections(1, one, two, far, outside6, a.Public6(), b.Public6()))
}

// wireguardOverhead is what meshd leaves for WireGuard's and the outer headers:
// 40 of IPv6, 8 of UDP, 32 of WireGuard.
const wireguardOverhead = 80

func TestMTU(t *testing.T) {
	onUnderlays(t, func(t *testing.T, u lab.Underlay) {
		m := settledMesh(t, u, 2)
		n := m.nodes[0]
		p := m.pod(n, "one")
		far := m.pod(m.nodes[1], "far")
		const want = lab.UnderlayMTU - wireguardOverhead
		for name, out := range map[string]string{
			"device": m.run(n, "ip", "-j", "link", "show", device),
			"bridge": m.run(n, "ip", "-j", "link", "show", "kube-bridge"),
			"pod":    m.run(p, "ip", "-j", "link", "show", "eth0"),
		} {
			var links []struct {
				MTU int `json:"mtu"`
			}
			m.must(json.Unmarshal([]byte(out), &links))
			if got := links[0].MTU; got != want {
				t.Errorf("MTU of %s: got %d, want %d", name, got, want)
			}
		}
		// 28 are the headers of IPv4 and ICMP; -M do forbids fragments.
		m.run(p, "ping", "-q", "-c", "1", "-w", "30", "-M", "do", "-s", "1392", far.Addresses[0].String())
	})
}
