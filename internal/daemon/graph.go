// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

// Graph implements control.Daemon.
func (d *daemon) Graph() (mesh.Graph, error) {
	last := d.published.Load()
	in := last.turn.wanted.Input
	if in.Self == (mesh.ID{}) {
		return mesh.Graph{}, fmt.Errorf("%w: the daemon has only just started", control.ErrRefused)
	}
	g := mesh.GraphOf(in)
	paths := make(map[mesh.ID]control.PathKind, len(last.status.Peers))
	for _, p := range last.status.Peers {
		paths[p.ID] = p.Path.Works()
	}
	for i := range g.Tunnels {
		switch p := &g.Tunnels[i]; in.Self {
		case p.A:
			p.Path = string(paths[p.B])
		case p.B:
			p.Path = string(paths[p.A])
		}
	}
	return g, nil
}

// PlanWithout implements control.Daemon: what this host would do, which routes would change, and
// whether etcd would lose its quorum, if a node or a location were lost.
func (d *daemon) PlanWithout(ctx context.Context, name string) (control.Plan, error) {
	t := d.published.Load().turn
	lost, err := findLost(t.wanted.Input.Records, name)
	if err != nil {
		return control.Plan{}, err
	}
	if slices.Contains(lost, t.wanted.Input.Self) {
		return control.Plan{}, fmt.Errorf("%w: this node would be lost with %s; ask another one", control.ErrRefused, name)
	}
	if t.wanted.Desired.Device == nil {
		return control.Plan{}, fmt.Errorf("%w: it is not known yet what this host should have", control.ErrRefused)
	}
	in := t.wanted.Input
	for _, id := range lost {
		in = mesh.Without(in, id)
	}
	after := mesh.Derive(in)
	out := control.Plan{Changes: []string{}, Routes: changedRoutes(t, after, lost), Quorum: mesh.LostQuorum(t.view.Records, t.view.Alive, lost)}
	plan := netcfg.Diff(t.observed, netcfg.Desired(after, t.wanted.Settings), netcfg.Options{Now: t.now, Prune: true})
	if !plan.Empty() {
		out.Changes = strings.Split(strings.TrimSpace(plan.String()), "\n")
	}
	return out, ctx.Err()
}

// findLost returns the node with this name or fingerprint or, if there is none, the nodes of the
// location with this name.
func findLost(records []mesh.Record, name string) ([]mesh.ID, error) {
	node, err := findNode(records, name)
	if err == nil {
		return []mesh.ID{node.ID()}, nil
	}
	var lost []mesh.ID
	for _, r := range records {
		if r.Location == name {
			lost = append(lost, r.ID())
		}
	}
	if lost == nil {
		return nil, err
	}
	return lost, nil
}

// changedRoutes lists the routes that the loss of nodes changes, those to these nodes apart.
func changedRoutes(t turn, after mesh.Topology, lost []mesh.ID) []string {
	x, lines := indexOf(t), []string{}
	for _, p := range t.wanted.Topology.Routes {
		if slices.Contains(lost, p.ID) {
			continue
		}
		was, is := x.routeIn(t.wanted.Topology, p.ID).String(), x.routeIn(after, p.ID).String()
		if was != is {
			lines = append(lines, fmt.Sprintf("route to %s: %s, was %s", x.nameOf(p.ID), is, was))
		}
	}
	slices.Sort(lines)
	return lines
}
