// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"cmp"
	"slices"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
)

// linkedClusterStatus returns the clusters that are joined to this one, and through whom.
func linkedClusterStatus(t index) []control.LinkedCluster {
	out := []control.LinkedCluster{}
	for _, c := range mesh.LinkedClusters(t.wanted.Input) {
		s := control.LinkedCluster{Name: c.Name, Networks: slices.Clone(c.Networks)}
		for _, id := range c.Nodes {
			s.Through = append(s.Through, control.ClusterLink{Name: t.nameOf(id), State: t.nodeLinkState(c, id)})
		}
		for _, o := range t.wanted.Topology.AllClients {
			if slices.Contains(c.Clients, o.ID) {
				s.Through = append(s.Through, control.ClusterLink{Name: o.Name, State: t.clientLinkState(o)})
			}
		}
		slices.SortStableFunc(s.Through, func(a, b control.ClusterLink) int { return cmp.Compare(a.Name, b.Name) })
		out = append(out, s)
	}
	return out
}

// nodeLinkState returns the state of a node's link to another cluster.
func (t index) nodeLinkState(c mesh.LinkedCluster, id mesh.ID) control.LinkState {
	r := t.records[id]
	hasWay := func(l mesh.LinkedNetwork) bool { return l.Cluster == c.Name && !slices.Contains(r.Unserved, l.Network) }
	switch {
	case id != t.wanted.Input.Self && !t.view.Alive[id]:
		return control.LinkDead
	case !slices.ContainsFunc(r.Linked, hasWay):
		return control.LinkLost
	case slices.Contains(c.Servers, id):
		return control.LinkServes
	}
	return control.LinkStandsBy
}

// clientLinkState returns the state of a client's tunnel to this node.
func (t index) clientLinkState(c mesh.Client) control.LinkState {
	for _, p := range t.observed.Peers {
		if p.Key == c.Key && p.MayHaveSession(t.now) {
			return control.LinkConnected
		}
	}
	return control.LinkNotHeardHere
}
