// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/test/lab"
)

// TestLocations takes a mesh with locations through splits, hosts that leave, and hosts
// that move. On one LAN the hosts' firewalls drop forwarded packets that no rule accepts.
func TestLocations(t *testing.T) { // not parallel: six hosts are a load
	settings := cluster(1, mesh.ModeLocation)
	v, six := newSix(t, settings...)
	for _, n := range six.Nodes[:3] {
		v.run(n, "iptables", "-P", "FORWARD", "DROP")
		v.run(n, "ip6tables", "-P", "FORWARD", "DROP")
	}
	v.live()
	v.full(v.nodes...)
	v.connected(pingLimit, v.nodes...) // internal IPs as well
	before := addresses(t, v.settle(settleLimit, v.nodes...))
	a, b, lone := v.members("a"), v.members("b"), v.node("c")

	for _, step := range []struct {
		name string
		do   func(v *village)
	}{
		{"only gateways have tunnels", func(v *village) {
			v.must(v.onlyGateways(lone))
		}},
		{"split between locations", func(v *village) {
			v.must(v.lab.Partition(v.ctx, hosts(a), hosts(b)))
			v.full(v.nodes...) // by relays outside of both
			v.told(v.nodes)
			v.must(v.lab.Heal(v.ctx))
		}},
		{"split inside a location", func(v *village) {
			gateway := v.gateway(lone, "a")
			cut := v.without(append(b, gateway, lone)...)[0]
			v.must(cut.CutLAN(v.ctx))
			v.full(v.nodes...) // by tunnels to the node that is cut off
			v.told(v.nodes)
			v.must(cut.Restore(v.ctx))
		}},
		{"split between two members", func(v *village) { v.splitPair(lone) }},
		{"split between a member and the gateway", func(v *village) { v.splitFromGateway(lone) }},
		{"gateway and a member without a way out", func(v *village) { v.loseWaysOut(lone) }},
		{"location without a way out", func(v *village) {
			v.must(errors.Join(b[0].CutWAN(v.ctx), b[1].CutWAN(v.ctx)))
			v.silent(b[0], lone)
			v.full(b...)
			v.full(append([]*lab.Node{lone}, a...)...)
			v.told(b, append([]*lab.Node{lone}, a...))
			v.must(errors.Join(b[0].Restore(v.ctx), b[1].Restore(v.ctx)))
		}},
		{"location without a gateway", func(v *village) {
			for _, n := range b {
				v.configure(n, append([]string{"  gateway: never"}, settings...)...)
				v.must(n.Reload())
			}
			v.await(settleLimit, "aware that b has no gateway", has(mesh.ProblemGateway, "b", "gateway"), v.nodes...)
			v.full(b...)
			v.full(append([]*lab.Node{lone}, a...)...)
			for _, n := range b {
				v.configure(n, settings...)
				v.must(n.Reload())
			}
		}},
		{"location loses its last gateway", func(v *village) { v.loseLastGateway(lone, settings) }},
		{"location shrinks to one node", func(v *village) {
			gone := v.gateway(lone, "b")
			v.must(errors.Join(gone.Kill(), gone.Cut(v.ctx)))
			rest := v.without(gone)
			v.await(settleLimit, "aware of a dead peer", lab.Sees(len(rest)-1), rest...)
			v.full(rest...)
			v.must(gone.Restore(v.ctx))
			v.start(gone)
		}},
		{"node moves to another location", func(v *village) {
			moved := b[1]
			v.must(moved.Configure(lab.Config(moved.Name, six.Join, append([]string{"  location: elsewhere"}, settings...)...), v.secret))
			v.must(moved.Reload())
			v.eventually(settleLimit, func() error {
				if got := v.carrier(lone, v.overlay[moved][0]); got != moved {
					return fmt.Errorf("%s reaches %s through %s", lone.Name, moved.Name, nameOf(got))
				}
				return nil
			})
			v.full(v.nodes...)
			v.configure(moved, settings...)
			v.must(moved.Stop())
			v.start(moved)
			v.gateway(lone, "b")
		}},
		{"gateway is carried to another location", func(v *village) { v.carryOver(lone, six, settings) }},
	} {
		t.Run(step.name, func(t *testing.T) {
			v := v.in(t)
			step.do(v)
			v.settle(settleLimit, v.nodes...)
			v.full(v.nodes...)
			v.encrypted()
		})
	}
	if diff := cmp.Diff(before, addresses(t, v.settle(settleLimit, v.nodes...))); diff != "" {
		t.Errorf("addresses moved (-before +after):\n%s", diff)
	}
}

// newSix makes three nodes on a LAN, two on another one, and one alone.
func newSix(t *testing.T, lines ...string) (*village, *lab.Six) {
	t.Helper()
	m := newTestbed(t)
	six, err := m.lab.Six(m.ctx, binary, lines...)
	m.must(err)
	m.nodes, m.secret = six.Nodes, six.Secret
	return &village{testbed: m, config: six.Config}, six
}

// peers returns the nodes that a node has tunnels to, with their allowed IPs.
func (v *village) peers(n *lab.Node) map[*lab.Node][]netip.Prefix {
	v.t.Helper()
	tunnels, err := lab.Tunnels(v.ctx, n, v.nodes)
	v.must(err)
	return tunnels
}

// names returns the sorted names of nodes, for comparing.
func names(nodes []*lab.Node) []string {
	var all []string
	for _, n := range nodes {
		all = append(all, n.Name)
	}
	slices.Sort(all)
	return all
}
