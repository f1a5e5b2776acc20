// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"errors"
	"fmt"
	"net/netip"
)

// reservedNetwork is a range that belongs to every host, or to its provider.
type reservedNetwork struct {
	netip.Prefix
	meaning string
}

// nobodys returns the networks that no node may give away, and no cluster may have:
// whoever had them would get what a host sends to itself, to its neighbours, or
// to the service that hands out its credentials.
func nobodys() [10]reservedNetwork {
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

// prefix6 is one with zeroes behind its first two groups.
func prefix6(first, second uint16, bits int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{byte(first >> 8), byte(first), byte(second >> 8), byte(second)}), bits)
}

// The shortest prefixes that may be given away. A wider network is no site's, but
// a default route in pieces. All private IPv6 (RFC 4193) is a /7.
const (
	widest4      = 8
	widest6      = 16
	widestUnique = 7
)

// CheckNetwork returns why a network may not be given away by anybody: not in a
// configuration, and not in what another node says. It is nil for one that may.
func CheckNetwork(p netip.Prefix) error {
	switch {
	case !p.IsValid():
		return errors.New("it is not a network")
	case p.Addr().Is4In6():
		return errors.New("it is IPv4 written as IPv6")
	}
	for _, n := range nobodys() {
		if n.Overlaps(p) {
			return fmt.Errorf("it overlaps %v, which is %s", n.Prefix, n.meaning)
		}
	}
	widest := widest4
	switch {
	case prefix6(0xfc00, 0, widestUnique).Contains(p.Addr()):
		widest = widestUnique
	case p.Addr().Is6():
		widest = widest6
	}
	if p.Bits() < widest {
		return fmt.Errorf("it is wider than a /%d, and so a good part of the default route", widest)
	}
	return nil
}

// CheckHost returns why an address can't be one host's, such as an internal IP or
// an endpoint, as CheckNetwork does for networks.
func CheckHost(a netip.Addr) error {
	if !a.IsValid() || a.Zone() != "" {
		return errors.New("it is not an address that means the same on every host")
	}
	return CheckNetwork(single(a.Unmap()))
}

// CheckInternalIP returns why a node can't have an internal IP: address and
// network count both, because nothing else is routed to a network that a location
// has.
func CheckInternalIP(p netip.Prefix) error {
	if !p.IsValid() || p.Addr().Is4In6() {
		return CheckNetwork(p)
	}
	if err := CheckHost(p.Addr()); err != nil {
		return err
	}
	return CheckNetwork(p.Masked())
}

// Outside reports whether an address can be one on which a node is reached
// without the mesh: a host's, and in none of the cluster's ranges.
func (c Cluster) Outside(a netip.Addr) bool {
	a = a.Unmap()
	return CheckHost(a) == nil && !contains(c.Overlay, a) && !contains(c.Pods, a) && !contains(c.Services, a)
}
