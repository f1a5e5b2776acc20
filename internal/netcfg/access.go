// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/meshd/meshd/internal/mesh"
)

// The packets of a client, and those of another cluster, are checked once, on the node where the tunnel ends, before
// kube-proxy replaces the address of a Service by that of a pod. At this point the packet
// still has the destination that the client requested. A packet that passes may be
// forwarded to other nodes.

// limited are those whose packets into the mesh are limited, with the names of their sets.
type limited struct {
	tunnels []mesh.ClientTunnel
	all     string // the set of all of their addresses
	group   string // the beginning of the names of the sets of those with equal allowances
	from    string // how their packets arrive
}

// access builds the chain that limits clients, and other clusters, to the destinations they may
// reach, and its sets. It builds none on a node where no client's tunnel ends and that has no link.
func (b builder) access() (sets []Set, chain []Chain) {
	var rules []Rule
	for _, f := range families() {
		used := false
		for _, l := range []limited{
			{b.t.Clients, "clients", "access", fmt.Sprintf("iifname %q ", b.Interface)},
			// The guard has seen that they came by a link.
			{[]mesh.ClientTunnel{{Networks: b.t.Linked.Networks, Allowed: b.t.Linked.Allowed}}, "linked", "linkaccess", ""},
		} {
			more, limits := b.limit(f, l)
			sets, rules, used = append(sets, more...), append(rules, limits...), used || len(limits) > 0
		}
		if nodes := f.merged(b.t.Nodes); used && b.closesGossip(f) {
			sets = append(sets, f.set("nodes", nodes))
		}
	}
	if len(rules) == 0 {
		return nil, nil
	}
	return sets, []Chain{{Name: chainAccess, Type: "filter", Hook: "prerouting", Priority: priorityMangle, Rules: rules}}
}

// closesGossip reports whether there are ports of gossip to close.
func (b builder) closesGossip(f family) bool {
	return len(f.merged(b.t.Nodes)) > 0 && len(b.t.GossipPorts) > 0
}

// limit builds the rules that limit some to the destinations they may reach, and their sets.
func (b builder) limit(f family, l limited) (sets []Set, rules []Rule) {
	all := f.merged(addressesOf(l.tunnels))
	if len(all) == 0 {
		return nil, nil
	}
	if !b.has(l.all, f) {
		sets = append(sets, f.set(l.all, all))
	}
	from := fmt.Sprintf("%s%s saddr @", l.from, f.keyword)
	// Accept replies to connections opened from the other side.
	rules = append(rules, rule("%s%s%s ct direction reply accept", from, l.all, f.suffix))
	if b.closesGossip(f) {
		if l.all == "clients" {
			rules = append(rules, rule("%s%s%s %s daddr @nodes%s tcp dport %d accept", from, l.all, f.suffix, f.keyword, f.suffix, mesh.ClientPort))
		}
		rules = append(rules, rule("%s%s%s %s daddr @nodes%s meta l4proto { tcp, udp } th dport { %s } counter drop",
			from, l.all, f.suffix, f.keyword, f.suffix, ports(b.t.GossipPorts)))
	}
	groups := groupByAllowed(l.tunnels)
	rules = append(rules, accessToBridges(f, b.t, from, l, groups)...)
	for i, group := range groups {
		name := fmt.Sprintf("%s%d", l.group, i)
		sets = append(sets, f.set(name+"from", f.merged(addressesOf(group))))
		for _, a := range group[0].Allowed {
			if a.Internet && b.has("internet", f) {
				// What is sent to this host itself counts as sent to a node.
				rules = append(rules, rule("%s%sfrom%s %s daddr @internet%s fib daddr type != { local, broadcast, anycast, multicast }%s accept",
					from, name, f.suffix, f.keyword, f.suffix, matchService(a)))
			}
			to := f.merged(a.Destinations)
			if len(to) == 0 {
				continue
			}
			service := ""
			if a.Protocol != "" {
				service = fmt.Sprintf("%s%d", a.Protocol, a.Port)
			}
			set := f.set(name+service+"to", to)
			sets = append(sets, set)
			rules = append(rules, rule("%s%sfrom%s %s daddr @%s%s accept", from, name, f.suffix, f.keyword, set.Name, matchService(a)))
		}
	}
	return sets, append(rules, rule("%s%s%s counter drop", from, l.all, f.suffix))
}

// accessToBridges opens the addresses that nodes have in the pod ranges to those that
// may reach nodes, and closes them to all others.
func accessToBridges(f family, t mesh.Topology, from string, l limited, groups [][]mesh.ClientTunnel) []Rule {
	var rules []Rule
	for i, group := range groups {
		for _, a := range group[0].Allowed {
			if len(f.merged(a.Bridges)) == 0 {
				continue
			}
			for _, bridges := range f.bridgeAddresses(t, a.Bridges) {
				rules = append(rules, rule("%s%s%dfrom%s %s%s accept", from, l.group, i, f.suffix, bridges, matchService(a)))
			}
		}
	}
	for _, bridges := range f.bridgeAddresses(t, nil) {
		rules = append(rules, rule("%s%s%s %s counter drop", from, l.all, f.suffix, bridges))
	}
	return rules
}

// matchService matches the protocol and port of an allowance. It is empty if the
// allowance is for all of them.
func matchService(a mesh.Allowance) string {
	if a.Protocol == "" {
		return ""
	}
	return fmt.Sprintf(" %s dport %d", a.Protocol, a.Port)
}

func (f family) set(name string, elements []netip.Prefix) Set {
	return Set{Name: name + f.suffix, Type: f.setType, Elements: elements}
}

func ports(list []uint16) string {
	var out []string
	for _, p := range list {
		out = append(out, strconv.Itoa(int(p)))
	}
	return strings.Join(out, ", ")
}

// addressesOf returns the sources of packets from clients: their own addresses, and the networks
// behind them.
func addressesOf(clients []mesh.ClientTunnel) []netip.Prefix {
	var out []netip.Prefix
	for _, c := range clients {
		out = append(append(out, hostPrefixes(c.Addresses)...), c.Networks...)
	}
	return out
}

// groupByAllowed groups clients with equal allowances, in the order of the first client
// of each group.
func groupByAllowed(clients []mesh.ClientTunnel) [][]mesh.ClientTunnel {
	var groups [][]mesh.ClientTunnel
	place := make(map[string]int)
	for _, c := range clients {
		key := fmt.Sprint(c.Allowed)
		i, ok := place[key]
		if !ok {
			i, place[key] = len(groups), len(groups)
			groups = append(groups, nil)
		}
		groups[i] = append(groups[i], c)
	}
	return groups
}

// snatClients replaces the source of packets from clients to Services by the overlay
// address, whichever program translates the Service's address, and that of packets from one client
// to the network behind another one. The reply has to come back to this node. Otherwise the backend's node would send it to the node that is the
// client's home from there, which may be another one.
func (b builder) snatClients(f family) []Rule {
	own := f.first(hostPrefixes(b.t.Addresses))
	if !own.IsValid() {
		return nil
	}
	to := fmt.Sprintf("snat %s to %s", f.keyword, own.Addr())
	var out []Rule
	for _, set := range b.clientSets(f) {
		out = append(out, rule("%[1]s saddr @%[4]s%[2]s %[1]s daddr @inside%[2]s ct status dnat %[3]s", f.keyword, f.suffix, to, set))
		if b.has("clientnetworks", f) {
			out = append(out, rule("iifname %[5]q oifname %[5]q %[1]s saddr @%[4]s%[2]s %[1]s daddr @clientnetworks%[2]s %[3]s", f.keyword, f.suffix, to, set, b.Interface))
		}
	}
	return out
}

// offered builds the rules for what nodes and pods may reach in the networks behind clients whose
// tunnels end here: of a network of which only a part is offered, nothing else.
func (b builder) offered(f family) []Rule {
	var rules []Rule
	for _, c := range b.t.Clients {
		if len(c.Offers) == 0 {
			continue
		}
		for _, p := range f.merged(c.Networks) {
			to := fmt.Sprintf("oifname %q %s daddr %v ct direction original", b.Interface, f.keyword, p)
			for _, a := range c.Offers {
				for _, d := range f.merged(a.Destinations) {
					if p.Overlaps(d) {
						rules = append(rules, rule("%s %s daddr %v%s accept", to, f.keyword, d, matchService(a)))
					}
				}
			}
			rules = append(rules, rule("%s counter drop", to))
		}
	}
	return rules
}

// clientPeers returns the WireGuard peers of clients whose tunnels end on this node.
func (b builder) clientPeers(clients []mesh.ClientTunnel) []Peer {
	var out []Peer
	for _, c := range clients {
		out = append(out, Peer{Key: c.Key, Name: "client " + c.Name, Endpoint: b.clientEndpoint(c), PresharedKey: c.PresharedKey, AllowedIPs: normalize(addressesOf([]mesh.ClientTunnel{c}))})
	}
	return out
}

// clientEndpoint returns where a client was heard last, else where it waits for nodes.
func (b builder) clientEndpoint(c mesh.ClientTunnel) netip.AddrPort {
	if heard := b.outside(b.LearnedEndpoints[c.Key]); heard.IsValid() {
		return heard
	}
	return b.outside(c.Endpoint)
}
