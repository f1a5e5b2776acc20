// SPDX-License-Identifier: Apache-2.0

package mesh

import "fmt"

// reportNames reports nodes that share a name. The one with the stronger claim keeps it.
func (l *layout) reportNames() {
	first := make(map[string]*member, len(l.all))
	for _, n := range l.all {
		o, ok := first[n.Name]
		if !ok {
			first[n.Name] = n
			continue
		}
		if compareClaims(n.node, o.node) < 0 {
			n, o = o, n
			first[n.Name] = o
		}
		l.report(ProblemName, n.Name, fmt.Sprintf("two nodes are named %s: %v has the stronger claim, %v must change", n.Name, o.id, n.id),
			fmt.Sprintf("set another node.name on %v; or, if %v is that host before it was reinstalled, run: meshd forget %v", n.id, o.id, o.id))
	}
}

// reportSlots reports other nodes whose slot belongs to another node, or is beyond the
// cluster's ranges. NextClaim reports this node's own.
func (d *deriver) reportSlots() {
	for _, n := range d.all {
		if n == d.self || n.slot != None || n.Claim.Slot == None {
			continue
		}
		if n.Claim.Slot >= d.Cluster.Slots() {
			d.report(ProblemSlot, n.Name, fmt.Sprintf("node %s claims slot %d, and the cluster's ranges have room for %d: nothing is routed to its pods", n.Name, n.Claim.Slot, d.Cluster.Slots()),
				fmt.Sprintf("see meshd status on %s", n.Name))
			continue
		}
		if o := d.owners[n.Claim.Slot]; o != n.node {
			d.report(ProblemSlot, n.Name, fmt.Sprintf("nodes %s and %s both claim slot %d (%v); %s has the stronger claim", n.Name, o.Name, n.Claim.Slot, d.Cluster.PodCIDRs(n.Claim.Slot), o.Name),
				fmt.Sprintf("see meshd status on %s", n.Name))
		}
	}
}

// reportKeys reports nodes that have another node's WireGuard key. They get no tunnels.
func (l *layout) reportKeys() {
	for _, n := range l.all {
		if !n.keyConflict {
			continue
		}
		l.report(ProblemKey, n.Name, fmt.Sprintf("nodes %s and %s have the same WireGuard key", n.Name, l.keys[n.Key].Name),
			fmt.Sprintf("one is a copy of the other: on %s stop meshd, delete its state directory, start meshd", n.Name))
	}
}
