// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// RangeOverlap is a network of this host that shares addresses with a range of the cluster.
// The host keeps its network, and what the mesh has there is not reached from it.
type RangeOverlap struct {
	Key     string       // of the configuration: cluster.overlay | cluster.pods | cluster.services
	Range   netip.Prefix // of the cluster
	Network AttachedNetwork
	Free    netip.Prefix // a range of the same length that would do here; invalid if none was found
}

// Text says what overlaps.
func (o RangeOverlap) Text() string {
	return fmt.Sprintf("%s %v overlaps %v", o.Key, o.Range, o.Network)
}

// Advice says what to do about it.
func (o RangeOverlap) Advice() string {
	advice := fmt.Sprintf("choose another range for %s, the same on all nodes", o.Key)
	if o.Free.IsValid() {
		advice += fmt.Sprintf(", such as %v, which is free on this host", o.Free)
	}
	return advice + "; or give that network other addresses"
}

// WithoutPods leaves out the links to containers in the cluster's pod ranges. Where another
// program than meshd gives pods their network, they lead to the pods of this host.
func (n Nearby) WithoutPods(c Cluster) Nearby {
	n.Attached = slices.DeleteFunc(slices.Clone(n.Attached), func(a AttachedNetwork) bool {
		within := func(r netip.Prefix) bool { return ContainsPrefix(r, a.Prefix) }
		return a.Containers && slices.ContainsFunc(c.Pods, within)
	})
	return n
}

// Overlaps returns the networks of this host that overlap the cluster's ranges. A route to a
// wider network behind a router does not count, see Wider.
func (n Nearby) Overlaps(c Cluster) []RangeOverlap {
	return n.overlaps(c, func(a AttachedNetwork, r netip.Prefix) bool { return !a.Routed || a.Prefix.Bits() >= r.Bits() })
}

// Wider returns the routes of this host to networks that contain a range of the cluster, such
// as one to all of 10.0.0.0/8. The routes of the mesh are more specific, and take nothing away
// that the host is attached to.
func (n Nearby) Wider(c Cluster) []RangeOverlap {
	return n.overlaps(c, func(a AttachedNetwork, r netip.Prefix) bool { return a.Routed && a.Prefix.Bits() < r.Bits() })
}

func (n Nearby) overlaps(c Cluster, counts func(AttachedNetwork, netip.Prefix) bool) []RangeOverlap {
	var out []RangeOverlap
	taken := slices.Concat(c.Overlay, c.Pods, c.Services)
	for _, r := range c.Ranges() {
		var free netip.Prefix
		for _, a := range n.Attached {
			if !a.Prefix.Overlaps(r.Range) || !counts(a, r.Range) {
				continue
			}
			if !free.IsValid() {
				free = n.freeRange(r.Range, taken)
				taken = append(taken, free)
			}
			out = append(out, RangeOverlap{Key: r.Key, Range: r.Range, Network: a, Free: free})
		}
	}
	return out
}

// KeyedRange is a range of the cluster with the key of the configuration that sets it.
type KeyedRange struct {
	Key   string
	Index int // in the key's list
	Range netip.Prefix
}

// Ranges returns all ranges whose addresses only the cluster assigns, in the order of the
// configuration.
func (c Cluster) Ranges() []KeyedRange {
	var out []KeyedRange
	add := func(key string, ranges []netip.Prefix) {
		for i, r := range ranges {
			out = append(out, KeyedRange{key, i, r})
		}
	}
	add("cluster.overlay", c.Overlay)
	add("cluster.pods", c.Pods)
	add("cluster.services", c.Services)
	return out
}

// rangesTried is how many ranges are tried for a suggestion.
const rangesTried = 1 << 12

// freeRange returns a private range of the length of r that overlaps no network of this host
// and none of the ranges in taken: the next one after r, else the first one of a pool.
func (n Nearby) freeRange(r netip.Prefix, taken []netip.Prefix) netip.Prefix {
	pools := []netip.Prefix{prefix4(10, 0, 0, 0, 8), prefix4(172, 16, 0, 0, 12), prefix4(192, 168, 0, 0, 16)}
	if r.Addr().Is6() {
		pools = []netip.Prefix{prefix6(0xfd00, 0, 8)}
	}
	free := func(p netip.Prefix) bool {
		overlaps := func(o netip.Prefix) bool { return o.Overlaps(p) }
		return CheckNetwork(p) == nil && !slices.ContainsFunc(taken, overlaps) &&
			!slices.ContainsFunc(n.Attached, func(a AttachedNetwork) bool { return overlaps(a.Prefix) })
	}
	for _, start := range append([]netip.Prefix{r}, pools...) {
		for i := range rangesTried {
			p := netip.PrefixFrom(addToAddr(start.Addr(), i, r.Addr().BitLen()-r.Bits()), r.Bits())
			inPool := slices.ContainsFunc(pools, func(pool netip.Prefix) bool { return ContainsPrefix(pool, p) })
			if !inPool {
				break
			}
			if free(p) {
				return p
			}
		}
	}
	return netip.Prefix{}
}

// kept returns the networks of this host in which the mesh gets no addresses.
func (n Nearby) kept(c Cluster) []netip.Prefix {
	var out []netip.Prefix
	for _, o := range n.Overlaps(c) {
		if o.Key != "cluster.services" { // kube-proxy translates single addresses, and routes nothing
			out = append(out, o.Network.Prefix)
		}
	}
	return mergePrefixes(out)
}

// leaveOut takes networks of this host out of a topology: nothing there is routed to other
// nodes, guarded, or an address of this node.
func (t *Topology) leaveOut(kept []netip.Prefix) {
	if len(kept) == 0 {
		return
	}
	addrs := func(as []netip.Addr) []netip.Addr {
		return slices.DeleteFunc(slices.Clone(as), func(a netip.Addr) bool { return contains(kept, a) })
	}
	prefixes := func(ps []netip.Prefix) []netip.Prefix {
		return slices.DeleteFunc(slices.Clone(ps), func(p netip.Prefix) bool { return overlapsAny(kept, p) })
	}
	t.Addresses, t.PodCIDRs = addrs(t.Addresses), prefixes(t.PodCIDRs)
	for i := range t.Peers {
		t.Peers[i].AllowedIPs = prefixes(t.Peers[i].AllowedIPs)
	}
	for i := range t.Neighbors {
		t.Neighbors[i].Prefixes, t.Neighbors[i].Overlay = prefixes(t.Neighbors[i].Prefixes), addrs(t.Neighbors[i].Overlay)
	}
	for i := range t.Clients {
		t.Clients[i].Addresses = addrs(t.Clients[i].Addresses)
	}
	for _, list := range []*[]netip.Prefix{&t.Inside, &t.Guarded, &t.PodsAndClients, &t.ClientRanges} {
		var rest []netip.Prefix
		for _, p := range *list {
			rest = append(rest, exclude(p.Masked(), kept)...)
		}
		*list = rest
	}
}

func overlapsAny(ps []netip.Prefix, p netip.Prefix) bool {
	return slices.ContainsFunc(ps, p.Overlaps)
}

// exclude returns what is left of a range without some networks, sorted.
func exclude(p netip.Prefix, networks []netip.Prefix) []netip.Prefix {
	switch {
	case !overlapsAny(networks, p):
		return []netip.Prefix{p}
	case slices.ContainsFunc(networks, func(n netip.Prefix) bool { return ContainsPrefix(n, p) }):
		return nil
	}
	bits := p.Bits() + 1
	lower := netip.PrefixFrom(p.Addr(), bits)
	upper := netip.PrefixFrom(addToAddr(p.Addr(), 1, p.Addr().BitLen()-bits), bits)
	return append(exclude(lower, networks), exclude(upper, networks)...)
}

// without returns prefixes that cover what an address of ps has left once those of others that
// are more specific have taken what is theirs: as in a table of routes, the longest wins.
func without(ps, others []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range ps {
		var within []netip.Prefix
		for _, o := range others {
			if o.Bits() > p.Bits() && p.Contains(o.Addr()) {
				within = append(within, o)
			}
		}
		out = append(out, exclude(p, within)...)
	}
	return out
}

// namesShown is how many nodes a problem names.
const namesShown = 5

// reportRanges reports networks of this host in the cluster's ranges, with the nodes that it
// can't reach there.
func (d *deriver) reportRanges() {
	for _, o := range d.nearby.Overlaps(d.Cluster) {
		text := o.Text() + ": the host keeps that network"
		var names []string
		for _, m := range d.all {
			if m.slot == None || o.Key == "cluster.services" || !overlapsAny(d.Cluster.slotNetworks(m.slot), o.Network.Prefix) {
				continue
			}
			if m == d.self {
				text += ", and this node has no addresses of the mesh there"
			} else {
				names = append(names, m.Name)
			}
		}
		if names != nil {
			text += ", and does not reach what these nodes have there: " + Some(names, namesShown)
		}
		d.report(ProblemRange, d.self.Name, text, o.Advice())
	}
}

// slotNetworks returns the overlay addresses and pod CIDRs of a slot.
func (c Cluster) slotNetworks(slot int) []netip.Prefix {
	return append(singles(c.Overlays(slot)), c.PodCIDRs(slot)...)
}

// Withheld returns the networks of other nodes that a node does not route to them because its
// host reaches them otherwise, the first MaxWithheld, and how many more there are. It tells them
// in its record. Those in the node's own private network are left out: the others see that
// network in the record.
func Withheld(c Cluster, own Record, records []Record, nearby Nearby) (first []netip.Prefix, more int) {
	var out []netip.Prefix
	kept := nearby.kept(c)
	for _, r := range records {
		if r.ID() == own.ID() {
			continue
		}
		if r.Location == "" || r.Location != own.Location {
			for _, p := range r.announced() {
				ours := slices.ContainsFunc(own.InternalIPs, func(ip netip.Prefix) bool { return ip.Overlaps(p) })
				if !ours && !(own.Shares(&r, p) && slices.Contains(own.networks(), p)) && nearby.conflict(p, &own, &r) != "" {
					out = append(out, p)
				}
			}
		}
		if slot := r.Claim.Slot; slot != None && slot < c.Slots() && len(kept) > 0 {
			for _, p := range c.slotNetworks(slot) {
				if overlapsAny(kept, p) {
					out = append(out, p)
				}
			}
		}
	}
	slices.SortFunc(out, ComparePrefix)
	out = slices.Compact(out)
	first = out[:min(len(out), MaxWithheld)]
	return first, len(out) - len(first)
}

// announced returns the networks of a node outside the cluster's ranges.
func (r *Record) announced() []netip.Prefix {
	var out []netip.Prefix
	for _, ip := range r.InternalIPs {
		out = append(out, single(ip.Addr()))
	}
	return append(out, r.networks()...)
}

// networks returns the networks behind a node.
func (r *Record) networks() []netip.Prefix {
	out := make([]netip.Prefix, len(r.AllowedLocationIPs))
	for i, p := range r.AllowedLocationIPs {
		out[i] = p.Masked()
	}
	return out
}

// reportWithheld reports which of this node's networks other nodes do not route to it. Of the
// networks that a node withholds and does not name, this node's can only be those that come
// after the last one named.
func (d *deriver) reportWithheld() {
	own := d.self.announced()
	if d.self.slot != None {
		own = append(own, d.Cluster.slotNetworks(d.self.slot)...)
	}
	for _, m := range d.all {
		if m == d.self {
			continue
		}
		var unsure []string
		for _, p := range own {
			if n := len(m.Withheld); m.WithheldMore > 0 && (n == 0 || ComparePrefix(m.Withheld[n-1], p) < 0) {
				unsure = append(unsure, p.String())
			}
		}
		if unsure != nil {
			d.report(ProblemAddress, m.Name, fmt.Sprintf("node %s does not reach %d more networks of other nodes through the mesh than it names; %s of this node may be among them", m.Name, m.WithheldMore, strings.Join(unsure, ", ")),
				fmt.Sprintf("meshd status on %s names all of them; give its host's networks other addresses", m.Name))
		}
		for _, p := range m.Withheld {
			if slices.Contains(own, p) {
				d.report(d.self.unreachable(p), m.Name, fmt.Sprintf("node %s does not reach %v of this node through the mesh: its host is attached to a network with these addresses, or has a route there", m.Name, p),
					fmt.Sprintf("meshd status on %s names that network; give one of the two other addresses", m.Name))
			}
		}
	}
}
