// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/internal/probe"
	"github.com/meshd/meshd/internal/wait"
)

const (
	// drainFor bounds how long meshd drain waits for another gateway, and drainPoll is how
	// often it looks.
	drainFor  = 10 * time.Second
	drainPoll = 20 * time.Millisecond
)

// Drain implements control.Daemon. The loop starts it; then Drain waits for another gateway, and other
// servers of its networks, to take over.
func (d *daemon) Drain(ctx context.Context, undo bool) (control.Drained, error) {
	before := d.published.Load().turn
	if before.wanted.Input.Self == (mesh.ID{}) {
		return control.Drained{}, fmt.Errorf("%w: the daemon has only just started", control.ErrRefused)
	}
	notGateway := whyNotGateway(before)
	if notGateway != "" && !undo { // undo counts for when it is a gateway again
		return control.Drained{Successors: []string{}, Text: notGateway}, nil
	}
	if text := noSuccessor(before); text != "" && !undo {
		return control.Drained{}, fmt.Errorf("%w: %s", control.ErrRefused, text)
	}
	ctx, cancel := context.WithTimeout(ctx, drainFor)
	defer cancel()
	if err := d.inLoop(ctx, func() { d.memory.Drain(undo) }); err != nil {
		return control.Drained{}, err
	}
	for {
		out, done := drainResult(before, d.published.Load().turn, undo)
		if done && notGateway != "" {
			out.Text = "This node is not draining. " + notGateway
		}
		if done || wait.Sleep(ctx, drainPoll) != nil {
			return out, nil
		}
	}
}

// whyNotGateway returns why a node has nothing to drain, "" if it may be a gateway, or the server of a
// network that others could serve.
func whyNotGateway(t turn) string {
	own := recordOf(t)
	switch {
	case len(t.wanted.Topology.Shared) > 0:
		return ""
	case t.wanted.Input.Cluster.Mode != mesh.ModeLocation:
		return fmt.Sprintf("This node is not a gateway: there are none in mode %s.", t.wanted.Input.Cluster.Mode)
	case own.Location == "":
		return "This node is not a gateway: it has no location."
	case own.Encrypted:
		return "This node is not a gateway: everything it sends is encrypted, see node.encryption."
	case own.Gateway == mesh.GatewayNever:
		return "This node is not a gateway and never becomes one: node.gateway is never."
	case !slices.ContainsFunc(t.wanted.Input.Records, func(r mesh.Record) bool {
		return r.SameLAN(&own) && !r.Encrypted && r.ID() != t.wanted.Input.Self
	}):
		return fmt.Sprintf("This node is not a gateway: no other node is on the private network of location %s.", own.Location)
	}
	return ""
}

// noSuccessor returns why no other node can take over from this one and what to do about it,
// "" if one can, or if this node is neither a gateway nor the server of a network that others name.
func noSuccessor(t turn) string {
	own := recordOf(t)
	if t.wanted.Topology.Seat != mesh.None {
		if why := whyNoOther(t, func(r mesh.Record) bool { return r.SameLAN(&own) && !r.Encrypted }, netip.Prefix{}); why != "" {
			return fmt.Sprintf("this is the last gateway of location %s, and no other node can take over: %s", own.Location, why)
		}
	}
	for _, p := range servedBy(t.wanted.Input.Self, t) {
		if why := whyNoOther(t, func(r mesh.Record) bool { return r.Shares(&own, p) && slices.Contains(r.AllowedLocationIPs, p) }, p); why != "" {
			return fmt.Sprintf("this node serves %v, and no other node can take over: %s", p, why)
		}
	}
	return ""
}

// whyNoOther returns why each of the other nodes that match can't take over a network, or without one as a
// gateway, "" if one can.
func whyNoOther(t turn, match func(mesh.Record) bool, network netip.Prefix) string {
	in := t.wanted.Input
	verdicts, owners := mesh.GatewayVerdicts(in.Verdicts, in.Records), mesh.SlotOwners(in.Records)
	var others []string
	for _, r := range in.Records {
		id := r.ID()
		if !match(r) || id == in.Self {
			continue
		}
		var why string
		switch {
		case !network.IsValid() && r.Gateway == mesh.GatewayNever:
			why = "its node.gateway is never"
		case slices.Contains(r.Unserved, network):
			why = "its host has no way there"
		case !t.view.Alive[id]:
			why = "it is not alive"
		case r.Claim.Slot == mesh.None || owners[r.Claim.Slot] != id:
			why = "it has no address"
		case verdicts[id].State == mesh.HealthDraining:
			why = "it is draining; run there: meshd drain --undo"
		case !node.IsUp(verdicts[id]):
			why = "it is down"
		default:
			return ""
		}
		others = append(others, fmt.Sprintf("%s (%s)", r.Name, why))
	}
	slices.Sort(others)
	return strings.Join(others, ", ")
}

// servedBy returns the networks that a node serves, of those that both this node and others name.
func servedBy(id mesh.ID, t turn) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range t.wanted.Topology.Shared {
		if s.Server == id {
			out = append(out, s.Network)
		}
	}
	return out
}

// recordOf returns this node's record, as a turn saw it.
func recordOf(t turn) mesh.Record {
	for _, r := range t.wanted.Input.Records {
		if r.ID() == t.wanted.Input.Self {
			return r
		}
	}
	return mesh.Record{}
}

// drainResult returns the progress of a drain since the turn before it, and reports whether it
// is complete. A successor says in its record that it has taken over, and uses its own
// tunnels by then.
func drainResult(before, now turn, undo bool) (control.Drained, bool) {
	self, own := now.wanted.Input.Self, recordOf(now)
	verdicts := mesh.GatewayVerdicts(now.wanted.Input.Verdicts, now.wanted.Input.Records)
	up := node.IsUp(verdicts[self])
	out := control.Drained{Draining: !up, Gateway: now.wanted.Topology.Seat != mesh.None, Networks: servedBy(self, now), Successors: []string{}}
	wasGateway, served := before.wanted.Topology.Seat != mesh.None, servedBy(self, before)
	var gateways, replaced []string
	for _, r := range now.wanted.Input.Records {
		if r.SameLAN(&own) && r.ID() != self && r.Term.Since != 0 && node.IsUp(verdicts[r.ID()]) {
			gateways = append(gateways, r.Name)
		}
	}
	slices.Sort(gateways)
	out.Successors = append(out.Successors, gateways...)
	if wasGateway && len(gateways) > 0 {
		replaced = append(replaced, fmt.Sprintf("the traffic of location %s goes through %s now", own.Location, strings.Join(gateways, ", ")))
	}
	successors := 0 // of the server of a network
	for _, r := range now.wanted.Input.Records {
		for _, p := range served {
			if r.ID() != self && r.Shares(&own, p) && r.ServesSince(p) != 0 && slices.Contains(now.wanted.Topology.Shared, mesh.SharedNetwork{Network: p, Server: r.ID()}) {
				successors++
				replaced = append(replaced, fmt.Sprintf("%v is reached through %s now", p, r.Name))
				out.Successors = append(out.Successors, r.Name)
			}
		}
	}
	slices.Sort(out.Successors)
	out.Successors = slices.Compact(out.Successors)
	done := false
	switch {
	case undo && up:
		done, out.Text = true, "This node may be a gateway again."
		switch {
		case out.Gateway:
			out.Text = "This node is a gateway again."
		case len(now.wanted.Topology.Shared) > 0:
			out.Text = "This node may carry traffic of other nodes again."
		}
	case undo:
		out.Text = "This node has not announced yet that it is up; see meshd status."
	case up:
		out.Text = "This node has not announced yet that it is draining; see meshd status."
	case out.Gateway:
		done, out.Text = true, fmt.Sprintf("No other node can replace this one: it stays the gateway of location %s.", own.Location)
	case len(out.Networks) > 0:
		done, out.Text = true, fmt.Sprintf("No other node can replace this one: %s stays reached through it.", mesh.FormatPrefixes(out.Networks))
	case !wasGateway && len(served) == 0 && len(before.wanted.Topology.Shared) > 0:
		done, out.Text = true, "This node carried no traffic that others could carry, and will not before a restart or meshd drain --undo."
	case !wasGateway && len(served) == 0:
		done, out.Text = true, "This node was not a gateway, and will not become one before a restart or meshd drain --undo."
	case wasGateway && len(gateways) == 0:
		out.Text = "This node is no longer the gateway, but its successor has not announced yet that it has taken over."
	case successors < len(served):
		out.Text = fmt.Sprintf("This node no longer serves %s, but its successor has not announced yet that it has taken over.", mesh.FormatPrefixes(served))
	default:
		done, out.Text = true, fmt.Sprintf("Replaced: %s.", strings.Join(replaced, ", "))
	}
	return out, done
}

// segment is a part of a location.
type segment struct {
	location string
	id       mesh.ID
}

func segmentOf(r *mesh.Record) segment { return segment{r.Location, r.Segment} }

// index is a turn with lookups by node, so that the time of a status grows with the number of
// nodes and not with its square.
type index struct {
	turn
	records   map[mesh.ID]*mesh.Record
	inSegment map[segment]int // number of nodes, without encrypted ones
	verdicts  map[mesh.ID]mesh.Verdict
}

func indexOf(t turn) index {
	x := index{
		turn: t, records: make(map[mesh.ID]*mesh.Record, len(t.wanted.Input.Records)), inSegment: make(map[segment]int),
		verdicts: mesh.GatewayVerdicts(t.wanted.Input.Verdicts, t.wanted.Input.Records),
	}
	for i := range t.wanted.Input.Records {
		r := &t.wanted.Input.Records[i]
		x.records[r.ID()] = r
		if !r.Encrypted {
			x.inSegment[segmentOf(r)]++
		}
	}
	return x
}

// nameOf returns a node's name, or its fingerprint.
func (t index) nameOf(id mesh.ID) string {
	if r := t.records[id]; r != nil {
		return r.Name
	}
	return id.String()
}

// locationRole returns a node's role in its location.
func (t index) locationRole(r mesh.Record) control.Role {
	id := r.ID()
	itself := t.records[id]
	if itself != nil {
		r.Segment = itself.Segment // of our own record as announced it is not known
	}
	others := t.inSegment[segmentOf(&r)]
	if itself != nil && itself.Location == r.Location && !itself.Encrypted {
		others--
	}
	state := t.verdicts[id].State
	if t.wanted.Input.Cluster.Mode != mesh.ModeLocation || r.Location == "" || r.Encrypted || others <= 0 {
		if node.IsUp(mesh.Verdict{State: state}) || !t.sharesNetwork(&r) {
			return ""
		}
	}
	switch state {
	case mesh.HealthDraining:
		return control.RoleDraining
	case mesh.HealthDown:
		return control.RoleDown
	}
	switch {
	case id == t.wanted.Input.Self && t.wanted.Topology.Seat != mesh.None, id != t.wanted.Input.Self && r.Term.Since != 0:
		return control.RoleGateway
	case r.Gateway == mesh.GatewayNever:
		return control.RoleNever
	}
	return control.RoleMember
}

// sharesNetwork reports whether another node shares a network with a node.
func (t index) sharesNetwork(r *mesh.Record) bool {
	for id, o := range t.records {
		shares := func(p netip.Prefix) bool { return slices.Contains(r.AllowedLocationIPs, p) && o.Shares(r, p) }
		if id != r.ID() && slices.ContainsFunc(o.AllowedLocationIPs, shares) {
			return true
		}
	}
	return false
}

// routeIn returns the route to a node in a topology of the turn's records, without its health.
func (t index) routeIn(topology mesh.Topology, id mesh.ID) control.Route {
	out := control.Route{Kind: mesh.RouteNone, Via: []string{}}
	i, ok := slices.BinarySearchFunc(topology.Routes, id, func(p mesh.Route, id mesh.ID) int { return p.ID.Compare(id) })
	if !ok {
		return out
	}
	out.Kind = topology.Routes[i].Kind
	for _, hop := range topology.Routes[i].Hops {
		out.Via = append(out.Via, t.nameOf(hop))
	}
	return out
}

// routeTo returns how packets get to another node, and the health of that route.
func (t index) routeTo(id mesh.ID) control.Route {
	out := t.routeIn(t.wanted.Topology, id)
	results := t.watch.Of(id, t.results)
	if len(results) == 0 {
		return out
	}
	// A route is as good as it is in the worse family.
	worst := slices.MaxFunc(results, func(a, b probe.Result) int { return cmp.Compare(a.Misses, b.Misses) })
	switch {
	case worst.Misses >= t.cfg.Probe.Misses:
		out.Health = control.RouteSilent
	case worst.Misses > 1:
		out.Health = control.RouteLosing
	case !worst.Answered.IsZero():
		out.Health = control.RouteOK
	}
	if !worst.Answered.IsZero() && out.Health != control.RouteSilent {
		out.RTT = control.Milliseconds(worst.RTT)
	}
	return out
}
