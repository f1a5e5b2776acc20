// SPDX-License-Identifier: Apache-2.0

package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

// rawFacts is the input of chooseFacts: what the kernel reports, unfiltered.
type rawFacts struct {
	links   []rawLink
	addrs   []rawAddr
	sources []rawSource
	routes  []rawRoute
	egress  []int // indices of links by which packets to other nodes leave
}

type rawAddr struct {
	link   int // index
	prefix netip.Prefix
	flags  int // IFA_F_…
}

// rawSource is the link, source address and next hop that the kernel uses for packets to the
// internet.
type rawSource struct {
	link int // index
	addr netip.Addr
	via  netip.Addr // the next hop; invalid for none
}

// rawRoute is a route in the main table that is not ours.
type rawRoute struct {
	links  []int // indices; several if it has several next hops
	to     netip.Prefix
	via    []netip.Addr // next hops
	metric int
}

// Facts reads the facts about the host.
func (k *Kernel) Facts(ctx context.Context) (netcfg.Facts, error) {
	return k.facts(ctx, k.egress)
}

// Networks reads the facts about the host as if it had no peers: the MTU is that of the
// uplinks. Facts looks up the route to each of them.
func (k *Kernel) Networks(ctx context.Context) (netcfg.Facts, error) {
	return k.facts(ctx, func() ([]int, error) { return nil, nil })
}

func (k *Kernel) facts(ctx context.Context, egress func() ([]int, error)) (netcfg.Facts, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	raw, err := k.readFacts()
	if err != nil {
		return netcfg.Facts{}, err
	}
	if raw.egress, err = egress(); err != nil {
		return netcfg.Facts{}, err
	}
	f := chooseFacts(raw, newLinks(raw.links, k.name, k.bridge))
	f.Nearby.Resolvers = resolvers(resolverFiles)
	return f, ctx.Err()
}

// internetAddrs are addresses for asking the kernel for its default routes. They are
// reserved for documentation (RFC 5737, RFC 3849), so no host has a more specific route
// to them. No packet is sent.
var internetAddrs = []string{"192.0.2.1", "2001:db8::1"}

func (k *Kernel) readFacts() (rawFacts, error) {
	var raw rawFacts
	links, err := retryInterrupted(k.nl.LinkList)
	if err != nil {
		return raw, fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		raw.links = append(raw.links, toRawLink(l))
	}
	addrs, err := retryInterrupted(func() ([]netlink.Addr, error) { return k.nl.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return raw, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		raw.addrs = append(raw.addrs, rawAddr{link: a.LinkIndex, prefix: prefixOf(a.IPNet), flags: a.Flags})
	}
	if raw.routes, err = k.foreignRoutes(); err != nil {
		return raw, err
	}
	for _, dst := range internetAddrs {
		routes, err := k.nl.RouteGet(net.ParseIP(dst))
		if err != nil || len(routes) == 0 {
			continue // no default route in this family
		}
		if src, ok := netip.AddrFromSlice(routes[0].Src); ok && routes[0].Type == unix.RTN_UNICAST {
			s := rawSource{link: routes[0].LinkIndex, addr: src.Unmap()}
			if via := toRawRoute(routes[0]).via; len(via) > 0 {
				s.via = via[0]
			}
			raw.sources = append(raw.sources, s)
		}
	}
	return raw, nil
}

// egress returns the links by which packets to other nodes leave now: those to the endpoints
// of WireGuard peers, and those to neighbors.
func (k *Kernel) egress() ([]int, error) {
	var to []netip.Addr
	link, err := k.ownLink()
	if link == nil || err != nil {
		return nil, unlessForeign(err)
	}
	_, peers, err := k.observeDevice(link)
	if errors.Is(err, fs.ErrPermission) {
		return nil, nil // meshd check, by a user who may not see them
	}
	if err != nil {
		return nil, err
	}
	for _, p := range peers {
		if p.Endpoint.IsValid() {
			to = append(to, p.Endpoint.Addr())
		}
	}
	_, forwarding, _, err := k.observeVXLAN()
	if err != nil {
		return nil, unlessForeign(err)
	}
	for _, e := range forwarding {
		to = append(to, e.To)
	}
	routes, err := k.ownRoutes()
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		to = append(to, toRawRoute(r).via...)
	}
	slices.SortFunc(to, netip.Addr.Compare)
	var out []int
	for _, a := range slices.Compact(to) {
		routes, err := k.nl.RouteGet(a.AsSlice())
		if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_UNICAST {
			out = append(out, routes[0].LinkIndex)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// unlessForeign returns nil for ErrForeignDevice: nothing of ours uses that link, and Observe
// reports it.
func unlessForeign(err error) error {
	if errors.Is(err, ErrForeignDevice) {
		return nil
	}
	return err
}

// foreignRoutes returns the routes of the main table that are not ours.
func (k *Kernel) foreignRoutes() ([]rawRoute, error) {
	var out []rawRoute
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := retryInterrupted(func() ([]netlink.Route, error) {
			return k.nl.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST},
				netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
		})
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range list {
			// What a daemon sets, it takes back for a link to another cluster.
			if r.Protocol != k.protocol && r.Protocol != netcfg.RouteProtocol {
				out = append(out, toRawRoute(r))
			}
		}
	}
	return out, nil
}

func toRawRoute(r netlink.Route) rawRoute {
	out := rawRoute{to: destination(r), metric: r.Priority}
	add := func(ip net.IP) {
		if a, ok := netip.AddrFromSlice(ip); ok {
			out.via = append(out.via, a.Unmap())
		}
	}
	hop := func(link int, gw net.IP, via netlink.Destination) {
		if link != 0 {
			out.links = append(out.links, link)
		}
		add(gw)
		if v, ok := via.(*netlink.Via); ok { // an IPv4 route by an IPv6 next hop (RFC 5549)
			add(v.Addr)
		}
	}
	hop(r.LinkIndex, r.Gw, r.Via)
	for _, m := range r.MultiPath {
		hop(m.LinkIndex, m.Gw, m.Via)
	}
	return out
}

// chooseFacts selects the facts from what the kernel reports. Addresses of the device and
// the bridge are left out, because meshd sets them itself.
func chooseFacts(raw rawFacts, ls links) netcfg.Facts {
	var f netcfg.Facts
	for _, a := range raw.addrs {
		link, ok := ls.find(a.link)
		if !ok || !permanent(a) || ls.role(link) == roleOwn {
			continue
		}
		// A virtual machine of this host may be its router.
		if _, leadsOut := raw.defaultRoute(a, a.link); leadsOut || ls.role(link) != roleContainers {
			f.Addresses = append(f.Addresses, a.prefix.Addr())
		}
		// The configuration may use the address of a bridge as the internal IP.
		f.Attached = append(f.Attached, netcfg.LAN{Link: link.name, Address: a.prefix, MTU: link.mtu})
	}
	f.Cards = cards(raw, ls)
	slices.SortFunc(f.Attached, func(a, b netcfg.LAN) int {
		return cmp.Or(a.Address.Compare(b.Address), strings.Compare(a.Link, b.Link))
	})
	slices.SortFunc(f.Addresses, netip.Addr.Compare)
	f.Addresses = slices.Compact(f.Addresses)

	for _, s := range raw.sources {
		link, ok := ls.find(s.link)
		if !ok || ls.role(link) == roleOwn || !s.addr.IsGlobalUnicast() {
			continue
		}
		f.Uplinks = append(f.Uplinks, netcfg.Uplink{Link: link.name, Source: raw.withLength(s), MTU: link.mtu, Gateway: s.via})
	}
	slices.SortFunc(f.Uplinks, func(a, b netcfg.Uplink) int { return a.Source.Compare(b.Source) })
	f.Private = privateAddresses(raw, ls)
	f.MTU, f.MTULink = egressMTU(raw, ls, f.Uplinks)
	f.Nearby = nearby(raw, ls)
	return f
}

// cards returns the links on which IPv4 packets of hosts outside of the mesh arrive, see
// netcfg.Facts. A card may forward without an address of its own: a default route can have an
// IPv6 next hop.
func cards(raw rawFacts, ls links) []string {
	var out []string
	for _, a := range raw.addrs {
		if l, ok := ls.find(a.link); ok && permanent(a) && a.prefix.Addr().Is4() && ls.role(l) == roleLAN {
			out = append(out, l.name)
		}
	}
	for _, r := range raw.routes {
		for _, index := range r.links {
			if l, ok := ls.find(index); ok && r.to.Bits() == 0 && r.to.Addr().Is4() && ls.role(l) != roleOwn {
				out = append(out, l.name)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// withLength returns a source with the length of its network, which another link may have.
func (raw rawFacts) withLength(s rawSource) netip.Prefix {
	i := slices.IndexFunc(raw.addrs, func(a rawAddr) bool { return a.link == s.link && a.prefix.Addr() == s.addr })
	if i < 0 {
		return netip.PrefixFrom(s.addr, s.addr.BitLen())
	}
	return raw.addrs[i].prefix
}

// egressMTU returns the lowest MTU of the links by which packets to other nodes leave, and
// that link. Before any is known, these are the uplinks.
func egressMTU(raw rawFacts, ls links, uplinks []netcfg.Uplink) (mtu int, link string) {
	lower := func(name string, n int) {
		if mtu == 0 || n < mtu {
			mtu, link = n, name
		}
	}
	for _, index := range raw.egress {
		if l, ok := ls.find(index); ok && ls.role(l) != roleOwn {
			lower(l.name, l.mtu)
		}
	}
	if mtu != 0 {
		return mtu, link
	}
	for _, u := range uplinks {
		lower(u.Link, u.MTU)
	}
	return mtu, link
}

// privateAddresses returns the host's private addresses outside of the mesh: first those
// that can be its internal IP, the best first. These are the addresses of network cards. An
// address that the host uses on its card can also be on another link: routers announce it.
// A single address is last among those of a link: a virtual one moves to other hosts.
func privateAddresses(raw rawFacts, ls links) []netcfg.PrivateAddress {
	type ranked struct {
		netcfg.PrivateAddress
		rank []int // less is better
	}
	var all []ranked
	for i, a := range raw.addrs {
		l, ok := ls.find(a.link)
		role := ls.role(l)
		if !ok || role == roleOwn || holdsServices(l) || !permanent(a) || !private(a.prefix.Addr()) {
			continue
		}
		r := ranked{PrivateAddress: netcfg.PrivateAddress{Link: l.name, Address: a.prefix}}
		source := slices.ContainsFunc(raw.sources, func(s rawSource) bool {
			card, ok := ls.find(s.link)
			return ok && s.addr == a.prefix.Addr() && ls.role(card) == roleLAN
		})
		if role != roleLAN && !source {
			r.Unfit = ls.describe(l)
		}
		metric, leadsOut := raw.defaultRoute(a, l.index)
		r.rank = []int{1, l.index, i}
		if r.Unfit == "" {
			r.Default = source || leadsOut
			r.rank = []int{0, bit(!source), bit(!leadsOut), metric, bit(l.flags&net.FlagRunning == 0), l.index, bit(a.prefix.IsSingleIP()), i}
		}
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b ranked) int { return slices.Compare(a.rank, b.rank) })
	var out []netcfg.PrivateAddress
	for _, r := range all {
		out = append(out, r.PrivateAddress)
	}
	return out
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}

// defaultRoute returns the metric of the default route of an address's family by a link. A
// VPN that takes all traffic leaves that route where it is and adds others.
func (raw rawFacts) defaultRoute(a rawAddr, link int) (metric int, ok bool) {
	for _, r := range raw.routes {
		if slices.Contains(r.links, link) && r.to.Bits() == 0 && r.to.Addr().Is4() == a.prefix.Addr().Is4() && (!ok || r.metric < metric) {
			metric, ok = r.metric, true
		}
	}
	return metric, ok
}

// permanent reports whether others may rely on an address: it works, it will not expire
// soon, and it is not a temporary address of IPv6, which changes daily (RFC 8981).
func permanent(a rawAddr) bool {
	unusable := unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED | unix.IFA_F_DEPRECATED
	if a.prefix.Addr().Is6() {
		unusable |= unix.IFA_F_TEMPORARY // in IPv4 this bit means "secondary"
	}
	return a.prefix.Addr().IsGlobalUnicast() && a.flags&unusable == 0
}

// private reports whether an address belongs to a private network: RFC 1918, RFC 4193, or
// behind a carrier's NAT.
func private(a netip.Addr) bool { return a.IsPrivate() || mesh.IsShared(a) }
