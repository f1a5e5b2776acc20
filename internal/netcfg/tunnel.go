// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"fmt"
	"net/netip"
	"slices"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
)

// Tunnel is the configuration of a client's host: a device, peers, and routes to the
// allowed IPs of the peers.
type Tunnel struct {
	Interface  string
	PrivateKey wgtypes.Key `json:"-"`
	ListenPort int
	MTU        int
	Addresses  []netip.Addr
	Peers      []Peer
	// Internet means that the host reaches the internet through the tunnel only, in both
	// families, whether or not a peer has the default route now.
	Internet bool
	// Forwards means that the host is a router for others.
	Forwards bool
}

// Policy is a rule of policy routing that meshd owns (ip-rule(8)).
type Policy struct {
	IPv6     bool
	Priority int
	Table    int
	// NotMark means that packets with this mark are exempt; 0 for none.
	NotMark uint32
	// NoDefault means that default routes of the table are ignored.
	NoDefault bool
}

// Compare orders policies by priority, IPv4 first.
func (p Policy) Compare(o Policy) int {
	if p.Priority == o.Priority && p.IPv6 != o.IPv6 {
		if p.IPv6 {
			return 1
		}
		return -1
	}
	return p.Priority - o.Priority
}

// State returns the state that the tunnel asks for.
func (t Tunnel) State() State {
	s := Settings{Interface: t.Interface, Implementation: Auto, PrivateKey: t.PrivateKey, ListenPort: t.ListenPort, MTU: t.MTU}
	state := State{Device: s.device(), Addresses: hostPrefixes(t.Addresses)}
	for _, p := range t.Peers {
		p.AllowedIPs = normalize(p.AllowedIPs)
		state.Peers = append(state.Peers, p)
		for _, dst := range p.AllowedIPs {
			if source := sourceFor(dst.Addr(), t.Addresses); source.IsValid() {
				state.Routes = append(state.Routes, Route{Destination: dst, Link: t.Interface, Source: source})
			}
		}
	}
	slices.SortFunc(state.Peers, func(a, b Peer) int { return compareKeys(a.Key, b.Key) })
	slices.SortFunc(state.Routes, Route.Compare)
	if t.Internet {
		state.captureInternet(t)
	}
	if t.Forwards {
		state.Sysctls = append(state.Sysctls, forwardingOn(t.Interface))
	}
	return state
}

// captureInternet has all packets of the host that its other routes don't lead elsewhere go
// into the tunnel, as wg-quick(8) does it: default routes of the main table are ignored but
// for WireGuard's own packets, which have a mark. While no default route leads into the
// tunnel, as when the device or this program is gone, the backstop takes those packets.
func (s *State) captureInternet(t Tunnel) {
	s.Device.Mark = TunnelMark
	for _, priority := range []int{priorityOfOtherRoutes, priorityOfInternetRoutes} {
		for _, is6 := range []bool{false, true} {
			p := Policy{IPv6: is6, Priority: priority, Table: mainTable, NoDefault: true}
			if priority == priorityOfInternetRoutes {
				p = Policy{IPv6: is6, Priority: priority, Table: InternetTable, NotMark: TunnelMark}
			}
			s.Policies = append(s.Policies, p)
		}
	}
	s.Backstops = []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
	// Where rp_filter is strict, the kernel looks up the route to the source of WireGuard's
	// packets, and finds the tunnel unless they have the mark, too.
	s.Sysctls = []Sysctl{{"net.ipv4.conf.all.src_valid_mark", "1"}}
	marked := Chain{Name: chainMark, Type: "filter", Hook: "prerouting", Priority: priorityMangle, Rules: []Rule{
		rule("meta l4proto udp ct mark %d meta mark set ct mark", TunnelMark),
	}}
	// Nobody else on the network may speak to the host's address in the tunnel, and so find out
	// about its connections (CVE-2019-14899).
	for _, f := range families() {
		for _, a := range f.merged(s.Addresses) {
			marked.Rules = append(marked.Rules, rule("iifname != { \"lo\", %q } %s daddr %s counter drop", t.Interface, f.keyword, a))
		}
	}
	s.Firewall.Chains = []Chain{marked, {Name: chainMarkOut, Type: "filter", Hook: "postrouting", Priority: priorityMangle, Rules: []Rule{
		rule("meta l4proto udp meta mark %[1]d ct mark set %[1]d", TunnelMark),
	}}}
}

// TableOf returns the routing table that has the route to a destination.
func TableOf(destination netip.Prefix) int {
	if mesh.IsDefaultRoute(destination) {
		return InternetTable
	}
	return mainTable
}

// mainTable is the number of the kernel's main routing table (RT_TABLE_MAIN).
const mainTable = 254

// String returns the policy as a line in the style of ip-rule(8).
func (p Policy) String() string {
	family, text := "-4", fmt.Sprintf("priority %d", p.Priority)
	if p.IPv6 {
		family = "-6"
	}
	if p.NotMark != 0 {
		text += fmt.Sprintf(" not fwmark %d", p.NotMark)
	}
	text += fmt.Sprintf(" lookup %d", p.Table)
	if p.NoDefault {
		text += " suppress_prefixlength 0"
	}
	return "rule " + family + " " + text
}
