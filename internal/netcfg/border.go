// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg/filter"
)

// Nobody but the host speaks for the mesh. What pods and clients send to another
// node's internal IP leaves under this host's address, so nodes would take it for
// this host's word. And a pod with a hostPort would answer in this host's place.
// Both concern our own ports, and both are closed here.

// OwnPort is a port of this host that nobody else may answer on.
type OwnPort struct {
	Protocol string // udp | tcp
	Port     int
	Setting  string // that names it in the configuration; "" for none

	Packets []filter.Packet // examples of what has to arrive there
}

func (b builder) ownPorts() []OwnPort {
	all := []OwnPort{
		{Protocol: "udp", Port: b.ListenPort, Setting: "wireguard.listen-port"},
		{Protocol: "udp", Port: b.GossipPort, Setting: "gossip.bind"},
		{Protocol: "tcp", Port: b.GossipPort, Setting: "gossip.bind"},
		{Protocol: "udp", Port: VXLANPort},
		{Protocol: "tcp", Port: mesh.ClientPort},
	}
	all = slices.DeleteFunc(all, func(p OwnPort) bool { return p.Port == 0 })
	for _, f := range families() {
		p := b.parties(f)
		for i := range all {
			all[i].Packets = append(all[i].Packets, filter.Packet{
				In: p.uplink, Protocol: all[i].Protocol, Port: uint16(all[i].Port), Source: p.outside, Destination: p.here,
			})
			if p.overlay != p.here {
				all[i].Packets = append(all[i].Packets, filter.Packet{
					In: b.Interface, Protocol: all[i].Protocol, Port: uint16(all[i].Port), Source: p.outside, Destination: p.overlay,
				})
			}
		}
	}
	return all
}

// portSet writes ports as nft takes them on the right of a match.
func portSet(list ...int) string {
	slices.Sort(list)
	var out []string
	for _, p := range slices.Compact(list) {
		if p != 0 {
			out = append(out, strconv.Itoa(p))
		}
	}
	return "{ " + strings.Join(out, ", ") + " }"
}

// talk matches packets to the ports on which nodes talk to each other, WireGuard's
// and gossip's. Other nodes' ports count as being the same: what a record says of
// them must not close anything here.
func (s Settings) talk() []string {
	var out []string
	if s.ListenPort != 0 || s.GossipPort != 0 {
		out = append(out, "udp dport "+portSet(s.ListenPort, s.GossipPort))
	}
	if s.GossipPort != 0 {
		out = append(out, fmt.Sprintf("tcp dport %d", s.GossipPort))
	}
	return out
}

// guestLinks are the links by which packets of pods and clients come.
func (b builder) guestLinks() []string {
	links := b.devices
	if b.Bridge != "" {
		links = append([]string{b.Bridge}, links...)
	}
	return links
}

// forged drops what comes from pods or by WireGuard with a source to which our route
// doesn't lead back there: whoever's address that is, a node's internal IP or a
// stranger's. Duplicate address detection and DHCP have no source yet, and link-local
// addresses no route of ours; the kernel forwards neither. By VXLAN a neighbor may
// pass on what a host of the LAN sends to our pods, which are answered by the LAN; so
// only nodes' addresses are held to their links there.
func (b builder) forged(f family) []Rule {
	without := "0.0.0.0"
	if !f.is4 {
		without = "{ ::, fe80::/10 }"
	}
	links := []string{b.Interface}
	if b.Bridge != "" {
		links = []string{b.Bridge, b.Interface}
	}
	out := []Rule{rule("iifname %s %s saddr != %s fib saddr . iif oif missing counter drop", oneOf(links), f.keyword, without)}
	if b.vxlan != nil && b.has("hosts", f) {
		out = append(out, rule("iifname %q %s saddr @hosts%s fib saddr . iif oif missing counter drop", b.vxlan.Name, f.keyword, f.suffix))
	}
	return out
}

// closedToGuests keeps pods and clients from our ports on this host. VXLAN is for
// neighbors, whose outer packets come by the LAN. Gossip may come through the mesh,
// from nodes.
func (b builder) closedToGuests() []Rule {
	out := []Rule{rule("udp dport %d iifname %s counter drop", VXLANPort, oneOf(b.guestLinks()))}
	for _, talk := range b.talk() {
		if b.Bridge != "" {
			out = append(out, rule("%s iifname %q counter drop", talk, b.Bridge))
		}
		for _, f := range families() {
			if b.has("guests", f) {
				out = append(out, rule("%s %s saddr @guests%s counter drop", talk, f.keyword, f.suffix))
			}
		}
	}
	return out
}

// border keeps pods and clients from our ports on other nodes, to which they would
// speak under this host's address. Our own VXLAN isn't forwarded, it begins here; so
// that port is closed wherever the packet goes, as not all addresses of all nodes are
// known. Who asked a pod from such a port gets an answer, as long as it is not a
// member of our VXLAN; for members, it is closed to whatever comes by whatever link.
func (b builder) border() []Rule {
	var out []Rule
	for _, f := range families() {
		vxlan := fmt.Sprintf("udp dport %d", VXLANPort)
		if b.has("members", f) {
			out = append(out, rule("%[1]s %[2]s daddr @members%[3]s %[2]s saddr != @members%[3]s counter drop", vxlan, f.keyword, f.suffix))
		}
		if !b.has("guests", f) {
			continue
		}
		out = append(out,
			rule("%s iifname %s %s daddr != @guests%s ct direction original counter drop", vxlan, oneOf(b.guestLinks()), f.keyword, f.suffix),
			rule("%[1]s %[2]s saddr @guests%[3]s %[2]s daddr != @guests%[3]s ct direction original counter drop", vxlan, f.keyword, f.suffix))
		for _, talk := range b.talk() {
			from := fmt.Sprintf("%s %s saddr @guests%s", talk, f.keyword, f.suffix)
			if b.has("hosts", f) {
				out = append(out, rule("%s %s daddr @hosts%s ct direction original counter drop", from, f.keyword, f.suffix))
			}
			for _, bridges := range f.bridges(b.t, nil) {
				out = append(out, rule("%s %s ct direction original counter drop", from, bridges))
			}
		}
	}
	return out
}

// bridges match the addresses that nodes themselves have in the pod ranges, or in
// those networks of these ranges that are named. The first address of a pod CIDR is
// the bridge's. The one before it means the host too, as the subnet routers' anycast
// address (RFC 4291, section 2.6.1), or as that of flannel's device; so does IPv4's
// broadcast address. Pods have none of these.
func (f family) bridges(t mesh.Topology, within []netip.Prefix) []string {
	var out []string
	for _, r := range t.PodRanges {
		if r.Range.Addr().Is4() != f.is4 {
			continue
		}
		zero := netip.IPv6Unspecified()
		if f.is4 {
			zero = netip.IPv4Unspecified()
		}
		mask := last(netip.PrefixFrom(zero, r.Bits))
		own := []netip.Addr{zero, zero.Next()}
		if f.is4 {
			own = append(own, mask)
		}
		networks := []netip.Prefix{r.Range}
		if within != nil {
			networks = slices.DeleteFunc(f.merged(within), func(p netip.Prefix) bool { return !p.Overlaps(r.Range) })
		}
		for _, n := range networks {
			out = append(out, fmt.Sprintf("%[1]s daddr %[2]s %[1]s daddr & %[3]s %[4]s", f.keyword, n, mask, oneOfAddrs(own)))
		}
	}
	return out
}

func oneOfAddrs(addrs []netip.Addr) string {
	var out []string
	for _, a := range slices.Compact(addrs) {
		out = append(out, a.String())
	}
	return "{ " + strings.Join(out, ", ") + " }"
}

// keepOwnPorts builds the chains that put our ports out of reach of others' DNAT: of
// a pod's hostPort, a Service's external IP. NAT is decided about once for a
// connection, by the first chain that does. To accept a packet decides nothing, the
// next chain is asked then; to translate its destination into itself does
// (nf_nat_core.c, nf_nat_inet_fn).
func (b builder) keepOwnPorts() []Chain {
	var in, out []Rule
	udp := "udp dport " + portSet(b.ListenPort, b.GossipPort, VXLANPort)
	tcp := "tcp dport " + portSet(b.GossipPort, mesh.ClientPort)
	for _, f := range families() {
		keep := func(match string) Rule { return rule("%[1]s dnat %[2]s to %[2]s daddr", match, f.keyword) }
		both := []Rule{keep("fib daddr type local " + udp), keep("fib daddr type local " + tcp)}
		if b.has("hosts", f) {
			to := fmt.Sprintf("%s daddr @hosts%s ", f.keyword, f.suffix)
			both = append(both, keep(to+udp), keep(to+tcp))
		}
		in = append(in, both...)
		out = append(out, both...)
		// What we send from our own ports, also to addresses that no record has.
		out = append(out, keep(fmt.Sprintf("udp dport %d", VXLANPort)))
		if b.ListenPort != 0 || b.GossipPort != 0 {
			out = append(out, keep("udp sport "+portSet(b.ListenPort, b.GossipPort)))
		}
	}
	return []Chain{
		{Name: chainOwnPorts, Type: "nat", Hook: "prerouting", Priority: priorityOwnPorts, Rules: in},
		{Name: chainOwnPortsOut, Type: "nat", Hook: "output", Priority: priorityOwnPorts, Rules: out},
	}
}
