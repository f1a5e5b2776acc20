// SPDX-License-Identifier: Apache-2.0

package control_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
)

func (d *daemon) Drain(_ context.Context, undo bool) (control.Drained, error) {
	return control.Drained{Draining: !undo, Successors: []string{"b"}, Text: "Replaced."}, nil
}

func (d *daemon) Network(context.Context) (control.Network, error) {
	return control.Network{Node: "a"}, nil
}

func (d *daemon) Graph() (mesh.Graph, error) { return mesh.Graph{Cluster: "default"}, nil }

func (d *daemon) Probe(context.Context) (control.Status, error) {
	s := d.status
	s.Version = "probed"
	return s, nil
}

func (d *daemon) PlanWithout(_ context.Context, node string) (control.Plan, error) {
	if node != "a&b" {
		return control.Plan{}, fmt.Errorf("%w: no node is named %s", control.ErrRefused, node)
	}
	return control.Plan{Changes: []string{}, Routes: []string{"route to x: none, was tunnel"}}, nil
}

func TestGatewaysAndRoutes(t *testing.T) {
	c, _ := serve(t, &daemon{})
	for _, undo := range []bool{false, true} {
		got, err := c.Drain(t.Context(), undo)
		want := control.Drained{Draining: !undo, Successors: []string{"b"}, Text: "Replaced."}
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); err != nil || diff != "" {
			t.Errorf("drain: got %v (-want +got):\n%s", err, diff)
		}
	}
	if s, err := c.Probe(t.Context()); err != nil || s.Version != "probed" {
		t.Errorf("probe: got %+v, %v", s, err)
	}
	n, err := c.Network(t.Context())
	if err != nil || n.Node != "a" {
		t.Errorf("network: got %+v, %v", n, err)
	}
	g, err := c.Graph(t.Context())
	if err != nil || g.Cluster != "default" {
		t.Errorf("graph: got %+v, %v", g, err)
	}
	if dot, err := c.DOT(t.Context()); err != nil || dot != g.DOT() {
		t.Errorf("graph in graphviz's language: got %q, %v, want %q", dot, err, g.DOT())
	}
	plan, err := c.PlanWithout(t.Context(), "a&b")
	if err != nil || len(plan.Routes) != 1 {
		t.Errorf("plan without a node: got %+v, %v", plan, err)
	}
	if _, err := c.PlanWithout(t.Context(), "x"); !errors.Is(err, control.ErrRefused) {
		t.Errorf("plan without an unknown node: got %v, want ErrRefused", err)
	}
}

func TestRouteString(t *testing.T) {
	for _, tt := range []struct {
		route control.Route
		want  string
	}{
		{control.Route{Kind: mesh.RouteNone}, "none"},
		{control.Route{Kind: mesh.RouteTunnel}, "tunnel"},
		{control.Route{Kind: mesh.RouteLAN, Via: []string{"a", "b"}}, "lan via a, b"},
	} {
		if got := tt.route.String(); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}
