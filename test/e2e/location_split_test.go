// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/test/lab"
)

// told waits until the status of every node shows which other nodes it reaches: those in
// a group with it.
func (v *village) told(groups ...[]*lab.Node) {
	v.t.Helper()
	want := map[*lab.Node]map[string]control.Health{}
	for _, n := range slices.Concat(groups...) {
		want[n] = map[string]control.Health{}
		for _, o := range v.nodes {
			together := func(g []*lab.Node) bool { return slices.Contains(g, n) && slices.Contains(g, o) }
			switch {
			case o == n:
			case slices.ContainsFunc(groups, together):
				want[n][o.Name] = control.RouteOK
			default:
				want[n][o.Name] = control.RouteSilent
			}
		}
	}
	v.eventually(settleLimit, func() error {
		var g errgroup.Group
		for n, paths := range want {
			g.Go(func() error { return tells(v.ctx, n, paths) })
		}
		return g.Wait()
	})
}

// tells compares the health of the routes in a node's status with the wanted one.
func tells(ctx context.Context, n *lab.Node, want map[string]control.Health) error {
	s, err := control.NewClient(n.Path(lab.RunDir)).Probe(ctx)
	if err != nil {
		return fmt.Errorf("ask %s: %w", n.Name, err)
	}
	got := map[string]control.Health{}
	for _, p := range s.Peers {
		got[p.Name] = p.Route.Health
	}
	if diff := cmp.Diff(want, got); diff != "" {
		return fmt.Errorf("paths in the status of %s (-want +got):\n%s", n.Name, diff)
	}
	return nil
}

// splitPair cuts the LAN between two nodes of a location that are not gateways. No other
// node loses anything.
func (v *village) splitPair(lone *lab.Node) {
	v.t.Helper()
	gateway := v.gateway(lone, "a")
	pair := v.without(append(v.members("b"), gateway, lone)...)
	one, two := pair[0], pair[1]
	v.must(v.lab.Partition(v.ctx, hosts(pair[:1]), hosts(pair[1:])))
	v.silent(one, two)
	v.full(v.without(one)...)
	v.full(v.without(two)...)
	v.told(v.without(one), v.without(two))
	v.must(v.lab.Heal(v.ctx))
}

// bar configures a node so that it may not be a gateway.
func (v *village) bar(n *lab.Node, settings []string) {
	v.t.Helper()
	v.configure(n, append([]string{"  gateway: never"}, settings...)...)
	v.must(n.Reload())
	v.await(settleLimit, "barred", func(s control.Status) bool { return s.Node.Role == control.RoleNever }, n)
}

// splitFromGateway cuts the LAN between a location's gateway and one of the two other
// nodes. The third node, which reaches both, becomes the gateway in the end, even if the
// node that is cut off was tried first.
func (v *village) splitFromGateway(lone *lab.Node) {
	v.t.Helper()
	gateway := v.gateway(lone, "a")
	rest := v.without(append(v.members("b"), gateway, lone)...)
	cut, third := rest[0], rest[1]
	v.must(v.lab.Partition(v.ctx, hosts([]*lab.Node{gateway}), hosts([]*lab.Node{cut})))
	v.moves(lone, "a", func(n *lab.Node) bool { return n == third })
	v.silent(gateway, cut)
	v.full(v.without(gateway)...)
	v.full(v.without(cut)...)
	v.told(v.without(gateway), v.without(cut))
	v.must(v.lab.Heal(v.ctx))
}

// loseWaysOut leaves only one of three nodes on a LAN with an uplink: neither the
// location's gateway nor the other node has one. All traffic goes through the one node, which
// becomes the gateway, or the gateway's relay.
func (v *village) loseWaysOut(lone *lab.Node) {
	v.t.Helper()
	gateway := v.gateway(lone, "a")
	rest := v.without(append(v.members("b"), gateway, lone)...)
	member := rest[0]
	v.must(errors.Join(gateway.CutWAN(v.ctx), member.CutWAN(v.ctx)))
	v.full(v.nodes...)
	v.told(v.nodes)
	v.must(errors.Join(gateway.Restore(v.ctx), member.Restore(v.ctx)))
}

// loseLastGateway stops the gateway of a location whose other node may not be a gateway.
// All nodes report which gateway is gone and whom they don't reach.
func (v *village) loseLastGateway(lone *lab.Node, settings []string) {
	v.t.Helper()
	gateway := v.gateway(lone, "b")
	member := v.without(append(v.members("a"), gateway, lone)...)[0]
	v.bar(member, settings)
	v.must(gateway.Cut(v.ctx))
	rest, outside := v.without(gateway), v.without(gateway, member)
	v.await(settleLimit, "aware of a dead peer", lab.Sees(len(rest)-1), rest...)
	v.await(settleLimit, "aware that b has no gateway", has(mesh.ProblemGateway, gateway.Name, "start "+gateway.Name), rest...)
	v.full(outside...)
	v.told(outside, []*lab.Node{member})
	v.must(gateway.Restore(v.ctx))
	v.configure(member, settings...)
	v.must(member.Reload())
}
