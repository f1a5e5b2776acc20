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

	"golang.org/x/sync/errgroup"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/test/lab"
)

// village is a mesh with locations. Every node has a pod.
type village struct {
	*testbed
	pods    map[*lab.Node]*lab.Pod
	overlay map[*lab.Node][]netip.Addr
	config  func(n *lab.Node, more ...string) string
}

// slowProbes are for tests in which a busy machine must not make a gateway look dead.
var slowProbes = []string{"probe: {interval: 1s, misses: 5}"}

// cluster returns the sections probe and cluster of the configuration: ranges of both
// families, and the settings that may change with the generation.
func cluster(generation int, mode mesh.Mode, more ...string) []string {
	return slices.Concat(probes, dualStack, []string{fmt.Sprintf("  generation: %d", generation), "  mode: " + string(mode)}, more)
}

// newVillage makes a mesh of hosts. All others join the first one.
func newVillage(t *testing.T, build func(m *testbed) []*lab.Host) *village {
	t.Helper()
	m := newTestbed(t)
	for _, h := range build(m) {
		m.nodes = append(m.nodes, lab.NewNode(h, binary))
	}
	first := m.nodes[0]
	var err error
	m.secret, err = first.NewSecret(m.ctx)
	m.must(err)
	return &village{testbed: m, config: func(n *lab.Node, more ...string) string {
		if location := n.Location(); location != "" {
			more = append([]string{"  location: " + location}, more...)
		}
		return lab.Config(n.Name, []string{first.Public().String()}, more...)
	}}
}

// site adds a site with hosts of the given names.
func (m *testbed) site(name string, o lab.SiteOptions, hosts ...string) []*lab.Host {
	m.t.Helper()
	s, err := m.lab.Site(m.ctx, name, o)
	m.must(err)
	var all []*lab.Host
	for _, h := range hosts {
		host, err := s.Host(m.ctx, h)
		m.must(err)
		all = append(all, host)
	}
	return all
}

// in returns the village for use in a subtest.
func (v *village) in(t *testing.T) *village {
	sub := *v
	sub.testbed = v.testbed.in(t)
	return &sub
}

// configure writes the file of a node.
func (v *village) configure(n *lab.Node, lines ...string) {
	v.t.Helper()
	v.must(n.Configure(v.config(n, lines...), v.secret))
}

// live starts all nodes, waits until they see each other, and makes their pods.
func (v *village) live() {
	v.t.Helper()
	v.start(v.nodes...)
	v.makePods()
}

// makePods waits until all nodes see each other, and makes a pod on each.
func (v *village) makePods() {
	v.t.Helper()
	v.pods, v.overlay = map[*lab.Node]*lab.Pod{}, map[*lab.Node][]netip.Addr{}
	for i, s := range v.settle(settleLimit, v.nodes...) {
		n := v.nodes[i]
		v.overlay[n], v.pods[n] = s.Node.Overlay, v.pod(n, "pod-"+n.Name)
	}
}

// node returns the node with the given name.
func (v *village) node(name string) *lab.Node {
	v.t.Helper()
	for _, n := range v.nodes {
		if n.Name == name {
			return n
		}
	}
	v.t.Fatalf("no node %s", name)
	return nil
}

// without returns all nodes except the given ones.
func (v *village) without(some ...*lab.Node) []*lab.Node {
	return slices.DeleteFunc(slices.Clone(v.nodes), func(n *lab.Node) bool { return slices.Contains(some, n) })
}

// adopt waits until a generation of the cluster's settings is in force on all
// nodes.
func (v *village) adopt(generation uint64) {
	v.t.Helper()
	v.await(settleLimit, fmt.Sprintf("at generation %d", generation), func(s control.Status) bool {
		return s.Cluster.Generation == generation
	}, v.nodes...)
}

// full checks that every node and every pod reaches all addresses of every other node
// and pod, in both families.
func (v *village) full(nodes ...*lab.Node) {
	v.t.Helper()
	v.answered(nodes, func(_, to *lab.Node) []netip.Addr { return slices.Concat(v.overlay[to], v.pods[to].Addresses) })
}

// answered pings from the host and the pod of each node what targets returns for each
// other node, until all addresses have answered.
func (v *village) answered(nodes []*lab.Node, targets func(from, to *lab.Node) []netip.Addr) {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(v.ctx, pingLimit)
	defer cancel()
	var g errgroup.Group
	g.SetLimit(4) // all at once would be what a slow machine is busy with
	for _, from := range nodes {
		var addrs []netip.Addr
		for _, to := range nodes {
			if to != from {
				addrs = append(addrs, targets(from, to)...)
			}
		}
		g.Go(func() error { return from.AwaitPings(ctx, addrs) })
		g.Go(func() error { return v.pods[from].AwaitPings(ctx, addrs) })
	}
	v.must(g.Wait())
}

// silent checks that the pods of two nodes do not reach each other.
func (v *village) silent(a, b *lab.Node) {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(v.ctx, time.Second)
	defer cancel()
	for from, to := range map[*lab.Node]*lab.Node{a: b, b: a} {
		if err := v.pods[from].AwaitPings(ctx, v.pods[to].Addresses[:1]); err == nil {
			v.t.Errorf("%s reaches %s", from.Name, to.Name)
		}
	}
}

// encrypted checks that no packet has crossed the internet in plain text.
func (m *testbed) encrypted() {
	m.t.Helper()
	n, err := m.lab.PlainText(m.ctx)
	m.must(err)
	if n > 0 {
		seen, err := m.lab.PlainTextSeen(m.ctx)
		m.t.Errorf("packets in plain text between places: got %d, want none: %v %s", n, err, seen)
	}
}

// carrier returns the node at the end of the tunnel through which another node reaches
// an address, nil if it has no such tunnel.
func (v *village) carrier(from *lab.Node, a netip.Addr) *lab.Node {
	v.t.Helper()
	n, err := lab.Carrier(v.ctx, from, v.nodes, a)
	v.must(err)
	return n
}

// gateway waits until the observer reaches all nodes of a location through one of them,
// and returns that node.
func (v *village) gateway(observer *lab.Node, location string) *lab.Node {
	v.t.Helper()
	var (
		gateway *lab.Node
		addrs   []netip.Addr
	)
	for _, n := range v.members(location) {
		addrs = append(addrs, v.overlay[n]...)
	}
	v.eventually(settleLimit, func() (err error) {
		gateway, err = lab.Gateway(v.ctx, observer, v.nodes, addrs)
		return err
	})
	return gateway
}

func (v *village) members(location string) []*lab.Node {
	return slices.DeleteFunc(slices.Clone(v.nodes), func(n *lab.Node) bool { return n.Location() != location })
}

// has reports whether a status has a problem of this kind that names a node and has
// advice.
func has(kind mesh.ProblemKind, node, advice string) func(control.Status) bool {
	return func(s control.Status) bool {
		return slices.ContainsFunc(s.Problems, func(p mesh.Problem) bool {
			return p.Kind == kind && (p.Node == node || strings.Contains(p.Text, node)) && strings.Contains(p.Advice, advice)
		})
	}
}

// fine reports whether a status has no problem of this kind.
func fine(kind mesh.ProblemKind) func(control.Status) bool {
	return func(s control.Status) bool {
		return !slices.ContainsFunc(s.Problems, func(p mesh.Problem) bool { return p.Kind == kind })
	}
}
