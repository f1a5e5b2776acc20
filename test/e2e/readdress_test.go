// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/test/lab"
)

// moverBed is a mesh of three, of which b moves from address to address.
type moverBed struct {
	*testbed
	a, b, c *lab.Node
	moves   int
}

// meetsB reports whether a status shows that b is met at its address.
func (m *moverBed) meetsB(s control.Status) bool {
	p, at := lab.PeerOf(s, m.b.Name), m.b.Public()
	return p.Path.Proved && p.Path.Addr.Addr() == at && p.Endpoint.Addr() == at
}

// moveNext gives b an address that nobody has had yet.
func (m *moverBed) moveNext() {
	m.t.Helper()
	m.moves++
	to := m.b.Public().As4()
	to[3] = byte(80 + m.moves)
	m.must(m.b.Readdress(m.ctx, netip.AddrFrom4(to)))
}

// stop stops daemons.
func (m *moverBed) stop(nodes ...*lab.Node) {
	m.t.Helper()
	var g errgroup.Group
	for _, n := range nodes {
		g.Go(n.Stop)
	}
	m.must(g.Wait())
}

// switchOff leaves of nodes what a host has after it was switched off: its disk.
func (m *testbed) switchOff(nodes ...*lab.Node) {
	m.t.Helper()
	for _, n := range nodes {
		m.must(n.Kill())
		m.run(n, "ip", "link", "delete", device)
		m.run(n, "rm", "-rf", lab.RunDir)
	}
}

// TestAddressChanges gives a host other addresses, while its daemon runs, and while daemons or hosts
// start again. All others follow. The log says for how long nothing passed.
func TestAddressChanges(t *testing.T) {
	t.Parallel()
	for _, u := range []lab.Underlay{lab.Routed, lab.NAT, lab.Home} {
		t.Run(string(u), func(t *testing.T) {
			t.Parallel()
			m := newMoverBed(t, u)
			m.connected(pingLimit, m.nodes...)
			near := m.pod(m.b, "near")
			talks := []conversation{m.converse(near, m.pod(m.a, "first")), m.converse(near, m.pod(m.c, "second"))}
			for _, step := range []struct {
				name string
				do   func()
			}{
				{"all run", m.moveNext},
				{"another daemon restarts", func() { m.stop(m.c); m.moveNext(); m.start(m.c) }},
				{"its daemon restarts", func() { m.stop(m.b); m.moveNext(); m.start(m.b) }},
				{"both restart", func() { m.stop(m.b, m.c); m.moveNext(); m.start(m.b, m.c) }},
				{"the host is switched off and on", func() { m.switchOff(m.b); m.moveNext(); m.start(m.b) }},
				{"all are switched off and on", func() { m.switchOff(m.nodes...); m.moveNext(); m.start(m.nodes...) }},
			} {
				for _, talk := range talks {
					talk.goesOn(t)
					talk.CountGaps()
				}
				step.do()
				m.await(settleLimit, "aware of where b is: "+step.name, m.meetsB, m.a, m.c)
				for _, talk := range talks {
					talk.goesOn(t)
					t.Logf("%s: %s: longest gap %s", step.name, talk.name, talk.LongestGap())
				}
				m.settle(settleLimit, m.nodes...)
			}
			for _, talk := range talks {
				talk.Stop()
			}
		})
	}
}

// newMoverBed makes a mesh in which only b is on the given underlay, if that is a home.
func newMoverBed(t *testing.T, u lab.Underlay) *moverBed {
	t.Helper()
	v := newVillage(t, func(m *testbed) (all []*lab.Host) {
		for _, name := range []string{"a", "b", "c"} {
			var h *lab.Host
			var err error
			switch {
			case u == lab.Home && name == "b":
				h, err = m.lab.HomeHost(m.ctx, name, lab.Router{})
			case u == lab.Home:
				h, err = m.lab.Host(m.ctx, name, lab.Routed)
			default:
				h, err = m.lab.Host(m.ctx, name, u)
			}
			m.must(err)
			all = append(all, h)
		}
		return all
	})
	m := &moverBed{testbed: v.testbed, a: v.nodes[0], b: v.nodes[1], c: v.nodes[2]}
	for _, n := range m.nodes {
		m.must(n.Configure(lab.Config(n.Name, []string{m.a.Public().String()}), m.secret))
	}
	m.start(m.nodes...)
	m.settle(settleLimit, m.nodes...)
	return m
}

// TestAbsentNodeSawFormerAddress has a node away that has seen another one at an address which that one
// has no more. What the absent one saw counts no more.
func TestAbsentNodeSawFormerAddress(t *testing.T) {
	t.Parallel()
	m := newMoverBed(t, lab.NAT)
	says := func(want ...netip.Addr) func(control.Status) bool {
		return func(s control.Status) bool {
			var hosts []string
			for _, e := range s.Node.Endpoints {
				host, _, _ := net.SplitHostPort(e)
				hosts = append(hosts, host)
			}
			return slices.Equal(hosts, strings.Fields(strings.Trim(fmt.Sprint(want), "[]")))
		}
	}
	m.await(settleLimit, "aware of its public address", says(m.b.Public()), m.b)
	m.must(m.c.Kill())
	m.await(settleLimit, "aware of the loss", lab.Sees(1), m.a, m.b)
	m.moveNext()
	m.await(settleLimit, "aware of its new public address", says(m.b.Public()), m.b)
	m.stop(m.a)
	m.start(m.a)
	m.settle(settleLimit, m.a, m.b)
	m.connected(pingLimit, m.a, m.b)
}

// TestClientOfNodeThatMoves has a laptop follow a node to another address, of which nobody tells it but
// the node: its configuration names the former one. Then the node's host is switched off, and has another
// address when it is on again.
func TestClientOfNodeThatMoves(t *testing.T) {
	onUnderlays(t, func(t *testing.T, u lab.Underlay) {
		var host *lab.Host
		v := newVillage(t, func(m *testbed) (all []*lab.Host) {
			for _, name := range []string{"a", "b"} {
				h, err := m.lab.Host(m.ctx, name, u)
				m.must(err)
				all = append(all, h)
			}
			var err error
			host, err = m.lab.HomeHost(m.ctx, "laptop", lab.Router{FullCone: true})
			m.must(err)
			return all
		})
		for _, n := range v.nodes {
			v.configure(n)
		}
		v.live()
		a, b := v.nodes[0], v.nodes[1]
		open := func(s control.Status) bool {
			return s.Node.Open && !slices.ContainsFunc(s.Peers, func(p control.Peer) bool { return !p.Open })
		}
		v.await(settleLimit, "aware of who is reached by strangers", open, v.nodes...)
		c := v.laptop(a, host, "laptop")
		c.reaches(a, b)
		to := b.Public().As4()
		to[3] = 80
		v.must(b.Readdress(v.ctx, netip.AddrFrom4(to)))
		c.reaches(a, b)
		v.eventually(settleLimit, func() error {
			if kept := v.run(b, "cat", lab.StateDir+"/objects.cbor"); !strings.Contains(kept, string(host.Public().AsSlice())) {
				return errors.New("b has not written down where the laptop is")
			}
			return nil
		})
		v.switchOff(b)
		to[3]++
		v.must(b.Readdress(v.ctx, netip.AddrFrom4(to)))
		v.start(b)
		c.reaches(a, b)
	})
}
