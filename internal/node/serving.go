// SPDX-License-Identifier: Apache-2.0

package node

import (
	"slices"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// serving is which of the networks that other nodes of its location name, too, this node serves,
// as its next record is to state it. Like the term as a gateway, it follows from what was derived.
type serving struct {
	decided bool
	next    []mesh.NetworkTerm
}

// decideServing works out this node's terms as the server of networks from what was derived. It returns
// how soon to take the next turn, 0 for no wish. A term ends at once, unlike a gateway's: a server
// needs no tunnel of its own for what others still send to it.
func (m *Memory) decideServing(in Input, shared []mesh.SharedNetwork) time.Duration {
	down := !IsUp(in.standing()) && !m.health.draining
	m.serving = serving{decided: true}
	for _, s := range shared {
		since := m.Own.ServesSince(s.Network)
		if since == 0 && (in.View.Merged || in.View.JoinEmpty) {
			since = in.Now.UnixMilli()
		}
		if s.Server == in.Self.ID() && !down && since != 0 && !slices.Contains(m.Own.Unserved, s.Network) {
			m.serving.next = append(m.serving.next, mesh.NetworkTerm{Network: s.Network, Since: since})
		}
	}
	if slices.Equal(m.serving.next, m.Own.Serving) {
		return 0
	}
	return soon
}

// stamp writes the terms for the networks that a record names, and that the host has not lost, into it.
func (s *serving) stamp(r *mesh.Record) {
	terms := r.Serving
	if s.decided {
		terms = s.next
	}
	r.Serving = nil
	for _, t := range terms {
		if slices.Contains(r.AllowedLocationIPs, t.Network) && !slices.Contains(r.Unserved, t.Network) {
			r.Serving = append(r.Serving, t)
		}
	}
}
