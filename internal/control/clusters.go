// SPDX-License-Identifier: Apache-2.0

package control

import "net/netip"

// LinkedCluster is another cluster that is joined to this one.
type LinkedCluster struct {
	Name     string         `json:"name"`
	Networks []netip.Prefix `json:"networks"` // its ranges; sorted
	Through  []ClusterLink  `json:"through"`  // sorted by name
}

// ClusterLink is a node that has a link to another cluster, or a client that is a link node of that.
type ClusterLink struct {
	Name  string    `json:"name"`
	State LinkState `json:"state"`
}

// LinkState is the state of a link to another cluster.
type LinkState string

// The states of links. The first four are those of nodes, which all nodes agree on. The others
// are those of clients, as this node hears them.
const (
	LinkServes       LinkState = "serves"         // a network of the cluster is routed to the node
	LinkStandsBy     LinkState = "stands by"      // another node serves
	LinkLost         LinkState = "lost"           // the node is alive and has lost its link, see mesh.Record.Unserved
	LinkDead         LinkState = "dead"           // the node is not alive, according to gossip
	LinkConnected    LinkState = "connected"      // the client has a session with this node
	LinkNotHeardHere LinkState = "not heard here" // it has none with this node; another node may hear it
)
