// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

// surroundings is what this node's record says of its host.
type surroundings struct {
	facts       netcfg.Facts
	known       []netip.Addr // its addresses at which others may reach it
	internalIPs []netip.Prefix
	seen        []netip.AddrPort // where peers see its WireGuard socket
	mapped      []netip.AddrPort // where its router maps the port to it
}

// nextRecord returns what this node says of itself now. The sequence is that of the last
// record, to be raised if the content differs.
func nextRecord(c Config, s surroundings, last mesh.Record) mesh.Record {
	r := last
	r.Name = c.Name
	r.Settings = c.Cluster.Hash()
	r.Location = c.Location
	r.Gateway = c.Gateway
	r.Exit = exitFamilies(c, s.facts, last)
	r.Encrypted = c.Encrypted
	r.ListenPort = c.ListenPort
	r.GossipPort = c.GossipPort
	r.GossipAddr = c.GossipAddr
	r.StreamPort = c.StreamPort
	r.Etcd = c.Etcd
	r.Secrets = c.Secrets
	r.AllowedLocationIPs, r.Linked = c.networks()
	// A host that has lost its links will most likely have the same ones again, unless it is
	// on its way to another place.
	if len(s.internalIPs) > 0 || len(s.facts.Uplinks) > 0 || last.MTU == 0 || r.Location != last.Location {
		r.InternalIPs = s.internalIPs
	}
	if s.facts.MTU != 0 || last.MTU == 0 {
		r.MTU = c.deviceMTU(s.facts)
	}
	r.Endpoints, r.NAT = mesh.OwnEndpoints(mesh.EndpointInput{
		Cluster:    c.Cluster,
		Configured: c.Endpoint,
		Own:        s.known,
		Seen:       s.seen,
		Mapped:     s.mapped,
		ListenPort: r.ListenPort,
		Last:       last.Endpoints,
		LastNAT:    last.NAT,
	})
	// Do not tell everybody about another order alone.
	if sameEndpoints(r.Endpoints, last.Endpoints) {
		r.Endpoints = last.Endpoints
	}
	return r
}

// exitFamilies returns the families in which clients may reach the internet through this node:
// those with a default route. A host that has lost both will most likely have them again.
func exitFamilies(c Config, facts netcfg.Facts, last mesh.Record) mesh.ExitFamilies {
	var out mesh.ExitFamilies
	if !c.Exit {
		return out
	}
	for _, u := range facts.Uplinks {
		out.IPv4 = out.IPv4 || u.Source.Addr().Is4()
		out.IPv6 = out.IPv6 || u.Source.Addr().Is6()
	}
	if len(facts.Uplinks) == 0 {
		return last.Exit
	}
	return out
}

// firstAddresses is how long after the start a host may still be getting its addresses: by
// DHCP it takes a card some seconds.
const firstAddresses = time.Minute

// chooseInternalIPs returns the internal IPs. One that was found out stays as long as the
// host has it. But in the first minute, one that no default route leaves by gives way to
// others: a second card with a fixed address is often up before the first one has any.
func (m *Memory) chooseInternalIPs(in Input) []netip.Prefix {
	ips := in.Config.InternalIPs(in.Facts, m.internalIPs)
	for _, ip := range ips {
		if in.Now.Sub(in.Started) >= firstAddresses || in.Facts.LeadsOut(ip) {
			others := slices.DeleteFunc(slices.Clone(m.internalIPs), func(p netip.Prefix) bool { return p.Addr().Is4() == ip.Addr().Is4() })
			m.internalIPs = append(others, ip)
		}
	}
	return ips
}

// What this node says that it withholds follows from the records of others, and a node that
// changes its record all the time must not make all others do the same. So it changes once in
// withheldPause on average, and withheldBurst times at once.
const (
	withheldPause = time.Minute
	withheldBurst = 4
)

// withheld returns the networks of others that this node does not route to them.
func (m *Memory) withheld(in Input) (first []netip.Prefix, more int) {
	first, more = mesh.Withheld(in.View.Cluster, m.Own, in.View.Records, in.nearby())
	if slices.Equal(first, m.Own.Withheld) && more == m.Own.WithheldMore || in.Now.Before(m.withheldNext) {
		return m.Own.Withheld, m.Own.WithheldMore
	}
	if full := in.Now.Add(-(withheldBurst - 1) * withheldPause); m.withheldNext.Before(full) {
		m.withheldNext = full
	}
	m.withheldNext = m.withheldNext.Add(withheldPause)
	return first, more
}

// sameEndpoints reports whether the lists differ in their order at most.
func sameEndpoints(a, b []mesh.Endpoint) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(e mesh.Endpoint) bool { return !slices.Contains(b, e) })
}

// place is where a host is, as far as it shows in what others know of it: its addresses, by which
// links it sends, and where others see it, which changes alone if it is a router that has
// another address.
type place struct {
	addresses []netip.Addr
	uplinks   []netcfg.Uplink
	endpoints []mesh.Endpoint
}

// moves holds when the host moved last.
type moves struct {
	place *place    // nil until looked at
	last  time.Time // zero for not since the start
}

// look takes in where the host is.
func (m *moves) look(p place, now time.Time) {
	if m.place != nil && !reflect.DeepEqual(*m.place, p) {
		m.last = now
	}
	m.place = &p
}

// NextSequence numbers a record of ours. If somebody has shown one that we don't know to
// have made, our disk was lost or restored, or a duplicate of this node runs. Then the
// number goes beyond everything that can have been made until now. That tells the two
// apart: whoever replays our old records has none that goes beyond it.
func NextSequence(own, shown uint64, now time.Time) uint64 {
	next := max(own, shown) + 1
	if shown > own {
		next = max(next, uint64(max(now.UnixMilli(), 0)))
	}
	return next
}
