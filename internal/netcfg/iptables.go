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
	"github.com/meshd/meshd/internal/netcfg/filter"
)

// Docker, ufw and many administrators set the policy of the chains FORWARD and INPUT to
// DROP. A packet must be accepted by every base chain of a hook, so an accept rule in our
// own table can't undo a drop in another one. Our rules have to go into the chain that
// drops. We add them only to tables of iptables, whose owners expect rules of other
// programs there, and only where a packet would be dropped.

// Accept is a rule that accepts packets of the mesh in another program's chain, if that
// chain would drop them otherwise.
type Accept struct {
	What        string // describes the packets to people: "from the mesh to this host"
	Hook        string // input | forward
	Family      string // ip | ip6
	In, Out     string // links; "" for any
	Source      netip.Prefix
	Protocol    string // udp | tcp, with Port; "" for any
	Port        int
	RepliesOnly bool // only packets of connections that were accepted before, or redirected

	Packets []filter.Packet // samples: the rule is needed if one of them is dropped
}

// acceptMark is the prefix of the comment by which we recognize our rules in other
// programs' tables. A hash of the rule follows it, for the same reason as in Rule.
const acceptMark = "meshd:"

// comment returns the comment of the rule.
func (a Accept) comment() string {
	sum := sha256.Sum256([]byte(a.Hook + " " + a.Match()))
	return acceptMark + hex.EncodeToString(sum[:6])
}

// Match returns the conditions of the rule in the syntax of iptables.
func (a Accept) Match() string {
	var words []string
	add := func(present bool, format string, args ...any) {
		if present {
			words = append(words, fmt.Sprintf(format, args...))
		}
	}
	add(a.In != "", "-i %s", a.In)
	add(a.Out != "", "-o %s", a.Out)
	add(a.Source.IsValid(), "-s %s", a.Source)
	add(a.Protocol != "", "-p %s --dport %d", a.Protocol, a.Port)
	add(a.RepliesOnly && a.Hook == "input", "-m conntrack --ctstate RELATED,ESTABLISHED")
	// DNAT matches connections that a hostPort or a Service redirected to a pod.
	add(a.RepliesOnly && a.Hook == "forward", "-m conntrack --ctstate RELATED,ESTABLISHED,DNAT")
	return strings.Join(words, " ")
}

// nft returns the conditions of the rule in the syntax of nft: one rule, or two.
func (a Accept) nft() []string {
	var words []string
	add := func(present bool, format string, args ...any) {
		if present {
			words = append(words, fmt.Sprintf(format, args...))
		}
	}
	add(a.In != "", "iifname %s", a.In)
	add(a.Out != "", "oifname %s", a.Out)
	add(a.Source.IsValid(), "%s saddr %s", a.Family, a.Source)
	add(a.Protocol != "", "%s dport %d", a.Protocol, a.Port)
	match := strings.Join(words, " ")
	switch {
	case !a.RepliesOnly:
		return []string{match}
	case match == "":
		return []string{"ct state established,related"}
	}
	return []string{match + " ct state established,related", match + " ct status dnat"}
}

// port is a port on which this host must be reachable from outside of the mesh.
type port struct {
	protocol string
	number   int
	service  service
}

// service is what listens on a port.
type service string

const (
	wireGuard service = "wireguard"
	gossip    service = "gossip"
	vxlan     service = "vxlan"
)

func (b builder) ports() []port {
	ports := []port{{"udp", b.ListenPort, wireGuard}}
	if b.GossipPort != 0 {
		ports = append(ports, port{"udp", b.GossipPort, gossip}, port{"tcp", b.GossipPort, gossip})
	}
	if b.vxlan != nil {
		ports = append(ports, port{"udp", b.vxlan.Port, vxlan})
	}
	return ports
}

// accepts returns all rules that some firewall may make necessary. There are none for
// IPv6 if neither the mesh nor an uplink uses it.
func (b builder) accepts() []Accept {
	var out []Accept
	for _, f := range families() {
		p := b.samples(f)
		if f.is4 || p.uplink != "" || len(p.mesh) > 0 {
			out = append(out, b.acceptFromOutside(p)...)
		}
		if len(p.mesh) > 0 {
			out = append(out, b.acceptMesh(p)...)
		}
		if len(p.mesh) > 0 && b.Bridge != "" {
			out = append(out, b.acceptPods(p)...)
		}
	}
	return out
}

// sampleAddresses are the addresses and links of sample packets. The sample address of a
// pod is the last address of its range, which no pod ever has: a NetworkPolicy for a real
// pod must not affect the result.
type sampleAddresses struct {
	family  string
	uplink  string     // link of the default route; "" for none
	outside netip.Addr // a host on the internet
	here    netip.Addr // this host, on its uplink
	overlay netip.Addr // this host, in the mesh
	mesh    []netip.Prefix
	pod     netip.Addr // a pod of this host
	senders []sender
	inside  []insideSource
}

func (b builder) samples(f family) sampleAddresses {
	p := sampleAddresses{family: f.keyword, mesh: b.sets["guarded"+f.suffix], outside: f.outside}
	p.here = p.outside
	for _, u := range b.Uplinks {
		if u.Source.Addr().Is4() == f.is4 {
			p.uplink, p.here = u.Link, u.Source.Addr()
		}
	}
	p.overlay, p.pod = p.here, p.here
	if len(p.mesh) > 0 {
		p.overlay, p.pod = filter.Last(p.mesh[0]), filter.Last(p.mesh[len(p.mesh)-1])
	}
	if own := f.first(hostPrefixes(b.t.Addresses)); own.IsValid() {
		p.overlay = own.Addr()
	}
	if pods := f.merged(b.t.PodCIDRs); len(pods) > 0 {
		p.pod = filter.Last(pods[0])
	}
	p.senders, p.inside = b.senders(f), b.insideSources(f, p.mesh)
	return p
}

// Ports of sample packets: the port of a service, and one from which connections are
// opened.
const (
	samplePort       = 10250
	sampleClientPort = 40000
)

// acceptFromOutside accepts packets that arrive at this host on the underlay.
func (b builder) acceptFromOutside(p sampleAddresses) []Accept {
	var out []Accept
	for _, port := range b.ports() {
		a := Accept{
			What: fmt.Sprintf("to %s port %d", strings.ToUpper(port.protocol), port.number),
			Hook: "input", Family: p.family, Protocol: port.protocol, Port: port.number,
		}
		if a.Packets = b.packetsTo(port, p); len(a.Packets) > 0 {
			out = append(out, a)
		}
	}
	// Gossip opens connections, and names of seeds have to be resolved.
	replies := Accept{What: "of replies to this host", Hook: "input", Family: p.family, RepliesOnly: true}
	for _, s := range p.senders {
		for _, protocol := range []string{"tcp", "udp"} {
			reply := s.packet(protocol, sampleClientPort, b.GossipPort)
			reply.Established = true
			replies.Packets = append(replies.Packets, reply)
		}
	}
	return append(out, replies)
}

// packetsTo returns sample packets to a port of this host, from each sender that uses it.
func (b builder) packetsTo(p port, addrs sampleAddresses) []filter.Packet {
	var out []filter.Packet
	for _, s := range addrs.senders {
		from := sampleClientPort
		switch {
		case p.service == vxlan && !s.vxlan, p.service == wireGuard && s.wireGuard == 0:
			continue
		case p.service == wireGuard:
			from = s.wireGuard
		case p.service == gossip && p.protocol == "udp":
			from = b.GossipPort
		}
		out = append(out, s.packet(p.protocol, p.number, from))
	}
	return out
}

// acceptMesh accepts packets from other nodes and to them.
func (b builder) acceptMesh(p sampleAddresses) []Accept {
	var out []Accept
	for _, link := range b.devices {
		out = append(out, p.acceptFromMesh(link)...)
		from := Accept{What: "from the mesh", Hook: "forward", Family: p.family, In: link}
		to := Accept{What: "to the mesh", Hook: "forward", Family: p.family, Out: link}
		for _, source := range p.mesh {
			from.Packets = append(from.Packets, tcp(link, b.Interface, filter.Last(source), filter.Last(p.mesh[0])), tcp(link, p.uplink, filter.Last(source), p.outside))
			to.Packets = append(to.Packets, tcp(p.uplink, link, filter.Last(source), filter.Last(p.mesh[0])))
		}
		if b.Bridge != "" {
			from.Packets = append(from.Packets, tcp(link, b.Bridge, filter.Last(p.mesh[0]), p.pod))
			for _, s := range p.on(link) {
				from.Packets = append(from.Packets, tcp(link, b.Bridge, s.addr, p.pod))
				to.Packets = append(to.Packets, tcp(b.Bridge, link, p.pod, s.addr))
			}
		}
		out = append(out, from, to)
	}
	direct := func(n mesh.Neighbor) bool { return !n.Encapsulated }
	if slices.ContainsFunc(b.t.Neighbors, direct) {
		out = append(out, p.acceptFromMesh("")...)
		for _, source := range p.mesh {
			a := Accept{
				What: "from neighbors", Hook: "forward", Family: p.family, Source: source,
				Packets: []filter.Packet{tcp(p.uplink, b.Bridge, filter.Last(source), p.pod)},
			}
			for _, s := range p.on("") {
				if source.Contains(s.addr) {
					a.Packets = append(a.Packets, tcp(s.link, b.Bridge, s.addr, p.pod))
				}
			}
			out = append(out, a)
		}
	}
	return out
}

// acceptFromMesh accepts packets to this host whose source is in the mesh, from a device of
// the mesh or, if link is "", from the LAN.
func (p sampleAddresses) acceptFromMesh(link string) []Accept {
	var out []Accept
	for _, source := range p.mesh {
		a := Accept{
			What: "from the mesh to this host", Hook: "input", Family: p.family, In: link, Source: source,
			Packets: []filter.Packet{tcp(link, "", filter.Last(source), p.overlay)},
		}
		for _, s := range p.on(link) {
			if source.Contains(s.addr) {
				a.Packets = append(a.Packets, tcp(s.link, "", s.addr, p.overlay))
			}
		}
		out = append(out, a)
	}
	return out
}

// acceptPods accepts packets from pods, and replies to pods and this host.
func (s Settings) acceptPods(p sampleAddresses) []Accept {
	reply := tcp(p.uplink, s.Bridge, p.outside, p.pod)
	reply.Port, reply.Established = sampleClientPort, true
	return []Accept{
		{
			What: "from pods to this host", Hook: "input", Family: p.family, In: s.Bridge,
			Packets: []filter.Packet{tcp(s.Bridge, "", p.pod, p.overlay)},
		},
		{
			What: "from pods", Hook: "forward", Family: p.family, In: s.Bridge,
			Packets: []filter.Packet{tcp(s.Bridge, s.Interface, p.pod, filter.Last(p.mesh[0])), tcp(s.Bridge, p.uplink, p.pod, p.outside)},
		},
		{
			What: "of replies to pods", Hook: "forward", Family: p.family, Out: s.Bridge, RepliesOnly: true,
			Packets: []filter.Packet{reply},
		},
	}
}

// tcp returns a sample packet that opens a TCP connection.
func tcp(in, out string, from, to netip.Addr) filter.Packet {
	return filter.Packet{In: in, Out: out, Protocol: "tcp", Port: samplePort, Source: from, Destination: to}
}
