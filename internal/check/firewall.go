// SPDX-License-Identifier: Apache-2.0

package check

import (
	"slices"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

// desired returns the state that a node of this cluster would have on this host. Any slot
// will do.
func desired(cfg config.Config, host netcfg.Facts) netcfg.State {
	c := cfg.Cluster
	t := mesh.Topology{
		Addresses: c.Overlays(0), PodCIDRs: c.PodCIDRs(0), ServedNetworks: cfg.Node.AllowedLocationIPs,
		Inside: slices.Concat(c.Overlay, c.Pods), Guarded: slices.Concat(c.Overlay, c.Pods),
	}
	s := netcfg.Settings{
		Interface: cfg.WireGuard.Interface, ListenPort: cfg.WireGuard.ListenPort,
		GossipPort: int(cfg.Gossip.Bind.Port()), Uplinks: host.Uplinks,
	}
	if cfg.CNI.Enabled {
		s.Bridge = cfg.CNI.Bridge
	}
	return netcfg.Desired(t, s)
}

// firewall evaluates the base chains of other programs with packets that the mesh needs. A
// packet has to pass all chains, so a chain of ours can't help. meshd adds rules to those
// of iptables by itself.
func (f Facts) firewall(cfg config.Config) []Finding {
	const what = "firewall"
	if !f.Capable {
		return nil
	}
	var good, bad []Finding
	state := desired(cfg, f.Host)
	for _, b := range netcfg.BlockingChains(f.Filters, state.Accepts) {
		switch {
		case b.Table.Program != "":
			good = append(good, ok(what, "%s; meshd lets them through with rules of its own", b.Text())...)
		case b.Sure:
			bad = append(bad, Finding{Error, what, b.Text(), b.Advice()})
		default:
			bad = append(bad, Finding{Warning, what, b.Text(), b.Advice()})
		}
	}
	for _, t := range netcfg.PortRedirects(f.Filters, state.OwnPorts) {
		bad = append(bad, Finding{Warning, what, t.Text(), t.Advice()})
	}
	if good == nil && bad == nil {
		return ok(what, "lets through what the mesh needs")
	}
	return append(bad, good...)
}
