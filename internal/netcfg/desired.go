// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"net/netip"
	"slices"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
)

// Settings is what a host's desired state follows from besides the topology.
type Settings struct {
	Interface      string  // name of the WireGuard device
	ID             mesh.ID // own; the VXLAN device's MAC follows from it
	Implementation Implementation
	PrivateKey     wgtypes.Key `json:"-"`
	ListenPort     int
	GossipPort     int
	MTU            int    // of the device, see MTU
	Bridge         string // name of the bridge that the pods are on; "" if others do the CNI

	// LANs are the links with the internal IPs that this node's record tells, see
	// Facts.LANs. Without them there are no ways to neighbors.
	LANs []LAN

	// Uplinks are where packets of the underlay come in, see Facts.Uplinks.
	Uplinks []Uplink

	// Pick says which of a peer's endpoints to use, counted round its list, or
	// with a negative number that it is to have none yet;
	// the first one if it says nothing.
	Pick map[mesh.ID]int

	// Heard is where peers have been heard lately. It stands in for endpoints where a
	// peer has none. JSON has no such keys.
	Heard map[wgtypes.Key]netip.AddrPort `json:"-"`
}

// MTU returns the MTU of a WireGuard device on a host whose way out has the
// MTU egress, or 0 if it has none just now: that of Ethernet then. It is at least mesh.MinMTU, and 1280 where IPv6 runs inside,
// even if the outer packets then come in fragments.
func MTU(egress int, ipv6 bool) int {
	if egress == 0 {
		egress = ethernetMTU
	}
	mtu := max(min(egress, ethernetMTU)-overhead, mesh.MinMTU)
	if ipv6 {
		mtu = max(mtu, minIPv6MTU)
	}
	return mtu
}

// Desired returns the state that a topology asks for. The topology's peers must
// not share keys or allowed IPs, which mesh.Derive sees to.
//
// A node without an overlay address of some family, because it holds no slot
// yet, has no routes of that family: they could not name their source, and the
// far side would drop what comes from any other. Its peers have their allowed
// IPs all the same, so that no peer changes when the node gets its slot.
func Desired(t mesh.Topology, s Settings) State {
	b := newBuilder(t, s)
	state := State{
		Device:    b.device(),
		Peers:     b.peers(),
		VXLAN:     b.vxlan,
		Addresses: hostPrefixes(t.Addresses),
		Backstops: normal(t.Guarded),
		Routes:    b.routes(),
		Firewall:  b.firewall(),
		Sysctls:   b.sysctls(),
		Accepts:   b.accepts(),
		OwnPorts:  b.ownPorts(),
	}
	if state.VXLAN != nil {
		state.Forwarding, state.Neighbors = entries(t)
	}
	return state
}

// builder builds a desired state. It holds a topology, a host's settings, and what
// several parts of the state need of both.
type builder struct {
	Settings
	t       mesh.Topology
	vxlan   *VXLAN   // the device to the encapsulated neighbors; nil for none
	devices []string // links that carry the mesh's packets and nothing else
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
			AllowedIPs: normal(p.AllowedIPs),
			Keepalive:  p.Keepalive,
		})
	}
	slices.SortFunc(out, func(a, b Peer) int { return compareKeys(a.Key, b.Key) })
	return out
}

// endpoint returns the picked one of a peer's endpoints, or where the peer has been
// heard if it has none.
func (s Settings) endpoint(p mesh.Peer) netip.AddrPort {
	switch pick := s.Pick[p.ID]; {
	case pick < 0:
		return netip.AddrPort{}
	case len(p.Endpoints) == 0:
		return unmapPort(s.Heard[p.Key])
	default:
		return unmapPort(p.Endpoints[pick%len(p.Endpoints)])
	}
}

// routes returns one route for each allowed IP, of nodes and clients, those to the neighbors, and one
// for each guarded range as a whole. The latter catch what belongs to no peer, or to none that we know
// yet: it ends at the device, where WireGuard refuses it, instead of leaving by
// the default route in clear text. They also make the guard strict, because the
// default route is then no way back to any guarded source.
func (b builder) routes() []Route {
	to := make(map[netip.Prefix]Route)
	add := func(r Route) {
		if r.Source = sourceFor(r.Destination.Addr(), b.t.Addresses); r.Source.IsValid() {
			to[r.Destination] = r
		}
	}
	for _, dst := range normal(b.t.Guarded) {
		add(Route{Destination: dst, Link: b.Interface})
	}
	for _, p := range b.t.Peers {
		for _, dst := range normal(p.AllowedIPs) {
			add(Route{Destination: dst, Link: b.Interface, MTU: lower(p.MTU, b.MTU)})
		}
	}
	for _, dst := range normal(addressesOf(b.t.Clients)) {
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

// sysctls returns the kernel parameters that the mesh needs.
func (b builder) sysctls() []Sysctl {
	// As in sysctl(8), a slash stands for a dot inside a name.
	conf := "net.ipv4.conf." + strings.ReplaceAll(b.Interface, ".", "/")
	out := []Sysctl{
		{"net.ipv4.ip_forward", "1"},
		// The way back may differ from the way there: loose. The higher of
		// this and conf.all counts.
		{conf + ".rp_filter", "2"},
		// A packet from one peer to another leaves by the device by which it
		// came, which is no reason for a redirect. The kernel sends one unless
		// both are off; its own WireGuard does the same (wg_open).
		{"net.ipv4.conf.all.send_redirects", "0"},
		{conf + ".send_redirects", "0"},
	}
	if usesIPv6(b.t) {
		out = append(out,
			Sysctl{"net.ipv6.conf.all.forwarding", "1"},
			// Hosts without IPv6 of their own often have it switched off for all links.
			Sysctl{strings.Replace(conf, "ipv4", "ipv6", 1) + ".disable_ipv6", "0"},
		)
	}
	if b.Bridge != "" {
		// kube-proxy and NetworkPolicy have to see what pods of one node send
		// each other.
		out = append(out, Sysctl{"net.bridge.bridge-nf-call-iptables", "1"})
		if usesIPv6(b.t) {
			out = append(out,
				Sysctl{"net.bridge.bridge-nf-call-ip6tables", "1"},
				// The CNI plugin makes the bridge later, and gives it an address.
				Sysctl{"net.ipv6.conf.default.disable_ipv6", "0"})
		}
	}
	if b.vxlan != nil {
		out = append(out, b.vxlanSysctls()...)
	}
	slices.SortFunc(out, func(a, b Sysctl) int { return strings.Compare(a.Key, b.Key) })
	return out
}

// usesIPv6 says whether any range of the mesh is of IPv6.
func usesIPv6(t mesh.Topology) bool {
	return slices.ContainsFunc(slices.Concat(t.Inside, t.Guarded, t.PodCIDRs, hostPrefixes(t.Addresses)),
		func(p netip.Prefix) bool { return unmap(p).Addr().Is6() })
}

// sourceFor returns the own address of the family of dst, the zero Addr if
// there is none.
func sourceFor(dst netip.Addr, own []netip.Addr) netip.Addr {
	for _, a := range own {
		if a = a.Unmap(); a.Is4() == dst.Is4() {
			return a
		}
	}
	return netip.Addr{}
}

// hostPrefixes returns addresses as sorted /32 and /128.
func hostPrefixes(addrs []netip.Addr) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range addrs {
		a = a.Unmap()
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return normal(out)
}

// normal returns prefixes masked, sorted and without doubles, and those of
// IPv4 as such even if they are written as IPv6.
func normal(prefixes []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range prefixes {
		out = append(out, unmap(p).Masked())
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// unmap turns an IPv4-mapped IPv6 prefix into the one of IPv4 that it means.
// One that is shorter than the mapping's 96 bits means none, and is kept.
func unmap(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p
}

// unmapPort does for an endpoint what unmap does for a prefix.
func unmapPort(e netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(e.Addr().Unmap(), e.Port())
}
