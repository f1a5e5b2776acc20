// SPDX-License-Identifier: Apache-2.0

// Package fakekernel is a host's kernel as a value, for tests: it applies plans of package
// netcfg as a real kernel does, and refuses what a real one would refuse. The real one is
// behind package host.
package fakekernel

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/netcfg"
)

// Kernel has what plans gave it. Its zero value is a host that has never had a plan.
type Kernel struct {
	netcfg.State
	// Changed is called after each change of a peer or a route, and Removed when a peer is
	// removed, which ends its session. Both may be nil.
	Changed func()
	Removed func(wgtypes.Key)
}

// Apply does what a plan says, in the order that netcfg.Plan documents. It stops at the
// first step that a kernel would refuse.
func (k *Kernel) Apply(p netcfg.Plan) error {
	if p.Firewall != nil {
		k.Firewall = *p.Firewall
	}
	k.Backstops = merged(k.Backstops, p.Backstops, netip.Prefix.Compare)
	k.Policies = merged(k.Policies, p.Policies, netcfg.Policy.Compare)
	for _, step := range []func(netcfg.Plan) error{
		k.applyDevice, k.applyVXLAN, k.setSysctls, k.addAddresses, k.addEntries,
		func(p netcfg.Plan) error { return k.replaceRoutes(p.Routes) },
		func(p netcfg.Plan) error { return k.configurePeers(p.Peers) },
		func(p netcfg.Plan) error { return k.replaceRoutes(p.MovedRoutes) },
		k.deleteStale,
	} {
		if err := step(p); err != nil {
			return err
		}
	}
	return nil
}

func (k *Kernel) changed() {
	if k.Changed != nil {
		k.Changed()
	}
}

func (k *Kernel) applyDevice(p netcfg.Plan) error {
	c := p.Device
	if c == nil {
		return nil
	}
	if c.Replace {
		k.DeleteDevice()
	}
	if c.Create {
		if k.Device != nil {
			return fmt.Errorf("create %s: it exists", c.Device.Name)
		}
		k.Device = &netcfg.Device{Name: c.Device.Name, Implementation: c.Device.Implementation}
		if c.Device.Implementation == netcfg.Auto {
			k.Device.Implementation = netcfg.Kernel
		}
	}
	if k.Device == nil {
		return fmt.Errorf("change %s: no such device", c.Device.Name)
	}
	d := *k.Device
	if c.SetKey {
		d.PublicKey = c.Device.PrivateKey().PublicKey()
	}
	if c.SetPort {
		d.ListenPort = c.Device.ListenPort
	}
	if c.SetMTU {
		d.MTU = c.Device.MTU
	}
	if c.SetUp {
		d.Up = c.Device.Up
	}
	if c.SetMark {
		d.Mark = c.Device.Mark
	}
	k.Device = &d
	return nil
}

// DeleteDevice deletes the WireGuard device with everything on it, as "ip link delete" does.
func (k *Kernel) DeleteDevice() {
	if k.Device == nil {
		return
	}
	name, peers, own := k.Device.Name, k.Peers, k.Addresses
	k.Device, k.Peers, k.Addresses = nil, nil, nil
	k.Routes = without(k.Routes, func(r netcfg.Route) bool {
		return r.Link == name || r.Source.IsValid() && slices.Contains(own, netip.PrefixFrom(r.Source, r.Source.BitLen()))
	})
	k.deleteSysctls(name)
	for _, p := range peers {
		k.removed(p.Key)
	}
	k.changed()
}

func (k *Kernel) removed(key wgtypes.Key) {
	if k.Removed != nil {
		k.Removed(key)
	}
}

func (k *Kernel) applyVXLAN(p netcfg.Plan) error {
	c := p.VXLAN
	if c == nil {
		return nil
	}
	if c.Replace {
		k.deleteVXLAN()
	}
	if c.Create {
		if k.VXLAN != nil {
			return fmt.Errorf("create %s: it exists", c.VXLAN.Name)
		}
		made := c.VXLAN
		made.Up = false
		k.VXLAN = &made
	}
	if k.VXLAN == nil {
		return fmt.Errorf("change %s: no such device", c.VXLAN.Name)
	}
	v := *k.VXLAN
	if c.SetMTU {
		v.MTU = c.VXLAN.MTU
	}
	if c.SetUp {
		v.Up = c.VXLAN.Up
	}
	k.VXLAN = &v
	return nil
}

// deleteVXLAN deletes the VXLAN device with everything on it.
func (k *Kernel) deleteVXLAN() {
	if k.VXLAN == nil {
		return
	}
	name := k.VXLAN.Name
	k.VXLAN, k.Forwarding, k.Neighbors = nil, nil, nil
	k.Routes = without(k.Routes, func(r netcfg.Route) bool { return r.Link == name })
	k.deleteSysctls(name)
	k.changed()
}

func (k *Kernel) deleteSysctls(link string) {
	k.Sysctls = without(k.Sysctls, func(s netcfg.Sysctl) bool { return strings.Contains(s.Key, "."+link+".") })
}

func (k *Kernel) setSysctls(p netcfg.Plan) error {
	for _, s := range p.Sysctls {
		if strings.Contains(s.Key, ".meshd0.") && k.Device == nil || strings.Contains(s.Key, ".meshd0-vx.") && k.VXLAN == nil {
			return fmt.Errorf("%s: no such device", s)
		}
		k.Sysctls = without(k.Sysctls, func(o netcfg.Sysctl) bool { return o.Key == s.Key })
		k.Sysctls = append(k.Sysctls, s)
		slices.SortFunc(k.Sysctls, func(a, b netcfg.Sysctl) int { return strings.Compare(a.Key, b.Key) })
	}
	return nil
}

func (k *Kernel) addAddresses(p netcfg.Plan) error {
	for _, a := range p.Addresses {
		if k.Device == nil || slices.Contains(k.Addresses, a) {
			return fmt.Errorf("add address %s to %v with %v", a, k.Device, k.Addresses)
		}
	}
	k.Addresses = merged(k.Addresses, p.Addresses, netip.Prefix.Compare)
	return nil
}

// addEntries gives a MAC that has an entry the new destination instead of the old one, and
// an address the new MAC.
func (k *Kernel) addEntries(p netcfg.Plan) error {
	if k.VXLAN == nil && len(p.Forwarding)+len(p.Neighbors) > 0 {
		return fmt.Errorf("add %v and %v: no such device", p.Forwarding, p.Neighbors)
	}
	for _, e := range p.Forwarding {
		fdb := slices.Clone(k.Forwarding)
		if i := slices.IndexFunc(fdb, func(o netcfg.FDBEntry) bool { return o.MAC == e.MAC }); i >= 0 {
			fdb[i] = e
		} else {
			fdb = append(fdb, e)
		}
		slices.SortFunc(fdb, netcfg.FDBEntry.Compare)
		k.Forwarding = fdb
	}
	for _, e := range p.Neighbors {
		rest := without(k.Neighbors, func(o netcfg.NeighborEntry) bool { return o.Addr == e.Addr })
		k.Neighbors = append(rest, e)
		slices.SortFunc(k.Neighbors, netcfg.NeighborEntry.Compare)
	}
	return nil
}

func (k *Kernel) replaceRoutes(changes []netcfg.RouteChange) error {
	for _, c := range changes {
		if err := k.replaceRoute(c); err != nil {
			return err
		}
	}
	return nil
}

func (k *Kernel) replaceRoute(c netcfg.RouteChange) error {
	r := c.Route
	if k.Device == nil || strings.HasSuffix(r.Link, "-vx") && k.VXLAN == nil {
		return fmt.Errorf("%s: no such device", c)
	}
	if best := k.routeTo(r.Via); r.Via.Is6() && r.OnLink && best.Link != "" && best.Link != r.Link {
		// IPv6 refuses a next hop that is behind another link (ip6_route_check_nh_onlink).
		return fmt.Errorf("%s: its next hop is behind %s", c, best)
	}
	if !slices.ContainsFunc(k.Addresses, func(p netip.Prefix) bool { return p.Addr() == r.Source }) {
		return fmt.Errorf("%s: the source is not an address of this host", c)
	}
	i := slices.IndexFunc(k.Routes, func(o netcfg.Route) bool { return o.Destination == r.Destination })
	if (i >= 0) != (c.Old != nil) {
		return fmt.Errorf("%s: with routes %v", c, k.Routes)
	}
	k.Routes = slices.Clone(k.Routes)
	if i >= 0 {
		k.Routes[i] = r
	} else {
		k.Routes = append(k.Routes, r)
	}
	slices.SortFunc(k.Routes, netcfg.Route.Compare)
	k.changed()
	return nil
}

// routeTo returns the route with the longest prefix that has an address, zero for none.
func (k *Kernel) routeTo(a netip.Addr) (best netcfg.Route) {
	for _, r := range k.Routes {
		if r.Destination.Contains(a) && (best.Link == "" || r.Destination.Bits() > best.Destination.Bits()) {
			best = r
		}
	}
	return best
}

// configurePeers does what wg_set_device does, one peer after the other.
func (k *Kernel) configurePeers(changes []netcfg.PeerChange) error {
	for _, c := range changes {
		i := slices.IndexFunc(k.Peers, func(p netcfg.Peer) bool { return p.Key == c.Key })
		switch {
		case k.Device == nil:
			return fmt.Errorf("change peer %s: no such device", c.Key)
		case i < 0 && !c.Add:
			return fmt.Errorf("change peer %s: there is none", c.Key)
		case c.Remove:
			k.Peers = slices.Delete(slices.Clone(k.Peers), i, i+1)
			k.removed(c.Key)
		default:
			k.setPeer(c, i)
		}
		k.changed()
	}
	return nil
}

// setPeer changes the peer with an index, or adds one if that is negative. An allowed IP
// leaves the peer that had it.
func (k *Kernel) setPeer(c netcfg.PeerChange, i int) {
	peers := slices.Clone(k.Peers)
	if i < 0 {
		i, peers = len(peers), append(peers, netcfg.Peer{Key: c.Key})
	}
	p := &peers[i]
	if c.Endpoint.IsValid() {
		p.Endpoint = c.Endpoint
	}
	if c.Keepalive != nil {
		p.Keepalive = *c.Keepalive
	}
	if c.PresharedKey != nil {
		p.PresharedKey = *c.PresharedKey
	}
	for _, ip := range c.AllowedIPs {
		for j := range peers {
			peers[j].AllowedIPs = without(peers[j].AllowedIPs, func(o netip.Prefix) bool { return o == ip })
		}
		p.AllowedIPs = append(p.AllowedIPs, ip)
		slices.SortFunc(p.AllowedIPs, netip.Prefix.Compare)
	}
	slices.SortFunc(peers, func(a, b netcfg.Peer) int { return slices.Compare(a.Key[:], b.Key[:]) })
	k.Peers = peers
}

func (k *Kernel) deleteStale(p netcfg.Plan) error {
	for _, r := range p.StaleRoutes {
		// As the real one, compare only destination, link and next hop.
		i := slices.IndexFunc(k.Routes, func(o netcfg.Route) bool {
			return o.Destination == r.Destination && (r.Link == "" || o.Link == r.Link) && (!r.Via.IsValid() || o.Via == r.Via)
		})
		if i >= 0 {
			k.Routes = slices.Delete(slices.Clone(k.Routes), i, i+1)
			k.changed()
		}
	}
	k.Forwarding = without(k.Forwarding, func(e netcfg.FDBEntry) bool { return slices.Contains(p.StaleForwarding, e) })
	k.Neighbors = without(k.Neighbors, func(e netcfg.NeighborEntry) bool { return slices.Contains(p.StaleNeighbors, e) })
	if p.StaleVXLAN != "" {
		k.deleteVXLAN()
	}
	for _, a := range p.StaleAddresses {
		if slices.ContainsFunc(k.Routes, func(r netcfg.Route) bool { return r.Source == a.Addr() }) {
			return fmt.Errorf("delete address %s: the routes with that source go with it", a)
		}
		k.Addresses = without(k.Addresses, func(o netip.Prefix) bool { return o == a })
	}
	if p.StaleDevice != "" {
		k.DeleteDevice()
	}
	k.Policies = without(k.Policies, func(o netcfg.Policy) bool { return slices.Contains(p.StalePolicies, o) })
	k.Backstops = without(k.Backstops, func(b netip.Prefix) bool { return slices.Contains(p.StaleBackstops, b) })
	if p.StaleFirewall {
		k.Firewall = netcfg.Firewall{}
	}
	return nil
}

// without returns a copy of a list without some elements.
func without[T any](list []T, is func(T) bool) []T { return slices.DeleteFunc(slices.Clone(list), is) }

// merged returns the sorted union of two lists.
func merged[T comparable](a, b []T, compare func(T, T) int) []T {
	all := slices.Concat(a, b)
	slices.SortFunc(all, compare)
	return slices.Compact(all)
}
