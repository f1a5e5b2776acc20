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

// Options are what Diff needs to know besides the two states.
type Options struct {
	// Now is the time of the observation, for the age of handshakes.
	Now time.Time
	// Prune allows to take things away. It is off until gossip has settled:
	// what isn't desired may only not be known yet.
	Prune bool
	// Renew names peers to remove and to add again in the same change, if they
	// have no session. WireGuard sends the first message of a handshake once in
	// five seconds (REKEY_TIMEOUT), and answers none that is older than the last
	// one; a new peer has none behind it.
	Renew map[wgtypes.Key]bool
}

// Diff returns what turns the observed state into the desired one. The observed
// peers, addresses, routes and so on must be ours: whatever is observed and not
// desired is removed if o.Prune is set, and left alone otherwise. The only thing
// removed in any case is a throwaway peer that an interrupted change has left.
//
// A desired state without a device, as the zero State is, asks for the removal
// of the device that is there.
func Diff(observed, desired State, o Options) Plan {
	var p Plan
	if d := cmp.Or(desired.Device, observed.Device); d != nil {
		p.link = d.Name
	}
	p.Device = diffDevice(observed.Device, desired.Device)
	if p.Device != nil && p.Device.Create {
		observed = observed.without(desired.Device.Name)
	}
	p.VXLAN = diffVXLAN(observed.VXLAN, desired.VXLAN)
	if p.VXLAN != nil && p.VXLAN.Create {
		observed = observed.withoutVXLAN(desired.VXLAN.Name)
	}
	p.Backstops = missing(observed.Backstops, desired.Backstops)
	if o.Prune {
		p.StaleBackstops = missing(desired.Backstops, observed.Backstops)
	}
	p.Sysctls = missing(observed.Sysctls, desired.Sysctls)
	p.Accepts = diffAccepts(observed.Filters, desired.Accepts, o.Prune)
	if !observed.Firewall.equal(desired.Firewall) {
		switch {
		case !desired.Firewall.empty():
			p.Firewall, p.OwnPorts = &desired.Firewall, desired.OwnPorts
		case o.Prune:
			p.StaleFirewall = true
		}
	}
	p.diffRoutes(observed.Routes, desired)
	if o.Prune {
		p.StaleRoutes = staleRoutes(observed.Routes, desired.Routes)
	}
	p.diffVXLANEntries(observed, desired, o.Prune)
	if desired.Device == nil {
		if o.Prune && observed.Device != nil {
			p.StaleDevice = observed.Device.Name
		}
		return p // peers and addresses exist on a device only
	}
	p.Addresses = missing(observed.Addresses, desired.Addresses)
	if o.Prune {
		p.StaleAddresses = missing(desired.Addresses, observed.Addresses)
	}
	p.Peers = diffPeers(observed.Peers, desired.Peers, o)
	return p
}

// missing returns the elements of want that have lacks.
func missing[T comparable](have, want []T) []T {
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

// without returns what remains of the state when the device goes, or if it has
// never been there: nothing that is on it, and no route that has one of its
// addresses as source.
func (s State) without(device string) State {
	own := s.Addresses
	s.Peers, s.Addresses = nil, nil
	s.Routes = slices.DeleteFunc(slices.Clone(s.Routes), func(r Route) bool {
		return r.Link == device || r.Source.IsValid() && slices.Contains(own, netip.PrefixFrom(r.Source, r.Source.BitLen()))
	})
	s.Sysctls = sysctlsWithout(s.Sysctls, device)
	return s
}

// sysctlsWithout returns the parameters that are not a link's.
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
		return &c
	}
	c.SetKey = observed.PublicKey != desired.PublicKey
	c.SetPort = observed.ListenPort != desired.ListenPort
	c.SetMTU = observed.MTU != desired.MTU
	c.SetUp = observed.Up != desired.Up
	if !c.SetKey && !c.SetPort && !c.SetMTU && !c.SetUp {
		return nil
	}
	return &c
}

// diffRoutes plans the routes to add or to change. The kernel may hold several
// routes to one destination, which differ in what a Route doesn't tell.
func (p *Plan) diffRoutes(observed []Route, desired State) {
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
	slices.SortStableFunc(p.Routes, func(a, b RouteChange) int {
		return cmp.Compare(a.Route.Via.BitLen(), b.Route.Via.BitLen())
	})
}

// staleRoutes returns the routes to delete: those that are neither desired nor
// replaced. A route to a desired destination by the same link and next hop is
// not among them, nor one without next hop by the same link, nor one without
// link: the kernel could not tell it from the desired one.
func staleRoutes(observed, desired []Route) []Route {
	type path struct {
		to   netip.Prefix
		link string
		via  netip.Addr
	}
	wanted := make(map[path]bool, 3*len(desired))
	for _, r := range desired {
		wanted[path{r.Destination, r.Link, r.Via}] = true
		wanted[path{r.Destination, r.Link, netip.Addr{}}] = true
		wanted[path{to: r.Destination}] = true
	}
	replaced := make(map[netip.Prefix]bool)
	for _, r := range missing(observed, desired) {
		replaced[r.Destination] = true
	}
	var out []Route
	for _, r := range observed {
		switch {
		case replaced[r.Destination]:
			replaced[r.Destination] = false // only the first, as in diffRoutes
		case !wanted[path{r.Destination, r.Link, r.Via}]:
			out = append(out, r)
		}
	}
	return out
}

// diffPeers returns the changes to peers: first what is added or moved, then
// what is taken away. An allowed IP that moves is only added at its new peer,
// and never absent; what is taken away has by then lost whatever moves.
func diffPeers(observed, desired []Peer, o Options) []PeerChange {
	have, want := byKey(observed), byKey(desired)
	wanted := make(map[netip.Prefix]bool) // by anyone
	for _, p := range desired {
		for _, ip := range p.AllowedIPs {
			wanted[ip] = true
		}
	}
	var out []PeerChange
	for _, p := range desired {
		old, ok := have[p.Key]
		if ok && o.Renew[p.Key] && !old.live(o.Now) {
			out = append(out, PeerChange{Key: p.Key, Name: p.Name, Remove: true})
			old, ok = Peer{}, false
		}
		if c := diffPeer(old, p, !ok, o.Now); !c.empty() {
			out = append(out, c)
		}
	}

	throwaway := throwaway()
	var dropped []netip.Prefix // by peers that stay, to nobody
	var removed []PeerChange
	for _, p := range observed {
		_, stays := want[p.Key]
		switch {
		case p.Key == throwaway: // below
		case !stays && o.Prune:
			removed = append(removed, PeerChange{Key: p.Key, Name: p.Name, Remove: true})
		case stays && o.Prune:
			for _, ip := range p.AllowedIPs {
				if !wanted[ip] {
					dropped = append(dropped, ip)
				}
			}
		}
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
func diffPeer(old, p Peer, add bool, now time.Time) PeerChange {
	c := PeerChange{Key: p.Key, Name: p.Name, Add: add, AllowedIPs: missing(old.AllowedIPs, p.AllowedIPs)}
	// While a session may be alive, the kernel has the endpoint from packets
	// that the peer has authenticated, and knows better than any record.
	if p.Endpoint.IsValid() && !old.live(now) && unmapPort(old.Endpoint) != unmapPort(p.Endpoint) {
		c.Endpoint = p.Endpoint
	}
	if old.PresharedKey != p.PresharedKey {
		c.PresharedKey = &p.PresharedKey
	}
	// Switching it on sends a packet at once, see the package comment;
	// switching it off sends none.
	if old.Keepalive != p.Keepalive && (!old.LastHandshake.IsZero() || p.Keepalive == 0) {
		c.Keepalive = &p.Keepalive
	}
	return c
}

// empty reports whether the change changes nothing.
func (pc PeerChange) empty() bool {
	return !pc.Add && !pc.Remove && !pc.Endpoint.IsValid() && pc.Keepalive == nil && pc.PresharedKey == nil && len(pc.AllowedIPs) == 0
}

func byKey(peers []Peer) map[wgtypes.Key]Peer {
	m := make(map[wgtypes.Key]Peer, len(peers))
	for _, p := range peers {
		m[p.Key] = p
	}
	return m
}

func (f Firewall) empty() bool { return len(f.Sets) == 0 && len(f.Chains) == 0 }

// equal compares tables by what the kernel keeps: of a rule, the hash.
func (f Firewall) equal(o Firewall) bool {
	return slices.EqualFunc(f.Sets, o.Sets, func(a, b Set) bool {
		return a.Name == b.Name && a.Type == b.Type && slices.Equal(a.Elements, b.Elements)
	}) && slices.EqualFunc(f.Chains, o.Chains, func(a, b Chain) bool {
		return a.Name == b.Name && a.Type == b.Type && a.Hook == b.Hook && a.Priority == b.Priority &&
			slices.EqualFunc(a.Rules, b.Rules, func(a, b Rule) bool { return a.Hash == b.Hash })
	})
}

func compareKeys(a, b wgtypes.Key) int { return slices.Compare(a[:], b[:]) }

// Compare orders routes by destination.
func (r Route) Compare(o Route) int {
	return cmp.Or(r.Destination.Compare(o.Destination), strings.Compare(r.Link, o.Link), r.Via.Compare(o.Via))
}

// live says whether the peer may have a session.
func (p Peer) live(now time.Time) bool {
	return !p.LastHandshake.IsZero() && now.Sub(p.LastHandshake) < HandshakeFresh
}
