// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/meshd/meshd/internal/mesh"
)

// NoPrivateAddress is what is wrong with a host that has a location but no address in that
// location's network, and NoPrivateAddressAdvice what to do about it.
const (
	NoPrivateAddress       = "this host has no private address on a network card"
	NoPrivateAddressAdvice = "set node.internal-ip to its address in that location's network, for example 192.168.10.1/24, or remove node.location"
)

// Facts are what the daemon needs to know about its host, besides the State.
type Facts struct {
	// Addresses are the host's permanent unicast addresses, sorted. They exclude
	// addresses of the mesh and of containers, and link-local addresses.
	Addresses []netip.Addr
	// Uplinks are the links to the internet, at most one per family, IPv4 first.
	Uplinks []Uplink
	// Cards are the links on which IPv4 packets of hosts outside of the mesh arrive: network
	// cards with an address, and all links of default routes. Sorted.
	Cards []string
	// Private are the host's private addresses outside of the mesh: first those that can be
	// its internal IP, the best first. See InternalIPs.
	Private []PrivateAddress
	// Attached are all permanent addresses that meshd does not own, with their links.
	// Sorted.
	Attached []LAN
	// MTU is the lowest MTU of the links by which packets to other nodes leave, in bytes,
	// and MTULink is that link. Before any node is known, these are the uplinks; 0 without
	// an uplink.
	MTU     int
	MTULink string
	// Nearby is what the host must be able to reach without the mesh.
	Nearby mesh.Nearby
}

// Uplink is the link of the default route of a family.
type Uplink struct {
	Link   string
	Source netip.Prefix // the source of outgoing connections, with the prefix length of its network
	MTU    int          // of the link, bytes
	// Gateway is the next hop, of either family; invalid if there is none.
	Gateway netip.Addr
}

// PrivateAddress is a private address of this host.
type PrivateAddress struct {
	Link    string
	Address netip.Prefix // with the prefix length of its network
	Unfit   string       // what the link is, if its addresses can't be the internal IP; "" if they can
	Default bool         // a default route of the address's family leaves by its link
}

// InternalIP is one of this host's private addresses, and why it is its internal IP or why
// it is not.
type InternalIP struct {
	Link    string       `json:"link"` // "" if no link has the address
	Address netip.Prefix `json:"address"`
	Reason  string       `json:"reason"`
}

// String returns all of it, as a line for a person.
func (i InternalIP) String() string {
	if i.Link == "" {
		return fmt.Sprintf("%v, which no link of this host has: %s", i.Address, i.Reason)
	}
	return fmt.Sprintf("%v on %s: %s", i.Address, i.Link, i.Reason)
}

// InternalIPs chooses the host's internal IPs, one of each family: the configured one alone
// if it is valid, none if it is mesh.NoInternalIP, else those of the last time as long as they are there, else the best. It
// also returns the private addresses that were not chosen.
func (f Facts) InternalIPs(configured netip.Prefix, last []netip.Prefix) (chosen, others []InternalIP) {
	taken := make(map[netip.Addr]bool)
	take := func(a PrivateAddress, reason string) {
		taken[a.Address.Addr()] = true
		chosen = append(chosen, InternalIP{a.Link, a.Address, reason})
	}
	unused := "node.internal-ip can name it"
	switch {
	case configured == mesh.NoInternalIP():
		unused = "node.internal-ip is none"
	case configured.IsValid():
		a := PrivateAddress{Address: configured}
		if lans := f.LANs([]netip.Prefix{configured}); len(lans) > 0 {
			a.Link = lans[0].Link
		}
		take(a, "node.internal-ip names it")
	default:
		for _, is4 := range []bool{true, false} {
			if a, reason := f.bestPrivate(is4, last); reason != "" {
				take(a, reason)
			}
		}
	}
	for _, p := range f.Private {
		switch {
		case taken[p.Address.Addr()]:
		case p.Unfit != "":
			others = append(others, InternalIP{p.Link, p.Address, "its link is " + p.Unfit})
		default:
			others = append(others, InternalIP{p.Link, p.Address, unused})
		}
	}
	return chosen, others
}

// bestPrivate returns the internal IP of a family, and why; "" for none.
func (f Facts) bestPrivate(is4 bool, last []netip.Prefix) (best PrivateAddress, reason string) {
	for _, p := range f.Private {
		kept := slices.ContainsFunc(last, func(l netip.Prefix) bool { return l.Addr() == p.Address.Addr() })
		switch {
		case p.Unfit != "" || p.Address.Addr().Is4() != is4:
		case reason != "" && kept:
			return p, "it was this node's internal IP before"
		case reason != "":
		case p.Default:
			best, reason = p, "the default route leaves by its link"
		default:
			best, reason = p, "it is the first private address of a network card"
		}
		if kept && reason != "" {
			return best, reason
		}
	}
	return best, reason
}

// Spare returns a second public address of each family beside the one from which packets leave to the
// internet, on the same link and in the same network, where the host has one.
func (f Facts) Spare() []netip.Addr {
	var out []netip.Addr
	for _, u := range f.Uplinks {
		i := slices.IndexFunc(f.Attached, func(l LAN) bool {
			a := l.Address.Addr()
			return l.Link == u.Link && a != u.Source.Addr() && u.Source.Masked().Contains(a) && mesh.IsPublic(a)
		})
		if i >= 0 {
			out = append(out, f.Attached[i].Address.Addr())
		}
	}
	return out
}

// LeadsOut reports whether a default route leaves by the link of an address.
func (f Facts) LeadsOut(ip netip.Prefix) bool {
	return slices.ContainsFunc(f.Private, func(p PrivateAddress) bool { return p.Default && p.Address.Addr() == ip.Addr() })
}

// LANs returns the links that have the internal IPs. An internal IP that no link has is
// left out.
func (f Facts) LANs(internalIPs []netip.Prefix) []LAN {
	var out []LAN
	for _, ip := range internalIPs {
		i := slices.IndexFunc(f.Attached, func(l LAN) bool { return l.Address.Addr() == ip.Addr().Unmap() })
		if i >= 0 {
			out = append(out, f.Attached[i])
		}
	}
	return out
}
