// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/meshd/meshd/internal/mesh"
)

// Role is a node's part in its location.
type Role string

// The roles. A node that needs no gateway has none: in the modes full and cross, and
// when it is alone in its location. But one that names a network which other nodes of its location name, too,
// may be draining or down there.
const (
	RoleGateway  Role = "gateway"
	RoleMember   Role = "member"   // it uses a gateway, and could be one
	RoleNever    Role = "never"    // it uses a gateway, and may not be one
	RoleDraining Role = "draining" // it has asked to be replaced
	RoleDown     Role = "down"     // a verdict says that it carries no traffic
)

// Route is how packets get to another node.
type Route struct {
	Kind   mesh.RouteKind `json:"kind"`
	Via    []string       `json:"via"` // names of the nodes between, in order; empty for a direct route
	Health Health         `json:"health"`
	RTT    Milliseconds   `json:"rttMilliseconds,omitzero"` // of the echo requests; absent if not known
}

// IsNone reports that there is no way to the node.
func (r Route) IsNone() bool { return r.Kind == mesh.RouteNone }

// IsLAN reports that packets leave this host over the private network, and in no tunnel.
func (r Route) IsLAN() bool { return r.Kind == mesh.RouteLAN }

// String formats a route for a person: "tunnel", or "lan via a, b".
func (r Route) String() string {
	if len(r.Via) == 0 {
		return string(r.Kind)
	}
	return string(r.Kind) + " via " + strings.Join(r.Via, ", ")
}

// Health is the result of echo requests along a route; "" where none are sent.
type Health string

// The values of Health.
const (
	RouteOK     Health = "ok"
	RouteLosing Health = "losing" // some requests in a row stay without an answer
	RouteSilent Health = "silent" // so many that the route counts as broken
)

// Drained is the state after a request to drain the node, or to undo that.
type Drained struct {
	Draining   bool           `json:"draining"`   // it lasts until it is undone or the daemon restarts
	Gateway    bool           `json:"gateway"`    // other nodes' traffic goes through this node now
	Networks   []netip.Prefix `json:"networks"`   // behind this node that it serves now though others name them, too
	Successors []string       `json:"successors"` // gateways of the location, and who serves the networks that this node served; sorted
	Text       string         `json:"text"`       // the same for a person
}

// Drain asks the daemon to have its node replaced as a gateway, and as the server of networks, or to undo that, and
// waits for the result.
func (c *Client) Drain(ctx context.Context, undo bool) (Drained, error) {
	var d Drained
	return d, c.do(ctx, http.MethodPost, "/v1/drain?"+url.Values{"undo": {strconv.FormatBool(undo)}}.Encode(), &d)
}

// Graph returns the network as the daemon sees it, with every tunnel: half a million in a
// full mesh of a thousand nodes.
func (c *Client) Graph(ctx context.Context) (mesh.Graph, error) {
	var g mesh.Graph
	return g, c.do(ctx, http.MethodGet, "/v1/graph", &g)
}

// DOT returns the graph in graphviz's language, with many tunnels drawn as a few lines.
func (c *Client) DOT(ctx context.Context) (string, error) {
	var dot string
	return dot, c.do(ctx, http.MethodGet, "/v1/graph?format=dot", &dot)
}

// Probe makes the daemon send one echo request to every node, and returns the status
// after that, which has the health of all routes.
func (c *Client) Probe(ctx context.Context) (Status, error) {
	var s Status
	return s, c.do(ctx, http.MethodGet, "/v1/status?probe=true", &s)
}

// PlanWithout returns what the loss of a node or a location would change on the host.
func (c *Client) PlanWithout(ctx context.Context, name string) (Plan, error) {
	var p Plan
	return p, c.do(ctx, http.MethodGet, "/v1/plan?"+url.Values{"without": {name}}.Encode(), &p)
}

// handleGateways adds the handlers for gateways and routes.
func handleGateways(mux *http.ServeMux, d Daemon) {
	mux.HandleFunc("POST /v1/drain", func(w http.ResponseWriter, r *http.Request) {
		drained, err := d.Drain(r.Context(), r.URL.Query().Get("undo") == "true")
		reply(w, drained, err)
	})
	mux.HandleFunc("GET /v1/graph", func(w http.ResponseWriter, r *http.Request) {
		graph, err := d.Graph()
		if r.URL.Query().Get("format") == "dot" {
			reply(w, graph.DOT(), err)
			return
		}
		reply(w, graph, err)
	})
}
