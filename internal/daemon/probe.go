// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/probe"
)

// probeFor is how long meshd status --probe waits for answers.
const probeFor = time.Second

// Probe implements control.Daemon. It probes every route once; probing all of them all the
// time would keep every tunnel of the mesh busy.
func (d *daemon) Probe(ctx context.Context) (control.Status, error) {
	last := d.published.Load()
	status := last.status
	status.Peers = slices.Clone(status.Peers)
	ctx, cancel := context.WithTimeout(ctx, probeFor)
	defer cancel()
	rtt, err := d.prober.PingOnce(ctx, overlayTargets(status, last.turn.wanted.Topology.Addresses))
	if err != nil {
		return control.Status{}, err
	}
	for i := range status.Peers {
		p := &status.Peers[i]
		health, slowest := routeHealth(p.Overlay, rtt)
		p.Route.Health, p.Route.RTT = health, control.Milliseconds(slowest)
	}
	return status, nil
}

// overlayTargets returns the overlay addresses of all other nodes.
func overlayTargets(status control.Status, own []netip.Addr) (out []probe.Target) {
	for _, p := range status.Peers {
		out = append(out, targetsOf(p.Overlay, own)...)
	}
	return out
}

// targetsOf returns those of a node's overlay addresses that this node, which has the addresses own, can ping.
func targetsOf(overlay, own []netip.Addr) (out []probe.Target) {
	for _, a := range overlay {
		if i := slices.IndexFunc(own, func(o netip.Addr) bool { return o.Is4() == a.Is4() }); i >= 0 {
			out = append(out, probe.Target{Addr: a, Source: own[i]})
		}
	}
	return out
}

// routeHealth returns the health of the route to a node with these addresses. It is that of
// the worse family.
func routeHealth(addrs []netip.Addr, rtt map[netip.Addr]time.Duration) (health control.Health, slowest time.Duration) {
	for _, a := range addrs {
		d, ok := rtt[a]
		if !ok {
			return control.RouteSilent, 0
		}
		slowest = max(slowest, d)
	}
	if len(addrs) == 0 {
		return "", 0
	}
	return control.RouteOK, slowest
}
