// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
)

// Underlay is how a host hangs on the internet.
type Underlay string

const (
	// NAT is a virtual machine at a cloud: host N has 192.168.N.1/24, and a 1:1
	// NAT that it knows nothing of makes that 198.51.100.N for everybody else.
	// Packets to private addresses go nowhere, and packets with a source that is
	// not the host's are dropped, as clouds do. The NAT keeps no state, knows its
	// own public address from the inside (hairpin), and does not translate the
	// packets inside ICMP errors.
	NAT Underlay = "nat"
	// Routed is a server with addresses of its own on the internet, 203.0.113.N/32
	// and 2001:db8::N/128. Foreign sources are dropped here too.
	Routed Underlay = "routed"
	// Routed6 is Routed without IPv4.
	Routed6 Underlay = "routed6"
)

// OutsideAddr is the address of [Lab.Outside].
var OutsideAddr = netip.MustParseAddr("192.0.2.1")

// UnderlayMTU is the MTU of every link between a host and the router, until
// [Host.SetMTU] changes it.
const UnderlayMTU = 1500

// HostLink is the name of a host's only link.
const HostLink = "eth0"

// gateway4 is the router for hosts whose own address is their only prefix.
const gateway4 = "172.31.1.1"

// link is the wire between a host and the router.
type link struct {
	router, host *Host
	underlay     Underlay
	number       int
	routerEnd    string
}

func newLink(router, host *Host, u Underlay, number int) *link {
	return &link{router: router, host: host, underlay: u, number: number, routerEnd: "host" + strconv.Itoa(number)}
}

// Address returns the address on the host's link, of IPv4 if it has one.
func (h *Host) Address() netip.Addr {
	if h.link.underlay == NAT {
		return netip.AddrFrom4([4]byte{192, 168, byte(h.link.number), 1})
	}
	return h.Public()
}

// Public returns the address under which other hosts reach this one, of IPv4 if
// it has one.
func (h *Host) Public() netip.Addr {
	switch h.link.underlay {
	case NAT:
		return netip.AddrFrom4([4]byte{198, 51, 100, byte(h.link.number)})
	case Routed:
		return netip.AddrFrom4([4]byte{203, 0, 113, byte(h.link.number)})
	default:
		return h.Public6()
	}
}

// Public6 returns the IPv6 address of a Routed or Routed6 host.
func (h *Host) Public6() netip.Addr {
	a := netip.MustParseAddr("2001:db8::").As16()
	a[15] = byte(h.link.number)
	return netip.AddrFrom16(a)
}

// Cut takes the router's end of the host's link down. The host sees a link
// without carrier and keeps its addresses and routes.
func (h *Host) Cut(ctx context.Context) error {
	return h.link.router.ip(ctx, "link set "+h.link.routerEnd+" down")
}

// Restore undoes Cut.
func (h *Host) Restore(ctx context.Context) error { return h.link.wireRouter(ctx) }

// SetMTU sets the MTU of both ends of the host's link.
func (h *Host) SetMTU(ctx context.Context, mtu int) error {
	return errors.Join(
		h.link.router.ip(ctx, fmt.Sprintf("link set %s mtu %d", h.link.routerEnd, mtu)),
		h.ip(ctx, fmt.Sprintf("link set %s mtu %d", HostLink, mtu)))
}

// Impair has what the internet sends to the host suffer from netem, in the words
// of tc-netem(8): "loss 5%". The kernel must have netem.
func (h *Host) Impair(ctx context.Context, netem string) error {
	args := append([]string{"qdisc", "replace", "dev", h.link.routerEnd, "root", "netem", "limit", "10000"}, strings.Fields(netem)...)
	_, err := h.link.router.Run(ctx, "tc", args...)
	return err
}

// create makes the link and configures both ends. The kernel makes it inside
// the two namespaces, so that the machine's own never has it.
func (l *link) create(ctx context.Context) error {
	args := fmt.Sprintf("link add %s mtu %d netns %d type veth peer name %s mtu %[2]d netns %[5]d",
		l.routerEnd, UnderlayMTU, l.router.PID(), HostLink, l.host.PID())
	if out, err := exec.CommandContext(ctx, "ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		return fmt.Errorf("add link: %w: %s", err, out)
	}
	if err := l.wireRouter(ctx); err != nil {
		return err
	}
	return l.wireHost(ctx)
}

func (l *link) wireHost(ctx context.Context) error {
	commands := []string{"link set lo up", "link set " + HostLink + " up"}
	switch l.underlay {
	case NAT:
		commands = append(commands,
			fmt.Sprintf("addr add %s/24 dev %s", l.host.Address(), HostLink),
			fmt.Sprintf("route add default via 192.168.%d.254", l.number))
	case Routed:
		commands = append(commands,
			fmt.Sprintf("addr add %s/32 dev %s", l.host.Public(), HostLink),
			fmt.Sprintf("route add %s dev %s", gateway4, HostLink),
			fmt.Sprintf("route add default via %s src %s", gateway4, l.host.Public()))
	}
	if l.underlay != NAT {
		commands = append(commands,
			fmt.Sprintf("addr add %s/128 dev %s nodad", l.host.Public6(), HostLink),
			fmt.Sprintf("route add default via fe80::1 dev %s", HostLink))
	}
	return l.host.ip(ctx, commands...)
}

// wireRouter configures the router's end; it may be run again.
func (l *link) wireRouter(ctx context.Context) error {
	dev, public, address := l.routerEnd, l.host.Public(), l.host.Address()
	commands := []string{"link set " + dev + " up"}
	sources := ""
	if address.Is4() {
		sources = fmt.Sprintf("add element inet lab sources { %s . %s }\n", dev, address)
	}
	switch l.underlay {
	case NAT:
		commands = append(commands,
			fmt.Sprintf("addr replace 192.168.%d.254/24 dev %s", l.number, dev),
			fmt.Sprintf("route replace %s via %s dev %s", public, address, dev))
		sources += fmt.Sprintf("add element inet lab public { %s : %s }\n", address, public) +
			fmt.Sprintf("add element inet lab private { %s : %s }\n", public, address)
	case Routed:
		commands = append(commands,
			fmt.Sprintf("addr replace %s/32 dev %s", gateway4, dev),
			fmt.Sprintf("route replace %s dev %s", public, dev))
	}
	if l.underlay != NAT {
		commands = append(commands,
			fmt.Sprintf("addr replace fe80::1/64 dev %s nodad", dev),
			fmt.Sprintf("route replace %s dev %s", l.host.Public6(), dev))
		sources += fmt.Sprintf("add element inet lab sources6 { %s . %s }\n", dev, l.host.Public6())
	}
	if err := l.router.ip(ctx, commands...); err != nil {
		return err
	}
	return nft(ctx, l.router, sources)
}

// routerRules is the internet. Packets get their public source as they come
// from a host and their private destination as they leave to one; between the
// two there are only public addresses. Nothing is tracked: a NAT with state can
// find a port taken when both ends speak first at the same moment.
const routerRules = `
table inet lab {
	set sources { type ifname . ipv4_addr; }
	set sources6 { type ifname . ipv6_addr; }
	set cut { type ifname . ifname; }
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
	}
	chain between {
		type filter hook forward priority filter
		iifname . oifname @cut counter drop
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
	if err := l.nft(ctx, routerRules); err != nil {
		return err
	}
	// The reverse path of a packet from a private address is nowhere.
	for _, s := range []string{
		"ipv4/ip_forward=1", "ipv6/conf/all/forwarding=1",
		"ipv4/conf/all/rp_filter=0", "ipv4/conf/default/rp_filter=0",
		"ipv4/conf/all/send_redirects=0", "ipv4/conf/default/send_redirects=0",
	} {
		key, value, _ := strings.Cut(s, "=")
		if err := l.router.sysctl("net/"+key, value); err != nil {
			return err
		}
	}
	return l.router.ip(ctx, "link set lo up", fmt.Sprintf("addr add %s/32 dev lo", OutsideAddr))
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
