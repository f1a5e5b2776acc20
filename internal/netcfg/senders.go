// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"net/netip"
	"slices"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg/filter"
)

// A firewall may drop packets of some nodes only: those from certain networks, ports or
// links. So it is evaluated with the addresses of all nodes that are known.

// sender is an address outside of the mesh from which packets to this host come.
type sender struct {
	link      string // on which they arrive
	addr      netip.Addr
	here      netip.Addr // this host, on that link
	wireGuard int        // the port of its WireGuard; 0 for none
	vxlan     bool       // it is a neighbor that encapsulates
}

// packet returns a sample packet to a port of this host.
func (s sender) packet(protocol string, to, from int) filter.Packet {
	return filter.Packet{In: s.link, Protocol: protocol, Port: uint16(to), SourcePort: uint16(from), Source: s.addr, Destination: s.here}
}

// senders returns all senders of a family: a host on the internet, whose address nobody
// knows yet, the endpoints of peers, the internal IPs of neighbors, and the other
// addresses of nodes, from which gossip comes.
func (b builder) senders(f family) []sender {
	var out []sender
	seen := make(map[sender]bool)
	add := func(s sender, ok bool) {
		if s.addr = s.addr.Unmap(); ok && s.addr.Is4() == f.is4 && !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	unknown := sender{addr: f.outside, here: f.outside, wireGuard: sampleClientPort}
	for _, u := range b.Uplinks {
		if u.Source.Addr().Is4() == f.is4 {
			unknown.link, unknown.here = u.Link, u.Source.Addr()
		}
	}
	add(unknown, true)
	for _, p := range b.t.Peers {
		for _, e := range p.Endpoints {
			s, ok := b.senderAt(e.Addr().Unmap())
			s.wireGuard = int(e.Port())
			add(s, ok)
		}
	}
	for _, n := range b.t.Neighbors {
		for _, a := range append([]netip.Addr{n.InternalIP}, n.NextHops...) {
			lan := b.lan(a)
			add(sender{link: lan.Link, addr: a, here: lan.Address.Addr(), vxlan: n.Encapsulated && a == n.InternalIP}, lan.Link != "")
		}
	}
	for _, h := range b.t.Hosts {
		if h.IsSingleIP() {
			add(b.senderAt(h.Addr().Unmap()))
		}
	}
	return out
}

// senderAt returns the sender with an address outside of the mesh. A private address that
// is on no network of this host is that of a node elsewhere: its packets arrive under
// another one.
func (b builder) senderAt(a netip.Addr) (s sender, ok bool) {
	for _, l := range b.LANs {
		if l.Address.Contains(a) {
			return sender{link: l.Link, addr: a, here: l.Address.Addr()}, true
		}
	}
	for _, u := range b.Uplinks {
		outside := !a.IsPrivate() && !mesh.IsShared(a) && !slices.ContainsFunc(b.t.Guarded, func(p netip.Prefix) bool { return p.Contains(a) })
		if u.Source.Contains(a) || outside && u.Source.Addr().Is4() == a.Is4() {
			return sender{link: u.Link, addr: a, here: u.Source.Addr()}, true
		}
	}
	return sender{}, false
}

// insideSource is an address inside the mesh and the link by which its packets arrive. Of
// a pod CIDR it is the last address, which no pod has.
type insideSource struct {
	link string
	lan  bool // it is a link of the host, not of the mesh
	addr netip.Addr
}

// insideSources returns the addresses of nodes, pods and clients in the ranges of the mesh.
func (b builder) insideSources(f family, ranges []netip.Prefix) []insideSource {
	var out []insideSource
	add := func(link string, lan bool, prefixes []netip.Prefix) {
		for _, p := range prefixes {
			within := func(r netip.Prefix) bool { return r.Contains(p.Addr()) }
			if p = unmap(p); p.Addr().Is4() == f.is4 && link != "" && slices.ContainsFunc(ranges, within) {
				out = append(out, insideSource{link, lan, filter.Last(p)})
			}
		}
	}
	for _, p := range b.t.Peers {
		add(b.Interface, false, p.AllowedIPs)
	}
	add(b.Interface, false, addressesOf(b.t.Clients))
	for _, n := range b.t.Neighbors {
		prefixes := slices.Concat(hostPrefixes(n.Overlay), n.Prefixes)
		switch {
		case !n.Encapsulated:
			add(b.lan(n.InternalIP).Link, true, prefixes)
		case b.vxlan != nil:
			add(b.vxlan.Name, false, prefixes)
		}
	}
	return out
}

// on returns the sources whose packets arrive by a device of the mesh, or by the LAN if
// link is "".
func (p sampleAddresses) on(link string) []insideSource {
	return slices.DeleteFunc(slices.Clone(p.inside), func(s insideSource) bool {
		return s.lan != (link == "") || link != "" && s.link != link
	})
}
