// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/test/lab"
)

// uplink is a way to be connected to the internet.
type uplink struct {
	name string
	lone lab.Underlay    // of a host that is on no site
	site lab.SiteOptions // of the others, each on one of its own

	four, six bool // it has an address of this family
	open      bool // strangers reach it
	hidden    bool // its router gives it another port for each destination
	noUDP     bool
}

func homeOf(name string, r lab.Router) uplink {
	return uplink{
		name: name, site: lab.SiteOptions{Underlay: lab.Home, Router: r}, four: true,
		open: r.FullCone, hidden: r.Mapping == lab.PortDependent, noUDP: r.BlockUDP,
	}
}

// The uplinks. In TestSoakPathsOfAllKinds there are two of each.
var (
	publicUplink     = uplink{name: "public", lone: lab.Routed, four: true, six: true, open: true}
	sixUplink        = uplink{name: "six", lone: lab.Routed6, six: true, open: true}
	closedUplink     = uplink{name: "closed", site: lab.SiteOptions{Underlay: lab.Routed, Router: lab.Router{Firewall4: true}}, four: true}
	preservingUplink = homeOf("preserving", lab.Router{Mapping: lab.PortPreserving})
	carrierUplink    = homeOf("carrier", lab.Router{Mapping: lab.PortPreserving, Carrier: &lab.Router{}})
	coneUplink       = homeOf("cone", lab.Router{FullCone: true})
	dependentUplink  = homeOf("dependent", lab.Router{Mapping: lab.PortDependent})
	officeUplink     = homeOf("office", lab.Router{BlockUDP: true})
	sixHomeUplink    = uplink{
		name: "six-home", four: true, six: true, hidden: true,
		site: lab.SiteOptions{Underlay: lab.Home, GUA: true, Router: lab.Router{Mapping: lab.PortDependent, Firewall6: true}},
	}
)

// kindBetween is how packets travel between two hosts.
func kindBetween(a, b uplink) control.PathKind {
	switch {
	case a.noUDP || b.noUDP:
		return control.PathTCP
	case a.six && b.six:
		return control.PathDirect
	case !a.four || !b.four || a.hidden && !b.open || b.hidden && !a.open:
		return control.PathRelayed
	default:
		return control.PathDirect
	}
}

// newUplinks starts a node for each uplink. The first one, at which all others join, is public.
func newUplinks(t *testing.T, uplinks ...uplink) *testbed {
	t.Helper()
	m := newTestbed(t)
	for i, u := range uplinks {
		name := fmt.Sprintf("%s-%d", u.name, i)
		if u.lone == "" {
			for _, h := range m.site(name, u.site, name) {
				m.nodes = append(m.nodes, lab.NewNode(h, binary))
			}
			continue
		}
		h, err := m.lab.Host(m.ctx, name, u.lone)
		m.must(err)
		m.nodes = append(m.nodes, lab.NewNode(h, binary))
	}
	first := m.nodes[0]
	var err error
	m.secret, err = first.NewSecret(m.ctx)
	m.must(err)
	for i, n := range m.nodes {
		// They start at the same moment. A node without UDP may hear too late that another
		// one has claimed the slot that it chose.
		slot := fmt.Sprintf("  pod-cidr: [10.42.%d.0/24]", i+1)
		m.must(n.Configure(lab.Config(n.Name, []string{first.Public().String(), first.Public6().String()}, slot), m.secret))
	}
	m.start(m.nodes...)
	m.settle(settleLimit, m.nodes...)
	return m
}

// meetAsTheyCan waits until every two nodes talk over a path of the kind that their uplinks
// allow. There is traffic, so that nodes which did not meet at once try again soon.
func (m *testbed) meetAsTheyCan(limit time.Duration, uplinks []uplink) {
	m.t.Helper()
	began, before := time.Now(), 0
	m.eventually(limit, func() error {
		m.connected(limit, m.nodes...)
		var errs []error
		for i, n := range m.nodes {
			s := m.status(n)
			for j, other := range m.nodes {
				if p, want := lab.PeerOf(s, other.Name).Path, kindBetween(uplinks[i], uplinks[j]); i != j && p.Works() != want {
					errs = append(errs, fmt.Errorf("%s to %s: got %+v, want %s", n.Name, other.Name, p, want))
				}
			}
		}
		if len(errs) != before {
			m.t.Logf("after %v: %d of %d paths are not the best ones: %v", time.Since(began).Round(time.Second), len(errs), len(m.nodes)*(len(m.nodes)-1), errs)
			before = len(errs)
		}
		return errors.Join(errs...)
	})
}

var eightKinds = []uplink{publicUplink, preservingUplink, carrierUplink, sixHomeUplink, coneUplink, closedUplink, sixUplink, officeUplink}

// pairs are those of eightKinds between which there is traffic: direct ones, one of them by IPv6,
// some that meet only because both speak first, relayed ones, one of them between the families,
// and one over TCP.
var pairs = [][2]int{{0, 1}, {1, 2}, {5, 1}, {4, 3}, {6, 3}, {1, 3}, {6, 1}, {7, 0}}

// TestPathsOfKinds has two nodes, and a public one that may be their relay, for each of some pairs of
// kinds. They talk over a path as good as their routers let it be.
func TestPathsOfKinds(t *testing.T) {
	for _, pair := range pairs {
		one, other := eightKinds[pair[0]], eightKinds[pair[1]]
		kind := kindBetween(one, other)
		t.Run(fmt.Sprintf("%s and %s, %s", one.name, other.name, kind), func(t *testing.T) {
			t.Parallel()
			m := newUplinks(t, publicUplink, one, other)
			m.connected(settleLimit, m.nodes...)
			e := &ends{testbed: m, a: m.nodes[1], b: m.nodes[2]}
			e.on(kind)
			near, far := m.pod(e.a, "near"), m.pod(e.b, "far")
			talk, stream := m.converse(near, far), m.stream(near, far)
			talk.goesOn(t)
			m.flows([]*lab.Stream{stream})
			m.must(stream.Stop())
			if kind == control.PathDirect {
				talk.end(m.status(e.a).Device.Implementation)
			} else {
				// Daemons that forward drop what they have no time for.
				sent, lost := talk.Stop()
				t.Logf("%d of %d packets were lost", lost, sent)
			}
			m.encrypted()
		})
	}
}

// podOnEach makes a pod on each node.
func (m *testbed) podOnEach() []*lab.Pod {
	m.t.Helper()
	var pods []*lab.Pod
	for _, n := range m.nodes {
		pods = append(pods, m.pod(n, "pod-"+n.Name))
	}
	return pods
}
