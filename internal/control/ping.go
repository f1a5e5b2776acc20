// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/meshd/meshd/internal/mesh"
)

// MaxPings is how many echo requests Ping sends at most, because a request to the daemon has a time limit.
const MaxPings = 10

// Ping is what came back from a node and from those on the way to it.
type Ping struct {
	Node string `json:"node"`
	Sent int    `json:"sent"` // echo requests to each hop
	Hops []Hop  `json:"hops"` // in order; the last one is the node
	// Back is how the node sees this one. It is nil if it did not answer: NoBack is why then.
	Back   *PeerView `json:"back,omitempty"`
	NoBack string    `json:"noBack,omitempty"`
}

// PeerView is how another node sees this one.
type PeerView = mesh.PeerView

// Hop is a node on the way to another one, or that one.
type Hop struct {
	Name     string       `json:"name"`
	Answered int          `json:"answered"`                 // echo requests, in all families
	RTT      Milliseconds `json:"rttMilliseconds,omitzero"` // of the fastest one, in the slower family; absent for none
}

// Ping has the daemon send echo requests to a node and to those on the way, and ask it how it sees this one.
// It takes up to a second for each request.
func (c *Client) Ping(ctx context.Context, node string, count int) (Ping, error) {
	var p Ping
	return p, c.do(ctx, http.MethodGet, "/v1/ping?"+url.Values{"node": {node}, "count": {strconv.Itoa(count)}}.Encode(), &p)
}

func handlePing(mux *http.ServeMux, d Daemon) {
	mux.HandleFunc("GET /v1/ping", func(w http.ResponseWriter, r *http.Request) {
		count, _ := strconv.Atoi(r.URL.Query().Get("count"))
		ping, err := d.Ping(r.Context(), r.URL.Query().Get("node"), min(max(count, 1), MaxPings))
		reply(w, ping, err)
	})
}
