// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"net/netip"
	"slices"
)

// An exit is a node through which clients reach the internet. A client has a tunnel to it, as
// to every home, and the default route leads into that tunnel.

// ExitFamilies says in which families a node offers the internet to clients. Zero is that of a
// node that is not an exit.
type ExitFamilies struct{ IPv4, IPv6 bool }

// isExit reports whether clients may get the internet from a node.
func (m *member) isExit() bool { return m.isHome() && m.Exit != ExitFamilies{} }

// Exits returns the nodes that offer the internet to clients, sorted by ID.
func Exits(in Input) []ID { return idsOf(in, (*member).isExit) }

// defaultRoutes returns the two prefixes of all addresses, IPv4 first.
func defaultRoutes() [2]netip.Prefix {
	return [...]netip.Prefix{prefix4(0, 0, 0, 0, 0), prefix6(0, 0, 0)}
}

// IsDefaultRoute reports whether a prefix is that of all addresses of its family.
func IsDefaultRoute(p netip.Prefix) bool { return p.IsValid() && p.Bits() == 0 }

// mayReachInternet reports whether a list allows at least a part of the internet.
func mayReachInternet(list []Allowance) bool {
	return slices.ContainsFunc(list, func(a Allowance) bool { return a.Internet })
}

// exit returns the node through which a client reaches the internet in the family of a default
// route, nil if there is none. If no exit has that family, another one gets its packets, and
// rejects them: they must not leave by the client's own uplink instead.
func (l *layout) exit(c Client, alive map[ID]bool, family netip.Prefix) *member {
	hasFamily := func(m *member) bool {
		return family.Addr().Is4() && m.Exit.IPv4 || family.Addr().Is6() && m.Exit.IPv6
	}
	return l.chooseHome(c, alive, (*member).isExit, hasFamily, c.names)
}

// internet returns what an exit forwards for clients: all that is globally reachable, without
// what the mesh routes, or this node reaches for it. For that, the access lists have other
// entries.
func (d *deriver) internet(t Topology) []netip.Prefix {
	wanted := func(c ClientTunnel) bool { return mayReachInternet(c.Allowed) }
	if !d.self.isExit() || !slices.ContainsFunc(t.Clients, wanted) {
		return nil
	}
	own := slices.Concat(t.Inside, t.ServedNetworks, d.reserved)
	var out []netip.Prefix
	for _, p := range globalNetworks() {
		out = append(out, exclude(p, slices.DeleteFunc(slices.Clone(own), func(o netip.Prefix) bool { return !o.Overlaps(p) }))...)
	}
	return out
}

// reportExit notes that this node is to be an exit and clients have no tunnel to it, as while it is
// not its location's gateway.
func (d *deriver) reportExit() {
	if d.self.Exit != (ExitFamilies{}) && !d.self.isHome() {
		d.report(ProblemNote, d.self.Name, fmt.Sprintf("clients don't get the internet through %s, which has node.exit: they have no tunnel to it", d.self.Name),
			"have others reach it (node.endpoint); in mode location also have it be its location's gateway (node.gateway: prefer), or give it no location")
	}
}

// globalNetworks returns the networks whose addresses mean the same host everywhere, sorted.
// Of IPv6 that is what is assigned as such (RFC 4291), without the addresses that have one of
// IPv4 in them (RFC 3056, RFC 4380): a private one is reached by them where somebody translates.
func globalNetworks() []netip.Prefix {
	none := []netip.Prefix{
		prefix4(10, 0, 0, 0, 8), prefix4(172, 16, 0, 0, 12), prefix4(192, 168, 0, 0, 16), prefix4(100, 64, 0, 0, 10),
		prefix6(0x2001, 0, 32), prefix6(0x2002, 0, 16),
	}
	for _, n := range reservedNetworks() {
		none = append(none, n.Prefix)
	}
	special := specialNetworks()
	none = append(none, special[:]...)
	return append(exclude(prefix4(0, 0, 0, 0, 0), none), exclude(prefix6(0x2000, 0, 3), none)...)
}
