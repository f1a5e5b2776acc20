// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// lanRules filter the frames at the ports of a site's LAN. ARP and neighbor discovery
// always pass: an ARP answer does not show that other packets arrive.
const lanRules = `
table bridge lab {
	set sources { type ifname . ipv4_addr; }
	set sources6 { type ifname . ipv6_addr; }
	set nolan { type ifname; }
	set nowan { type ifname; }

	chain enter {
		type filter hook prerouting priority filter
		ether type arp accept
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, nd-router-advert } accept
		iifname @nowan ether daddr ROUTER counter drop
		iifname @nolan ether daddr != ROUTER counter drop
		jump spoofed
	}
	chain blocked {
		type filter hook forward priority filter
	}
	chain leave {
		type filter hook postrouting priority filter
		ether type arp accept
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, nd-router-advert } accept
		oifname @nowan ether saddr ROUTER counter drop
		oifname @nolan ether saddr != ROUTER counter drop
		jump astray
	}
	chain spoofed {
	}
	chain astray {
	}
}
`

// antiSpoofingRules drop packets with addresses that do not belong to the port.
const antiSpoofingRules = `
add rule bridge lab spoofed ether type ip iifname . ip saddr != @sources counter drop
add rule bridge lab spoofed ip6 saddr != fe80::/10 iifname . ip6 saddr != @sources6 counter drop
add rule bridge lab astray ether type ip oifname . ip daddr != @sources counter drop
add rule bridge lab astray ip6 daddr != { fe80::/10, ff00::/8 } oifname . ip6 daddr != @sources6 counter drop
`

// natRules are the 1:1 NAT of a site, which keeps no state, as that of the
// internet's router for single hosts.
const natRules = `
table inet lab {
	map public { type ipv4_addr : ipv4_addr; }
	map private { type ipv4_addr : ipv4_addr; }

	chain enter {
		type filter hook prerouting priority raw
		notrack
		fib daddr type local accept
		ip daddr LAN accept # another subnet of the site
		iifname "lan*" ip saddr set ip saddr map @public
	}
	chain leave {
		type filter hook postrouting priority raw
		oifname "lan*" ip daddr set ip daddr map @private
	}
	chain own {
		type filter hook output priority raw
		notrack
	}
}
`

func (s *Site) setUpRules(ctx context.Context) error {
	rules := lanRules + plainTextRules("forward", "oifname wan")
	if s.options.AntiSpoofing {
		rules += antiSpoofingRules
	}
	if s.options.Underlay == NAT {
		rules += natRules
	}
	rules = strings.NewReplacer("ROUTER", routerMAC, "LAN", list(s.options.Subnets)).Replace(rules)
	r := s.options.Router
	if s.options.Underlay == Home {
		rules += r.nat(s.ownAddress(), s.options.Subnets...)
	}
	return r.setUp(ctx, s.router, rules)
}

// list returns a set of networks for nft.
func list(networks []netip.Prefix) string {
	var b strings.Builder
	for _, p := range networks {
		b.WriteString(p.String() + ", ")
	}
	return "{ " + b.String() + "}"
}

// CutLAN drops all frames between a site's host and the others of its subnet. The
// host keeps its carrier and its route to the internet.
func (h *Host) CutLAN(ctx context.Context) error { return h.cut(ctx, "nolan") }

// CutWAN drops all packets between a site's host and the site's router. The host
// keeps its carrier and its neighbours.
func (h *Host) CutWAN(ctx context.Context) error { return h.cut(ctx, "nowan") }

func (h *Host) cut(ctx context.Context, set string) error {
	if h.link.site == nil {
		return fmt.Errorf("cut %s: it is on no site", h.Name)
	}
	return nft(ctx, h.link.router, fmt.Sprintf("add element bridge lab %s { %s }\n", set, h.link.routerEnd))
}

// restore undoes every cut of one host. It fails if there is none.
func (s *Site) restore(ctx context.Context, l *link) error {
	var rules strings.Builder
	for _, set := range []string{"nolan", "nowan"} {
		for _, verb := range []string{"add", "delete"} {
			fmt.Fprintf(&rules, "%s element bridge lab %s { %s }\n", verb, set, l.routerEnd)
		}
	}
	return errors.Join(s.router.ip(ctx, "link set "+l.routerEnd+" up"), nft(ctx, s.router, rules.String()))
}
