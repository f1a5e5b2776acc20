// SPDX-License-Identifier: Apache-2.0

package check

import (
	"net/netip"
	"slices"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

// desired returns the state that a node of this cluster would have on this host. Any slot
// will do. The others are those that the daemon knows; without any, they are a host on this
// one's private network.
func (f Facts) desired(cfg config.Config) netcfg.State {
	c := cfg.Cluster
	t := mesh.Topology{
		Addresses: c.Overlays(0), PodCIDRs: c.PodCIDRs(0), ServedNetworks: cfg.Node.AllowedLocationIPs,
		Inside: slices.Concat(c.Overlay, c.Pods), Guarded: slices.Concat(c.Overlay, c.Pods),
	}
	s := netcfg.Settings{
		Interface: cfg.WireGuard.Interface, ListenPort: cfg.WireGuard.ListenPort,
		GossipPort: int(cfg.Gossip.Bind.Port()), Uplinks: f.Host.Uplinks,
	}
	if cfg.CNI.Enabled {
		s.Bridge = cfg.CNI.Bridge
	}
	t.Peers = []mesh.Peer{{Endpoints: slices.Clone(f.Endpoints)}}
	neighbors := slices.Clone(f.Neighbors)
	chosen, _ := f.Host.InternalIPs(cfg.Node.InternalIP, f.InternalIPs)
	for _, ip := range chosen {
		s.LANs = append(s.LANs, f.Host.LANs([]netip.Prefix{ip.Address})...)
		if beside, ok := neighborOf(ip.Address); ok && len(f.Endpoints)+len(f.Neighbors) == 0 {
			neighbors = append(neighbors, beside)
			t.Peers[0].Endpoints = append(t.Peers[0].Endpoints, netip.AddrPortFrom(beside, uint16(cfg.WireGuard.ListenPort)))
		}
	}
	if cfg.Node.Location == "" || c.Mode == mesh.ModeFull {
		neighbors = nil
	}
	for _, n := range neighbors {
		if c.Encapsulation != mesh.EncapsulationNever {
			t.Neighbors = append(t.Neighbors, mesh.Neighbor{InternalIP: n, Encapsulated: true})
		}
		if c.Encapsulation != mesh.EncapsulationAlways {
			t.Neighbors = append(t.Neighbors, mesh.Neighbor{InternalIP: n, NextHops: []netip.Addr{n}})
		}
	}
	return netcfg.Desired(t, s)
}

// neighborOf returns another address of a host's network, if there is one.
func neighborOf(host netip.Prefix) (netip.Addr, bool) {
	for _, a := range []netip.Addr{host.Addr().Next(), host.Addr().Prev()} {
		if host.Contains(a) {
			return a, true
		}
	}
	return netip.Addr{}, false
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
	state := f.desired(cfg)
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
