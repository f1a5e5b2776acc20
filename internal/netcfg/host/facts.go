// SPDX-License-Identifier: Apache-2.0

package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/netcfg"
)

// foreignLinks are beginnings of the names of links that belong to containers:
// their addresses are not the host's to announce.
var foreignLinks = []string{"br-", "cali", "cilium", "cni", "docker", "flannel", "kube-", "veth", "virbr"}

// rawFacts is what the kernel says, before anything is chosen.
type rawFacts struct {
	links   []rawLink
	addrs   []rawAddr
	sources []rawSource
	routes  []rawRoute
}

type rawLink struct {
	index int
	name  string
	mtu   int
}

type rawAddr struct {
	link   int // index
	prefix netip.Prefix
	flags  int // IFA_F_…
}

// rawSource is the kernel's choice of link and source for what goes to the internet.
type rawSource struct {
	link int // index
	addr netip.Addr
}

// rawRoute is a route of others in the main table.
type rawRoute struct {
	link int // index; 0 where there are several
	to   netip.Prefix
	via  []netip.Addr // next hops
}

// Facts reads what there is to know of the host.
func (k *Kernel) Facts(ctx context.Context) (netcfg.Facts, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	raw, err := k.readFacts()
	if err != nil {
		return netcfg.Facts{}, err
	}
	f := chooseFacts(raw, k.name, k.bridge)
	f.Nearby = nearby(raw, k.name, k.bridge)
	f.Nearby.Resolvers = resolvers(resolverFiles)
	return f, ctx.Err()
}

// faraway are addresses by which the kernel is asked for its default route. They
// are for documentation (RFC 5737, RFC 3849), so nobody has a route of their own to
// them, and nothing is sent.
var faraway = []string{"192.0.2.1", "2001:db8::1"}

func (k *Kernel) readFacts() (rawFacts, error) {
	var raw rawFacts
	links, err := retryInterrupted(k.nl.LinkList)
	if err != nil {
		return raw, fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		raw.links = append(raw.links, rawLink{index: l.Attrs().Index, name: l.Attrs().Name, mtu: l.Attrs().MTU})
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
	for _, dst := range faraway {
		routes, err := k.nl.RouteGet(net.ParseIP(dst))
		if err != nil || len(routes) == 0 {
			continue // no default route in this family
		}
		if src, ok := netip.AddrFromSlice(routes[0].Src); ok && routes[0].Type == unix.RTN_UNICAST {
			raw.sources = append(raw.sources, rawSource{link: routes[0].LinkIndex, addr: src.Unmap()})
		}
	}
	return raw, nil
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
			if r.Protocol != netcfg.RouteProtocol {
				out = append(out, rawRouteOf(r))
			}
		}
	}
	return out, nil
}

func rawRouteOf(r netlink.Route) rawRoute {
	out := rawRoute{link: r.LinkIndex, to: destination(r)}
	add := func(ip net.IP) {
		if a, ok := netip.AddrFromSlice(ip); ok {
			out.via = append(out.via, a.Unmap())
		}
	}
	hop := func(gw net.IP, via netlink.Destination) {
		add(gw)
		if v, ok := via.(*netlink.Via); ok { // IPv4 by a router of IPv6 (RFC 5549)
			add(v.Addr)
		}
	}
	hop(r.Gw, r.Via)
	for _, m := range r.MultiPath {
		hop(m.Gw, m.Via)
	}
	return out
}

// chooseFacts picks from what the kernel says. The device and the bridge are
// ours, their addresses are no facts about the host.
func chooseFacts(raw rawFacts, device, bridge string) netcfg.Facts {
	var f netcfg.Facts
	own := func(link string) bool { return link == device || link == netcfg.VXLANName(device) || link == bridge }
	links := make(map[int]rawLink)
	for _, l := range raw.links {
		if !own(l.name) && !foreign(l.name) {
			links[l.index] = l
		}
	}
	for _, a := range raw.addrs {
		if _, ok := links[a.link]; ok && lasting(a) {
			f.Addresses = append(f.Addresses, a.prefix.Addr())
		}
		// A person may well name a bridge's address as the internal IP.
		i := slices.IndexFunc(raw.links, func(l rawLink) bool { return l.index == a.link && !own(l.name) })
		if i >= 0 && lasting(a) {
			f.Attached = append(f.Attached, netcfg.LAN{Link: raw.links[i].name, Address: a.prefix, MTU: raw.links[i].mtu})
		}
	}
	slices.SortFunc(f.Attached, func(a, b netcfg.LAN) int {
		return cmp.Or(a.Address.Compare(b.Address), strings.Compare(a.Link, b.Link))
	})
	slices.SortFunc(f.Addresses, netip.Addr.Compare)
	f.Addresses = slices.Compact(f.Addresses)

	for _, s := range raw.sources {
		link, ok := links[s.link]
		if !ok || !s.addr.IsGlobalUnicast() {
			continue
		}
		up := netcfg.Uplink{Link: link.name, Source: netip.PrefixFrom(s.addr, s.addr.BitLen()), MTU: link.mtu}
		for _, a := range raw.addrs {
			if a.link == s.link && a.prefix.Addr() == s.addr {
				up.Source = a.prefix
			}
		}
		f.Uplinks = append(f.Uplinks, up)
		if private(s.addr) {
			f.InternalIPs = append(f.InternalIPs, up.Source)
		}
		if f.MTU == 0 || up.MTU < f.MTU {
			f.MTU = up.MTU
		}
	}
	slices.SortFunc(f.Uplinks, func(a, b netcfg.Uplink) int { return a.Source.Compare(b.Source) })
	slices.SortFunc(f.InternalIPs, netip.Prefix.Compare)
	return f
}

// foreign says whether a link belongs to containers, by its name.
func foreign(name string) bool {
	return slices.ContainsFunc(foreignLinks, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
}

// lasting says whether others may rely on an address: it works, and it is neither
// about to go nor one of IPv6's temporary ones, which change daily (RFC 8981).
func lasting(a rawAddr) bool {
	unusable := unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED | unix.IFA_F_DEPRECATED
	if a.prefix.Addr().Is6() {
		unusable |= unix.IFA_F_TEMPORARY // in IPv4 this bit means "secondary"
	}
	return a.prefix.Addr().IsGlobalUnicast() && a.flags&unusable == 0
}

// sharedSpace is what carriers number their customers from (RFC 6598).
var sharedSpace = netip.MustParsePrefix("100.64.0.0/10")

// private says whether an address is of a network of its own: RFC 1918, RFC 4193,
// or behind a carrier's NAT.
func private(a netip.Addr) bool { return a.IsPrivate() || sharedSpace.Contains(a) }
