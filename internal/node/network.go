// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/meshd/meshd/internal/mesh"
)

// Outside is how this node's WireGuard socket looks from beyond its private network, in one family
// of addresses.
type Outside struct {
	Seen    []netip.AddrPort // where others see it, first what most of them say
	Nodes   int              // how many see it there
	Own     bool             // all of Seen are addresses of this host: there is no NAT
	Tried   bool             // others have tried to reach it without having been spoken to
	Reached bool             // and have reached it
}

// Outside returns how this node looks from outside by IPv4, or by IPv6. It returns false if this host
// has no address of that family that leads outside.
func (in Input) Outside(four bool) (Outside, bool) {
	isOurs := func(a netip.Addr) bool { return a.Is4() == four }
	if !slices.ContainsFunc(in.Facts.Addresses, func(a netip.Addr) bool { return isOurs(a) && (four || mesh.IsPublic(a)) }) {
		return Outside{}, false
	}
	o := Outside{Own: true}
	votes := make(map[netip.AddrPort]int)
	for _, seen := range in.Paths.Seen {
		known := false
		for _, a := range seen {
			if isOurs(a.Addr()) && mesh.IsPublic(a.Addr()) {
				votes[a]++
				known = true
			}
		}
		if known {
			o.Nodes++
		}
	}
	for a := range votes {
		o.Seen = append(o.Seen, a)
		o.Own = o.Own && slices.Contains(in.Facts.Addresses, a.Addr())
	}
	slices.SortFunc(o.Seen, func(a, b netip.AddrPort) int { return cmp.Or(votes[b]-votes[a], a.Compare(b)) })
	for _, r := range in.View.Reaches {
		for _, t := range r.Tried {
			if t.Subject == in.Self.ID() && isOurs(t.Addr.Addr()) {
				o.Tried, o.Reached = true, o.Reached || t.Reached
			}
		}
	}
	return o, true
}
