// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Two clusters are joined by link nodes of one of them. There these are nodes whose records name the
// ranges of the other cluster, see Record.Linked. In the other cluster they are clients that are routers,
// see Client.Cluster. In both clusters the other one is shown as one thing, however many link nodes there are.

// LinkedCluster is another cluster that is joined to this one.
type LinkedCluster struct {
	Name     string
	Networks []netip.Prefix // its ranges; sorted
	Nodes    []ID           // that have links to it; sorted
	Servers  []ID           // those of Nodes to which at least one of the networks is routed; sorted
	Clients  []ID           // that are link nodes of it; sorted
}

// LinkedClusters returns the other clusters that are joined to this one, by name. The result does not
// depend on which node's input it is.
func LinkedClusters(in Input) []LinkedCluster {
	isLinked := func(r Record) bool { return len(r.Linked) > 0 }
	isLinkNode := func(c Client) bool { return c.Cluster != "" }
	if !slices.ContainsFunc(in.Records, isLinked) && !slices.ContainsFunc(in.Clients, isLinkNode) {
		return nil // most clusters are joined to no other one, and a layout takes long
	}
	return newLayout(in).linkedClusters()
}

func (l *layout) linkedClusters() []LinkedCluster {
	found := make(map[string]*LinkedCluster)
	named := func(name string) *LinkedCluster {
		if found[name] == nil {
			found[name] = &LinkedCluster{Name: name}
		}
		return found[name]
	}
	for _, m := range l.all {
		for _, n := range m.Linked {
			c := named(n.Cluster)
			c.Networks = append(c.Networks, n.Network)
			c.Nodes = append(c.Nodes, m.id)
			if l.serves(m, n.Network) {
				c.Servers = append(c.Servers, m.id)
			}
		}
	}
	for _, o := range l.clients {
		if o.Cluster != "" {
			c := named(o.Cluster)
			c.Networks = append(c.Networks, o.Networks...)
			c.Clients = append(c.Clients, o.ID)
		}
	}
	out := make([]LinkedCluster, 0, len(found))
	for _, c := range found {
		slices.SortFunc(c.Networks, ComparePrefix)
		c.Networks = slices.Compact(c.Networks)
		for _, ids := range []*[]ID{&c.Nodes, &c.Servers, &c.Clients} {
			slices.SortFunc(*ids, ID.Compare)
			*ids = slices.Compact(*ids)
		}
		out = append(out, *c)
	}
	slices.SortFunc(out, func(a, b LinkedCluster) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// serves reports whether a network behind a node is routed to it.
func (l *layout) serves(m *member, network netip.Prefix) bool {
	i := slices.Index(m.networks(), network)
	if i < 0 || m.slot == None || m.keyConflict || l.whyReserved(network) != "" {
		return false
	}
	c := m.prefixOwners[len(m.InternalIPs)+i]
	return c.node == m && c.rival == nil
}

// checkLinkedCluster returns what is wrong with the cluster that a new client is a link node of, and with
// its ranges. Its name may be that of this cluster: most clusters keep the name that is the default.
func (c Cluster) checkLinkedCluster(o Client) error {
	if o.Cluster == "" {
		return nil
	}
	if err := CheckName(o.Cluster); err != nil {
		return fmt.Errorf("name of the other cluster: %w; give it the name of a host, such as west", err)
	}
	if len(o.Networks) == 0 {
		return fmt.Errorf("cluster %s is named without its ranges; name them with --networks: its cluster.overlay and cluster.pods, and cluster.services if Services are to be reached, too", o.Cluster)
	}
	return c.CheckOther(o.Cluster, o.Networks)
}

// CheckOther returns an error if ranges of another cluster are among those of this one.
func (c Cluster) CheckOther(name string, ranges []netip.Prefix) error {
	var overlaps []string
	for _, there := range ranges {
		for _, here := range c.Ranges() {
			if there.Overlaps(here.Range) {
				overlaps = append(overlaps, fmt.Sprintf("%v overlaps %s %v", there, here.Key, here.Range))
			}
		}
	}
	if overlaps == nil {
		return nil
	}
	return fmt.Errorf("of the cluster %s, %s of this one; clusters that are joined need different ranges: in the one that is easier to change, "+
		"on all of its nodes, choose another cluster.overlay, cluster.pods (k3s's --cluster-cidr must be the same) or cluster.services (k3s's --service-cidr)",
		name, strings.Join(overlaps, ", "))
}
