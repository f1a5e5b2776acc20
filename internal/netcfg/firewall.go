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

// family is what differs in our rules between IPv4 and IPv6.
type family struct {
	keyword string // in rules: ip | ip6
	suffix  string // of our sets' names: 4 | 6
	setType string
	is4     bool
	outside netip.Addr // somebody on the internet, for examples of packets (RFC 5737, RFC 3849)
}

func families() [2]family {
	return [2]family{
		{keyword: "ip", suffix: "4", setType: "ipv4_addr", is4: true, outside: netip.AddrFrom4([4]byte{192, 0, 2, 1})},
		{keyword: "ip6", suffix: "6", setType: "ipv6_addr", outside: netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 15: 1})},
	}
}

// sets returns the sets of our table:
//
//	inside    what belongs to the mesh, for which nothing is masqueraded
//	guarded   what only the mesh may use as a source
//	location  the networks behind this node
//	members   the neighbors from which VXLAN is accepted
//	plain     the neighbors to which packets go as they are
//	clientranges  where the clients of all nodes have their addresses
//	guests    where pods and clients have their addresses
//	hosts     where nodes have theirs, also outside of the mesh
//
// each for one family. A set that would be empty isn't made, nor are the rules
// that name it.
func sets(t mesh.Topology, members []netip.Prefix) map[string][]netip.Prefix {
	sets := make(map[string][]netip.Prefix)
	for _, f := range families() {
		sets["inside"+f.suffix] = f.merged(inside(t))
		sets["guarded"+f.suffix] = f.merged(t.Guarded)
		sets["location"+f.suffix] = f.merged(t.Serves)
		sets["members"+f.suffix] = f.merged(members)
		sets["plain"+f.suffix] = f.merged(plainly(t))
		sets["clientranges"+f.suffix] = f.merged(t.ClientRanges)
		sets["guests"+f.suffix] = f.merged(t.Guests)
		sets["hosts"+f.suffix] = f.merged(t.Hosts)
	}
	return sets
}

// has reports whether our table has a set.
func (b builder) has(set string, f family) bool { return len(b.sets[set+f.suffix]) > 0 }

// firewall builds our table.
func (b builder) firewall() Firewall {
	var fw Firewall
	for _, name := range []string{"clientranges", "guarded", "guests", "hosts", "inside", "location", "members", "plain"} {
		for _, f := range families() {
			if elements := b.sets[name+f.suffix]; len(elements) > 0 {
				fw.Sets = append(fw.Sets, Set{Name: name + f.suffix, Type: f.setType, Elements: elements})
			}
		}
	}
	input := b.closedToGuests()
	var exit, guard, nat []Rule
	for _, f := range families() {
		if b.has("guarded", f) {
			exit = append(exit, b.closed(f)...)
			guard = append(guard, f.guard())
		}
		if b.has("members", f) {
			guard = append(guard, f.guardMembers())
			input = append(input, f.membersOnly())
			exit = append(exit, b.vxlanOnLAN(f)...)
		}
		if b.has("inside", f) {
			nat = append(nat, b.snat(f)...)
			nat = append(nat, b.snatClients(f)...)
			nat = append(nat, b.masquerade(f)...)
		}
		if b.has("location", f) && b.has("guarded", f) {
			nat = append(nat, b.masqueradeLocation(f)...)
		}
	}
	for _, f := range families() {
		guard = append(guard, b.forged(f)...)
	}
	fw.Chains = []Chain{
		{Name: chainExit, Type: "filter", Hook: "postrouting", Priority: priorityExit, Rules: exit},
		{Name: chainForward, Type: "filter", Hook: "forward", Priority: priorityMangle, Rules: append(b.border(), b.clampMSS()...)},
		{Name: chainGuard, Type: "filter", Hook: "prerouting", Priority: priorityGuard, Rules: guard},
		{Name: chainInput, Type: "filter", Hook: "input", Priority: priorityFilter, Rules: input},
	}
	fw.Chains = append(fw.Chains, b.keepOwnPorts()...)
	fw.Chains = append(fw.Chains, Chain{Name: chainPostrouting, Type: "nat", Hook: "postrouting", Priority: prioritySNAT, Rules: nat})
	more, access := b.access()
	fw.Sets, fw.Chains = append(fw.Sets, more...), append(access, fw.Chains...)
	slices.SortFunc(fw.Sets, func(a, b Set) int { return strings.Compare(a.Name, b.Name) })
	return fw
}

// inside is what belongs to the mesh. What goes to a neighbor does, and should
// mesh.Derive leave some of it out, it would be masqueraded half way.
func inside(t mesh.Topology) []netip.Prefix {
	out := slices.Concat(t.Guarded, t.Inside)
	for _, n := range t.Neighbors {
		out = append(out, n.Prefixes...)
	}
	return out
}

// guard drops packets with a source of the mesh that come in by another link
// than the one by which we would answer. The lookup finds nothing in two cases:
// the route to the source points elsewhere, or the source is an address of our
// own. What comes in by the loopback device always passes (nft_fib_ipv4.c,
// nft_fib_is_loopback), and a bridged frame that br_netfilter shows to us comes
// in by its bridge, where the route to the pod points.
func (f family) guard() Rule {
	return rule("%[1]s saddr @guarded%[2]s fib saddr . iif oif missing counter drop", f.keyword, f.suffix)
}

// closed keeps what has a source of the mesh from leaving in plain text: by a link
// that is not ours, when the device, or the route to a node's internal IP, is gone.
// Neighbors without encapsulation are the only ones that get such packets.
//
// What goes to the mesh never leaves so, whoever opened the connection. Of what goes
// elsewhere, replies pass: a network that has a route to the pods through this host
// has asked for them.
func (b builder) closed(f family) []Rule {
	// WireGuard's own packets, of which there are most, have no source of the mesh.
	leaves := fmt.Sprintf("%s saddr @guarded%s %s", f.keyword, f.suffix, notBy(append([]string{"lo", b.Bridge}, b.devices...)...))
	if own := f.first(normalize(b.t.PodCIDRs)); b.Bridge == "" && own.IsValid() {
		// The links to the pods are known only to whoever does the CNI.
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

// vxlanOnLAN keeps VXLAN's outer packets on the LAN: when its link is down, a packet to
// a neighbor there would take the default route, whose router is not a neighbor.
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

// plainly are the addresses of neighbors to which packets of the mesh go as they are.
func plainly(t mesh.Topology) []netip.Prefix {
	var out []netip.Addr
	for _, n := range t.Neighbors {
		if !n.Encapsulated {
			out = append(out, n.NextHops...)
		}
	}
	return hostPrefixes(out)
}

// guardMembers holds the outer packets of VXLAN to the same: an internal IP
// counts on the link by which we would answer.
func (f family) guardMembers() Rule {
	return rule("%[1]s saddr @members%[2]s udp dport %[3]d fib saddr . iif oif missing counter drop", f.keyword, f.suffix, VXLANPort)
}

// membersOnly keeps everybody else out of our VXLAN: who may send to its port
// is inside the mesh. The kernel listens there in one family only.
func (f family) membersOnly() Rule {
	return rule("%[1]s saddr != @members%[2]s udp dport %[3]d counter drop", f.keyword, f.suffix, VXLANPort)
}

// snat gives the overlay address to what this host sends into the mesh under an
// address that the far side doesn't take from us. That is what kube-proxy has
// marked for its own MASQUERADE, which would choose the address of whatever link
// the packet leaves by, and what local programs send from another address: they
// got it from the route to a Service's address, before kube-proxy replaced that
// by a pod's. kube-proxy's mark is cleared, as it does itself, lest a packet be
// masqueraded again after an encapsulation.
func (b builder) snat(f family) []Rule {
	own := f.first(hostPrefixes(b.t.Addresses))
	if !own.IsValid() {
		return nil
	}
	away := notBy("lo", b.Bridge)
	return []Rule{
		rule("%[1]s %[2]s daddr @inside%[3]s meta mark & %#[4]x == %#[4]x meta mark set meta mark & %#[5]x snat %[2]s to %[6]s",
			away, f.keyword, f.suffix, masqueradeMark, ^uint32(masqueradeMark), own.Addr()),
		rule("%[1]s %[2]s daddr @inside%[3]s %[2]s saddr != @inside%[3]s fib saddr type local snat %[2]s to %[4]s",
			away, f.keyword, f.suffix, own.Addr()),
		rule("oifname %[1]s %[2]s saddr != @inside%[3]s fib saddr type local snat %[2]s to %[4]s",
			oneOf(b.devices), f.keyword, f.suffix, own.Addr()),
	}
}

// masquerade lets this node's pods out of the mesh.
func (b builder) masquerade(f family) []Rule {
	var out []Rule
	for _, pods := range f.merged(b.t.PodCIDRs) {
		out = append(out, b.masqueraded(fmt.Sprintf("%[1]s %[2]s saddr %[4]s %[2]s daddr != @inside%[3]s",
			notBy("lo", b.Bridge), f.keyword, f.suffix, pods))...)
	}
	return out
}

// masqueraded gives what matches the address of the link that it leaves by. It keeps its
// source port where it can, but never one of ours: what comes back to that port would
// then go to a pod, and with it what another node sends to this one.
func (b builder) masqueraded(match string) []Rule {
	// A port in the range would be kept, so that none of ours may be in it.
	const size = 1 << 12
	last := 1<<16 - 1
	ours := func(port int) bool { return port > last-size && port <= last }
	for ours(b.ListenPort) || ours(b.GossipPort) {
		last -= size
	}
	var out []Rule
	for _, spoken := range b.spoken() {
		out = append(out, rule("%s %s masquerade to :%d-%d", match, spoken, last-size+1, last))
	}
	return append(out, rule("%s masquerade", match))
}

// spoken matches packets from the ports on which this node is spoken to.
func (b builder) spoken() []string {
	out := []string{"udp sport " + portSet(b.ListenPort, b.GossipPort, VXLANPort)}
	if b.GossipPort != 0 {
		out = append(out, fmt.Sprintf("tcp sport %d", b.GossipPort))
	}
	return out
}

// masqueradeLocation lets the mesh reach the networks behind this node.
func (b builder) masqueradeLocation(f family) []Rule {
	return b.masqueraded(fmt.Sprintf("%[1]s %[2]s saddr @guarded%[3]s %[2]s daddr @location%[3]s",
		notBy(append([]string{"lo", b.Bridge}, b.devices...)...), f.keyword, f.suffix))
}

// clampMSS bounds the segments of forwarded TCP connections to what fits
// through the devices. `rt mtu` is the lower of both directions' routes
// (nft_rt.c, get_tcpmss), but each end announces for itself. Few packets begin a
// connection, so that is what is asked first; names of links take longer to compare.
func (b builder) clampMSS() []Rule {
	const clamp = "tcp flags & (syn | rst) == syn %s %s tcp option maxseg size set rt mtu"
	return []Rule{rule(clamp, "iifname", oneOf(b.devices)), rule(clamp, "oifname", oneOf(b.devices))}
}

// oneOf writes names of links as nft takes them on the right of a match.
func oneOf(links []string) string {
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

// notBy matches what leaves by none of the links; empty names are none.
func notBy(links ...string) string {
	links = slices.DeleteFunc(links, func(l string) bool { return l == "" })
	return "oifname != { " + strings.Join(quote(links), ", ") + " }"
}

// merged returns the prefixes of the family without those that lie in another
// one: the elements of an nft set must not overlap.
func (f family) merged(prefixes []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range normalize(prefixes) { // a range comes before what lies in it
		if p.Addr().Is4() != f.is4 || len(out) > 0 && out[len(out)-1].Overlaps(p) {
			continue
		}
		out = append(out, p)
	}
	return out
}

// first returns the first prefix of the family, the zero Prefix if there is
// none.
func (f family) first(prefixes []netip.Prefix) netip.Prefix {
	for _, p := range prefixes {
		if p.Addr().Is4() == f.is4 {
			return p
		}
	}
	return netip.Prefix{}
}

// rule formats a rule and hashes it. Twelve digits are enough to tell a few
// rules apart, and nobody gains from a collision in their own table.
func rule(format string, args ...any) Rule {
	text := fmt.Sprintf(format, args...)
	sum := sha256.Sum256([]byte(text))
	return Rule{Text: text, Hash: hex.EncodeToString(sum[:6])}
}
