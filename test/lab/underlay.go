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

// Underlay is how a host is connected to the internet.
type Underlay string

const (
	// NAT is a virtual machine at a cloud: host N has 192.168.N.1/24, and 1:1 NAT makes
	// that 198.51.100.N for all others. Packets to private addresses, and packets with a
	// source that is not the host's, are dropped, as in clouds. The NAT keeps no state,
	// does hairpin NAT, and does not translate the packets inside ICMP errors.
	NAT Underlay = "nat"
	// Routed is a server with addresses of its own on the internet, 203.0.113.N/32
	// and 2001:db8::N/128. Foreign sources are dropped here too.
	Routed Underlay = "routed"
	// Routed6 is Routed without IPv4.
	Routed6 Underlay = "routed6"
	// Home is for a [Site] only: all its hosts are behind one public address, and a NAT
	// that [Router] describes.
	Home Underlay = "home"
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

// link is the wire between a host and its router: the lab's, or its site's.
type link struct {
	router, host *Host
	site         *Site // nil on the lab's router
	underlay     Underlay
	number       int    // of the host in the lab
	routerEnd    string // the name of the router's end

	address, public, public6 netip.Addr // public6 is invalid if there is none
}

func newLink(router, host *Host, u Underlay, number int) *link {
	l := &link{router: router, host: host, underlay: u, number: number, routerEnd: "host" + strconv.Itoa(number)}
	switch u {
	case NAT:
		l.address = netip.AddrFrom4([4]byte{192, 168, byte(number), 1})
		l.public = publicNAT(number)
		return l
	case Routed:
		l.public = publicRouted(number)
	}
	l.public6 = nth(netip.MustParseAddr("2001:db8::"), number)
	if !l.public.IsValid() {
		l.public = l.public6
	}
	l.address = l.public
	return l
}

// publicNAT and publicRouted are the public addresses of IPv4 of host number N.
func publicNAT(number int) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, 100, byte(number)}) }

func publicRouted(number int) netip.Addr { return netip.AddrFrom4([4]byte{203, 0, 113, byte(number)}) }

// publicMapping is the public address of the router of site number N if it makes port mappings:
// miniupnpd refuses addresses that are reserved for documentation, as all others here are.
func publicMapping(number int) netip.Addr { return netip.AddrFrom4([4]byte{11, 0, 113, byte(number)}) }

// nth returns the address n after base, which ends in a zero.
func nth(base netip.Addr, n int) netip.Addr {
	b := base.AsSlice()
	b[len(b)-1] += byte(n)
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Address returns the address on the host's link, of IPv4 if it has one. On a
// site that is the one on the LAN.
func (h *Host) Address() netip.Addr { return h.link.address }

// Public returns the address at which other hosts reach this one, of IPv4 if it has one.
// Hosts of a Home site share it.
func (h *Host) Public() netip.Addr { return h.link.public }

// Public6 returns the public IPv6 address of a host that has one.
func (h *Host) Public6() netip.Addr { return h.link.public6 }

// Cut sets the router's end of the host's link down. The host's link loses its carrier
// and keeps its addresses and routes.
func (h *Host) Cut(ctx context.Context) error {
	return h.link.router.ip(ctx, "link set "+h.link.routerEnd+" down")
}

// Restore undoes Cut, CutLAN and CutWAN.
func (h *Host) Restore(ctx context.Context) error {
	if h.link.site != nil {
		return h.link.site.restore(ctx, h.link)
	}
	return h.link.wireRouter(ctx)
}

// SetMTU sets the MTU of both ends of the host's link.
func (h *Host) SetMTU(ctx context.Context, mtu int) error {
	return errors.Join(
		h.link.router.ip(ctx, fmt.Sprintf("link set %s mtu %d", h.link.routerEnd, mtu)),
		h.ip(ctx, fmt.Sprintf("link set %s mtu %d", HostLink, mtu)))
}

// Narrow sets the MTU of the router's end of the host's link alone: longer packets pass in neither
// direction, and the host does not know. Those from it are dropped silently.
func (h *Host) Narrow(ctx context.Context, mtu int) error {
	return h.link.router.ip(ctx, fmt.Sprintf("link set %s mtu %d", h.link.routerEnd, mtu))
}

// Impair applies netem to packets from the internet to the host, with options as in
// tc-netem(8): "loss 5%". The kernel must have netem.
func (h *Host) Impair(ctx context.Context, netem string) error {
	return h.link.router.impair(ctx, h.link.routerEnd, netem)
}

// Impair applies netem to packets from the internet to the site, see [Host.Impair]. Packets on its
// LAN pass as before.
func (s *Site) Impair(ctx context.Context, netem string) error {
	return s.lab.router.impair(ctx, s.end(), netem)
}

// impair applies netem to what a router sends over one of its links.
func (h *Host) impair(ctx context.Context, dev, netem string) error {
	args := append([]string{"qdisc", "replace", "dev", dev, "root", "netem", "limit", "10000"}, strings.Fields(netem)...)
	_, err := h.Run(ctx, "tc", args...)
	return err
}

// wire makes a link between two hosts, directly in their two namespaces.
func wire(ctx context.Context, a *Host, nameA string, b *Host, nameB string) error {
	args := fmt.Sprintf("link add %s mtu %d netns %d type veth peer name %s mtu %[2]d netns %[5]d",
		nameA, UnderlayMTU, a.PID(), nameB, b.PID())
	if out, err := exec.CommandContext(ctx, "ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		return fmt.Errorf("add link: %w: %s", err, out)
	}
	return nil
}

// create makes the link to the lab's router and configures both ends.
func (l *link) create(ctx context.Context) error {
	if err := wire(ctx, l.router, l.routerEnd, l.host, HostLink); err != nil {
		return err
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
