// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"slices"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/test/lab"
)

// The tests named TestSoak take minutes by their nature, and only make soak runs them.

// meetLimit is for two nodes that have not met at first: with traffic between them they try
// again every minute.
const meetLimit = 15 * time.Minute

// TestSoakPathsOfAllKinds has two nodes of each kind. Every two of all talk over a path as good as
// their routers let it be.
func TestSoakPathsOfAllKinds(t *testing.T) {
	kinds := append(slices.Clone(eightKinds),
		homeOf("open-input", lab.Router{Mapping: lab.PortPreserving, OpenInput: true}),
		homeOf("restricted", lab.Router{}),
		dependentUplink,
	)
	kinds = slices.Concat(kinds, kinds)
	m := newUplinks(t, kinds...)
	m.meetAsTheyCan(meetLimit, kinds)
	m.encrypted()
}

// TestSoakRekeys has pairs of nodes of each kind exchange packets for ten minutes, while WireGuard
// replaces their sessions every two minutes. With the kernel's WireGuard no packet may be lost.
func TestSoakRekeys(t *testing.T) {
	const length = 10 * time.Minute
	m := newUplinks(t, eightKinds...)
	m.meetAsTheyCan(settleLimit, eightKinds)
	implementation := m.status(m.nodes[0]).Device.Implementation
	pods := m.podOnEach()
	var talks []conversation
	for _, pair := range pairs {
		// Few packets, since all pairs have some at once.
		talks = append(talks, m.converseEach(5*slowPeriod, pods[pair[0]], pods[pair[1]]))
	}
	before := m.handshakes()
	time.Sleep(length) // the length is the condition here
	after := m.handshakes()
	for i, pair := range pairs {
		if !after[i].After(before[i].Add(length / 2)) {
			t.Errorf("%s and %s: the last handshake was at %v, before ten minutes at %v", m.nodes[pair[0]].Name, m.nodes[pair[1]].Name, after[i], before[i])
		}
	}
	for _, talk := range talks {
		talk.goesOn(t)
		talk.end(implementation)
	}
	m.encrypted()
}

// handshakes returns when each of the pairs has begun its session.
func (m *testbed) handshakes() []time.Time {
	m.t.Helper()
	var all []time.Time
	for _, pair := range pairs {
		all = append(all, lab.PeerOf(m.status(m.nodes[pair[0]]), m.nodes[pair[1]].Name).LastHandshake)
	}
	return all
}

// TestSoakManyOnOneRelay has thirty nodes, no two of which can meet, reach each other through one
// relay.
func TestSoakManyOnOneRelay(t *testing.T) {
	kinds := []uplink{publicUplink}
	for range 30 {
		kinds = append(kinds, dependentUplink)
	}
	m := newUplinks(t, kinds...)
	m.meetAsTheyCan(meetLimit, kinds)
	m.connected(pingLimit, m.nodes...)
	m.encrypted()
}

// TestSoakHomes has homes talk while their routers are switched off and on, one of them is carried
// elsewhere, and both relays are gone. Two of the homes meet, the others need a relay.
func TestSoakHomes(t *testing.T) {
	kinds := []uplink{publicUplink, publicUplink, dependentUplink, dependentUplink, preservingUplink, preservingUplink}
	m := newUplinks(t, kinds...)
	m.meetAsTheyCan(meetLimit, kinds)
	pods := m.podOnEach()
	var talks []conversation
	var streams []*lab.Stream
	for _, pair := range [][2]int{{4, 5}, {2, 3}, {2, 4}} {
		talks = append(talks, m.converse(pods[pair[0]], pods[pair[1]]))
		streams = append(streams, m.stream(pods[pair[0]], pods[pair[1]]))
	}
	goOn := func(m *testbed, talks []conversation, streams []*lab.Stream) {
		for _, talk := range talks {
			talk.goesOn(m.t)
		}
		m.flows(streams)
	}
	whole := func(m *testbed) {
		m.settle(settleLimit, m.nodes...)
		m.meetAsTheyCan(meetLimit, kinds)
		goOn(m, talks, streams)
	}
	train, err := m.lab.Site(m.ctx, "train", preservingUplink.site)
	m.must(err)
	for _, step := range []struct {
		name string
		do   func(m *testbed)
	}{
		{"routers rebooted", func(m *testbed) {
			for _, n := range m.nodes[2:] {
				m.must(n.RebootRouter(m.ctx))
			}
		}},
		{"carried elsewhere", func(m *testbed) {
			m.must(m.nodes[4].Move(m.ctx, train, func() error { return nil }))
		}},
		{"both relays gone", func(m *testbed) {
			relays, one, other := m.nodes[:2], m.nodes[2], m.nodes[3]
			for _, n := range relays {
				m.must(n.Cut(m.ctx))
			}
			m.await(settleLimit, "without a path", func(s control.Status) bool {
				p := lab.PeerOf(s, other.Name)
				return !p.Alive || p.Path.Works() == control.PathNone
			}, one)
			goOn(m, talks[:1], streams[:1])
			for _, n := range relays {
				m.must(n.Restore(m.ctx))
			}
		}},
	} {
		if !t.Run(step.name, func(t *testing.T) {
			m := m.in(t)
			step.do(m)
			whole(m)
		}) {
			t.FailNow() // the next step begins where this one ends
		}
	}
	for i, talk := range talks {
		m.must(streams[i].Stop())
		sent, lost := talk.Stop()
		t.Logf("between %s: %d of %d packets were lost", talk.name, lost, sent)
	}
	m.encrypted()
}
