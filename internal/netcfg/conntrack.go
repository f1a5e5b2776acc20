// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
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
func (h *Host) forgetStranded(gone []Route) error {
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
		h.writes.Add(1)
		var err error = netlink.ErrDumpInterrupted // the table has changed meanwhile
		for tries := 0; errors.Is(err, netlink.ErrDumpInterrupted) && tries < 3; tries++ {
			_, err = h.nl.ConntrackDeleteFilters(netlink.ConntrackTable, family, prefixes)
		}
		// nfnetlink_rcv_msg says EINVAL if there is no nf_conntrack_netlink.
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EPROTONOSUPPORT) {
			errs = append(errs, fmt.Errorf("forget connections along former routes: %w", err))
		}
	}
	return errors.Join(errs...)
}
