// SPDX-License-Identifier: Apache-2.0

package control

import (
	"fmt"
	"net/netip"
	"slices"
)

// Owner is who has an address, as a node sees it.
type Owner struct {
	Address netip.Addr `json:"address"`
	Kind    OwnerKind  `json:"kind"`
	Name    string     `json:"name"` // of the node, the client or the other cluster; "" for none
	Text    string     `json:"text"` // the same for a person
}

// OwnerKind is what an address is.
type OwnerKind string

// What an address can be.
const (
	OwnerNode    OwnerKind = "node"    // an address of a node: its overlay or internal address, or one at which it is reached
	OwnerPod     OwnerKind = "pod"     // in a node's pod CIDR
	OwnerClient  OwnerKind = "client"  // a client's overlay address
	OwnerService OwnerKind = "service" // in the cluster's range of Services
	OwnerNetwork OwnerKind = "network" // behind a node
	OwnerRouter  OwnerKind = "router"  // behind a client
	OwnerCluster OwnerKind = "cluster" // in a range of another cluster
	OwnerUnused  OwnerKind = "unused"  // in a range of this cluster, and nobody has it
	OwnerOutside OwnerKind = "outside" // the mesh does not know it
)

// WhoIs returns who has an address.
func (s Status) WhoIs(a netip.Addr) Owner {
	a = a.Unmap()
	found := func(kind OwnerKind, name, format string, args ...any) Owner {
		return Owner{a, kind, name, fmt.Sprintf("%v is "+format+".", append([]any{a}, args...)...)}
	}
	for _, n := range s.holders() {
		switch {
		case slices.Contains(n.overlay, a):
			return found(OwnerNode, n.name, "the overlay address of the node %s", n.name)
		case slices.ContainsFunc(n.pods, func(p netip.Prefix) bool { return p.Contains(a) }):
			return found(OwnerPod, n.name, "of the pods of the node %s", n.name)
		case slices.Contains(n.internal, a):
			return found(OwnerNode, n.name, "an internal address of the node %s", n.name)
		}
	}
	for _, c := range s.Clients {
		if slices.Contains(c.Overlay, a) {
			return found(OwnerClient, c.Name, "the address of the client %s", c.Name)
		}
	}
	for _, p := range s.Cluster.Services {
		if p.Contains(a) {
			return found(OwnerService, "", "in the range of Services, %v: kubectl get services -A knows which one", p)
		}
	}
	if o, ok := s.networkOf(a); ok {
		return o
	}
	for _, n := range s.holders() {
		if slices.Contains(n.reached, a) {
			return found(OwnerNode, n.name, "an address at which the node %s is reached", n.name)
		}
	}
	for _, p := range slices.Concat(s.Cluster.Overlay, s.Cluster.Pods) {
		if p.Contains(a) {
			return found(OwnerUnused, "", "in %v of this cluster, and no node or client has it", p)
		}
	}
	return found(OwnerOutside, "", "not known to the mesh")
}

// holder is a node with its addresses.
type holder struct {
	name                       string
	overlay, internal, reached []netip.Addr
	pods                       []netip.Prefix
}

func (s Status) holders() []holder {
	self := holder{name: s.Node.Name, overlay: s.Node.Overlay, pods: s.Node.PodCIDRs}
	for _, i := range s.Node.InternalIPs {
		self.internal = append(self.internal, i.Address.Addr())
	}
	for _, e := range s.Node.Endpoints {
		if at, err := netip.ParseAddrPort(e); err == nil { // it may be a host name
			self.reached = append(self.reached, at.Addr())
		}
	}
	all := []holder{self}
	for _, p := range s.Peers {
		h := holder{name: p.Name, overlay: p.Overlay, pods: p.PodCIDRs, internal: p.InternalIPs}
		if p.LANAddress.IsValid() {
			h.internal = append(slices.Clone(h.internal), p.LANAddress)
		}
		for _, c := range p.Candidates {
			h.reached = append(h.reached, c.Addr())
		}
		if p.Path.Relay == "" && p.Endpoint.IsValid() {
			h.reached = append(h.reached, p.Endpoint.Addr())
		}
		all = append(all, h)
	}
	return all
}

// networkOf returns behind whom the smallest network is that has an address.
func (s Status) networkOf(a netip.Addr) (best Owner, ok bool) {
	bits := -1
	offer := func(networks []netip.Prefix, kind OwnerKind, name, what string) {
		for _, p := range networks {
			if p.Contains(a) && p.Bits() > bits {
				bits = p.Bits()
				best = Owner{a, kind, name, fmt.Sprintf("%v is in the network %v %s %s.", a, p, what, name)}
			}
		}
	}
	for _, c := range s.Clusters {
		offer(c.Networks, OwnerCluster, c.Name, "of the cluster")
	}
	for _, n := range s.Node.Networks {
		offer([]netip.Prefix{n.Network}, OwnerNetwork, n.Through, "behind the node")
	}
	for _, p := range s.Peers {
		offer(p.Networks, OwnerNetwork, p.Name, "behind the node")
	}
	for _, c := range s.Clients {
		if c.Cluster == "" {
			offer(c.Networks, OwnerRouter, c.Name, "behind the client")
		}
	}
	return best, bits >= 0
}
