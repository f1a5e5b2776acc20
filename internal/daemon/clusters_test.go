// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

// In the village all nodes have links to west, and clients are link nodes of east: one that was never
// heard here, one that was, one that was long ago, and one without a tunnel to this node.
func TestLinkedClusterStatus(t *testing.T) {
	tn := village(t)
	networks := []netip.Prefix{netip.MustParsePrefix("10.52.0.0/16"), netip.MustParsePrefix("10.53.0.0/16")}
	in := &tn.wanted.Input
	tn.view.Alive = make(map[mesh.ID]bool)
	for i := range in.Records {
		r := &in.Records[i]
		r.AllowedLocationIPs = networks
		for _, p := range networks {
			r.Linked = append(r.Linked, mesh.LinkedNetwork{Network: p, Cluster: "west"})
		}
		tn.view.Alive[r.ID()] = r.Name != "far" && r.ID() != in.Self // a node does not need gossip to know of itself
	}
	in.Records[1].Unserved = networks
	for i, heard := range []time.Duration{0, time.Second, netcfg.HandshakeFresh, 0} {
		c := mesh.Client{ID: mesh.ID{byte(i)}, Name: fmt.Sprintf("c%d", i), Key: wgtypes.Key{100, byte(i)}, Index: i, Author: in.Records[0].Identity, Cluster: "east", Networks: []netip.Prefix{netip.MustParsePrefix("10.61.0.0/16")}}
		in.Clients = append(in.Clients, c)
		p := netcfg.Peer{Key: c.Key}
		if heard > 0 {
			p.LastHandshake = tn.now.Add(-heard)
		}
		if i < 3 {
			tn.observed.Peers = append(tn.observed.Peers, p)
		}
	}
	tn.wanted.Topology = mesh.Derive(*in)
	var got []string
	for _, c := range linkedClusterStatus(indexOf(tn)) {
		for _, l := range c.Through {
			got = append(got, fmt.Sprintf("%s %v through %s, %s", c.Name, c.Networks, l.Name, l.State))
		}
	}
	want := []string{
		"east [10.61.0.0/16] through c0, not heard here",
		"east [10.61.0.0/16] through c1, connected",
		"east [10.61.0.0/16] through c2, not heard here",
		"east [10.61.0.0/16] through c3, not heard here",
		"west [10.52.0.0/16 10.53.0.0/16] through a1, serves",
		"west [10.52.0.0/16 10.53.0.0/16] through a2, lost",
		"west [10.52.0.0/16 10.53.0.0/16] through a3, stands by",
		"west [10.52.0.0/16 10.53.0.0/16] through far, dead",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("clusters (-want +got):\n%s", diff)
	}
	if got, err := json.Marshal(linkedClusterStatus(indexOf(village(t)))); err != nil || string(got) != "[]" {
		t.Errorf("without other clusters: got %s and %v, want []", got, err)
	}
}
