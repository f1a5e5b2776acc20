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

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

// containerLinks are the name prefixes of links that belong to containers. A host must
// not announce their addresses.
var containerLinks = []string{"br-", "cali", "cilium", "cni", "docker", "flannel", "kube-", "veth", "virbr"}

// rawFacts is the input of chooseFacts: what the kernel reports, unfiltered.
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

// rawSource is the link and source address that the kernel uses for packets to the
// internet.
type rawSource struct {
	link int // index
	addr netip.Addr
}

// rawRoute is a route in the main table that is not ours.
type rawRoute struct {
	link int // index; 0 if there are several
	to   netip.Prefix
	via  []netip.Addr // next hops
}

// Facts reads the facts about the host.
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
	for _, dst := range internetAddrs {
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
				out = append(out, toRawRoute(r))
			}
		}
	}
	return out, nil
}

func toRawRoute(r netlink.Route) rawRoute {
	out := rawRoute{link: r.LinkIndex, to: destination(r)}
	add := func(ip net.IP) {
		if a, ok := netip.AddrFromSlice(ip); ok {
			out.via = append(out.via, a.Unmap())
		}
	}
	hop := func(gw net.IP, via netlink.Destination) {
		add(gw)
		if v, ok := via.(*netlink.Via); ok { // an IPv4 route by an IPv6 next hop (RFC 5549)
			add(v.Addr)
		}
	}
	hop(r.Gw, r.Via)
	for _, m := range r.MultiPath {
		hop(m.Gw, m.Via)
	}
	return out
}

// chooseFacts selects the facts from what the kernel reports. Addresses of the device and
// the bridge are left out, because meshd sets them itself.
func chooseFacts(raw rawFacts, device, bridge string) netcfg.Facts {
	var f netcfg.Facts
	own := func(link string) bool { return link == device || link == netcfg.VXLANName(device) || link == bridge }
	links := make(map[int]rawLink)
	for _, l := range raw.links {
		if !own(l.name) && !ofContainers(l.name) {
			links[l.index] = l
		}
	}
	for _, a := range raw.addrs {
		if _, ok := links[a.link]; ok && permanent(a) {
			f.Addresses = append(f.Addresses, a.prefix.Addr())
		}
		// The configuration may use the address of a bridge as the internal IP.
		i := slices.IndexFunc(raw.links, func(l rawLink) bool { return l.index == a.link && !own(l.name) })
		if i >= 0 && permanent(a) {
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

// ofContainers reports whether a link belongs to containers, by its name.
func ofContainers(name string) bool {
	return slices.ContainsFunc(containerLinks, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
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
func private(a netip.Addr) bool { return a.IsPrivate() || mesh.Shared(a) }
