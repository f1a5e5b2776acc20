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

// between returns through which node the gateway of a location and a node elsewhere
// reach each other: the node itself, if they have a tunnel. It returns an error while
// they don't agree.
func (v *village) between(location string, far *lab.Node) (*lab.Node, error) {
	gateway := v.gateway(v.nodes[0], location)
	there, back := v.carrier(gateway, v.overlay[far][0]), v.carrier(far, v.overlay[gateway][0])
	if there == far && back == gateway {
		return far, nil
	}
	if there == nil || there != back {
		return nil, fmt.Errorf("%s reaches %s through %s, and is reached through %s", gateway.Name, far.Name, nameOf(there), nameOf(back))
	}
	return there, nil
}

// TestHomesAndClouds has homes whose routers translate the port of every socket, so nodes
// there can't be reached unless they send first. They reach each other through a node
// that both reach.
func TestHomesAndClouds(t *testing.T) {
	t.Parallel()
	v := newHomes(t, lab.EndpointIndependent, []string{"gcp", "azure"}, "home-1", "home-2")
	relay := v.relayed()
	v.must(relay.Cut(v.ctx))
	rest := v.without(relay)
	v.full(rest...) // through another one
	v.must(relay.Restore(v.ctx))
	v.settle(settleLimit, v.nodes...)
	v.full(v.nodes...)
	v.encrypted()
}

// TestHomesThatKeepPorts has homes whose routers keep source ports where they can, as
// most do, and drop unsolicited packets. None of their addresses becomes an endpoint.
func TestHomesThatKeepPorts(t *testing.T) {
	t.Parallel()
	v := newHomes(t, lab.PortPreserving, nil, "home-1", "home-2")
	v.relayed()
	for _, n := range append(v.members("home"), v.node("shed-1")) {
		if got := v.status(n).Node.Endpoints; len(got) > 0 {
			t.Errorf("endpoints of %s: got %v, want none", n.Name, got)
		}
	}
}

// relayed waits until the two homes reach each other through a third node, exchanges
// packets between their pods, and returns that node.
func (v *village) relayed() (relay *lab.Node) {
	v.t.Helper()
	shed := v.node("shed-1")
	v.eventually(settleLimit, func() (err error) {
		relay, err = v.between("home", shed)
		if err == nil && (relay == shed || relay.Location() == "home") {
			err = fmt.Errorf("the home and %s reach each other through %s, want one of the clouds", shed.Name, relay.Name)
		}
		return err
	})
	v.full(v.nodes...)
	v.must(lab.Transfer(v.ctx, v.pods[v.node("home-2")].Do, party(v.pods[shed]), transferSize))
	v.encrypted()
	return relay
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
