// SPDX-License-Identifier: Apache-2.0

package check

import (
	"fmt"
	"slices"
	"strings"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/mesh"
)

// taken reports what this node would want and other nodes have, as the nodes of the join list say: its name,
// its slot, and the networks behind it.
func (f Facts) taken(cfg config.Config) []Finding {
	const what = "taken"
	var out []Finding
	add := func(advice, format string, args ...any) {
		finding := Finding{Error, what, fmt.Sprintf(format, args...), advice}
		if !slices.Contains(out, finding) { // each node of the join list knows it
			out = append(out, finding)
		}
	}
	for _, r := range f.Reach {
		for _, o := range r.Looked.Records {
			if o.ID() == f.State.Seen.ID {
				continue
			}
			who := fmt.Sprintf("node %s (%v)", o.Name, o.ID())
			if strings.EqualFold(o.Name, cfg.Node.Name) {
				add(fmt.Sprintf("set another node.name; if it is this host before it was installed anew, run on another node: meshd forget %v", o.ID()), "the name %s is that of %s", cfg.Node.Name, who)
			}
			if slot := cfg.StaticSlot(); slot != mesh.None && slot == o.Claim.Slot {
				add("choose another one, or leave node.pod-cidr out", "the pod CIDRs of node.pod-cidr, %v, are those of %s", cfg.Node.PodCIDR, who)
			}
			for _, p := range cfg.Node.AllowedLocationIPs {
				if slices.Contains(o.AllowedLocationIPs, p) && (o.Location == "" || o.Location != cfg.Node.Location) {
					add("name it on nodes of one location only: elsewhere it is another network, and nobody is sent to either", "%v of node.allowed-location-ips is behind %s, too", p, who)
				}
			}
		}
		for _, c := range r.Looked.Clients {
			if strings.EqualFold(c.Name, cfg.Node.Name) {
				add("set another node.name", "the name %s is that of a client", cfg.Node.Name)
			}
		}
	}
	return out
}
