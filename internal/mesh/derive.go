// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Input is all that Derive looks at. The order of its lists does not matter.
type Input struct {
	Cluster Cluster
	Self    ID
	Records []Record // valid ones, of all nodes, the own one among them
	// Verdicts on gateways and relays, valid ones; who is gateway follows from
	// these and the records alone.
	Verdicts []Verdict

	// Resolved has the addresses of those endpoint hosts that are names.
	Resolved map[string][]netip.Addr
	// Underlay has this host's own addresses outside the mesh. An endpoint of a
	// family that is not among them can't be reached; empty means not known.
	Underlay []netip.Addr
	// Keepalive is how often this node speaks to each peer, 0 for never.
	Keepalive time.Duration
}

// Derive works out what this node needs of WireGuard so that it can talk to
// every other node: one peer for each of them, with the prefixes that may come
// from it and go to it. Contradictions between records come back as problems,
// and every node that has the same records resolves them the same way.
func Derive(in Input) Topology {
	d := newDeriver(in)
	t := Topology{Guarded: d.guarded, Seat: None}
	if d.self == nil {
		return t
	}
	if slot := d.self.Claim.Slot; slot != None && slot < in.Cluster.Slots() {
		t.Addresses = in.Cluster.Overlays(slot)
		t.PodCIDRs = in.Cluster.PodCIDRs(slot)
	}
	d.reportNames()
	d.reportSlots()
	t.Peers = make([]Peer, 0, len(d.others))
	for _, n := range d.others {
		if !d.mayPeer(n) {
			continue
		}
		t.Peers = append(t.Peers, Peer{
			ID:         n.id,
			Name:       n.Name,
			Key:        n.Key,
			Endpoints:  d.endpoints[n.id],
			AllowedIPs: d.allowedIPs(n),
			Keepalive:  in.Keepalive,
			MTU:        min(n.MTU, d.self.MTU),
		})
	}
	t.Inside = MergePrefixes(append(d.routed, d.guarded...))
	t.Serves = sortedPrefixes(d.self.AllowedLocationIPs)
	slices.SortFunc(d.problems, Problem.Compare)
	t.Problems = slices.CompactFunc(d.problems, func(a, b Problem) bool { return a == b })
	return t
}

// deriver holds what the steps of one Derive share.
type deriver struct {
	Input
	self    *node // nil before this node has a record
	others  []*node
	owners  map[int]*node          // of slots
	keys    map[wgtypes.Key]*node  // owners of WireGuard keys
	claims  map[netip.Prefix]*node // owners of internal IPs and allowed-location-ips
	shared  map[netip.Prefix]bool  // internal IPs that several locations have
	guarded []netip.Prefix

	endpoints map[ID][]netip.AddrPort
	routed    []netip.Prefix // internal IPs and networks that tunnels lead to
	reached   []netip.Addr   // addresses of all endpoints, sorted
	reserved  []netip.Prefix // cluster ranges: overlay, pods and Services
	problems  []Problem
}

func newDeriver(in Input) *deriver {
	d := &deriver{Input: in, guarded: in.Cluster.guarded()}
	all := nodes(in.Records)
	d.owners = claimOwners(all)
	d.keys = make(map[wgtypes.Key]*node, len(all))
	for _, n := range all {
		if n.id == in.Self {
			d.self = n
		} else {
			d.others = append(d.others, n)
		}
		if o, ok := d.keys[n.Key]; !ok || before(n, o) < 0 {
			d.keys[n.Key] = n
		}
	}
	if d.self == nil {
		return d
	}
	d.claimPrefixes(all)
	d.endpoints = make(map[ID][]netip.AddrPort, len(d.others))
	for _, n := range d.others {
		d.endpoints[n.id] = d.endpointsOf(n)
		for _, e := range d.endpoints[n.id] {
			d.reached = append(d.reached, e.Addr())
		}
	}
	slices.SortFunc(d.reached, netip.Addr.Compare)
	d.reserved = slices.Concat(d.guarded, in.Cluster.Services)
	return d
}

// claimPrefixes decides whose each internal IP and each allowed-location-ip
// is. A network that several nodes of one location serve is the first claim's.
func (d *deriver) claimPrefixes(all []*node) {
	d.claims = make(map[netip.Prefix]*node, len(all))
	d.shared = make(map[netip.Prefix]bool)
	claim := func(p netip.Prefix, n *node) {
		o, ok := d.claims[p]
		if ok && o != n && (n.Location == "" || o.Location != n.Location) {
			d.shared[p] = true
		}
		if !ok || before(n, o) < 0 {
			d.claims[p] = n
		}
	}
	for _, n := range all {
		for _, ip := range n.InternalIPs {
			claim(single(ip.Addr()), n)
		}
		for _, p := range n.AllowedLocationIPs {
			claim(p.Masked(), n)
		}
	}
}

// mayPeer says whether n gets a tunnel: its WireGuard key must be its own.
func (d *deriver) mayPeer(n *node) bool {
	o := d.keys[n.Key]
	if o == n {
		return true
	}
	d.report(ProblemKey, n, fmt.Sprintf("nodes %s and %s have the same WireGuard key", n.Name, o.Name),
		fmt.Sprintf("one is a copy of the other: on %s stop meshd, delete its state directory, start meshd", n.Name))
	return false
}

// allowedIPs are the prefixes that travel through the tunnel to n: what
// follows from its slot, its internal IPs, and the networks behind it.
func (d *deriver) allowedIPs(n *node) []netip.Prefix {
	ps := make([]netip.Prefix, 0, len(d.guarded)+len(n.InternalIPs)+len(n.AllowedLocationIPs))
	if slot := n.Claim.Slot; slot != None && slot < d.Cluster.Slots() && d.owners[slot] == n && slot != d.self.Claim.Slot {
		for _, p := range d.Cluster.Overlay {
			ps = append(ps, single(overlayAt(p, slot)))
		}
		for i, p := range d.Cluster.Pods {
			ps = append(ps, podsAt(p, d.Cluster.PodPrefix[i], slot))
		}
	}
	own := len(ps)
	if d.sameLocation(n) {
		return sortedPrefixes(ps) // its LAN addresses are reached on the LAN
	}
	for _, ip := range n.InternalIPs {
		if p := single(ip.Addr()); !d.holdsEndpoint(p) && d.mayRoute(n, p, "internal IP") {
			ps = append(ps, p)
		}
	}
	for _, p := range n.AllowedLocationIPs {
		if d.mayRoute(n, p.Masked(), "allowed-location-ips") {
			ps = append(ps, p.Masked())
		}
	}
	d.routed = append(d.routed, ps[own:]...)
	slices.SortFunc(ps, ComparePrefix)
	return slices.Compact(ps)
}

// mayRoute says whether a prefix of n that is not of the cluster's ranges may
// be routed into the tunnel to n, and reports why not.
func (d *deriver) mayRoute(n *node, p netip.Prefix, what string) bool {
	refuse := func(why, advice string) bool {
		d.report(ProblemAddress, n, fmt.Sprintf("%s %v of node %s is not reachable through the mesh: %s", what, p, n.Name, why), advice)
		return false
	}
	for _, g := range d.reserved {
		if g.Overlaps(p) {
			return refuse(fmt.Sprintf("it overlaps the cluster's range %v", g), "choose cluster ranges that no host's network uses")
		}
	}
	if o := d.claims[p]; d.shared[p] {
		return refuse("nodes of several locations have it", "give one of the networks other addresses, or, if it is one network, give its nodes the same node.location")
	} else if o != n {
		return false // another node of n's location serves it
	}
	for _, own := range d.self.InternalIPs {
		if own.Masked().Overlaps(p) {
			return refuse(fmt.Sprintf("it overlaps node %s's own network %v", d.self.Name, own.Masked()),
				"if both are in one private network, give them the same node.location; else give one of the networks other addresses")
		}
	}
	if d.holdsEndpoint(p) {
		return refuse("endpoints of WireGuard peers lie in it, and a tunnel can't run through itself", "name a smaller network in node.allowed-location-ips")
	}
	return true
}

// holdsEndpoint says whether a peer's endpoint lies in the prefix.
func (d *deriver) holdsEndpoint(p netip.Prefix) bool {
	i, _ := slices.BinarySearchFunc(d.reached, p.Addr(), netip.Addr.Compare)
	return i < len(d.reached) && p.Contains(d.reached[i])
}

// endpointsOf lists where n's WireGuard socket may be reached from here, best
// first: over the LAN in the same location, then what its record says.
// Addresses inside the mesh are never endpoints.
func (d *deriver) endpointsOf(n *node) []netip.AddrPort {
	es := make([]netip.AddrPort, 0, len(n.Endpoints))
	add := func(a netip.Addr, port uint16) {
		a = a.Unmap()
		if !a.IsValid() || port == 0 || !d.hasFamily(a) || contains(d.guarded, a) {
			return
		}
		if e := netip.AddrPortFrom(a, port); !slices.Contains(es, e) {
			es = append(es, e)
		}
	}
	if d.sameLocation(n) {
		for _, ip := range n.InternalIPs {
			add(ip.Addr(), n.ListenPort)
		}
	}
	for _, e := range n.Endpoints {
		if a, err := netip.ParseAddr(e.Host); err == nil {
			add(a, e.Port)
			continue
		}
		for _, a := range d.Resolved[e.Host] {
			add(a, e.Port)
		}
	}
	return es
}

func (d *deriver) sameLocation(n *node) bool {
	return d.self.Location != "" && d.self.Location == n.Location
}

// hasFamily says whether this host has an address of a's family.
func (d *deriver) hasFamily(a netip.Addr) bool {
	return len(d.Underlay) == 0 || slices.ContainsFunc(d.Underlay, func(u netip.Addr) bool { return u.Is4() == a.Is4() })
}

// reportNames reports nodes that share a name. The older claim has it.
func (d *deriver) reportNames() {
	first := make(map[string]*node, len(d.others))
	for _, n := range append(slices.Clone(d.others), d.self) {
		o, ok := first[n.Name]
		if !ok {
			first[n.Name] = n
			continue
		}
		if before(n, o) < 0 {
			n, o = o, n
			first[n.Name] = o
		}
		d.report(ProblemName, n, fmt.Sprintf("two nodes are named %s: %v has the older claim, %v must change", n.Name, o.id, n.id),
			fmt.Sprintf("set another node.name on %v; or, if %v is that host before it was reinstalled, run: meshd forget %v", n.id, o.id, o.id))
	}
}

// reportSlots reports nodes whose slot is somebody else's.
func (d *deriver) reportSlots() {
	for _, n := range d.others {
		if o := d.owners[n.Claim.Slot]; n.Claim.Slot != None && o != n {
			d.report(ProblemSlot, n, fmt.Sprintf("nodes %s and %s both claim slot %d (%v); %s has the older claim", n.Name, o.Name, n.Claim.Slot, d.Cluster.PodCIDRs(n.Claim.Slot), o.Name),
				fmt.Sprintf("see meshd status on %s", n.Name))
		}
	}
}

func (d *deriver) report(kind ProblemKind, n *node, text, advice string) {
	d.problems = append(d.problems, Problem{Kind: kind, Node: n.Name, Text: text, Advice: advice})
}

// contains says whether one of the prefixes holds the address.
func contains(ps []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.Contains(a) })
}

// single is the prefix of one address.
func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func sortedPrefixes(ps []netip.Prefix) []netip.Prefix {
	ps = slices.Clone(ps)
	slices.SortFunc(ps, ComparePrefix)
	return slices.Compact(ps)
}

// MergePrefixes sorts prefixes and drops those that others contain.
func MergePrefixes(ps []netip.Prefix) []netip.Prefix {
	ps = sortedPrefixes(ps)
	var out []netip.Prefix
	for _, p := range ps {
		if len(out) == 0 || !out[len(out)-1].Contains(p.Addr()) {
			out = append(out, p)
		}
	}
	return out
}

// EndpointInput is what a node knows of the addresses under which its own
// WireGuard socket may be reached.
type EndpointInput struct {
	Cluster    Cluster
	Configured Endpoint      // Host "" for none
	Own        []netip.Addr  // the host's addresses outside the mesh
	Observed   []Observation // what other nodes see
	ListenPort uint16
	GossipPort uint16
}

// OwnEndpoints works out a node's endpoints, best first, and whether it sits
// behind NAT, which is when others see it under an address that it has not.
//
// A NAT that keeps the gossip port (a cloud's 1:1 NAT, a port forwarded as it
// is) keeps the WireGuard port too, so that address is an endpoint. One that
// changes the port has no address that a stranger could use: such a node has
// no endpoint, and speaks first.
func OwnEndpoints(in EndpointInput) (endpoints []Endpoint, nat bool) {
	votes := make(map[netip.Addr]int)
	for _, o := range in.Observed {
		a := o.Addr.Addr().Unmap()
		if contains(in.Cluster.guarded(), a) || a.IsLoopback() {
			continue // seen through the mesh, or by itself
		}
		own := slices.Contains(in.Own, a)
		nat = nat || !own
		if own || o.Addr.Port() == in.GossipPort {
			votes[a]++
		}
	}
	if in.Configured.Host != "" {
		return []Endpoint{in.Configured}, nat
	}
	var addrs []netip.Addr
	for a := range votes {
		addrs = append(addrs, a)
	}
	slices.SortFunc(addrs, func(a, b netip.Addr) int {
		if votes[a] != votes[b] {
			return votes[b] - votes[a]
		}
		return a.Compare(b)
	})
	for _, a := range in.Own {
		if votes[a] == 0 && !Private(a) {
			addrs = append(addrs, a)
		}
	}
	if slices.ContainsFunc(addrs, func(a netip.Addr) bool { return !Private(a) }) {
		addrs = slices.DeleteFunc(addrs, Private)
	}
	for _, a := range addrs[:min(len(addrs), MaxEndpoints)] {
		source := EndpointOwn
		if votes[a] > 0 {
			source = EndpointObserved
		}
		endpoints = append(endpoints, Endpoint{Host: a.String(), Port: in.ListenPort, Source: source})
	}
	return endpoints, nat
}

// Private says whether an address is used on private networks only: RFC 1918,
// unique local (RFC 4193), shared space (RFC 6598), link-local, loopback.
func Private(a netip.Addr) bool {
	// For carriers' NAT: public in form, private in use.
	shared := netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, 0, 0}), 10)
	return a.IsPrivate() || a.IsLinkLocalUnicast() || a.IsLoopback() || shared.Contains(a)
}

// FormatPrefixes prints prefixes for a person.
func FormatPrefixes(ps []netip.Prefix) string {
	s := make([]string, len(ps))
	for i, p := range ps {
		s[i] = p.String()
	}
	return strings.Join(s, ", ")
}
