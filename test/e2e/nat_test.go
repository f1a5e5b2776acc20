// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/test/lab"
)

// newHomes has clouds with 1:1 NAT, a home of some hosts behind one address, and a
// host behind another home's router. Three of the places have the same private
// range, and the same addresses in it.
func newHomes(t *testing.T, mapping lab.Mapping, clouds []string, inside ...string) *village {
	t.Helper()
	same := []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24")}
	v := newVillage(t, func(m *testbed) []*lab.Host {
		all := m.site("aws", lab.SiteOptions{Underlay: lab.NAT, Subnets: same}, "aws-1")
		for _, name := range clouds {
			h, err := m.lab.Host(m.ctx, name, lab.NAT)
			m.must(err)
			all = append(all, h)
		}
		home := lab.SiteOptions{Underlay: lab.Home, Subnets: same, Router: lab.Router{Mapping: mapping}}
		all = append(all, m.site("home", home, inside...)...)
		return append(all, m.site("shed", home, "shed-1")...)
	})
	for _, n := range v.nodes {
		v.configure(n, cluster(1, mesh.ModeLocation)...)
	}
	v.live()
	v.full(v.nodes...)
	v.await(settleLimit, "aware of the NAT", func(s control.Status) bool { return s.Node.NAT }, append(v.members("home"), v.node("shed-1"))...)
	return v
}

// TestHomesAndClouds has homes whose routers translate the port of every socket, so nodes
// there can't be reached unless they send first. They reach each other whichever cloud
// fails.
func TestHomesAndClouds(t *testing.T) {
	t.Parallel()
	v := newHomes(t, lab.EndpointIndependent, []string{"gcp", "azure"}, "home-1", "home-2")
	v.homesMeet()
	cloud := v.node("gcp")
	v.must(cloud.Cut(v.ctx))
	v.full(v.without(cloud)...)
	v.must(cloud.Restore(v.ctx))
	v.settle(settleLimit, v.nodes...)
	v.full(v.nodes...)
	v.encrypted()
}

// TestHomesThatKeepPorts has homes whose routers keep source ports where they can, as
// most do, and drop unsolicited packets.
func TestHomesThatKeepPorts(t *testing.T) {
	t.Parallel()
	v := newHomes(t, lab.PortPreserving, nil, "home-1", "home-2")
	v.homesMeet()
}

// homesMeet waits until probes have found a path between the two homes, and exchanges
// packets between their pods.
func (v *village) homesMeet() {
	v.t.Helper()
	shed, gateway := v.node("shed-1"), v.gateway(v.nodes[0], "home")
	v.await(settleLimit, "on a path to the other home", func(s control.Status) bool {
		for _, p := range s.Peers {
			if p.Name == shed.Name {
				return p.Path.Proved && (p.Path.Kind == control.PathDirect || p.Path.Kind == control.PathRelayed)
			}
		}
		return false
	}, gateway)
	v.full(v.nodes...)
	v.must(lab.Transfer(v.ctx, v.pods[v.node("home-2")].Do, party(v.pods[shed]), transferSize))
	v.encrypted()
}

// TestDeletedDeviceFindsPeersBehindNAT deletes a device while a peer without an endpoint
// in its record is cut off. No packet shows where that peer is, so the node has to
// remember it.
func TestDeletedDeviceFindsPeersBehindNAT(t *testing.T) {
	t.Parallel()
	v := newHomes(t, lab.EndpointIndependent, nil, "home-1")
	cloud, hidden := v.node("aws-1"), v.node("home-1")
	key := strings.TrimSpace(v.run(hidden, "wg", "show", device, "public-key"))
	var was string
	for line := range strings.Lines(v.run(cloud, "wg", "show", device, "endpoints")) {
		if strings.HasPrefix(line, key) {
			was = line
		}
	}
	if was == "" || strings.Contains(was, "(none)") {
		t.Fatalf("endpoint of %s before: got %q", hidden.Name, was)
	}
	v.must(hidden.Cut(v.ctx))
	v.run(cloud, "ip", "link", "delete", device)
	v.eventually(settleLimit, func() error {
		out, err := cloud.Run(v.ctx, "wg", "show", device, "endpoints")
		if err == nil && !strings.Contains(out, was) {
			err = fmt.Errorf("endpoints: got %q, want %q among them", out, was)
		}
		return err
	})
	v.must(hidden.Restore(v.ctx))
	v.full(v.nodes...)
}
