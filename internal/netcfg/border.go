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

// Only the host itself may communicate on behalf of meshd. Packets that pods and clients
// send to another node's internal IP leave with this host's address as source, so other
// nodes would take them for packets of this host. And a pod with a hostPort could answer
// in place of this host. Both are about our own ports, and the rules in this file prevent
// both.

// OwnPort is a port of this host that only meshd may answer on.
type OwnPort struct {
	Protocol string // udp | tcp
	Port     int
	Setting  string // the configuration key that sets it; "" for none

	Packets []filter.Packet // samples of packets that must arrive there
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
		p := b.samples(f)
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

// portSet writes ports in the form that nft expects on the right side of a match. Zeros
// are ignored.
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

// toNodePorts matches packets to the ports of WireGuard and gossip, on which nodes
// communicate with each other. Other nodes are assumed to use the same ports as this one:
// the contents of their records must not close anything here.
func (s Settings) toNodePorts() []string {
	var out []string
	if s.ListenPort != 0 || s.GossipPort != 0 {
		out = append(out, "udp dport "+portSet(s.ListenPort, s.GossipPort))
	}
	if s.GossipPort != 0 {
		out = append(out, fmt.Sprintf("tcp dport %d", s.GossipPort))
	}
	return out
}

// podAndClientLinks returns the links on which packets of pods and clients arrive.
func (b builder) podAndClientLinks() []string {
	links := b.devices
	if b.Bridge != "" {
		links = append([]string{b.Bridge}, links...)
	}
	return links
}

// dropForged drops packets that arrive from pods or by WireGuard if our route to their
// source uses another link. The source may be a node's internal IP or the address of an
// unrelated host. Two kinds of packets are exempt, because the kernel forwards neither:
// those of duplicate address detection and DHCP, which have no source yet, and those with
// link-local addresses, to which we have no route. By VXLAN a neighbor may forward
// packets from a host on the LAN to our pods, and the replies go directly to the LAN. So
// on that device only the addresses of nodes are checked.
func (b builder) dropForged(f family) []Rule {
	without := "0.0.0.0"
	if !f.is4 {
		without = "{ ::, fe80::/10 }"
	}
	links := []string{b.Interface}
	if b.Bridge != "" {
		links = []string{b.Bridge, b.Interface}
	}
	out := []Rule{rule("iifname %s %s saddr != %s fib saddr . iif oif missing counter drop", linkSet(links), f.keyword, without)}
	if b.vxlan != nil && b.has("hosts", f) {
		out = append(out, rule("iifname %q %s saddr @hosts%s fib saddr . iif oif missing counter drop", b.vxlan.Name, f.keyword, f.suffix))
	}
	return out
}

// inputRules close our ports on this host to pods and clients. VXLAN is only for
// neighbors, whose outer packets arrive by the LAN. Gossip may arrive through the mesh,
// if it comes from nodes.
func (b builder) inputRules() []Rule {
	out := []Rule{rule("udp dport %d iifname %s counter drop", VXLANPort, linkSet(b.podAndClientLinks()))}
	for _, toPorts := range b.toNodePorts() {
		if b.Bridge != "" {
			out = append(out, rule("%s iifname %q counter drop", toPorts, b.Bridge))
		}
		for _, f := range families() {
			if b.has("guests", f) {
				out = append(out, rule("%s %s saddr @guests%s counter drop", toPorts, f.keyword, f.suffix))
			}
		}
	}
	return out
}

// forwardRules close our ports on other nodes to pods and clients, whose packets would
// arrive there with this host's address as source. Our own VXLAN packets are not
// forwarded, they are sent by this host. So the VXLAN port is closed for all
// destinations, because not all addresses of all nodes are known. A host that sent a
// request to a pod from this port gets its reply, unless it is a member of our VXLAN. For
// members the port is closed to packets of all others, on every link.
func (b builder) forwardRules() []Rule {
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
			rule("%s iifname %s %s daddr != @guests%s ct direction original counter drop", vxlan, linkSet(b.podAndClientLinks()), f.keyword, f.suffix),
			rule("%[1]s %[2]s saddr @guests%[3]s %[2]s daddr != @guests%[3]s ct direction original counter drop", vxlan, f.keyword, f.suffix))
		for _, toPorts := range b.toNodePorts() {
			from := fmt.Sprintf("%s %s saddr @guests%s", toPorts, f.keyword, f.suffix)
			if b.has("hosts", f) {
				out = append(out, rule("%s %s daddr @hosts%s ct direction original counter drop", from, f.keyword, f.suffix))
			}
			for _, bridges := range f.bridgeAddresses(b.t, nil) {
				out = append(out, rule("%s %s ct direction original counter drop", from, bridges))
			}
		}
	}
	return out
}

// bridgeAddresses matches the addresses that nodes have in the pod ranges. If within is
// not nil, it matches only those in the given networks. The first address of a pod CIDR
// is that of the bridge. The address before it also means the host: it is the
// subnet-router anycast address (RFC 4291, section 2.6.1), or the address of flannel's
// device. So does the broadcast address in IPv4. Pods have none of these addresses.
func (f family) bridgeAddresses(t mesh.Topology, within []netip.Prefix) []string {
	var out []string
	for _, r := range t.PodRanges {
		if r.Range.Addr().Is4() != f.is4 {
			continue
		}
		zero := netip.IPv6Unspecified()
		if f.is4 {
			zero = netip.IPv4Unspecified()
		}
		mask := filter.Last(netip.PrefixFrom(zero, r.Bits))
		own := []netip.Addr{zero, zero.Next()}
		if f.is4 {
			own = append(own, mask)
		}
		networks := []netip.Prefix{r.Range}
		if within != nil {
			networks = slices.DeleteFunc(f.merged(within), func(p netip.Prefix) bool { return !p.Overlaps(r.Range) })
		}
		for _, n := range networks {
			out = append(out, fmt.Sprintf("%[1]s daddr %[2]s %[1]s daddr & %[3]s %[4]s", f.keyword, n, mask, addrSet(own)))
		}
	}
	return out
}

func addrSet(addrs []netip.Addr) string {
	var out []string
	for _, a := range slices.Compact(addrs) {
		out = append(out, a.String())
	}
	return "{ " + strings.Join(out, ", ") + " }"
}

// protectOwnPorts builds the chains that protect our ports from DNAT rules of other
// programs, such as that of a pod's hostPort or a Service's external IP. NAT is decided
// once for a connection, by the first chain that decides. Accepting a packet decides
// nothing: the kernel then runs the next chain. Translating the destination into itself
// does decide (nf_nat_core.c, nf_nat_inet_fn).
func (b builder) protectOwnPorts() []Chain {
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
		// Packets from our own ports are protected even if no record has their
		// destination.
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
