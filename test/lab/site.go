// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync"
)

// SiteOptions describe a site's network.
type SiteOptions struct {
	// Underlay is the site's way out: NAT is a cloud's private network with a 1:1
	// NAT for each host, as [NAT] has it; Home is many hosts behind one address;
	// with Routed each host has a public address beside its private one.
	Underlay Underlay
	// Router is how the site's router treats packets.
	Router Router
	// Subnets of the LAN, at most /29 each; by default one that no other site has. The
	// site's router routes between them.
	Subnets []netip.Prefix
	// ULA gives the hosts private addresses of IPv6, GUA public ones.
	ULA, GUA bool
	// AntiSpoofing drops packets from and to a host with addresses that are not its own,
	// as clouds do between the virtual machines of one network.
	AntiSpoofing bool
}

// Site is a place where hosts share a LAN and a router. The n-th host of a subnet
// has the n-th address there.
type Site struct {
	Name string

	lab     *Lab
	router  *Host
	carrier *Host // its router; nil if there is none
	mapper  *mapper
	number  int
	options SiteOptions

	mu    sync.Mutex
	count []int // hosts in each subnet
}

// wan is the site router's link to the internet.
const wan = "wan"

// routerMAC is a site router's address on its LAN.
const routerMAC = "02:00:00:00:00:fe"

// Site adds a site without hosts.
func (l *Lab) Site(ctx context.Context, name string, o SiteOptions) (*Site, error) {
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("make site %s: %w", name, err)
	}
	router, err := startHost(name)
	if err != nil {
		return nil, fmt.Errorf("make site %s: %w", name, err)
	}
	l.mu.Lock()
	s := &Site{Name: name, lab: l, router: router, number: len(l.sites) + 1, options: o}
	l.sites = append(l.sites, s)
	l.mu.Unlock()
	if len(o.Subnets) == 0 {
		s.options.Subnets = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 20, byte(s.number), 0}), 24)}
	}
	s.count = make([]int, len(s.options.Subnets))
	for _, step := range []func(context.Context) error{s.setUpLAN, s.setUpWAN, s.setUpRules, s.startMapper} {
		if err := step(ctx); err != nil {
			return nil, fmt.Errorf("make site %s: %w", name, err)
		}
	}
	return s, nil
}

// Host adds a host to the site's first subnet.
func (s *Site) Host(ctx context.Context, name string) (*Host, error) { return s.HostIn(ctx, 0, name) }

// HomeHost adds a host that is alone in a [Home] of its own, behind a router.
func (l *Lab) HomeHost(ctx context.Context, name string, r Router) (*Host, error) {
	s, err := l.Site(ctx, name, SiteOptions{Underlay: Home, Router: r})
	if err != nil {
		return nil, err
	}
	return s.Host(ctx, name)
}

// HostIn adds a host to one of the site's subnets.
func (s *Site) HostIn(ctx context.Context, subnet int, name string) (*Host, error) {
	h, err := startHost(name)
	if err != nil {
		return nil, fmt.Errorf("make host %s: %w", name, err)
	}
	s.assign(h, subnet)
	if err := s.connect(ctx, h.link, subnet); err != nil {
		return nil, fmt.Errorf("wire host %s: %w", name, err)
	}
	return h, nil
}

// assign gives a host the next address of a subnet.
func (s *Site) assign(h *Host, subnet int) {
	number := s.lab.add(h)
	s.mu.Lock()
	s.count[subnet]++
	place := s.count[subnet]
	s.mu.Unlock()

	h.link = &link{
		router: s.router, host: h, site: s, underlay: s.options.Underlay, number: number, routerEnd: "port" + strconv.Itoa(number),
		address: nth(s.options.Subnets[subnet].Addr(), place), public: s.publicOf(number),
	}
	if s.options.GUA {
		h.link.public6 = nth(s.prefix6("2001:db8::").Addr(), number)
	}
}

// Move moves a site's host to the first subnet of another site. Processes on the host see
// its link go and another one come. In between, without a link, it calls onTheWay; the
// host has its new addresses by then, and the former ones are free.
func (h *Host) Move(ctx context.Context, to *Site, underWay func() error) error {
	if h.link.site == nil {
		return fmt.Errorf("move %s: it is on no site", h.Name)
	}
	if err := h.link.site.unplug(ctx, h.link); err != nil {
		return fmt.Errorf("move host %s: %w", h.Name, err)
	}
	to.assign(h, 0)
	return errors.Join(underWay(), to.connect(ctx, h.link, 0))
}

// unplug removes a host's link, and its addresses from the routers' tables.
func (s *Site) unplug(ctx context.Context, l *link) error {
	router := []string{"link del " + l.routerEnd}
	for _, a := range l.addresses6() {
		router = append(router, fmt.Sprintf("route del %s", a))
	}
	var internet []string
	if s.options.Underlay != Home {
		way := fmt.Sprintf("route del %s", l.public)
		router, internet = append(router, way), append(internet, way)
	}
	return errors.Join(s.know(ctx, l, "delete"), s.router.ip(ctx, router...), s.lab.router.ip(ctx, internet...))
}

// ULA is the private IPv6 address of a site's host; see [SiteOptions].
func (h *Host) ULA() netip.Addr { return nth(h.link.site.prefix6("fdaa::").Addr(), h.link.number) }

// Prefix is the host's address on its LAN with the length of its subnet.
func (h *Host) Prefix() netip.Prefix {
	for _, p := range h.link.site.options.Subnets {
		if p.Contains(h.Address()) {
			return netip.PrefixFrom(h.Address(), p.Bits())
		}
	}
	return netip.Prefix{}
}

// publicOf is the public address of a host, by the host's number.
func (s *Site) publicOf(number int) netip.Addr {
	switch s.options.Underlay {
	case Home:
		if s.options.Router.Maps != "" {
			return publicMapping(s.number)
		}
		return publicNAT(200 + s.number)
	case Routed:
		return publicRouted(number)
	default:
		return publicNAT(number)
	}
}

// prefix6 is the site's network in a range of IPv6.
func (s *Site) prefix6(of string) netip.Prefix {
	a := netip.MustParseAddr(of).As16()
	a[7] = byte(s.number)
	return netip.PrefixFrom(netip.AddrFrom16(a), 64)
}

// end is the site's link on the internet's router.
func (s *Site) end() string { return "site" + strconv.Itoa(s.number) }

// inside is the site's address on that link.
func (s *Site) inside() netip.Addr { return netip.AddrFrom4([4]byte{100, 64, 0, byte(s.number)}) }

// internetEnd is the internet's end of the link over which a host is reached.
func (l *link) internetEnd() string {
	if l.site != nil {
		return l.site.end()
	}
	return l.routerEnd
}

// setUpLAN makes a bridge for each subnet, with the router's addresses.
func (s *Site) setUpLAN(ctx context.Context) error {
	if err := s.router.route(); err != nil {
		return err
	}
	commands := []string{"link set lo up"}
	for i, subnet := range s.options.Subnets {
		commands = append(commands,
			fmt.Sprintf("link add lan%d address %s type bridge mcast_snooping 0", i, routerMAC),
			fmt.Sprintf("link set lan%d up", i),
			fmt.Sprintf("addr add %s/%d dev lan%d", routerOf(subnet), subnet.Bits(), i),
			fmt.Sprintf("addr add fe80::1/64 dev lan%d nodad", i))
	}
	if err := s.router.ip(ctx, commands...); err != nil {
		return err
	}
	// The router's rules must not see packets between hosts of the LAN, even if
	// br_netfilter is loaded.
	for _, family := range []string{"iptables", "ip6tables", "arptables"} {
		_ = s.router.sysctl("net/bridge/bridge-nf-call-"+family, "0") // fails if it is not loaded
	}
	return nil
}

// routerOf returns the last address of a subnet before the broadcast address.
func routerOf(subnet netip.Prefix) netip.Addr {
	a := subnet.Addr().As4()
	a[3] += byte(1<<min(8, 32-subnet.Bits()) - 2)
	return netip.AddrFrom4(a)
}

// setUpWAN links the site to the internet.
func (s *Site) setUpWAN(ctx context.Context) error {
	last := s.router
	if s.options.Router.Carrier != nil {
		if err := s.setUpCarrier(ctx); err != nil {
			return err
		}
		last = s.carrier
	}
	if err := s.uplink(ctx, s.lab.router, s.end(), last, s.inside()); err != nil {
		return err
	}
	if s.options.Underlay == Home {
		return last.ip(ctx, fmt.Sprintf("addr add %s/32 dev lo", s.publicOf(0)))
	}
	return nil
}

// uplink links one of the site's routers to the next one towards the internet, which has
// the named end and reaches the site there.
func (s *Site) uplink(ctx context.Context, up *Host, end string, down *Host, address netip.Addr) error {
	if err := wire(ctx, up, end, down, wan); err != nil {
		return err
	}
	gateway := gateway4
	if up == s.carrier {
		gateway = carrierGateway4
	}
	return errors.Join(
		up.ip(ctx,
			fmt.Sprintf("link set %s up", end),
			fmt.Sprintf("addr add %s/32 dev %s", gateway, end),
			fmt.Sprintf("addr add fe80::1/64 dev %s nodad", end),
			fmt.Sprintf("route add %s dev %s", address, end),
			fmt.Sprintf("route add %s via fe80::2 dev %s", s.prefix6("2001:db8::"), end)),
		down.ip(ctx,
			"link set wan up",
			fmt.Sprintf("addr add %s/32 dev wan", address),
			"addr add fe80::2/64 dev wan nodad",
			fmt.Sprintf("route add %s dev wan", gateway),
			fmt.Sprintf("route add default via %s", gateway),
			"route add default via fe80::1 dev wan"))
}

// connect connects a host to its LAN and adds it to the routers' tables.
func (s *Site) connect(ctx context.Context, l *link, subnet int) error {
	if err := wire(ctx, s.router, l.routerEnd, l.host, HostLink); err != nil {
		return err
	}
	bits := s.options.Subnets[subnet].Bits()
	router := []string{fmt.Sprintf("link set %s master lan%d up", l.routerEnd, subnet)}
	host := []string{
		"link set lo up", "link set " + HostLink + " up",
		fmt.Sprintf("addr add %s/%d dev %s", l.address, bits, HostLink),
	}
	way := fmt.Sprintf("route add default via %s", routerOf(s.options.Subnets[subnet]))
	if s.options.Underlay == Routed {
		host = append(host, fmt.Sprintf("addr add %s/32 dev %s", l.public, HostLink))
		way += " src " + l.public.String()
	}
	if s.options.Underlay != Home {
		router = append(router, fmt.Sprintf("route add %s via %s dev lan%d", l.public, l.address, subnet))
	}
	host = append(host, way)
	for _, a := range l.addresses6() {
		host = append(host, fmt.Sprintf("addr add %s/64 dev %s nodad", a, HostLink))
		router = append(router, fmt.Sprintf("route add %s dev lan%d", a, subnet))
	}
	if l.public6.IsValid() {
		host = append(host, "route add default via fe80::1 dev "+HostLink)
	}
	internet := fmt.Sprintf("route replace %s via %s dev %s", l.public, s.inside(), s.end())
	if err := errors.Join(s.router.ip(ctx, router...), l.host.ip(ctx, host...), s.lab.router.ip(ctx, internet)); err != nil {
		return err
	}
	return s.know(ctx, l, "add")
}

// addresses6 are the host's addresses of IPv6 on its LAN.
func (l *link) addresses6() []netip.Addr {
	var all []netip.Addr
	if l.site.options.ULA {
		all = append(all, l.host.ULA())
	}
	if l.public6.IsValid() {
		all = append(all, l.public6)
	}
	return all
}

// know adds the host's addresses to the routers' tables, or deletes them there.
func (s *Site) know(ctx context.Context, l *link, verb string) error {
	var site, internet strings.Builder
	enter := func(b *strings.Builder, set, format string, a ...any) {
		fmt.Fprintf(b, "%s element %s { %s }\n", verb, set, fmt.Sprintf(format, a...))
	}
	if verb == "add" || s.options.Underlay != Home { // where the others still have it
		enter(&internet, "inet lab sources", "%s . %s", s.end(), l.public)
	}
	enter(&site, "bridge lab sources", "%s . %s", l.routerEnd, l.address)
	switch s.options.Underlay {
	case NAT:
		enter(&site, "inet lab public", "%s : %s", l.address, l.public)
		enter(&site, "inet lab private", "%s : %s", l.public, l.address)
	case Routed:
		enter(&site, "bridge lab sources", "%s . %s", l.routerEnd, l.public)
	}
	for _, a := range l.addresses6() {
		enter(&site, "bridge lab sources6", "%s . %s", l.routerEnd, a)
	}
	if l.public6.IsValid() {
		enter(&internet, "inet lab sources6", "%s . %s", s.end(), l.public6)
	}
	return errors.Join(nft(ctx, s.router, site.String()), nft(ctx, s.lab.router, internet.String()))
}
