// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/meshd/meshd/internal/mesh"
)

// family holds what differs between our rules for IPv4 and for IPv6.
type family struct {
	keyword string // in rules: ip | ip6
	suffix  string // of the names of our sets: 4 | 6
	setType string
	is4     bool
	outside netip.Addr // a host on the internet, for sample packets (RFC 5737, RFC 3849)
}

func families() [2]family {
	return [2]family{
		{keyword: "ip", suffix: "4", setType: "ipv4_addr", is4: true, outside: netip.AddrFrom4([4]byte{192, 0, 2, 1})},
		{keyword: "ip6", suffix: "6", setType: "ipv6_addr", outside: netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 15: 1})},
	}
}

// sets returns the elements of each set of our table:
//
//	inside        addresses of the mesh; packets to them are not masqueraded
//	guarded       addresses that only the mesh may use as source
//	location      the networks behind this node
//	linked        those of them that are ranges of other clusters
//	members       the neighbors from which VXLAN is accepted
//	plain         the neighbors to which packets go without encapsulation
//	clientranges  the address ranges of the clients of all nodes
//	clientnetworks  the networks behind clients
//	guests        the address ranges of pods and clients, and the networks behind clients
//	internet      what clients may reach of the internet through this node
//	hosts         the addresses of nodes, inside and outside of the mesh
//
// There is one of each per family. An empty set is not created, nor are the rules that
// use it.
func sets(t mesh.Topology, members []netip.Prefix) map[string][]netip.Prefix {
	sets := make(map[string][]netip.Prefix)
	for _, f := range families() {
		sets["inside"+f.suffix] = f.merged(slices.Concat(t.Guarded, t.Inside))
		sets["guarded"+f.suffix] = f.merged(t.Guarded)
		sets["location"+f.suffix] = f.merged(t.ServedNetworks)
		sets["linked"+f.suffix] = f.merged(t.Linked.Networks)
		sets["members"+f.suffix] = f.merged(members)
		sets["plain"+f.suffix] = f.merged(plainNextHops(t))
		sets["clientranges"+f.suffix] = f.merged(t.ClientRanges)
		sets["clientnetworks"+f.suffix] = f.merged(t.ClientNetworks)
		sets["internet"+f.suffix] = f.merged(t.Internet)
		sets["guests"+f.suffix] = f.merged(t.PodsAndClients)
		sets["hosts"+f.suffix] = f.merged(t.Hosts)
	}
	return sets
}

// has reports whether our table has the set for the family.
func (b builder) has(set string, f family) bool { return len(b.sets[set+f.suffix]) > 0 }

// firewall builds our table.
func (b builder) firewall() Firewall {
	var fw Firewall
	for _, name := range []string{"clientnetworks", "clientranges", "guarded", "guests", "hosts", "inside", "internet", "linked", "location", "members", "plain"} {
		for _, f := range families() {
			if elements := b.sets[name+f.suffix]; len(elements) > 0 {
				fw.Sets = append(fw.Sets, Set{Name: name + f.suffix, Type: f.setType, Elements: elements})
			}
		}
	}
	input := b.inputRules()
	guard := []Rule{b.passGenuine()}
	var exit, leaving, nat []Rule
	for _, f := range families() {
		if b.has("guarded", f) {
			leaving = append(leaving, b.exitRules(f)...)
			guard = append(guard, f.guardRule("guarded"))
		}
		if b.has("linked", f) {
			guard = append(guard, f.guardRule("linked"))
		}
		if b.has("members", f) {
			guard = append(guard, f.guardVXLAN())
			input = append(input, f.vxlanFromMembersOnly())
			exit = append(exit, b.vxlanOnLAN(f)...)
		}
		exit = append(exit, b.offered(f)...)
		if b.has("inside", f) {
			nat = append(nat, b.snat(f)...)
			nat = append(nat, b.snatLinked(f)...)
			nat = append(nat, b.snatClients(f)...)
			nat = append(nat, b.masqueradePods(f)...)
			nat = append(nat, b.masqueradeClients(f)...)
		}
		if b.has("location", f) && b.has("guarded", f) {
			nat = append(nat, b.masqueradeLocation(f)...)
		}
	}
	for _, f := range families() {
		guard = append(guard, b.dropForged(f)...)
	}
	if len(leaving) > 0 {
		exit = slices.Concat(exit, []Rule{b.passInside()}, leaving)
	}
	fw.Chains = []Chain{
		{Name: chainExit, Type: "filter", Hook: "postrouting", Priority: priorityExit, Rules: exit},
		{Name: chainForward, Type: "filter", Hook: "forward", Priority: priorityMangle, Rules: slices.Concat(b.passOrdinary(), b.forwardRules(), b.clampMSS())},
		{Name: chainGuard, Type: "filter", Hook: "prerouting", Priority: priorityGuard, Rules: guard},
		{Name: chainInput, Type: "filter", Hook: "input", Priority: priorityFilter, Rules: input},
	}
	fw.Chains = append(fw.Chains, b.protectOwnPorts()...)
	fw.Chains = append(fw.Chains, Chain{Name: chainPostrouting, Type: "nat", Hook: "postrouting", Priority: prioritySNAT, Rules: nat})
	more, access := b.access()
	fw.Sets, fw.Chains = append(fw.Sets, more...), append(access, fw.Chains...)
	slices.SortFunc(fw.Sets, func(a, b Set) int { return strings.Compare(a.Name, b.Name) })
	return fw
}

// guardRule drops packets whose source is in the set if they arrive on another link than
// the one by which we would reply. The lookup finds nothing in two cases: the route to
// the source uses another link, or the source is an address of this host. Packets that
// arrive on the loopback device always pass (nft_fib_ipv4.c, nft_fib_is_loopback). A
// bridged frame that br_netfilter passes to this chain arrives on its bridge, which is
// also the link of the route to the pod.
func (f family) guardRule(set string) Rule {
	return rule("%[1]s saddr @%[3]s%[2]s fib saddr . iif oif missing counter drop", f.keyword, f.suffix, set)
}

// The packets of pods pass every chain of every node on their way, so the chains for them begin with
// rules that accept most of them, and change nothing else: what such a rule accepts, no other rule of its
// chain matches.

// passGenuine accepts packets on our links whose source has a route by that link, before more is
// looked up. All rules of that chain drop only packets without one.
func (b builder) passGenuine() Rule {
	return rule("iifname %s fib saddr . iif oif exists accept", linkSet(b.podAndClientLinks()))
}

// passInside accepts packets that don't leave the mesh. No exitRules match them.
func (b builder) passInside() Rule {
	return rule("oifname %s accept", linkSet(b.insideLinks()))
}

// passOrdinary accepts packets that forwardRules and clampMSS don't match by their ports and flags.
func (b builder) passOrdinary() []Rule {
	out := []Rule{rule("udp dport != %s accept", portSet(b.ListenPort, b.GossipPort, VXLANPort))}
	if b.GossipPort != 0 {
		out = append(out, rule("tcp flags & (syn | rst) != syn tcp dport != %d accept", b.GossipPort))
	}
	return out
}

// exitRules keep packets with a source in the mesh from leaving unencrypted when the
// device, or the route to a node's internal IP, is gone: they drop such packets on every
// link that is not ours. Only neighbors without encapsulation get such packets.
//
// Packets to the mesh are always dropped there, whichever side opened the connection. Of
// the packets to other destinations, replies pass: they were requested by a network that
// has a route to the pods through this host.
func (b builder) exitRules(f family) []Rule {
	// Match the source first: WireGuard's own packets are the most frequent, and their
	// source is never in the mesh.
	leaves := fmt.Sprintf("%s saddr @guarded%s %s", f.keyword, f.suffix, b.leavesMesh())
	if own := f.first(normalize(b.t.PodCIDRs)); b.Bridge == "" && own.IsValid() {
		// Only the program that provides the CNI knows the links to the pods.
		leaves += fmt.Sprintf(" %s daddr != %s", f.keyword, own)
	}
	if b.has("plain", f) {
		leaves += fmt.Sprintf(" rt %s nexthop != @plain%s", f.keyword, f.suffix)
	}
	return []Rule{
		rule("%s %s daddr @inside%s counter drop", leaves, f.keyword, f.suffix),
		rule("%s ct direction original counter drop", leaves),
	}
}

// vxlanOnLAN keeps the outer packets of VXLAN on the LAN. When the link to the LAN is
// down, a packet to a neighbor would take the default route, whose router is not a
// neighbor.
func (s Settings) vxlanOnLAN(f family) []Rule {
	var out []Rule
	for _, l := range s.LANs {
		if l.Address.Addr().Is4() == f.is4 && !l.Address.IsSingleIP() {
			out = append(out, rule("%[1]s daddr %[3]s udp dport %[4]d rt %[1]s nexthop != @members%[2]s counter drop",
				f.keyword, f.suffix, l.Address.Masked(), VXLANPort))
		}
	}
	return out
}

// plainNextHops returns the addresses of neighbors to which packets of the mesh go
// without encapsulation.
func plainNextHops(t mesh.Topology) []netip.Prefix {
	var out []netip.Addr
	for _, n := range t.Neighbors {
		if !n.Encapsulated {
			out = append(out, n.NextHops...)
		}
	}
	return hostPrefixes(out)
}

// guardVXLAN is guardRule for the outer packets of VXLAN: an internal IP is accepted only
// on the link by which we would reply.
func (f family) guardVXLAN() Rule {
	return rule("%[1]s saddr @members%[2]s udp dport %[3]d fib saddr . iif oif missing counter drop", f.keyword, f.suffix, VXLANPort)
}

// vxlanFromMembersOnly drops VXLAN packets from hosts that are not members: whoever can
// send to its port is inside the mesh. The kernel listens on that port in one family
// only.
func (f family) vxlanFromMembersOnly() Rule {
	return rule("%[1]s saddr != @members%[2]s udp dport %[3]d counter drop", f.keyword, f.suffix, VXLANPort)
}

// snat replaces the source of packets from this host into the mesh by the overlay address
// if the remote side would not accept their source from us. There are two kinds. First,
// packets that kube-proxy has marked for its own MASQUERADE, which would use the address
// of the outgoing link. Second, packets of local programs with another source address:
// they got it from the route to a Service's address, before kube-proxy replaced that by
// the address of a pod. The mark is cleared, as kube-proxy does itself, so that a packet
// is not masqueraded again after encapsulation.
func (b builder) snat(f family) []Rule {
	own := f.first(hostPrefixes(b.t.Addresses))
	if !own.IsValid() {
		return nil
	}
	away := oifnameNotIn("lo", b.Bridge)
	return []Rule{
		rule("%[1]s %[2]s daddr @inside%[3]s meta mark & %#[4]x == %#[4]x meta mark set meta mark & %#[5]x snat %[2]s to %[6]s",
			away, f.keyword, f.suffix, masqueradeMark, ^uint32(masqueradeMark), own.Addr()),
		rule("%[1]s %[2]s daddr @inside%[3]s %[2]s saddr != @inside%[3]s fib saddr type local snat %[2]s to %[4]s",
			away, f.keyword, f.suffix, own.Addr()),
		rule("oifname %[1]s %[2]s saddr != @inside%[3]s fib saddr type local snat %[2]s to %[4]s",
			linkSet(b.devices), f.keyword, f.suffix, own.Addr()),
	}
}

// snatLinked replaces the source of packets from other clusters into the mesh by the overlay address:
// replies come back to this node, whichever node the rest of the mesh sends its own packets to them by.
func (b builder) snatLinked(f family) []Rule {
	own := f.first(hostPrefixes(b.t.Addresses))
	if !own.IsValid() || !b.has("linked", f) {
		return nil
	}
	return []Rule{rule("%[1]s %[2]s saddr @linked%[3]s %[2]s daddr @inside%[3]s snat %[2]s to %[4]s", oifnameNotIn("lo", b.Bridge), f.keyword, f.suffix, own.Addr())}
}

// masqueradePods masquerades packets from this node's pods to destinations outside of the
// mesh.
func (b builder) masqueradePods(f family) []Rule {
	var out []Rule
	for _, pods := range f.merged(b.t.PodCIDRs) {
		out = append(out, b.masqueradeRules(fmt.Sprintf("%[1]s %[2]s saddr %[4]s %[2]s daddr != @inside%[3]s",
			oifnameNotIn("lo", b.Bridge), f.keyword, f.suffix, pods))...)
	}
	return out
}

// masqueradeClients masquerades packets from clients, and from the networks behind them, to the internet.
func (b builder) masqueradeClients(f family) []Rule {
	if !b.has("internet", f) {
		return nil
	}
	var out []Rule
	for _, from := range b.clientSets(f) {
		out = append(out, b.masqueradeRules(fmt.Sprintf("%[1]s %[2]s saddr @%[4]s%[3]s %[2]s daddr @internet%[3]s",
			b.leavesMesh(), f.keyword, f.suffix, from))...)
	}
	return out
}

// clientSets returns the sets of addresses that clients send from.
func (b builder) clientSets(f family) []string {
	return slices.DeleteFunc([]string{"clientranges", "clientnetworks"}, func(set string) bool { return !b.has(set, f) })
}

// masqueradeRules replace the source of matching packets by the address of the outgoing
// link. The source port is kept if possible, but never if it is one of ours: replies to
// that port would then go to a pod, and so would packets that another node sends to this
// one.
func (b builder) masqueradeRules(match string) []Rule {
	// NAT keeps a source port that is in the range already, so none of our ports may be
	// in it.
	const size = 1 << 12
	last := 1<<16 - 1
	ours := func(port int) bool { return port > last-size && port <= last }
	for ours(b.ListenPort) || ours(b.GossipPort) {
		last -= size
	}
	var out []Rule
	for _, ports := range b.fromOwnPorts() {
		out = append(out, rule("%s %s masquerade to :%d-%d", match, ports, last-size+1, last))
	}
	return append(out, rule("%s masquerade", match))
}

// fromOwnPorts matches packets whose source port is one of the ports of this node.
func (b builder) fromOwnPorts() []string {
	out := []string{"udp sport " + portSet(b.ListenPort, b.GossipPort, VXLANPort)}
	if b.GossipPort != 0 {
		out = append(out, fmt.Sprintf("tcp sport %d", b.GossipPort))
	}
	return out
}

// masqueradeLocation masquerades packets from the mesh to the networks behind this node,
// which need no route back then, and to internal IPs on its LAN. A part of these networks may be
// routed to a neighbor.
func (b builder) masqueradeLocation(f family) []Rule {
	var out []Rule
	for _, from := range []string{"guarded", "clientnetworks"} {
		if !b.has(from, f) {
			continue
		}
		match := fmt.Sprintf("%[1]s %[2]s saddr @%[4]s%[3]s %[2]s daddr @location%[3]s",
			b.leavesMesh(), f.keyword, f.suffix, from)
		if !b.has("plain", f) {
			out = append(out, b.masqueradeRules(match)...)
			continue
		}
		out = append(out, b.masqueradeRules(fmt.Sprintf("%[1]s rt %[2]s nexthop != @plain%[3]s", match, f.keyword, f.suffix))...)
		out = append(out, b.masqueradeRules(fmt.Sprintf("%[1]s %[2]s daddr @plain%[3]s", match, f.keyword, f.suffix))...)
	}
	return out
}

// clampMSS limits the segment size of forwarded TCP connections to what fits through our
// devices. `rt mtu` is the lower MTU of the routes in both directions (nft_rt.c,
// get_tcpmss), but each end announces its own segment size. Match SYN first: it is rare
// and cheap to test, unlike interface names.
func (b builder) clampMSS() []Rule {
	const clamp = "tcp flags & (syn | rst) == syn %s %s tcp option maxseg size set rt mtu"
	return []Rule{rule(clamp, "iifname", linkSet(b.devices)), rule(clamp, "oifname", linkSet(b.devices))}
}

// linkSet writes link names in the form that nft expects on the right side of a match.
func linkSet(links []string) string {
	if len(links) == 1 {
		return fmt.Sprintf("%q", links[0])
	}
	return fmt.Sprintf("{ %s }", strings.Join(quote(links), ", "))
}

func quote(links []string) []string {
	var out []string
	for _, l := range links {
		out = append(out, fmt.Sprintf("%q", l))
	}
	return out
}

// leavesMesh matches packets that leave by a link that is neither ours nor the pods'.
func (b builder) leavesMesh() string { return oifnameNotIn(b.insideLinks()...) }

// insideLinks returns the links by which packets don't leave the mesh.
func (b builder) insideLinks() []string { return append([]string{"lo"}, b.podAndClientLinks()...) }

// oifnameNotIn matches packets that leave by none of the links. Empty names are ignored.
func oifnameNotIn(links ...string) string {
	links = slices.DeleteFunc(links, func(l string) bool { return l == "" })
	return "oifname != { " + strings.Join(quote(links), ", ") + " }"
}

// merged returns the prefixes of the family, without those that are contained in another
// one: elements of an nft set must not overlap.
func (f family) merged(prefixes []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range normalize(prefixes) { // a range is sorted before the prefixes that it contains
		if p.Addr().Is4() != f.is4 || len(out) > 0 && out[len(out)-1].Overlaps(p) {
			continue
		}
		out = append(out, p)
	}
	return out
}

// first returns the first prefix of the family, or the zero Prefix.
func (f family) first(prefixes []netip.Prefix) netip.Prefix {
	for _, p := range prefixes {
		if p.Addr().Is4() == f.is4 {
			return p
		}
	}
	return netip.Prefix{}
}

// rule formats a rule and hashes it. Twelve hex digits are enough to distinguish the
// rules of one table, and nobody gains from a collision in their own table.
func rule(format string, args ...any) Rule {
	text := fmt.Sprintf(format, args...)
	sum := sha256.Sum256([]byte(text))
	return Rule{Text: text, Hash: hex.EncodeToString(sum[:6])}
}
