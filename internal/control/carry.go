// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/meshd/meshd/internal/mesh"
)

// Role is what a node is in its location.
type Role string

// The roles. A node that no gateway is needed for has none, as in the modes full
// and cross, or alone in its location.
const (
	RoleGateway  Role = "gateway"
	RoleMember   Role = "member"   // it hangs on a gateway, and could be one
	RoleNever    Role = "never"    // the same, and it may not be one
	RoleDraining Role = "draining" // it asks to be relieved, or was
	RoleDown     Role = "down"     // it was found not to carry traffic
)

// Path is how packets get to another node, and how they fare.
type Path struct {
	Kind mesh.PathKind `json:"kind"`
	Via  []string      `json:"via"` // names of the nodes between, in order; empty for a direct path
	// Health is what echo requests along the path say: ok, losing, silent; ""
	// where none are sent.
	Health string `json:"health"`
	RTT    string `json:"rtt"` // of these, as time.Duration prints it; "" if not known
}

// What Path.Health may be.
const (
	PathOK     = "ok"
	PathLosing = "losing"
	PathSilent = "silent"
)

// Drained is what became of a wish to be relieved, or to take that back.
type Drained struct {
	Draining   bool     `json:"draining"`   // the wish stands, until it is undone or the daemon starts anew
	Gateway    bool     `json:"gateway"`    // traffic of others goes through this node now
	Successors []string `json:"successors"` // gateways of the location; sorted
	Text       string   `json:"text"`       // the same for a person
}

// Drain asks the daemon to have its gateway relieved, or to take that back, and
// waits for it.
func (c *Client) Drain(ctx context.Context, undo bool) (Drained, error) {
	var d Drained
	return d, c.do(ctx, http.MethodPost, "/v1/drain?"+url.Values{"undo": {strconv.FormatBool(undo)}}.Encode(), &d)
}

// Graph asks for the network as the daemon sees it. A full mesh of a thousand nodes
// has half a million tunnels, each of which is in the answer.
func (c *Client) Graph(ctx context.Context) (mesh.Graph, error) {
	var g mesh.Graph
	return g, c.do(ctx, http.MethodGet, "/v1/graph", &g)
}

// DOT asks for the same in graphviz's language, in which a crowd of tunnels is drawn
// as a few lines.
func (c *Client) DOT(ctx context.Context) (string, error) {
	var dot string
	return dot, c.do(ctx, http.MethodGet, "/v1/graph?format=dot", &dot)
}

// Probe is Status after one echo request to every node: it has the health of all
// paths.
func (c *Client) Probe(ctx context.Context) (Status, error) {
	var s Status
	return s, c.do(ctx, http.MethodGet, "/v1/status?probe=true", &s)
}

// PlanWithout asks what the loss of a node would change on the host.
func (c *Client) PlanWithout(ctx context.Context, node string) (Plan, error) {
	var p Plan
	return p, c.do(ctx, http.MethodGet, "/v1/plan?"+url.Values{"without": {node}}.Encode(), &p)
}

// handleCarry maps the paths of what is about gateways and paths.
func handleCarry(mux *http.ServeMux, d Daemon) {
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
