// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/probe"
)

// ways is to which networks behind this node its host has lost its own ways. It says so in its record as
// long as another node of its location that lives names them, too: so that one serves them.
type ways struct {
	had  []netip.Prefix // to which there was one since the start
	lost []netip.Prefix // as the record says
	hold probe.HoldDown // before it says otherwise
}

// look takes in which ways the host has. It returns how soon to look again, 0 for no wish.
// A network that is reached by a default route has no way of its own that could be lost.
func (w *ways) look(in Input) time.Duration {
	before := w.lost
	w.lost = nil
	again := false
	networks, _ := in.Config.networks()
	for _, p := range networks {
		working, broken := in.ways(p)
		had := slices.Contains(w.had, p)
		if working && !had {
			w.had = append(w.had, p)
		}
		switch {
		case !in.anotherNames(p):
		case !working && (broken || had):
			w.lost = append(w.lost, p)
		case slices.Contains(before, p):
			w.lost, again = append(w.lost, p), true
		}
	}
	if len(w.lost) == 0 {
		w.hold.Recovered(in.Now)
		return 0
	}
	wait := w.hold.Failed(in.Now)
	if again && wait == 0 {
		w.lost = slices.DeleteFunc(w.lost, func(p netip.Prefix) bool {
			working, _ := in.ways(p)
			return working
		})
		if len(w.lost) == 0 {
			w.hold.Recovered(in.Now)
		}
	}
	return wait
}

// ways reports whether this host has ways of its own to a network that work, and such that don't. By a
// link to another cluster a way works while a node there answers.
func (in Input) ways(p netip.Prefix) (working, broken bool) {
	for _, l := range in.Config.Links {
		if slices.Contains(l.Networks, p) {
			return l.Heard, !l.Heard
		}
	}
	return in.nearby().Ways(p)
}

// anotherNames reports whether another node that lives shares a network with this one.
func (in Input) anotherNames(p netip.Prefix) bool {
	own := mesh.Record{Location: in.Config.Location}
	_, own.Linked = in.Config.networks()
	return slices.ContainsFunc(in.View.Records, func(r mesh.Record) bool {
		return r.Shares(&own, p) && r.ID() != in.Self.ID() && in.View.Alive[r.ID()] && slices.Contains(r.AllowedLocationIPs, p)
	})
}

// problems says which networks this node can't serve. What is wrong with a link is said where it runs.
func (w *ways) problems(c Config) (out []mesh.Problem) {
	for _, p := range w.lost {
		if !slices.Contains(c.AllowedLocationIPs, p) {
			continue
		}
		out = append(out, mesh.Problem{
			Kind: ProblemNetwork, Node: c.Name,
			Text:   fmt.Sprintf("this host has no way to %v of its node.allowed-location-ips; until it has had one for a while, other nodes of location %s serve that network", p, c.Location),
			Advice: "see to the link or the router that leads there: ip route, ip link",
		})
	}
	return out
}
