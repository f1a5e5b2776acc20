// SPDX-License-Identifier: Apache-2.0

//go:build !kernel

package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/test/lab"
)

func TestSimultaneousStart(t *testing.T) {
	for name, config := range map[string]func(m *testbed, n *lab.Node) string{
		"every node names every other": func(m *testbed, n *lab.Node) string {
			var others []string
			for _, o := range m.nodes {
				if o != n {
					others = append(others, o.Public().String())
				}
			}
			return lab.Config(n.Name, others)
		},
		"one file for all names the first": func(m *testbed, _ *lab.Node) string {
			return lab.Config("", []string{m.nodes[0].Public().String()})
		},
	} {
		t.Run(name, func(t *testing.T) {
			onUnderlays(t, func(t *testing.T, u lab.Underlay) {
				m := newMesh(t, u, 4)
				for _, n := range m.nodes {
					m.must(n.Configure(config(m, n), m.secret))
				}
				m.start(m.nodes...)
				all := m.settle(settleLimit, m.nodes...)
				m.connected(pingLimit, m.nodes...)
				addresses(t, all)
				for i, s := range all {
					if got, want := s.Node.Name, m.nodes[i].Name; got != want {
						t.Errorf("node name: got %q, want the host name %q", got, want)
					}
				}
			})
		})
	}
}

func TestLateJoiner(t *testing.T) {
	onUnderlays(t, func(t *testing.T, u lab.Underlay) {
		m := newMesh(t, u, 4)
		early := m.nodes[:3]
		m.start(early...)
		before := addresses(t, m.settle(settleLimit, early...))
		m.connected(pingLimit, early...)

		m.start(m.nodes[3])
		after := addresses(t, m.settle(settleLimit, m.nodes...))
		m.connected(pingLimit, m.nodes...)
		if diff := cmp.Diff(before, after[:len(before)]); diff != "" {
			t.Errorf("addresses moved when a node joined (-before +after):\n%s", diff)
		}
	})
}

// TestRestartWithoutSeeds removes the only seed for good while all nodes are stopped. They
// find each other through remembered nodes.
func TestRestartWithoutSeeds(t *testing.T) {
	onUnderlays(t, func(t *testing.T, u lab.Underlay) {
		m := settledMesh(t, u, 4)
		seed, rest := m.nodes[0], m.nodes[1:]
		// A node that does not yet know how others see it has no endpoint.
		found := m.await(settleLimit, "known by its public address", func(s control.Status) bool {
			return lab.Sees(len(rest))(s) && len(s.Node.Endpoints) > 0
		}, m.nodes...)
		before := addresses(t, found[1:])
		m.await(settleLimit, "told of everybody's address", func(s control.Status) bool {
			return !slices.ContainsFunc(s.Peers, func(p control.Peer) bool { return !p.Endpoint.IsValid() })
		}, rest...)
		for _, n := range m.nodes {
			m.must(n.Stop())
		}
		m.must(seed.Cut(m.ctx))

		m.start(rest...)
		after := addresses(t, m.settle(settleLimit, rest...))
		m.connected(pingLimit, rest...)
		if diff := cmp.Diff(before, after); diff != "" {
			t.Errorf("addresses moved over a restart (-before +after):\n%s", diff)
		}
	})
}

// resolver is a name server whose answers change.
type resolver struct {
	conn net.PacketConn

	mu    sync.Mutex
	names map[string]netip.Addr // what is not in it does not exist
	mute  map[string]bool       // names that are never answered
	told  map[string]netip.Addr // with which addresses names were answered last
}

// resolver starts a name server outside of the mesh, which the nodes use.
func (m *testbed) resolver(nodes ...*lab.Node) *resolver {
	m.t.Helper()
	r := &resolver{names: map[string]netip.Addr{}, mute: map[string]bool{}, told: map[string]netip.Addr{}}
	m.must(m.lab.Outside().Do(func() (err error) {
		r.conn, err = net.ListenPacket("udp", netip.AddrPortFrom(lab.OutsideAddr, 53).String())
		return err
	}))
	var serving sync.WaitGroup
	serving.Go(r.serve)
	m.t.Cleanup(func() {
		m.must(r.conn.Close())
		serving.Wait()
	})
	for _, n := range nodes {
		m.must(n.WriteFile("/etc/resolv.conf", "nameserver "+lab.OutsideAddr.String()+"\n", 0o644))
	}
	return r
}

// set sets the address of a name; an invalid one means none.
func (r *resolver) set(name string, a netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.names[name] = a
}

func (r *resolver) serve() {
	buf := make([]byte, 512)
	for {
		n, from, err := r.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		var q dnsmessage.Message
		if q.Unpack(buf[:n]) != nil || len(q.Questions) != 1 {
			continue
		}
		if answer, ok := r.answer(q); ok {
			_, _ = r.conn.WriteTo(answer, from) // a question that gets lost is asked again
		}
	}
}

func (r *resolver) answer(q dnsmessage.Message) ([]byte, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	question := q.Questions[0]
	name := strings.TrimSuffix(question.Name.String(), ".")
	if r.mute[name] {
		return nil, false
	}
	a := dnsmessage.Message{Header: dnsmessage.Header{ID: q.ID, Response: true, RecursionAvailable: true}, Questions: q.Questions}
	addr := r.names[name]
	if !addr.IsValid() {
		a.RCode = dnsmessage.RCodeNameError
	}
	if addr.Is4() && question.Type == dnsmessage.TypeA {
		r.told[name] = addr
		a.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: question.Name, Type: question.Type, Class: question.Class, TTL: 1},
			Body:   &dnsmessage.AResource{A: addr.As4()},
		}}
	}
	packed, err := a.Pack()
	return packed, err == nil
}

// saw returns an error until the server has answered a query for the name with this
// address.
func (r *resolver) saw(name string, a netip.Addr) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if got := r.told[name]; got != a {
		return fmt.Errorf("answer to who asked for %s: got %s, want %s", name, got, a)
	}
	return nil
}

// TestSeedsByName joins by names. One does not exist at first, then points to an address
// without a node, and then to a node; queries for the other one are never answered.
func TestSeedsByName(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 3)
	names := m.resolver(m.nodes...)
	names.mute["hangs.example"] = true
	names.set("good.example", m.nodes[0].Public())
	m.must(m.nodes[1].Configure(lab.Config(m.nodes[1].Name, []string{"hangs.example", "changes.example"}), m.secret))
	m.must(m.nodes[2].Configure(lab.Config(m.nodes[2].Name, []string{"hangs.example", "good.example"}), m.secret))
	m.start(m.nodes...)
	// A name that can't be resolved must not delay the other one.
	m.settle(settleLimit, m.nodes[0], m.nodes[2])

	late := m.nodes[1]
	if s, err := late.Status(m.ctx); err != nil || s.Node.Slot != mesh.None {
		t.Fatalf("node whose seeds don't resolve: got %+v, %v, want one without a slot", s.Node, err)
	}
	names.set("changes.example", lab.OutsideAddr) // where nobody listens
	m.eventually(settleLimit, func() error { return names.saw("changes.example", lab.OutsideAddr) })
	names.set("changes.example", m.nodes[0].Public())
	m.settle(settleLimit, m.nodes...)
	m.connected(pingLimit, m.nodes...)
	addresses(t, m.settle(settleLimit, m.nodes...))
}
