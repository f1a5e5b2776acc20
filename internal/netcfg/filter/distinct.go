// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"cmp"
	"math"
	"net/netip"
	"slices"
)

// Distinct tells which packets a table can tell apart. The addresses and ports in its
// rules cut the ranges of addresses and ports into parts. Two packets whose addresses and
// ports are in the same parts, and that are equal otherwise, meet the same rules. So of
// the packets of many nodes only a few have to be evaluated.
type Distinct struct {
	sources, destinations []netip.Addr // where a new part begins, sorted
	ports, sourcePorts    []uint16
}

// NewDistinct returns the parts that the rules of a table make, and rules with these
// sources.
func NewDistinct(t Table, sources []netip.Prefix) Distinct {
	var d Distinct
	for _, s := range sources {
		d.sources = cutAddrs(d.sources, s.String())
	}
	for _, chain := range t.Chains {
		for _, r := range chain.Rules {
			for _, c := range r.Conditions {
				d.cut(c)
			}
		}
	}
	for _, addrs := range []*[]netip.Addr{&d.sources, &d.destinations} {
		slices.SortFunc(*addrs, netip.Addr.Compare)
		*addrs = slices.Compact(*addrs)
	}
	for _, ports := range []*[]uint16{&d.ports, &d.sourcePorts} {
		slices.Sort(*ports)
		*ports = slices.Compact(*ports)
	}
	return d
}

func (d *Distinct) cut(c Condition) {
	for _, v := range c.Values {
		switch c.Field {
		case Source:
			d.sources = cutAddrs(d.sources, v)
		case Destination:
			d.destinations = cutAddrs(d.destinations, v)
		case Port:
			d.ports = cutPorts(d.ports, v)
		case SourcePort:
			d.sourcePorts = cutPorts(d.sourcePorts, v)
		}
	}
}

// cutAddrs adds the address at which a prefix or range begins, and the one behind it.
func cutAddrs(at []netip.Addr, addrs string) []netip.Addr {
	from, to, ok := bounds(addrs)
	if !ok {
		return at
	}
	if at = append(at, from); to.Next().IsValid() {
		at = append(at, to.Next())
	}
	return at
}

// cutPorts is cutAddrs for ports.
func cutPorts(at []uint16, ports string) []uint16 {
	from, to, ok := portBounds(ports)
	if !ok {
		return at
	}
	if at = append(at, from); to < math.MaxUint16 {
		at = append(at, to+1)
	}
	return at
}

// part identifies what the packets of one class have in common.
type part struct {
	packet              Packet // without addresses and ports
	is4                 bool
	source, destination int
	port, sourcePort    int
}

// Of returns the packets that a table can tell apart, each the first of its class.
func (d Distinct) Of(packets []Packet) []Packet {
	seen := make(map[part]bool)
	var out []Packet
	for _, p := range packets {
		class := part{packet: p, is4: p.Destination.Is4()}
		class.packet.Source, class.packet.Destination, class.packet.Port, class.packet.SourcePort = netip.Addr{}, netip.Addr{}, 0, 0
		class.source = position(d.sources, p.Source, netip.Addr.Compare)
		class.destination = position(d.destinations, p.Destination, netip.Addr.Compare)
		class.port = position(d.ports, p.Port, cmp.Compare)
		class.sourcePort = position(d.sourcePorts, p.SourcePort, cmp.Compare)
		if !seen[class] {
			seen[class] = true
			out = append(out, p)
		}
	}
	return out
}

// position returns the number of the part that a value is in.
func position[T any](at []T, value T, compare func(T, T) int) int {
	i, found := slices.BinarySearchFunc(at, value, compare)
	if found {
		i++
	}
	return i
}
