// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Options are the inputs of Diff besides the two states.
type Options struct {
	// Now is the time of the observation. The age of handshakes is computed from it.
	Now time.Time
	// Prune allows removals. It is off until gossip has settled: until then, something
	// that is not desired may belong to a node that is not known yet.
	Prune bool
	// Renew lists peers to remove and add again in the same change, unless they have had a
	// handshake after that time. WireGuard sends a handshake initiation at most once in five
	// seconds (REKEY_TIMEOUT), and ignores initiations that are older than the last one. A new
	// peer has no such history.
	Renew map[wgtypes.Key]time.Time
	// CorrectEndpoints has the desired endpoint written to peers without a session, and not
	// only to those without an endpoint. Nodes find endpoints by probes instead.
	CorrectEndpoints bool
}

// Diff returns the plan that turns the observed state into the desired one. Everything in
// the observed state must belong to meshd: what is observed but not desired is removed if
// o.Prune is set, and kept otherwise. Only a throwaway peer left by an interrupted change
// is always removed.
//
// A desired state without a device, such as the zero State, asks for the removal of the
// observed device.
func Diff(observed, desired State, o Options) Plan {
	var p Plan
	if d := cmp.Or(desired.Device, observed.Device); d != nil {
		p.link = d.Name
	}
	p.Device = diffDevice(observed.Device, desired.Device)
	if p.Device != nil && p.Device.Create {
		observed = observed.withoutDevice(desired.Device.Name)
	}
	p.VXLAN = diffVXLAN(observed.VXLAN, desired.VXLAN)
	if p.VXLAN != nil && p.VXLAN.Create {
		observed = observed.withoutVXLAN(desired.VXLAN.Name)
	}
	p.Backstops = missing(observed.Backstops, desired.Backstops)
	p.Policies = missing(observed.Policies, desired.Policies)
	if o.Prune {
		p.StaleBackstops = missing(desired.Backstops, observed.Backstops)
		p.StalePolicies = missing(desired.Policies, observed.Policies)
	}
	p.Sysctls = missing(observed.Sysctls, desired.Sysctls)
	p.Accepts = diffAccepts(observed.Filters, desired.Accepts, o.Prune)
	p.diffFirewall(observed.Firewall, desired, o.Prune)
	p.diffRoutes(observed.Routes, desired, o.Prune)
	wanted := byKey(desired.Peers)
	if o.Prune {
		p.StaleRoutes = staleRoutes(observed.Routes, desired.Routes)
		p.Forgotten = forgotten(observed.Peers, desired, wanted, p.StaleRoutes)
	}
	p.diffVXLANEntries(observed, desired, o.Prune)
	if desired.Device == nil {
		if o.Prune && observed.Device != nil {
			p.StaleDevice = observed.Device.Name
		}
		return p // only a device has peers and addresses
	}
	p.Addresses = missing(observed.Addresses, desired.Addresses)
	if o.Prune {
		p.StaleAddresses = missing(desired.Addresses, observed.Addresses)
	}
	p.Peers = diffPeers(observed.Peers, desired.Peers, wanted, o)
	return p
}

// missing returns the elements of want that are not in have.
func missing[T comparable](have, want []T) []T {
	if slices.Equal(have, want) {
		return nil
	}
	held := make(map[T]bool, len(have))
	for _, h := range have {
		held[h] = true
	}
	var out []T
	for _, w := range want {
		if !held[w] {
			out = append(out, w)
		}
	}
	return out
}

// withoutDevice returns what remains of the state when the device is deleted or does not
// exist: it has nothing that is on the device, and no route whose source is an address of
// the device.
func (s State) withoutDevice(device string) State {
	own := s.Addresses
	s.Peers, s.Addresses = nil, nil
	s.Routes = slices.DeleteFunc(slices.Clone(s.Routes), func(r Route) bool {
		return r.Link == device || r.Source.IsValid() && slices.Contains(own, netip.PrefixFrom(r.Source, r.Source.BitLen()))
	})
	s.Sysctls = sysctlsWithout(s.Sysctls, device)
	return s
}

// sysctlsWithout returns the parameters that don't belong to the link.
func sysctlsWithout(sysctls []Sysctl, link string) []Sysctl {
	part := "." + strings.ReplaceAll(link, ".", "/") + "."
	return slices.DeleteFunc(slices.Clone(sysctls), func(c Sysctl) bool { return strings.Contains(c.Key, part) })
}

func diffDevice(observed, desired *Device) *DeviceChange {
	if desired == nil {
		return nil
	}
	c := DeviceChange{Device: *desired}
	if observed != nil && desired.Implementation != Auto && observed.Implementation != desired.Implementation {
		c.Replace = true
	}
	if observed == nil || c.Replace {
		c.Create, c.SetKey, c.SetPort, c.SetMTU, c.SetUp = true, true, true, true, true
		c.SetMark = desired.Mark != 0
		return &c
	}
	c.SetKey = observed.PublicKey != desired.PublicKey
	c.SetPort = observed.ListenPort != desired.ListenPort
	c.SetMTU = observed.MTU != desired.MTU
	c.SetUp = observed.Up != desired.Up
	c.SetMark = desired.Mark != 0 && observed.Mark != desired.Mark
	if !c.SetKey && !c.SetPort && !c.SetMTU && !c.SetUp && !c.SetMark {
		return nil
	}
	return &c
}

// diffRoutes plans which routes to add or change. The kernel may have several routes to
// one destination that differ in attributes which Route does not have. A route that leads
// elsewhere than the wider one by which its destination is reached now is stale, and is changed if
// nothing may be removed yet.
func (p *Plan) diffRoutes(observed []Route, desired State, prune bool) {
	first := make(map[netip.Prefix]*Route, len(observed))
	for i, o := range slices.Backward(observed) {
		first[o.Destination] = &observed[i]
	}
	for _, r := range missing(observed, desired.Routes) {
		c := RouteChange{Route: r, Old: first[r.Destination]}
		if c.Old != nil && c.Old.Link != r.Link && desired.Device != nil && r.Link == desired.Device.Name {
			p.MovedRoutes = append(p.MovedRoutes, c)
		} else {
			p.Routes = append(p.Routes, c)
		}
	}
	if !prune {
		for _, r := range desired.Covered {
			if old := first[r.Destination]; old != nil && *old != r {
				p.MovedRoutes = append(p.MovedRoutes, RouteChange{Route: r, Old: old})
			}
		}
	}
	slices.SortStableFunc(p.Routes, func(a, b RouteChange) int {
		return cmp.Compare(a.Route.Via.BitLen(), b.Route.Via.BitLen())
	})
}

// staleRoutes returns the routes to delete: those that are neither desired nor replaced.
// It keeps every route that a delete request to the kernel could not tell from a desired
// one: a route to a desired destination with the same link and next hop, or with the same
// link and no next hop, or with no link.
func staleRoutes(observed, desired []Route) []Route {
	type routeKey struct {
		to   netip.Prefix
		link string
		via  netip.Addr
	}
	wanted := make(map[routeKey]bool, 3*len(desired))
	for _, r := range desired {
		wanted[routeKey{r.Destination, r.Link, r.Via}] = true
		wanted[routeKey{r.Destination, r.Link, netip.Addr{}}] = true
		wanted[routeKey{to: r.Destination}] = true
	}
	replaced := make(map[netip.Prefix]bool)
	for _, r := range missing(observed, desired) {
		replaced[r.Destination] = true
	}
	var out []Route
	for _, r := range observed {
		switch {
		case replaced[r.Destination]:
			replaced[r.Destination] = false // only the first one is replaced, as in diffRoutes
		case !wanted[routeKey{r.Destination, r.Link, r.Via}]:
			out = append(out, r)
		}
	}
	return out
}

// forgotten returns the destinations that had a route or a peer and are reached in no way now.
func forgotten(observed []Peer, desired State, wanted peersByKey, stale []Route) []netip.Prefix {
	var left []netip.Prefix
	for _, r := range stale {
		left = append(left, r.Destination)
	}
	for _, p := range observed {
		want, _ := wanted.get(p.Key)
		left = append(left, missing(want.AllowedIPs, p.AllowedIPs)...)
	}
	if len(left) == 0 {
		return nil
	}
	reached := allowedIPs(desired.Peers)
	for _, r := range slices.Concat(desired.Routes, desired.Covered) {
		reached[r.Destination] = true
	}
	return normalize(slices.DeleteFunc(left, func(p netip.Prefix) bool { return reached[p] }))
}

// diffPeers returns the changes to peers: additions and moves first, then removals. To
// move an allowed IP it is only added to its new peer, so that it is never absent.
// Removals come later, when the old peer no longer has what was moved.
func diffPeers(observed, desired []Peer, wanted peersByKey, o Options) []PeerChange {
	have := byKey(observed)
	var out []PeerChange
	for _, p := range desired {
		old, ok := have.get(p.Key)
		if after, renew := o.Renew[p.Key]; ok && renew && !old.LastHandshake.After(after) {
			out = append(out, PeerChange{Key: p.Key, Name: p.Name, Remove: true})
			if old.Endpoint.IsValid() && !o.CorrectEndpoints {
				p.Endpoint = old.Endpoint
			}
			old, ok = Peer{}, false
		}
		if c := diffPeer(old, p, !ok, o); !c.empty() {
			out = append(out, c)
		}
	}

	throwaway := throwaway()
	var dropped []netip.Prefix // removed from a peer that stays, and wanted by no other
	var removed []PeerChange
	for _, p := range observed {
		want, stays := wanted.get(p.Key)
		switch {
		case p.Key == throwaway: // handled below
		case !stays && o.Prune:
			removed = append(removed, PeerChange{Key: p.Key, Name: p.Name, Remove: true})
		case stays && o.Prune:
			dropped = append(dropped, missing(want.AllowedIPs, p.AllowedIPs)...)
		}
	}
	if len(dropped) > 0 {
		kept := allowedIPs(desired)
		dropped = slices.DeleteFunc(dropped, func(ip netip.Prefix) bool { return kept[ip] })
	}
	_, leftover := have[throwaway]
	if len(dropped) > 0 {
		slices.SortFunc(dropped, netip.Prefix.Compare)
		out = append(out, PeerChange{Key: throwaway, Add: true, AllowedIPs: dropped})
	}
	if len(dropped) > 0 || leftover {
		out = append(out, PeerChange{Key: throwaway, Remove: true})
	}
	return append(out, removed...)
}

// diffPeer returns the change to one desired peer.
func diffPeer(old, p Peer, add bool, o Options) PeerChange {
	c := PeerChange{Key: p.Key, Name: p.Name, Add: add, AllowedIPs: missing(old.AllowedIPs, p.AllowedIPs)}
	// During a session the kernel takes the endpoint from authenticated packets of the
	// peer, so it is more current than any record.
	correct := !old.Endpoint.IsValid() || o.CorrectEndpoints && !old.MayHaveSession(o.Now)
	if p.Endpoint.IsValid() && correct && unmapPort(old.Endpoint) != unmapPort(p.Endpoint) {
		c.Endpoint = p.Endpoint
	}
	if old.PresharedKey != p.PresharedKey {
		c.PresharedKey = &p.PresharedKey
	}
	// Turning a keepalive on sends a packet at once, see the package comment. Turning it
	// off sends none.
	if old.Keepalive != p.Keepalive && (add || !p.Guessed) && (!old.LastHandshake.IsZero() || p.Keepalive == 0) {
		c.Keepalive = &p.Keepalive
	}
	return c
}

// empty reports whether there is nothing to change.
func (pc PeerChange) empty() bool {
	return !pc.Add && !pc.Remove && !pc.Endpoint.IsValid() && pc.Keepalive == nil && pc.PresharedKey == nil && len(pc.AllowedIPs) == 0
}

type peersByKey map[wgtypes.Key]*Peer

func byKey(peers []Peer) peersByKey {
	m := make(peersByKey, len(peers))
	for i := range peers {
		m[peers[i].Key] = &peers[i]
	}
	return m
}

// get returns a peer, and whether it is there.
func (m peersByKey) get(key wgtypes.Key) (Peer, bool) {
	if p, ok := m[key]; ok {
		return *p, true
	}
	return Peer{}, false
}

// allowedIPs returns those of all peers.
func allowedIPs(peers []Peer) map[netip.Prefix]bool {
	all := make(map[netip.Prefix]bool)
	for _, p := range peers {
		for _, ip := range p.AllowedIPs {
			all[ip] = true
		}
	}
	return all
}

func (f Firewall) empty() bool { return len(f.Sets) == 0 && len(f.Chains) == 0 }

// diffFirewall replaces the table, or the elements of sets in it where that is enough.
func (p *Plan) diffFirewall(observed Firewall, desired State, prune bool) {
	want := desired.Firewall
	switch {
	case want.empty():
		p.StaleFirewall = prune && !observed.empty()
	case slices.EqualFunc(observed.Chains, want.Chains, Chain.equal) && slices.EqualFunc(observed.Sets, want.Sets, Set.alike):
		for i, s := range want.Sets {
			if !slices.Equal(s.Elements, observed.Sets[i].Elements) {
				p.Firewall, p.Sets = &want, append(p.Sets, s)
			}
		}
	default:
		p.Firewall = &want
		if !observed.reservesPortsLike(want) {
			p.OwnPorts = desired.OwnPorts
		}
	}
}

// alike reports whether two sets differ at most in their elements.
func (s Set) alike(o Set) bool { return s.Name == o.Name && s.Type == o.Type }

// equal compares chains by what the kernel keeps. Of a rule, that is the hash.
func (c Chain) equal(o Chain) bool {
	return c.Name == o.Name && c.Type == o.Type && c.Hook == o.Hook && c.Priority == o.Priority &&
		slices.EqualFunc(c.Rules, o.Rules, func(a, b Rule) bool { return a.Hash == b.Hash })
}

// reservesPortsLike reports whether two tables have the same chains that keep DNAT from our ports, see
// protectOwnPorts.
func (f Firewall) reservesPortsLike(o Firewall) bool {
	reserving := func(f Firewall) []Chain {
		return slices.DeleteFunc(slices.Clone(f.Chains), func(c Chain) bool { return c.Name != chainOwnPorts && c.Name != chainOwnPortsOut })
	}
	return slices.EqualFunc(reserving(f), reserving(o), Chain.equal)
}

func compareKeys(a, b wgtypes.Key) int { return slices.Compare(a[:], b[:]) }

// Compare orders routes by destination.
func (r Route) Compare(o Route) int {
	return cmp.Or(r.Destination.Compare(o.Destination), strings.Compare(r.Link, o.Link), r.Via.Compare(o.Via))
}

// MayHaveSession reports whether the peer may have a session that is still valid.
func (p Peer) MayHaveSession(now time.Time) bool {
	return !p.LastHandshake.IsZero() && now.Sub(p.LastHandshake) < HandshakeFresh
}
