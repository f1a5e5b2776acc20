// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/netcfg"
)

// stranded matches connections to destinations of removed routes if NAT has replaced
// their source. If the destination is a single address, it matches all connections from
// it and to it. See netlink.CustomConntrackFilter.
type stranded []netip.Prefix

// MatchConntrackFlow implements [netlink.CustomConntrackFilter].
func (s stranded) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	from, fromOK := netip.AddrFromSlice(flow.Forward.SrcIP)
	to, toOK := netip.AddrFromSlice(flow.Forward.DstIP)
	if !fromOK || !toOK {
		return false
	}
	translated := !flow.Forward.SrcIP.Equal(flow.Reverse.DstIP)
	for _, p := range s {
		there := p.Contains(to.Unmap())
		if there && translated || p.IsSingleIP() && (there || p.Contains(from.Unmap())) {
			return true
		}
	}
	return false
}

// forgetStranded deletes connections to destinations that have left the mesh, if their
// source was translated. NAT is decided once for a connection. So a flow without an end,
// such as between two WireGuard sockets or in VXLAN, would keep the overlay address as
// source even where its packets now go over the LAN, and nobody would reply to that
// address. If the destination is a single address, all its connections are deleted: it
// belonged to a node or a client that is gone, and may be given to another one. Without
// connection tracking there is no NAT, so there is nothing to delete.
func (k *Kernel) forgetStranded(gone []netip.Prefix) error {
	byFamily := make(map[netlink.InetFamily]stranded)
	for _, p := range gone {
		family := netlink.InetFamily(unix.AF_INET6)
		if p.Addr().Is4() {
			family = unix.AF_INET
		}
		byFamily[family] = append(byFamily[family], p)
	}
	var errs []error
	for family, prefixes := range byFamily {
		if err := k.forget(family, prefixes); err != nil {
			errs = append(errs, fmt.Errorf("delete connections along former routes: %w", err))
		}
	}
	return errors.Join(errs...)
}

// redirected matches connections to ports of ours on this host that DNAT has redirected.
type redirected struct {
	ports []netcfg.OwnPort
	own   map[netip.Addr]bool // this host's addresses
}

// MatchConntrackFlow implements [netlink.CustomConntrackFilter].
func (r redirected) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	to, _ := netip.AddrFromSlice(flow.Forward.DstIP)
	if !r.own[to.Unmap()] || flow.Forward.DstIP.Equal(flow.Reverse.SrcIP) && flow.Forward.DstPort == flow.Reverse.SrcPort {
		return false
	}
	protocol := map[uint8]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp"}[flow.Forward.Protocol]
	return slices.ContainsFunc(r.ports, func(p netcfg.OwnPort) bool {
		return p.Protocol == protocol && p.Port == int(flow.Forward.DstPort)
	})
}

// forgetRedirected deletes connections that were redirected away from our ports before
// our rules existed. A peer that keeps sending would keep such a connection alive for
// ever.
func (k *Kernel) forgetRedirected(ports []netcfg.OwnPort) error {
	if len(ports) == 0 {
		return nil
	}
	addrs, err := retryInterrupted(func() ([]netlink.Addr, error) { return k.nl.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	match := redirected{ports: ports, own: make(map[netip.Addr]bool)}
	for _, a := range addrs {
		match.own[prefixOf(a.IPNet).Addr().Unmap()] = true
	}
	var errs []error
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		if err := k.forget(family, match); err != nil {
			errs = append(errs, fmt.Errorf("delete connections that were redirected away from our ports: %w", err))
		}
	}
	return errors.Join(errs...)
}

// forget deletes the connections of a family that match. It repeats a dump that was
// interrupted because the table changed.
func (k *Kernel) forget(family netlink.InetFamily, match netlink.CustomConntrackFilter) error {
	k.writes.Add(1)
	var err error = netlink.ErrDumpInterrupted // start value, so that the loop runs
	for tries := 0; errors.Is(err, netlink.ErrDumpInterrupted) && tries < 3; tries++ {
		_, err = k.nl.ConntrackDeleteFilters(netlink.ConntrackTable, family, match)
	}
	// nfnetlink_rcv_msg returns EINVAL if there is no nf_conntrack_netlink.
	if errors.Is(err, netlink.ErrDumpInterrupted) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil
	}
	return err
}
