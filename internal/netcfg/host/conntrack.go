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

// stranded matches connections to destinations that began with a source address
// which NAT has replaced, and all of a single address. See
// netlink.CustomConntrackFilter.
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

// forgetStranded deletes connections to destinations whose routes are gone, if
// they began with a translated source. Translation is decided once: a
// conversation that does not end, as between two sockets of WireGuard or in vxlan,
// would keep the overlay address where it goes by the LAN from now on, and nobody
// would answer. All connections of a single address are forgotten: it was a node's or
// a client's that is no more, and the next one that has it is another. What has no
// connection tracking translates nothing.
func (k *Kernel) forgetStranded(gone []netcfg.Route) error {
	byFamily := make(map[netlink.InetFamily]stranded)
	for _, r := range gone {
		family := netlink.InetFamily(unix.AF_INET6)
		if r.Destination.Addr().Is4() {
			family = unix.AF_INET
		}
		byFamily[family] = append(byFamily[family], r.Destination)
	}
	var errs []error
	for family, prefixes := range byFamily {
		if err := k.forget(family, prefixes); err != nil {
			errs = append(errs, fmt.Errorf("forget connections along former routes: %w", err))
		}
	}
	return errors.Join(errs...)
}

// taken matches connections to ports of ours on this host that DNAT has led elsewhere.
type taken struct {
	ports []netcfg.OwnPort
	own   map[netip.Addr]bool // this host's addresses
}

// MatchConntrackFlow implements [netlink.CustomConntrackFilter].
func (t taken) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	to, _ := netip.AddrFromSlice(flow.Forward.DstIP)
	if !t.own[to.Unmap()] || flow.Forward.DstIP.Equal(flow.Reverse.SrcIP) && flow.Forward.DstPort == flow.Reverse.SrcPort {
		return false
	}
	protocol := map[uint8]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp"}[flow.Forward.Protocol]
	return slices.ContainsFunc(t.ports, func(p netcfg.OwnPort) bool {
		return p.Protocol == protocol && p.Port == int(flow.Forward.DstPort)
	})
}

// forgetTaken deletes connections that were led away from our ports before our rules
// were there: a peer that goes on trying would keep them for ever.
func (k *Kernel) forgetTaken(ports []netcfg.OwnPort) error {
	if len(ports) == 0 {
		return nil
	}
	addrs, err := retryInterrupted(func() ([]netlink.Addr, error) { return k.nl.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	t := taken{ports: ports, own: make(map[netip.Addr]bool)}
	for _, a := range addrs {
		t.own[prefixOf(a.IPNet).Addr().Unmap()] = true
	}
	var errs []error
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		if err := k.forget(family, t); err != nil {
			errs = append(errs, fmt.Errorf("forget connections that were led away from our ports: %w", err))
		}
	}
	return errors.Join(errs...)
}

// forget deletes the connections of a family that match.
func (k *Kernel) forget(family netlink.InetFamily, match netlink.CustomConntrackFilter) error {
	k.writes.Add(1)
	var err error = netlink.ErrDumpInterrupted // the table has changed meanwhile
	for tries := 0; errors.Is(err, netlink.ErrDumpInterrupted) && tries < 3; tries++ {
		_, err = k.nl.ConntrackDeleteFilters(netlink.ConntrackTable, family, match)
	}
	// nfnetlink_rcv_msg says EINVAL if there is no nf_conntrack_netlink.
	if errors.Is(err, netlink.ErrDumpInterrupted) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil
	}
	return err
}
