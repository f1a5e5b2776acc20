// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"net/netip"
	"slices"
)

// Graph is the cluster as a graph: the same, but for the paths, on every node that has the
// same records and verdicts.
type Graph struct {
	Cluster string      `json:"cluster"`
	Mode    Mode        `json:"mode"`
	Nodes   []GraphNode `json:"nodes"` // by location, then name
	// Tunnels are the pairs of nodes that exchange WireGuard packets.
	Tunnels []GraphPair `json:"tunnels"`
	// Links are the connections over a location's LAN: from each node to its gateway, and
	// from gateways to the first one. In mode cross there are none, because all nodes of
	// a location are equal.
	Links []GraphPair `json:"links"`
	// Clients are those that count, by name.
	Clients []GraphClient `json:"clients"`
	// Clusters are those that are joined to this one, by name.
	Clusters []GraphCluster `json:"clusters"`
}

// GraphCluster is another cluster in the graph.
type GraphCluster struct {
	Name     string         `json:"name"`
	Networks []netip.Prefix `json:"networks"`
	Nodes    []ID           `json:"nodes"`   // that have links to it, in the order of Graph.Nodes
	Clients  []ID           `json:"clients"` // that are link nodes of it, sorted
}

// GraphClient is a client in the graph.
type GraphClient struct {
	ID      ID           `json:"id"`
	Name    string       `json:"name"`
	Overlay []netip.Addr `json:"overlay"`
	Homes   []ID         `json:"homes"` // the nodes to which it can have tunnels, in the order of Graph.Nodes
}

// GraphNode is a node in the graph.
type GraphNode struct {
	ID       ID             `json:"id"`
	Name     string         `json:"name"`
	Location string         `json:"location"`
	Gateway  bool           `json:"gateway"`
	Seat     int            `json:"seat"` // as a gateway, else None
	NAT      bool           `json:"nat"`
	Overlay  []netip.Addr   `json:"overlay"`
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
}

// GraphPair is a pair of nodes, in the order of Graph.Nodes.
type GraphPair struct {
	A ID `json:"a"`
	B ID `json:"b"`
	// Path is the kind of the path of a tunnel's packets: lan, direct, relayed, tcp or none. GraphOf
	// leaves it out; a node knows those of its own tunnels.
	Path string `json:"path,omitempty"`
}

// GraphOf returns the cluster's graph. It does not depend on which node's input it is.
func GraphOf(in Input) Graph {
	l := newLayout(in)
	g := Graph{Cluster: in.Cluster.Name, Mode: in.Cluster.Mode}
	all := slices.Clone(l.all)
	slices.SortFunc(all, func(a, b *member) int {
		return cmp.Or(cmp.Compare(a.Location, b.Location), cmp.Compare(a.Name, b.Name), a.id.Compare(b.id))
	})
	for _, m := range all {
		n := GraphNode{ID: m.id, Name: m.Name, Location: m.Location, Gateway: m.seat != None, Seat: m.seat, NAT: m.NAT}
		if m.slot != None {
			n.Overlay, n.PodCIDRs = in.Cluster.Overlays(m.slot), in.Cluster.PodCIDRs(m.slot)
		}
		g.Nodes = append(g.Nodes, n)
	}
	for i, x := range all {
		for _, y := range all[i+1:] {
			if l.haveTunnel(x, y) {
				g.Tunnels = append(g.Tunnels, GraphPair{A: x.id, B: y.id})
			}
		}
	}
	for _, m := range all {
		if h := l.lanPeer(m); h != m && l.link(m, h).families != noFamily {
			g.Links = append(g.Links, GraphPair{A: m.id, B: h.id})
		}
	}
	g.Clients = l.graphClients(all)
	g.Clusters = l.graphClusters(all)
	return g
}

// graphClusters returns the other clusters that are joined to this one.
func (l *layout) graphClusters(all []*member) []GraphCluster {
	clusters := []GraphCluster{}
	for _, c := range l.linkedClusters() {
		g := GraphCluster{Name: c.Name, Networks: append([]netip.Prefix{}, c.Networks...), Nodes: []ID{}, Clients: append([]ID{}, c.Clients...)}
		for _, m := range all {
			if slices.Contains(c.Nodes, m.id) {
				g.Nodes = append(g.Nodes, m.id)
			}
		}
		clusters = append(clusters, g)
	}
	return clusters
}

// graphClients returns the clients, each with all nodes that are homes.
func (l *layout) graphClients(all []*member) []GraphClient {
	var homes []ID
	for _, m := range all {
		if m.isHome() {
			homes = append(homes, m.id)
		}
	}
	clients := make([]GraphClient, 0, len(l.clients))
	for _, c := range l.clients {
		clients = append(clients, GraphClient{ID: c.ID, Name: c.Name, Overlay: l.Cluster.ClientAddresses(c.Index), Homes: homes})
	}
	slices.SortFunc(clients, func(a, b GraphClient) int { return cmp.Compare(a.Name, b.Name) })
	return clients
}

// lanPeer returns the node to which a link on the LAN is drawn from m, m itself if there
// is none.
func (l *layout) lanPeer(m *member) *member {
	if m.standalone || m.via != nil && !m.isTunnelEnd() {
		return cmp.Or(m.via, m)
	}
	sharing := l.sharing(m.group)
	for _, o := range sharing {
		if o.seat == 0 {
			return o
		}
	}
	return sharing[0]
}
