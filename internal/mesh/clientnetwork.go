// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// MaxClientNetworks bounds the networks behind one client.
const MaxClientNetworks = 16

// A client may be a router with networks behind it. They are routed to it like its own address:
// each node has its home for clients, and each home has a tunnel to the router. Several clients may
// have the same network; each home then chooses one that answers, see package node.

// CheckClientNetworks returns what is wrong with the networks behind a new client, and with what it
// offers of them.
func CheckClientNetworks(in Input, c Client) error {
	if len(c.Networks) > MaxClientNetworks {
		return fmt.Errorf("%d networks behind one client, it may have %d", len(c.Networks), MaxClientNetworks)
	}
	if len(c.Networks) == 0 && (len(c.Offers) > 0 || c.Endpoint.Host != "") {
		return errors.New("without networks behind it a client speaks first and offers nothing; name its networks, or leave out its endpoint and what it offers")
	}
	if err := in.Cluster.checkLinkedCluster(c); err != nil || len(c.Networks) == 0 {
		return err
	}
	l := newLayout(in)
	owners := l.networkOwners()
	for i, p := range c.Networks {
		if err := CheckNetwork(p); err != nil {
			return fmt.Errorf("network %v: %w; name a smaller network", p, err)
		}
		if o := slices.IndexFunc(c.Networks[:i], p.Overlaps); o >= 0 {
			return fmt.Errorf("networks %v and %v overlap; name each address once", c.Networks[o], p)
		}
		if why := l.whyNotBehindClient(&c, p, owners); why != "" {
			return fmt.Errorf("network %v: %s; give one of the two other addresses", p, why)
		}
	}
	for _, a := range c.Offers {
		inside := func(p netip.Prefix) bool { return a.Target == "" && ContainsPrefix(p, a.Prefix) }
		if !slices.ContainsFunc(c.Networks, inside) {
			return fmt.Errorf("%v is not in a network behind the client; it can offer only what is there", a)
		}
	}
	return nil
}

// networkOwners returns which node has each internal IP, and each network behind nodes.
func (l *layout) networkOwners() map[netip.Prefix]*member {
	owners := make(map[netip.Prefix]*member, len(l.all))
	for _, m := range l.all {
		for _, p := range m.announced() {
			owners[p] = m
		}
	}
	return owners
}

// selectClientNetworks leaves those networks behind clients that can be routed to them, and reports
// the others.
func (l *layout) selectClientNetworks() {
	if !slices.ContainsFunc(l.clients, func(c *Client) bool { return len(c.Networks) > 0 }) {
		return
	}
	owners := l.networkOwners()
	for _, c := range l.clients {
		var counting []netip.Prefix
		for _, p := range c.Networks {
			why := l.whyNotBehindClient(c, p, owners)
			if why == "" {
				counting = append(counting, p)
				continue
			}
			l.report(ProblemClient, l.nameOf(IDOf(c.Author)), fmt.Sprintf("network %v behind client %s is not reachable through the mesh: %s", p, c.Name, why),
				fmt.Sprintf("give one of the two other addresses; or run: meshd client remove %v; then add it again with other networks", c.ID))
		}
		slices.SortFunc(counting, ComparePrefix)
		c.Networks = counting
	}
}

// whyNotBehindClient returns why no host can route a network to a client, "" if it can. A more
// specific network of a node is no reason, nor is a wider one.
func (l *layout) whyNotBehindClient(c *Client, p netip.Prefix, owners map[netip.Prefix]*member) string {
	switch m, why := owners[p], l.whyReserved(p); {
	case why != "":
		return why
	case m != nil:
		return fmt.Sprintf("node %s has it, too", m.Name)
	case l.containsEndpoint(p):
		return holdsEndpoints
	case slices.ContainsFunc(c.Endpoint.Addresses(l.Resolved), p.Contains):
		return "the client's own endpoint lies in it, and a tunnel can't run through itself"
	}
	return ""
}

// reachedClientNetworks returns the networks behind clients that this host reaches through the mesh,
// sorted. Those to which it has a way of its own are left out, and reported.
func (d *deriver) reachedClientNetworks() []netip.Prefix {
	if hop, own := d.clientNextHop(); hop == nil && !own {
		return nil
	}
	var ps []netip.Prefix
	for _, c := range d.clients {
		for _, p := range c.Networks {
			way := d.ownWay(&Record{}, p, d.self.group).network
			if way == "" {
				ps = append(ps, p)
				continue
			}
			d.report(ProblemAddress, d.self.Name, fmt.Sprintf("network %v behind client %s is not reachable from node %s: it overlaps %s", p, c.Name, d.self.Name, way),
				"give one of the two other addresses, or name smaller networks when you add the client")
		}
	}
	slices.SortFunc(ps, ComparePrefix)
	return slices.Compact(ps)
}

// clientEndpoint returns where a client waits for nodes, as far as this host can reach it.
func (d *deriver) clientEndpoint(c *Client) netip.AddrPort {
	for _, a := range c.Endpoint.Addresses(d.Resolved) {
		if a = a.Unmap(); d.hasFamily(a) && d.Cluster.Outside(a) {
			return netip.AddrPortFrom(a, c.Endpoint.Port)
		}
	}
	return netip.AddrPort{}
}

// networksBehindOthers returns the networks behind all clients but one, sorted.
func (l *layout) networksBehindOthers(than ID) []netip.Prefix {
	var ps []netip.Prefix
	for _, c := range l.clients {
		if c.ID != than {
			ps = append(ps, c.Networks...)
		}
	}
	return mergePrefixes(ps)
}
