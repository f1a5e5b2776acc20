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

// Docker, ufw and many people leave the chains FORWARD and INPUT with the policy
// DROP. Every base chain of a hook has to let a packet through, so an accept in
// our own table can't undo another one's drop: rules of ours have to go into the
// chain that drops. They are put into tables of iptables only, which their owners
// expect others to write to, and only where something would be dropped.

// Accept is a rule that lets packets of the mesh through a chain of others, if
// they would not get through without it.
type Accept struct {
	What     string // the packets, for people: "from the mesh to this host"
	Hook     string // input | forward
	Family   string // ip | ip6
	In, Out  string // link; "" for any
	Source   netip.Prefix
	Protocol string // udp | tcp, with Port; "" for any
	Port     int
	Answers  bool // only what belongs to connections that were let through, or redirected

	Packets []filter.Packet // examples: the rule is needed if one of them is dropped
}

// acceptMark begins the comment by which our rules in tables of others are known.
// Behind it stands a hash of the rule, for the reason that Rule has one.
const acceptMark = "meshd:"

// Comment is the one that the rule carries.
func (a Accept) Comment() string {
	sum := sha256.Sum256([]byte(a.Hook + " " + a.Match()))
	return acceptMark + hex.EncodeToString(sum[:6])
}

// Match is what the rule asks for, in the language of iptables.
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
	add(a.Answers && a.Hook == "input", "-m conntrack --ctstate RELATED,ESTABLISHED")
	// DNAT is what a hostPort or a Service has led to a pod.
	add(a.Answers && a.Hook == "forward", "-m conntrack --ctstate RELATED,ESTABLISHED,DNAT")
	return strings.Join(words, " ")
}

// NFT is what the rule asks for, in the language of nft: one rule, or two.
func (a Accept) NFT() []string {
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
	case !a.Answers:
		return []string{match}
	case match == "":
		return []string{"ct state established,related"}
	}
	return []string{match + " ct state established,related", match + " ct status dnat"}
}

// port is one that this host is reached on from outside of the mesh.
type port struct {
	protocol string
	number   int
}

func (b builder) ports() []port {
	ports := []port{{"udp", b.ListenPort}}
	if b.GossipPort != 0 {
		ports = append(ports, port{"udp", b.GossipPort}, port{"tcp", b.GossipPort})
	}
	if b.vxlan != nil {
		ports = append(ports, port{"udp", b.vxlan.Port})
	}
	return ports
}

// accepts are all rules that some firewall may make necessary. In a family that
// neither the mesh nor the host's way out has, there is nothing to let through.
func (b builder) accepts() []Accept {
	var out []Accept
	for _, f := range families() {
		p := b.parties(f)
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

// parties are whom the examples of packets come from and go to. A pod's address
// is the last one of its range, which no pod ever has: what NetworkPolicy says of
// a certain pod must not count.
type parties struct {
	family  string
	uplink  string     // link of the default route; "" for none
	outside netip.Addr // on the internet
	here    netip.Addr // this host on its uplink
	overlay netip.Addr // this host on the mesh
	mesh    []netip.Prefix
	pod     netip.Addr // of this host
}

func (b builder) parties(f family) parties {
	p := parties{family: f.keyword, mesh: b.sets["guarded"+f.suffix], outside: f.outside}
	p.here = p.outside
	for _, u := range b.Uplinks {
		if u.Source.Addr().Is4() == f.is4 {
			p.uplink, p.here = u.Link, u.Source.Addr()
		}
	}
	p.overlay, p.pod = p.here, p.here
	if len(p.mesh) > 0 {
		p.overlay, p.pod = last(p.mesh[0]), last(p.mesh[len(p.mesh)-1])
	}
	if own := f.first(hostPrefixes(b.t.Addresses)); own.IsValid() {
		p.overlay = own.Addr()
	}
	if pods := f.merged(b.t.PodCIDRs); len(pods) > 0 {
		p.pod = last(pods[0])
	}
	return p
}

// last returns the last address of a prefix.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr
}

// Ports of examples: a service's, and one from which connections are made.
const (
	exampleService = 10250
	exampleClient  = 40000
)

// acceptFromOutside lets in what reaches this host on the underlay.
func (b builder) acceptFromOutside(p parties) []Accept {
	var out []Accept
	for _, port := range b.ports() {
		a := Accept{
			What: fmt.Sprintf("to %s port %d", strings.ToUpper(port.protocol), port.number),
			Hook: "input", Family: p.family, Protocol: port.protocol, Port: port.number,
		}
		a.Packets = []filter.Packet{{In: p.uplink, Protocol: port.protocol, Port: uint16(port.number), Source: p.outside, Destination: p.here}}
		out = append(out, a)
	}
	// Gossip makes connections, and seeds may have names.
	answers := Accept{What: "of answers to this host", Hook: "input", Family: p.family, Answers: true}
	for _, protocol := range []string{"tcp", "udp"} {
		answers.Packets = append(answers.Packets, filter.Packet{
			In: p.uplink, Protocol: protocol, Port: exampleClient, Source: p.outside, Destination: p.here, Established: true,
		})
	}
	return append(out, answers)
}

// acceptMesh lets through what comes from other nodes or goes to them.
func (b builder) acceptMesh(p parties) []Accept {
	var out []Accept
	for _, link := range b.devices {
		out = append(out, p.fromMesh(link)...)
		from := Accept{What: "from the mesh", Hook: "forward", Family: p.family, In: link}
		to := Accept{What: "to the mesh", Hook: "forward", Family: p.family, Out: link}
		for _, source := range p.mesh {
			from.Packets = append(from.Packets, tcp(link, b.Interface, last(source), last(p.mesh[0])), tcp(link, p.uplink, last(source), p.outside))
			to.Packets = append(to.Packets, tcp(p.uplink, link, last(source), last(p.mesh[0])))
		}
		if b.Bridge != "" {
			from.Packets = append(from.Packets, tcp(link, b.Bridge, last(p.mesh[0]), p.pod))
		}
		out = append(out, from, to)
	}
	direct := func(n mesh.Neighbor) bool { return !n.Encapsulated }
	if slices.ContainsFunc(b.t.Neighbors, direct) {
		out = append(out, p.fromMesh("")...)
		for _, source := range p.mesh {
			out = append(out, Accept{
				What: "from neighbors", Hook: "forward", Family: p.family, Source: source,
				Packets: []filter.Packet{tcp(p.uplink, b.Bridge, last(source), p.pod)},
			})
		}
	}
	return out
}

// fromMesh lets to this host what has a source of the mesh.
func (p parties) fromMesh(link string) []Accept {
	var out []Accept
	for _, source := range p.mesh {
		out = append(out, Accept{
			What: "from the mesh to this host", Hook: "input", Family: p.family, In: link, Source: source,
			Packets: []filter.Packet{tcp(link, "", last(source), p.overlay)},
		})
	}
	return out
}

// acceptPods lets pods out, and to them what they or this host have asked for.
func (s Settings) acceptPods(p parties) []Accept {
	answer := tcp(p.uplink, s.Bridge, p.outside, p.pod)
	answer.Port, answer.Established = exampleClient, true
	return []Accept{
		{
			What: "from pods to this host", Hook: "input", Family: p.family, In: s.Bridge,
			Packets: []filter.Packet{tcp(s.Bridge, "", p.pod, p.overlay)},
		},
		{
			What: "from pods", Hook: "forward", Family: p.family, In: s.Bridge,
			Packets: []filter.Packet{tcp(s.Bridge, s.Interface, p.pod, last(p.mesh[0])), tcp(s.Bridge, p.uplink, p.pod, p.outside)},
		},
		{
			What: "of answers to pods", Hook: "forward", Family: p.family, Out: s.Bridge, Answers: true,
			Packets: []filter.Packet{answer},
		},
	}
}

// tcp is an example of a packet that opens a connection.
func tcp(in, out string, from, to netip.Addr) filter.Packet {
	return filter.Packet{In: in, Out: out, Protocol: "tcp", Port: exampleService, Source: from, Destination: to}
}
