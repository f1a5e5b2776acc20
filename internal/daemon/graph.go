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

// PlanWithout implements control.Daemon: what this host would do, and which
// routes would change, if a node were lost.
func (d *daemon) PlanWithout(ctx context.Context, node string) (control.Plan, error) {
	t := d.published.Load().turn
	lost, err := findNode(t.wanted.Input.Records, node)
	if err != nil {
		return control.Plan{}, err
	}
	if lost.ID() == t.wanted.Input.Self {
		return control.Plan{}, fmt.Errorf("%w: %s is this node; ask another one", control.ErrRefused, node)
	}
	if t.wanted.Desired.Device == nil {
		return control.Plan{}, fmt.Errorf("%w: it is not known yet what this host should have", control.ErrRefused)
	}
	after := mesh.Derive(mesh.Without(t.wanted.Input, lost.ID()))
	out := control.Plan{Changes: []string{}, Routes: changedRoutes(t, after, lost.ID())}
	plan := netcfg.Diff(t.observed, netcfg.Desired(after, t.wanted.Settings), netcfg.Options{Now: t.now, Prune: true})
	if !plan.Empty() {
		out.Changes = strings.Split(strings.TrimSpace(plan.String()), "\n")
	}
	return out, ctx.Err()
}

// changedRoutes lists the routes that the loss of a node changes, the one to the
// node itself apart.
func changedRoutes(t turn, after mesh.Topology, lost mesh.ID) []string {
	x, lines := indexOf(t), []string{}
	for _, p := range t.wanted.Topology.Routes {
		if p.ID == lost {
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
