// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"fmt"
	"net/netip"
	"slices"
)

// VXLANChange is a change to the VXLAN device.
type VXLANChange struct {
	VXLAN   VXLAN // the desired device
	Replace bool  // first delete the device of this name: the difference can't be changed in place
	Create  bool  // create the device; the fields below are then all true

	SetMTU bool
	SetUp  bool
}

func diffVXLAN(observed, desired *VXLAN) *VXLANChange {
	if desired == nil {
		return nil
	}
	c := VXLANChange{VXLAN: *desired}
	if observed != nil {
		c.Replace = observed.ID != desired.ID || observed.Port != desired.Port ||
			observed.Local != desired.Local || observed.Learning != desired.Learning ||
			observed.MAC != desired.MAC // changing it would delete all neighbor entries (neigh_changeaddr)
	}
	if observed == nil || c.Replace {
		c.Create, c.SetMTU, c.SetUp = true, true, true
		return &c
	}
	c.SetMTU = observed.MTU != desired.MTU
	c.SetUp = observed.Up != desired.Up
	if !c.SetMTU && !c.SetUp {
		return nil
	}
	return &c
}

// withoutVXLAN is withoutDevice for the VXLAN device.
func (s State) withoutVXLAN(name string) State {
	s.Forwarding, s.Neighbors = nil, nil
	s.Routes = slices.DeleteFunc(slices.Clone(s.Routes), func(r Route) bool { return r.Link == name })
	s.Sysctls = sysctlsWithout(s.Sysctls, name)
	return s
}

// diffVXLANEntries plans the changes to the entries of the VXLAN device. Adding an entry
// replaces the previous one of the same MAC or address.
func (p *Plan) diffVXLANEntries(observed, desired State, prune bool) {
	if desired.VXLAN == nil {
		if prune && observed.VXLAN != nil {
			p.vxlanLink, p.StaleVXLAN = observed.VXLAN.Name, observed.VXLAN.Name
		}
		return
	}
	p.vxlanLink = desired.VXLAN.Name
	p.Forwarding = missing(observed.Forwarding, desired.Forwarding)
	p.Neighbors = missing(observed.Neighbors, desired.Neighbors)
	if !prune {
		return
	}
	macs, addrs := make(map[MAC]bool), make(map[netip.Addr]bool)
	for _, e := range p.Forwarding {
		macs[e.MAC] = true
	}
	for _, e := range desired.Neighbors {
		addrs[e.Addr] = true
	}
	for _, e := range missing(desired.Forwarding, observed.Forwarding) {
		if macs[e.MAC] {
			macs[e.MAC] = false // adding the new entry replaces this one
		} else {
			p.StaleForwarding = append(p.StaleForwarding, e)
		}
	}
	p.StaleNeighbors = slices.DeleteFunc(slices.Clone(observed.Neighbors), func(e NeighborEntry) bool { return addrs[e.Addr] })
}

// String returns the device as one line in the style of ip(8).
func (v VXLAN) String() string {
	learning, up := "nolearning", "down"
	if v.Learning {
		learning = "learning"
	}
	if v.Up {
		up = "up"
	}
	return fmt.Sprintf("link %s vxlan id %d local %s dstport %d %s address %s mtu %d %s",
		v.Name, v.ID, v.Local, v.Port, learning, v.MAC, v.MTU, up)
}

// on returns the entry as one line in the style of bridge(8).
func (e FDBEntry) on(link string) string {
	return fmt.Sprintf("fdb %s dev %s dst %s", e.MAC, link, e.To)
}

// on returns the entry as one line in the style of ip(8).
func (e NeighborEntry) on(link string) string {
	return fmt.Sprintf("neigh %s lladdr %s dev %s", e.Addr, e.MAC, link)
}

// String returns the change as one line, or as two if the device is replaced.
func (c VXLANChange) String() string {
	switch {
	case c.Replace:
		return fmt.Sprintf("- link %s\n+ %s", c.VXLAN.Name, c.VXLAN)
	case c.Create:
		return "+ " + c.VXLAN.String()
	}
	s := "~ link " + c.VXLAN.Name
	if c.SetMTU {
		s += fmt.Sprintf(" mtu %d", c.VXLAN.MTU)
	}
	if c.SetUp {
		s += " up"
	}
	return s
}

// WithoutVXLAN returns the plan without the changes that need the VXLAN device.
func (p Plan) WithoutVXLAN() Plan {
	name := p.VXLAN.VXLAN.Name
	p.Forwarding, p.Neighbors = nil, nil
	p.Sysctls = sysctlsWithout(p.Sysctls, name)
	p.Routes = slices.DeleteFunc(slices.Clone(p.Routes), func(c RouteChange) bool { return c.Route.Link == name })
	return p
}
