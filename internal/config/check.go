// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"net/netip"

	"github.com/meshd/meshd/internal/mesh"
)

// complete fills in defaults that follow from other settings.
func (d *decoder) complete() {
	c := &d.config
	if _, ok := d.lines["cluster.pod-prefix"]; !ok {
		c.Cluster.PodPrefix = nil
		for _, p := range c.Cluster.Pods {
			bits := podBits4
			if p.Addr().Is6() {
				bits = podBits6
			}
			c.Cluster.PodPrefix = append(c.Cluster.PodPrefix, bits)
		}
	}
	if _, ok := d.lines["cluster.dns.address"]; !ok && len(c.Cluster.Services) > 0 {
		// k3s gives its resolver the tenth address of the first range.
		a := c.Cluster.Services[0].Addr()
		for range 10 {
			a = a.Next()
		}
		c.Cluster.DNS.Address = a
	}
	if c.Node.Endpoint.Host != "" && c.Node.Endpoint.Port == 0 {
		c.Node.Endpoint.Port = uint16(c.WireGuard.ListenPort)
	}
	if c.Gossip.Advertise.Host != "" && c.Gossip.Advertise.Port == 0 {
		c.Gossip.Advertise.Port = c.Gossip.Bind.Port()
	}
}

// checks compare settings with each other. A check runs only if none of its keys has an
// error yet, so that one mistake makes one error; therefore the order matters.
var checks = []struct {
	of  []string
	run func(*decoder)
}{
	{[]string{"cluster.overlay"}, func(d *decoder) { d.onePerFamily("cluster.overlay", d.config.Cluster.Overlay) }},
	{[]string{"cluster.pods"}, func(d *decoder) { d.onePerFamily("cluster.pods", d.config.Cluster.Pods) }},
	{[]string{"cluster.services"}, func(d *decoder) { d.onePerFamily("cluster.services", d.config.Cluster.Services) }},
	{[]string{"node.pod-cidr"}, func(d *decoder) { d.onePerFamily("node.pod-cidr", d.config.Node.PodCIDR) }},
	{[]string{"cluster.overlay", "cluster.pods"}, (*decoder).checkFamilies},
	{[]string{"cluster.pods", "cluster.pod-prefix"}, (*decoder).checkPodPrefix},
	{[]string{"cluster.overlay", "cluster.pods", "cluster.services"}, (*decoder).checkOverlaps},
	{[]string{"cluster.overlay", "cluster.pods", "cluster.pod-prefix"}, (*decoder).checkRoom},
	{[]string{"cluster.overlay", "cluster.pods", "cluster.pod-prefix", "node.pod-cidr"}, (*decoder).checkPodCIDR},
	{[]string{"cluster.services", "cluster.dns.address"}, (*decoder).checkDNS},
	{[]string{"cluster.trust", "cluster.trusted"}, (*decoder).checkTrust},
	{[]string{"cluster.overlay", "cluster.pods", "cluster.services"}, (*decoder).checkUnderlay},
	{[]string{"node.location", "node.internal-ip"}, (*decoder).checkNoInternalIP},
	{[]string{"node.allowed-location-ips"}, (*decoder).checkLocationIPs},
	{[]string{"cluster.overlay", "cluster.pods", "wireguard.mtu"}, (*decoder).checkMTU},
	{[]string{"wireguard.listen-port", "gossip.bind"}, (*decoder).checkPorts},
	{[]string{"gossip.bind", "gossip.advertise", "relay.listen"}, (*decoder).checkTLSPorts},
	{[]string{"wireguard.interface", "cni.bridge"}, (*decoder).checkLinks},
	{[]string{"node.links", "wireguard.interface", "cni.bridge"}, (*decoder).checkLinkNames},
}

func (d *decoder) check() {
	for _, c := range checks {
		if d.sound(c.of...) {
			c.run(d)
		}
	}
}

// later returns the one of two keys that is further down in the file. If two settings
// contradict each other, that is the one to report: the earlier one was there already, or
// is a default.
func (d *decoder) later(a, b string) (blamed, other string) {
	if d.lines[a] > d.lines[b] {
		return a, b
	}
	return b, a
}

func (d *decoder) onePerFamily(key string, ps []netip.Prefix) {
	var v4, v6 bool
	for i, p := range ps {
		seen, family := &v4, "IPv4"
		if p.Addr().Is6() {
			seen, family = &v6, "IPv6"
		}
		if *seen {
			d.report(entry(key, i), fmt.Sprintf("%v is a second %s range", p, family), "keep one a family")
		}
		*seen = true
	}
}

func (d *decoder) checkFamilies() {
	overlay, pods := families(d.config.Cluster.Overlay), families(d.config.Cluster.Pods)
	if overlay == pods {
		return
	}
	key, _ := d.later("cluster.overlay", "cluster.pods")
	d.report(key, fmt.Sprintf("cluster.overlay has %s and cluster.pods has %s", overlay, pods), "write a range of each family in both, or in neither")
}

// families returns the names of the ranges' address families.
func families(ps []netip.Prefix) string {
	v4, v6 := mesh.Cluster{Overlay: ps}.Families()
	switch {
	case v4 && v6:
		return "IPv4 and IPv6"
	case v6:
		return "IPv6"
	default:
		return "IPv4"
	}
}

func (d *decoder) checkPodPrefix() {
	c := d.config.Cluster
	if len(c.PodPrefix) != len(c.Pods) {
		key, _ := d.later("cluster.pod-prefix", "cluster.pods")
		d.report(key, fmt.Sprintf("cluster.pod-prefix has %d entries and cluster.pods has %d", len(c.PodPrefix), len(c.Pods)),
			"write one length for each of cluster.pods, in the same order")
		return
	}
	for i, p := range c.Pods {
		// A pod CIDR holds a network, a gateway and at least one pod.
		most := p.Addr().BitLen() - 2
		if bits := c.PodPrefix[i]; bits < p.Bits() || bits > most {
			key, _ := d.later(entry("cluster.pod-prefix", i), entry("cluster.pods", i))
			d.report(key, fmt.Sprintf("a node's pod CIDR of /%d does not fit into %v", bits, p),
				fmt.Sprintf("write a cluster.pod-prefix from %d to %d", p.Bits(), most))
		}
	}
}

// checkOverlaps reports ranges of the cluster that share addresses.
func (d *decoder) checkOverlaps() {
	rs := d.config.Cluster.Ranges()
	for i, a := range rs {
		for _, b := range rs[i+1:] {
			if !a.Range.Overlaps(b.Range) {
				continue
			}
			blamed, other := a, b
			if key, _ := d.later(keyOf(a), keyOf(b)); key == keyOf(b) {
				blamed, other = b, a
			}
			d.report(keyOf(blamed), fmt.Sprintf("%v overlaps %s, %v", blamed.Range, keyOf(other), other.Range), "choose ranges that share no address")
		}
	}
}

// keyOf returns the key of one range of the cluster.
func keyOf(r mesh.KeyedRange) string { return entry(r.Key, r.Index) }

func (d *decoder) checkRoom() {
	if d.config.Cluster.Slots() > 0 {
		return
	}
	// checkPodPrefix has made sure that the pod ranges hold a slot, so the nodes' half of
	// the overlay is too small.
	for i, p := range d.config.Cluster.Overlay {
		if most := p.Addr().BitLen() - 2; p.Bits() > most {
			d.report(entry("cluster.overlay", i), fmt.Sprintf("%v has no room for nodes and clients", p), fmt.Sprintf("write a range of /%d or wider", most))
		}
	}
}

func (d *decoder) checkPodCIDR() {
	c := d.config.Cluster
	slot := mesh.None
	for i, p := range d.config.Node.PodCIDR {
		key := entry("node.pod-cidr", i)
		pods, bits := rangeAround(c, p)
		switch n, ok := c.SlotOf(p); {
		case !pods.IsValid():
			d.report(key, fmt.Sprintf("%v is not in cluster.pods, %s", p, mesh.FormatPrefixes(c.Pods)), "write a range in it, or remove the key")
		case bits != p.Bits():
			d.report(key, fmt.Sprintf("%v is not a /%d, as cluster.pod-prefix says", p, bits), fmt.Sprintf("write %v", netip.PrefixFrom(p.Addr(), bits).Masked()))
		case !ok:
			d.report(key, fmt.Sprintf("%v is beyond the last of %d pod CIDRs for which cluster.overlay has addresses", p, c.Slots()),
				fmt.Sprintf("write one up to %s, or widen cluster.overlay", mesh.FormatPrefixes(c.PodCIDRs(c.Slots()-1))))
		case slot != mesh.None && n != slot:
			d.report(key, fmt.Sprintf("%v is slot %d, but %v is slot %d", p, n, d.config.Node.PodCIDR[0], slot),
				fmt.Sprintf("write [%s], or only one of the two", mesh.FormatPrefixes(c.PodCIDRs(slot))))
		default:
			slot = n
		}
	}
}

// rangeAround returns the pod range that contains a pod CIDR, and the prefix length of
// pod CIDRs in it.
func rangeAround(c mesh.Cluster, p netip.Prefix) (netip.Prefix, int) {
	for i, pods := range c.Pods {
		if mesh.ContainsPrefix(pods, p) {
			return pods, c.PodPrefix[i]
		}
	}
	return netip.Prefix{}, 0
}

func (d *decoder) checkDNS() {
	c := d.config.Cluster
	for _, p := range c.Services {
		if p.Contains(c.DNS.Address) {
			return
		}
	}
	key, _ := d.later("cluster.dns.address", "cluster.services")
	d.report(key, fmt.Sprintf("the resolver %v is not in cluster.services, %s", c.DNS.Address, mesh.FormatPrefixes(c.Services)),
		"set cluster.dns.address to the address of the Service kube-dns")
}

// checkTrust reports an empty list of trusted nodes if it is in use. A list that is not in
// use yet is not an error: that is how a person prepares one.
func (d *decoder) checkTrust() {
	if d.config.Cluster.Trust == mesh.TrustList && len(d.config.Trusted) == 0 {
		d.report("cluster.trust", "is "+string(mesh.TrustList)+", but cluster.trusted names nobody", "write the fingerprints of all nodes there; meshd status shows them")
	}
}

// checkUnderlay reports addresses that must be reachable without the mesh, but lie in the
// cluster's ranges.
func (d *decoder) checkUnderlay() {
	c := d.config
	outside := func(key, what string, p netip.Prefix) {
		for _, r := range c.Cluster.Ranges() {
			if r.Range.Overlaps(p) {
				d.report(key, fmt.Sprintf("%s %s, %v", what, keyOf(r), r.Range), "it must be outside the mesh: change it, or the cluster's range")
				return
			}
		}
	}
	host := func(key string, h HostPort) {
		if a, err := netip.ParseAddr(h.Host); err == nil {
			outside(key, h.Host+" lies in", netip.PrefixFrom(a, a.BitLen()))
		}
	}
	host("node.endpoint", c.Node.Endpoint)
	host("gossip.advertise", c.Gossip.Advertise)
	if a := c.Node.InternalIP.Addr(); a.IsValid() {
		outside("node.internal-ip", a.String()+" lies in", netip.PrefixFrom(a, a.BitLen()))
	}
	// An entry's index is that of the file only if no entry of the list has an error.
	if d.sound("join") {
		for i, h := range c.Join {
			host(entry("join", i), h)
		}
	}
	if d.sound("node.allowed-location-ips") {
		for i, p := range c.Node.AllowedLocationIPs {
			outside(entry("node.allowed-location-ips", i), p.String()+" overlaps", p)
		}
	}
}

// checkNoInternalIP reports a node that has a location and is to have no address in its network.
func (d *decoder) checkNoInternalIP() {
	if n := d.config.Node; n.InternalIP == mesh.NoInternalIP() && n.Location != "" {
		key, other := d.later("node.internal-ip", "node.location")
		d.report(key, fmt.Sprintf("does not go with %s: nodes of a location reach each other at their internal IPs", other),
			"set node.internal-ip to this node's address in that location's network, or remove node.location")
	}
}

func (d *decoder) checkLocationIPs() {
	if n := len(d.config.Node.AllowedLocationIPs); n > mesh.MaxCIDRs {
		d.report("node.allowed-location-ips", fmt.Sprintf("has %d networks", n),
			fmt.Sprintf("keep at most %d; wider ones may replace several", mesh.MaxCIDRs))
	}
}

// checkLinkNames reports files of links whose names another device has.
func (d *decoder) checkLinkNames() {
	taken := map[string]string{d.config.WireGuard.Interface: "wireguard.interface", d.config.CNI.Bridge: "cni.bridge"}
	for i, file := range d.config.Node.Links {
		key, name := entry("node.links", i), LinkName(file)
		if other := taken[name]; other != "" {
			d.report(key, fmt.Sprintf("makes a device %s, as %s does", name, other), "give the file another name")
		}
		taken[name] = key
	}
}

func (d *decoder) checkMTU() {
	if mtu := d.config.WireGuard.MTU; mtu == 0 || mtu >= mesh.MinMTU6 {
		return
	}
	if _, v6 := d.config.Cluster.Families(); v6 {
		d.report("wireguard.mtu", fmt.Sprintf("%d is too small for IPv6, which the cluster's ranges use", d.config.WireGuard.MTU), fmt.Sprintf("write at least %d, or auto", mesh.MinMTU6))
	}
}

func (d *decoder) checkPorts() {
	if port := d.config.WireGuard.ListenPort; port == int(d.config.Gossip.Bind.Port()) {
		blamed, other := d.later("wireguard.listen-port", "gossip.bind")
		d.report(blamed, fmt.Sprintf("has port %d, as %s has, and both are UDP", port, other), "choose another port")
	}
}

// checkTLSPorts: a host that joins knows by the port whether to speak TLS.
func (d *decoder) checkTLSPorts() {
	const rule = "nodes speak TLS to the ports 443 and 8443, and to no others"
	if port := d.config.Relay.Listen.Port(); port != 0 && !mesh.IsTLSPort(port) {
		d.report("relay.listen", fmt.Sprintf("has port %d, but %s", port, rule), "write :443, or :8443 where that is taken")
	}
	plain := func(key string, port uint16) {
		if mesh.IsTLSPort(port) {
			d.report(key, fmt.Sprintf("has port %d, but %s", port, rule), "choose another port; relay.listen is for hosts that reach only this one")
		}
	}
	plain("gossip.bind", d.config.Gossip.Bind.Port())
	plain("gossip.advertise", d.config.Gossip.Advertise.Port)
}

func (d *decoder) checkLinks() {
	if name := d.config.CNI.Bridge; name == d.config.WireGuard.Interface {
		blamed, other := d.later("wireguard.interface", "cni.bridge")
		d.report(blamed, fmt.Sprintf("is %s, as %s is", name, other), "choose another name")
	}
}
