// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"testing"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/test/lab"
)

// TestHomesAndClouds has three clouds with 1:1 NAT, a home of two hosts behind one
// address, and a host behind another home's router. Three of the places have the
// same private range, and the same addresses in it. The homes reach each other
// through somebody whom both reach.
func TestHomesAndClouds(t *testing.T) {
	t.Parallel()
	same := []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24")}
	v := newVillage(t, func(m *testbed) []*lab.Host {
		all := m.site("aws", lab.SiteOptions{Underlay: lab.NAT, Subnets: same}, "aws-1")
		for _, name := range []string{"gcp", "azure"} {
			h, err := m.lab.Host(m.ctx, name, lab.NAT)
			m.must(err)
			all = append(all, h)
		}
		all = append(all, m.site("home", lab.SiteOptions{Underlay: lab.Home, Subnets: same}, "home-1", "home-2")...)
		return append(all, m.site("shed", lab.SiteOptions{Underlay: lab.Home, Subnets: same}, "shed-1")...)
	})
	for _, n := range v.nodes {
		v.configure(n, cluster(1, mesh.ModeLocation)...)
	}
	v.live()
	v.full(v.nodes...)

	for _, name := range []string{"home-1", "home-2", "shed-1"} {
		if s, err := v.node(name).Status(v.ctx); err != nil || !s.Node.NAT {
			t.Errorf("%s: got %+v, %v, want that it knows of the NAT", name, s.Node, err)
		}
	}
	home, shed := v.gateway(v.node("gcp"), "home"), v.node("shed-1")
	relay := v.carrier(home, v.overlay[shed][0])
	if relay == nil || relay == shed || relay.Location() == "home" {
		t.Errorf("%s reaches %s through %s, want one of the clouds", home.Name, shed.Name, nameOf(relay))
	}
	if back := v.carrier(shed, v.overlay[home][0]); back != relay {
		t.Errorf("%s reaches %s through %s, but %s is what the other one uses", shed.Name, home.Name, nameOf(back), nameOf(relay))
	}
	v.must(lab.Transfer(v.ctx, v.pods[v.node("home-2")].Do, party(v.pods[shed]), transferSize))
	v.hidden()
}
