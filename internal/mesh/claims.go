// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"errors"
	"fmt"
	"net/netip"
)

// reservedNetwork is a range that has the same special use on every host, or at a cloud
// provider.
type reservedNetwork struct {
	netip.Prefix
	meaning string
}

// reservedNetworks returns the networks that no node may announce, and no cluster may
// use: their owner would receive what a host sends to itself, to its neighbors, or to the
// service that hands out its credentials.
func reservedNetworks() [10]reservedNetwork {
	return [...]reservedNetwork{
		{prefix4(0, 0, 0, 0, 8), "this host (RFC 1122)"},
		{prefix4(127, 0, 0, 0, 8), "loopback"},
		{prefix4(169, 254, 0, 0, 16), "link-local, with the metadata services of clouds"},
		{prefix4(168, 63, 129, 16, 32), "Azure's service for its machines"},
		{prefix4(224, 0, 0, 0, 4), "multicast"},
		{prefix4(255, 255, 255, 255, 32), "broadcast"},
		{prefix6(0, 0, 64), "unspecified, loopback and IPv4 written as IPv6"},
		{prefix6(0xfd00, 0x0ec2, 32), "services of AWS for its machines"},
		{prefix6(0xfe80, 0, 10), "link-local"},
		{prefix6(0xff00, 0, 8), "multicast"},
	}
}

func prefix4(a, b, c, d byte, bits int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{a, b, c, d}), bits)
}

// prefix6 returns a prefix whose groups after the first two are zero.
func prefix6(first, second uint16, bits int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{byte(first >> 8), byte(first), byte(second >> 8), byte(second)}), bits)
}

// The shortest prefixes that may be announced. A wider network would not be one site's,
// but a part of a split default route. All private IPv6 (RFC 4193) is a /7.
const (
	shortest4           = 8
	shortest6           = 16
	shortestUniqueLocal = 7
)

// CheckNetwork returns why no node may announce a network, neither in its configuration
// nor in its record. It returns nil if a node may.
func CheckNetwork(p netip.Prefix) error {
	switch {
	case !p.IsValid():
		return errors.New("it is not a network")
	case p.Addr().Is4In6():
		return errors.New("it is IPv4 written as IPv6")
	}
	for _, n := range reservedNetworks() {
		if n.Overlaps(p) {
			return fmt.Errorf("it overlaps %v, which is %s", n.Prefix, n.meaning)
		}
	}
	shortest := shortest4
	switch {
	case prefix6(0xfc00, 0, shortestUniqueLocal).Contains(p.Addr()):
		shortest = shortestUniqueLocal
	case p.Addr().Is6():
		shortest = shortest6
	}
	if p.Bits() < shortest {
		return fmt.Errorf("it is wider than a /%d, and so a good part of the default route", shortest)
	}
	return nil
}

// CheckHost returns why an address can't belong to one host, such as an internal IP or an
// endpoint, as CheckNetwork does for networks.
func CheckHost(a netip.Addr) error {
	if !a.IsValid() || a.Zone() != "" {
		return errors.New("it is not an address that means the same on every host")
	}
	return CheckNetwork(single(a.Unmap()))
}

// NoInternalIP stands in a configuration for having no internal IP. No address is that.
func NoInternalIP() netip.Prefix { return netip.PrefixFrom(netip.IPv4Unspecified(), 0) }

// CheckInternalIP returns why an address can't be a node's internal IP. It checks address
// and network, because a location's network is excluded from everything else that is
// routed.
func CheckInternalIP(p netip.Prefix) error {
	if !p.IsValid() || p.Addr().Is4In6() {
		return CheckNetwork(p)
	}
	if err := CheckHost(p.Addr()); err != nil {
		return err
	}
	return CheckNetwork(p.Masked())
}

// Outside reports whether a node can be reached at an address without the mesh: it is a
// host's address, and in none of the cluster's ranges.
func (c Cluster) Outside(a netip.Addr) bool {
	a = a.Unmap()
	return CheckHost(a) == nil && !contains(c.Overlay, a) && !contains(c.Pods, a) && !contains(c.Services, a)
}
