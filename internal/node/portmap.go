// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"slices"

	"github.com/meshd/meshd/internal/mesh"
)

// PortMapping is a UDP port of this host that its router maps.
type PortMapping struct {
	Port     uint16         // of this host
	External netip.AddrPort // of the router
}

// MappingTarget is which ports this host's router should map. Without ports no mapping is wanted,
// and without a gateway it is not known where to ask.
type MappingTarget struct {
	Gateway, Source netip.Addr // IPv4
	Ports           []uint16   // UDP, that of WireGuard first
}

// WantedMappings returns which ports this host's router should map: WireGuard's, if the host has
// no public address of IPv4 and none is configured. A node that is to be preferred as a relay
// wants the port of relays, too.
func (in Input) WantedMappings() MappingTarget {
	c := in.Config
	isPublic := func(a netip.Addr) bool { return a.Is4() && mesh.IsPublic(a) }
	if !c.PortMapping || c.Endpoint.Host != "" || slices.ContainsFunc(in.Facts.Addresses, isPublic) {
		return MappingTarget{}
	}
	t := MappingTarget{Ports: []uint16{c.ListenPort}}
	if c.Relay == mesh.RelayPrefer {
		t.Ports = append(t.Ports, c.GossipPort)
	}
	for _, u := range in.Facts.Uplinks {
		switch source := u.Source.Addr(); {
		case isPublic(source):
			return MappingTarget{}
		case source.Is4() && u.Gateway.Is4():
			t.Gateway, t.Source = u.Gateway, source
		}
	}
	return t
}

// mapped returns where on the internet the router maps a port to this host. A router that is
// behind NAT itself maps it nowhere there.
func (in Input) mapped(port uint16) []netip.AddrPort {
	var all []netip.AddrPort
	for _, n := range in.Paths.Mapped {
		if n.Port == port && mesh.IsPublic(n.External.Addr()) && in.View.Cluster.Outside(n.External.Addr()) && !slices.Contains(in.Facts.Addresses, n.External.Addr()) {
			all = append(all, n.External)
		}
	}
	return all
}
