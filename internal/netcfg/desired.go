// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
)

// Keepalive is how often a peer is sent something.
type Keepalive struct {
	Interval time.Duration // 0 for never
	Guessed  bool          // a peer that is there keeps the interval that it has
}

// Settings are the inputs of a host's desired state besides the topology.
type Settings struct {
	Interface      string  // name of the WireGuard device
	ID             mesh.ID // of this node; the MAC of the VXLAN device is derived from it
	Implementation Implementation
	PrivateKey     wgtypes.Key `json:"-"`
	ListenPort     int
	GossipPort     int
	MTU            int    // of the WireGuard device, see the function MTU
	Bridge         string // name of the pods' bridge; "" if another program provides the CNI

	// LANs are the links that have the internal IPs of this node's record, see
	// Facts.LANs. Without them there are no routes to neighbors.
	LANs []LAN

	// Uplinks are the links on which packets of the underlay arrive, see Facts.Uplinks.
	Uplinks []Uplink

	// Attached are the networks that the host reaches without the mesh, see mesh.Nearby.
	Attached []netip.Prefix

	// Cards are the links on which others' packets to pods may arrive, see Facts.Cards.
	Cards []string

	// Keepalives are the intervals at which peers are sent something.
	Keepalives map[mesh.ID]Keepalive

	// Awaited are the peers that are to send the first handshake: they get no endpoint yet.
	Awaited map[mesh.ID]bool

	// ProvedEndpoints are the endpoints at which peers answer probes. They go before all others.
	ProvedEndpoints map[mesh.ID]netip.AddrPort

	// PathMTUs are how long packets inside the tunnels to peers may be that pass beneath them, in
	// bytes. 0 for unknown.
	PathMTUs map[mesh.ID]int

	// LearnedEndpoints holds the addresses from which packets of peers arrived recently. It is used
	// for peers that have no endpoint in the topology. It is not in JSON, which has no
	// such keys.
	LearnedEndpoints map[wgtypes.Key]netip.AddrPort `json:"-"`
}

// MTU returns the MTU of a WireGuard device on a host whose uplink has the MTU egress, in
// bytes. If egress is 0, because the host has no uplink at the moment, it assumes
// Ethernet. The result is at least mesh.MinMTU, and at least mesh.MinMTU6 if IPv6 runs inside the
// tunnel, even if the outer packets are then fragmented.
func MTU(egress int, ipv6 bool) int {
	if egress == 0 {
		egress = ethernetMTU
	}
	mtu := max(min(egress, ethernetMTU)-mesh.Overhead, mesh.MinMTU)
	if ipv6 {
		mtu = max(mtu, mesh.MinMTU6)
	}
	return mtu
}

// Desired returns the state that a topology asks for. Peers of the topology must not
// share keys or allowed IPs; mesh.Derive ensures that.
//
// A node that has no slot yet has no overlay address. It then has no routes of that
// family: they could not have a source address, and the remote side would drop packets
// with any other source. Its peers have their allowed IPs nevertheless, so that no peer
// changes when the node gets its slot.
func Desired(t mesh.Topology, s Settings) State {
	b := newBuilder(t, s)
	state := State{
		Device:    b.device(),
		Peers:     b.peers(),
		VXLAN:     b.vxlan,
		Addresses: hostPrefixes(t.Addresses),
		Backstops: normalize(slices.Concat(t.Guarded, t.Linked.Networks)),
		Firewall:  b.firewall(),
		Sysctls:   b.sysctls(),
		Accepts:   b.accepts(),
		OwnPorts:  b.ownPorts(),
	}
	state.Routes, state.Covered = b.merge(b.routes())
	if state.VXLAN != nil {
		state.Forwarding, state.Neighbors = vxlanEntries(t)
	}
	return state
}

// builder builds a desired state. It holds a topology, the settings of a host, and values
// computed from both that several parts of the state need.
type builder struct {
	Settings
	t       mesh.Topology
	vxlan   *VXLAN   // the device for traffic to encapsulated neighbors; nil for none
	devices []string // links that carry only packets of the mesh
	sets    map[string][]netip.Prefix
}

func newBuilder(t mesh.Topology, s Settings) builder {
	b := builder{Settings: s, t: t, vxlan: s.vxlan(t), devices: []string{s.Interface}}
	var members []netip.Addr
	if b.vxlan != nil {
		b.devices = append(b.devices, b.vxlan.Name)
		for _, n := range t.Neighbors {
			if n.Encapsulated {
				members = append(members, n.InternalIP)
			}
		}
	}
	b.sets = sets(t, hostPrefixes(members))
	return b
}

func (s Settings) device() *Device {
	return &Device{
		Name:           s.Interface,
		Implementation: s.Implementation,
		PublicKey:      s.PrivateKey.PublicKey(),
		ListenPort:     s.ListenPort,
		MTU:            s.MTU,
		Up:             true,
		privateKey:     s.PrivateKey,
	}
}

func (b builder) peers() []Peer {
	out := b.clientPeers(b.t.Clients)
	for _, p := range b.t.Peers {
		out = append(out, Peer{
			Key:        p.Key,
			Name:       p.Name,
			Endpoint:   b.endpoint(p),
			AllowedIPs: normalize(p.AllowedIPs),
			Keepalive:  b.Keepalives[p.ID].Interval,
			Guessed:    b.Keepalives[p.ID].Guessed,
		})
	}
	slices.SortFunc(out, func(a, b Peer) int { return compareKeys(a.Key, b.Key) })
	return out
}

// endpoint returns the endpoint with which a peer begins: the one at which it answers, else
// the first that it names, else the address at which it was heard.
func (b builder) endpoint(p mesh.Peer) netip.AddrPort {
	if b.Awaited[p.ID] {
		return netip.AddrPort{}
	}
	if proved := b.outside(b.ProvedEndpoints[p.ID]); proved.IsValid() {
		return proved
	}
	if len(p.Endpoints) == 0 {
		return b.outside(b.LearnedEndpoints[p.Key])
	}
	return unmapPort(p.Endpoints[0])
}

// outside returns an endpoint, unless it is reached through a tunnel now, as a former
// neighbor's address on a LAN that this host has left: packets to it would go round and round.
func (b builder) outside(at netip.AddrPort) netip.AddrPort {
	at = unmapPort(at)
	if slices.ContainsFunc(b.t.Inside, func(p netip.Prefix) bool { return unmap(p).Contains(at.Addr()) }) {
		return netip.AddrPort{}
	}
	return at
}

// routes returns one route for each allowed IP of nodes and clients, the routes to
// neighbors, and one for each guarded range as a whole. The last ones catch packets to
// addresses that belong to no known peer. Such a packet goes to the WireGuard device,
// which rejects it. Without these routes it would leave unencrypted by the default route.
// They also make the guard chain strict: the default route then never leads back to a
// guarded source.
func (b builder) routes() []Route {
	to := make(map[netip.Prefix]Route)
	add := func(r Route) {
		if r.Source = sourceFor(r.Destination.Addr(), b.t.Addresses); r.Source.IsValid() {
			to[r.Destination] = r
		}
	}
	for _, dst := range normalize(b.t.Guarded) {
		add(Route{Destination: dst, Link: b.Interface})
	}
	for _, p := range b.t.Peers {
		for _, dst := range normalize(p.AllowedIPs) {
			add(Route{Destination: dst, Link: b.Interface, MTU: routeMTU(b.tunnelMTU(p, dst), b.MTU)})
		}
	}
	for _, dst := range normalize(addressesOf(b.t.Clients)) {
		add(Route{Destination: dst, Link: b.Interface})
	}
	for _, n := range b.t.Neighbors {
		for _, r := range b.neighborRoutes(n, b.vxlan) {
			add(r)
		}
	}
	var out []Route
	for _, r := range to {
		out = append(out, r)
	}
	slices.SortFunc(out, Route.Compare)
	return out
}

// merge splits sorted routes into those that the kernel needs, and those that would lead where a wider
// one leads already. So a mesh needs a few routes for its ranges, however many nodes it has, and
// one for each that is reached in another way. A route that crosses a network of the host is
// needed: there may be a route to that network.
func (b builder) merge(all []Route) (needed, covered []Route) {
	var wider []Route // those that contain the current one, the widest first
	for _, r := range all {
		for len(wider) > 0 && !wider[len(wider)-1].Destination.Contains(r.Destination.Addr()) {
			wider = wider[:len(wider)-1]
		}
		if n := len(wider); n > 0 && r.leadsAs(wider[n-1]) && !b.crossesAttached(r.Destination, wider[n-1].Destination) {
			covered = append(covered, r)
			continue
		}
		needed = append(needed, r)
		if !mesh.IsDefaultRoute(r.Destination) { // those are in another table
			wider = append(wider, r)
		}
	}
	return needed, covered
}

// crossesAttached reports whether a destination is in a network of the host that is within a wider one.
func (b builder) crossesAttached(dst, wider netip.Prefix) bool {
	return slices.ContainsFunc(b.Attached, func(a netip.Prefix) bool {
		return mesh.ContainsPrefix(wider, a) && mesh.ContainsPrefix(a, dst)
	})
}

// tunnelMTU returns how long packets through the tunnel to a peer may be: what both ends allow, or
// what the path beneath carries, if that is less. TCP follows the route, in this host by itself
// and in pods by what the kernel tells them of packets that are too long, see also clampMSS.
func (b builder) tunnelMTU(p mesh.Peer, dst netip.Prefix) int {
	carried := b.PathMTUs[p.ID]
	if carried == 0 || carried >= p.MTU {
		return p.MTU
	}
	if dst.Addr().Is6() {
		carried = max(carried, mesh.MinMTU6) // no host of IPv6 sends less: its packets come in fragments
	}
	return min(carried, p.MTU)
}

// sysctls returns the kernel parameters that the mesh needs.
func (b builder) sysctls() []Sysctl {
	// As in sysctl(8), a slash stands for a dot inside a name.
	conf := "net.ipv4.conf." + strings.ReplaceAll(b.Interface, ".", "/")
	out := []Sysctl{
		{"net.ipv4.ip_forward", "1"},
		// Use loose mode: a reply may take another way than the request. The kernel uses
		// the higher value of this and conf.all.
		{conf + ".rp_filter", "2"},
		// A packet from one peer to another leaves by the device on which it arrived.
		// That must not cause an ICMP redirect. The kernel sends one unless both settings
		// are off; wg_open in the kernel turns them off for the same reason.
		{"net.ipv4.conf.all.send_redirects", "0"},
		{conf + ".send_redirects", "0"},
	}
	for _, link := range b.forwardingLinks() {
		out = append(out, forwardingOn(link))
	}
	if usesIPv6(b.t) {
		for _, link := range b.podAndClientLinks() {
			out = append(out, Sysctl{"net.ipv6.conf." + strings.ReplaceAll(link, ".", "/") + ".forwarding", "1"})
		}
		out = append(out,
			Sysctl{"net.ipv6.conf.all.forwarding", "1"},
			// Hosts without IPv6 often have it disabled on all links.
			Sysctl{strings.Replace(conf, "ipv4", "ipv6", 1) + ".disable_ipv6", "0"},
		)
	}
	if b.Bridge != "" {
		// Bridged packets between pods of this node must pass kube-proxy and
		// NetworkPolicy.
		out = append(out, Sysctl{"net.bridge.bridge-nf-call-iptables", "1"})
		if usesIPv6(b.t) {
			out = append(out,
				Sysctl{"net.bridge.bridge-nf-call-ip6tables", "1"},
				// The CNI plugin creates the bridge later, and gives it an IPv6 address.
				Sysctl{"net.ipv6.conf.default.disable_ipv6", "0"})
		}
	}
	if b.vxlan != nil {
		out = append(out, b.vxlanSysctls()...)
	}
	slices.SortFunc(out, func(a, b Sysctl) int { return strings.Compare(a.Key, b.Key) })
	return out
}

// forwardingOn has the kernel forward IPv4 packets that arrive on a link.
func forwardingOn(link string) Sysctl {
	return Sysctl{"net.ipv4.conf." + strings.ReplaceAll(link, ".", "/") + ".forwarding", "1"}
}

// forwardingLinks returns the links on which IPv4 packets arrive that this host forwards:
// those of the mesh, and those to hosts outside of it, because replies to pods and to the
// mesh arrive there. The kernel asks the link on which a packet arrives, not ip_forward,
// which only sets all links when it changes: a link that is created later takes the value
// of conf.default, and networkd sets its links one by one.
//
// In IPv6 the kernel asks only conf.all (Documentation/networking/ip-sysctl.rst). There
// forwarding is set on links of the mesh alone: on others it would change whether the host
// accepts router advertisements.
func (b builder) forwardingLinks() []string {
	links := slices.Clone(b.podAndClientLinks())
	carries := len(b.t.ServedNetworks)+len(b.t.Internet) > 0
	if carries || len(b.t.PodCIDRs) > 0 {
		links = append(links, b.Cards...)
		for _, u := range b.Uplinks {
			if u.Source.Addr().Is4() {
				links = append(links, u.Link)
			}
		}
	}
	if carries || slices.ContainsFunc(b.t.Neighbors, func(n mesh.Neighbor) bool { return !n.Encapsulated }) {
		for _, l := range b.LANs {
			if l.Address.Addr().Is4() {
				links = append(links, l.Link)
			}
		}
	}
	slices.Sort(links)
	return slices.Compact(links)
}

// usesIPv6 reports whether any range of the mesh is IPv6.
func usesIPv6(t mesh.Topology) bool {
	return slices.ContainsFunc(slices.Concat(t.Inside, t.Guarded, t.PodCIDRs, hostPrefixes(t.Addresses)),
		func(p netip.Prefix) bool { return unmap(p).Addr().Is6() })
}

// sourceFor returns the first address in own that has the family of dst, or the zero
// Addr.
func sourceFor(dst netip.Addr, own []netip.Addr) netip.Addr {
	for _, a := range own {
		if a = a.Unmap(); a.Is4() == dst.Is4() {
			return a
		}
	}
	return netip.Addr{}
}

// hostPrefixes returns addresses as sorted /32 and /128 prefixes.
func hostPrefixes(addrs []netip.Addr) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range addrs {
		a = a.Unmap()
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return normalize(out)
}

// normalize returns prefixes masked, sorted and without duplicates. IPv4-mapped IPv6
// prefixes are turned into IPv4 prefixes.
func normalize(prefixes []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range prefixes {
		out = append(out, unmap(p).Masked())
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// unmap turns an IPv4-mapped IPv6 prefix into the IPv4 prefix. A prefix shorter than the
// 96 bits of the mapping has no IPv4 equivalent and is returned as it is.
func unmap(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p
}

// unmapPort is unmap for an endpoint.
func unmapPort(e netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(e.Addr().Unmap(), e.Port())
}
