// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"strings"
)

// routerRules is the internet. Packets get their public source as they come
// from a host and their private destination as they leave to one; between the
// two there are only public addresses. Nothing is tracked: a NAT with state can
// find a port taken when both ends speak first at the same moment. A packet with a TTL
// that would not be enough for a few more routers expires here, as it would on its way.
const routerRules = `
table inet lab {
	set sources { type ifname . ipv4_addr; }
	set sources6 { type ifname . ipv6_addr; }
	map public { type ipv4_addr : ipv4_addr; }
	map private { type ipv4_addr : ipv4_addr; }

	chain enter {
		type filter hook prerouting priority raw
		notrack
		iifname lo accept
		ip daddr { 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 100.64.0.0/10 } counter drop
		meta nfproto ipv4 iifname . ip saddr != @sources counter drop
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit } accept
		meta nfproto ipv6 iifname . ip6 saddr != @sources6 counter drop
		ip saddr set ip saddr map @public
		ip ttl < 9 ip ttl set 1
		ip6 hoplimit < 9 ip6 hoplimit set 1
	}
	chain blocked {
		type filter hook forward priority filter
	}
	chain leave {
		type filter hook postrouting priority raw
		ip daddr set ip daddr map @private
	}
	chain own {
		type filter hook output priority raw
		notrack
	}
}
`

func (l *Lab) setUpRouter(ctx context.Context) error {
	if err := l.nft(ctx, routerRules+plainTextRules("prerouting", "")); err != nil {
		return err
	}
	if err := l.router.route(); err != nil {
		return err
	}
	return l.router.ip(ctx, "link set lo up", fmt.Sprintf("addr add %s/32 dev lo", OutsideAddr))
}

// route makes a host a router.
func (h *Host) route() error {
	// The reverse path of a packet from a private address is nowhere.
	for _, s := range []string{
		"ipv4/ip_forward=1", "ipv6/conf/all/forwarding=1",
		"ipv4/conf/all/rp_filter=0", "ipv4/conf/default/rp_filter=0",
		"ipv4/conf/all/send_redirects=0", "ipv4/conf/default/send_redirects=0",
	} {
		key, value, _ := strings.Cut(s, "=")
		if err := h.sysctl("net/"+key, value); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) nft(ctx context.Context, rules string) error { return nft(ctx, l.router, rules) }

// nft applies rules on a host in one transaction.
func nft(ctx context.Context, h *Host, rules string) error {
	c := h.Command(ctx, "nft", "-f", "-")
	c.cmd.Stdin = strings.NewReader(rules)
	_, err := c.Output()
	return err
}

// ip runs commands of ip(8) on the host, in one process.
func (h *Host) ip(ctx context.Context, commands ...string) error {
	c := h.Command(ctx, "ip", "-batch", "-")
	c.cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	_, err := c.Output()
	return err
}
