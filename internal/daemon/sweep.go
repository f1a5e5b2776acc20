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

// sweepFor is how long answers are waited for when a person asks for the health
// of all routes.
const sweepFor = time.Second

// Probe implements control.Daemon. Routes that no failover depends on are probed
// only for who asks: probes all the time would keep every tunnel of a mesh busy.
func (d *daemon) Probe(ctx context.Context) (control.Status, error) {
	last := d.published.Load()
	status := last.status
	status.Peers = slices.Clone(status.Peers)
	ctx, cancel := context.WithTimeout(ctx, sweepFor)
	defer cancel()
	rtt, err := d.prober.PingOnce(ctx, sweepTargets(status, last.turn.wanted.Topology.Addresses))
	if err != nil {
		return control.Status{}, err
	}
	for i := range status.Peers {
		p := &status.Peers[i]
		p.Route.Health, p.Route.RTT = swept(p.Overlay, rtt)
	}
	return status, nil
}

// sweepTargets are the overlay addresses of all other nodes.
func sweepTargets(status control.Status, own []netip.Addr) []probe.Target {
	var out []probe.Target
	for _, p := range status.Peers {
		for _, a := range p.Overlay {
			if i := slices.IndexFunc(own, func(o netip.Addr) bool { return o.Is4() == a.Is4() }); i >= 0 {
				out = append(out, probe.Target{Addr: a, Source: own[i]})
			}
		}
	}
	return out
}

// swept returns the health of the route to these addresses. It is as good as
// it is in the worse family.
func swept(addrs []netip.Addr, rtt map[netip.Addr]time.Duration) (health control.Health, slowest time.Duration) {
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
