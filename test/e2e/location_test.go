// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/test/lab"
)

// nodePort returns the rules that kube-proxy makes for a Service of type NodePort:
// connections to the port go to the backend, from an address of the node.
const nodePort = `
table ip kube {
	chain services {
		type nat hook prerouting priority dstnat
		tcp dport 30080 fib daddr type local meta mark set meta mark or 0x4000 dnat to %s
	}
	chain postrouting {
		type nat hook postrouting priority srcnat
		meta mark & 0x4000 == 0 return
		meta mark set meta mark xor 0x4000
		masquerade fully-random
	}
}
`

// TestNodePortAwayFromGateway has three nodes on a LAN, and a fourth one elsewhere with
// the same private range and the same address as one of the three. A pod there connects to
// a NodePort on a node that is not a gateway. MASQUERADE picks that node's LAN address,
// to which no answer would return. Another subnet of the LAN has a host without meshd,
// which one of the three nodes names in allowed-location-ips.
func TestNodePortAwayFromGateway(t *testing.T) {
	t.Parallel()
	same := netip.MustParsePrefix("192.168.1.0/24")
	var printer *lab.Host
	v := newVillage(t, func(m *testbed) []*lab.Host {
		a, err := m.lab.Site(m.ctx, "a", lab.SiteOptions{Underlay: lab.NAT, Subnets: []netip.Prefix{same, netip.MustParsePrefix("172.30.1.0/24")}})
		m.must(err)
		var all []*lab.Host
		for _, name := range []string{"a1", "a2", "a3"} {
			h, err := a.Host(m.ctx, name)
			m.must(err)
			all = append(all, h)
		}
		printer, err = a.HostIn(m.ctx, 1, "printer")
		m.must(err)
		return append(all, m.site("far", lab.SiteOptions{Underlay: lab.NAT, Subnets: []netip.Prefix{same}}, "r")...)
	})
	for _, n := range v.nodes {
		v.configure(n, cluster(1, mesh.ModeLocation)...)
	}
	remote, port := v.node("r"), v.node("a3")
	v.configure(port, append([]string{"  gateway: never"}, cluster(1, mesh.ModeLocation)...)...)
	v.live()
	v.full(v.nodes...)
	asked := v.overlay[port][0]
	for _, backend := range v.nodes {
		t.Run("backend on "+backend.Name, func(t *testing.T) {
			v := v.in(t)
			v.must(nft(v.ctx, port, fmt.Sprintf(nodePort, netip.AddrPortFrom(v.pods[backend].Addresses[0], 7000))))
			defer func() { v.must(nft(v.ctx, port, "delete table ip kube\n")) }()
			echo, err := lab.ListenEcho(v.pods[backend].Do, 7000)
			v.must(err)
			defer echo.Close()
			for name, from := range map[string]lab.Place{"pod": v.pods[remote].Do, "host": remote.Do} {
				ctx, cancel := context.WithTimeout(v.ctx, pingLimit)
				got, err := lab.SourceSeen(ctx, from, netip.AddrPortFrom(asked, 30080))
				cancel()
				switch {
				case err != nil:
					t.Errorf("%s: %v", name, err)
				case backend != port && got != asked:
					t.Errorf("%s: source seen: got %s, want the overlay address %s of the node that was asked", name, got, asked)
				}
			}
		})
	}
	t.Run("network behind it", func(t *testing.T) { v.in(t).behind(port, remote, printer) })
	t.Run("what a person sees", func(t *testing.T) { v.in(t).seen(port, remote) })
	v.encrypted()
}

// behind configures a host without meshd as a network behind a node. The host and the pod
// elsewhere reach it through the gateway and that node, with the node's address as source,
// because it has no other route back.
func (v *village) behind(n, remote *lab.Node, bare *lab.Host) {
	v.t.Helper()
	lines := []string{"  gateway: never", fmt.Sprintf("  allowed-location-ips: [%s/32]", bare.Address())}
	v.configure(n, append(lines, cluster(1, mesh.ModeLocation)...)...)
	v.must(n.Reload())
	echo, err := lab.ListenEcho(bare.Do, 7000)
	v.must(err)
	defer echo.Close()
	for name, from := range map[string]lab.Place{"pod": v.pods[remote].Do, "host": remote.Do} {
		v.eventually(settleLimit, func() error {
			gateway := v.carrier(remote, bare.Address())
			if gateway == nil || gateway == n {
				return fmt.Errorf("%s reaches %s through %s, want a gateway", remote.Name, bare.Name, nameOf(gateway))
			}
			// A connection that began before the node knew keeps its source.
			if err := v.seenAs(n.Address(), from, netip.AddrPortFrom(bare.Address(), 7000)); err != nil {
				return fmt.Errorf("%s to %s behind %s: %w", name, bare.Name, n.Name, err)
			}
			return nil
		})
	}
}

// seen checks what the commands print about the gateway of n's location, there and
// elsewhere. On a slow machine another node may take over meanwhile.
func (v *village) seen(n, remote *lab.Node) {
	v.t.Helper()
	for _, look := range []func(n, gateway, remote *lab.Node) error{v.seenInStatus, v.seenInPlan, v.seenInGraph} {
		v.eventually(settleLimit, func() error { return look(n, v.gateway(remote, "a"), remote) })
	}
}

// answer runs a command and decodes the JSON that it prints.
func (v *village) answer(from *lab.Node, into any, args ...string) {
	v.t.Helper()
	v.must(json.Unmarshal([]byte(v.run(from, binary, args...)), into))
}

func (v *village) seenInStatus(n, gateway, remote *lab.Node) error {
	v.t.Helper()
	var s control.Status
	v.answer(n, &s, "status", "-o", "json", "--probe")
	if s.Node.Role != control.RoleNever {
		return fmt.Errorf("role of %s: got %q, want %q", n.Name, s.Node.Role, control.RoleNever)
	}
	for _, p := range s.Peers {
		role, via := control.RoleMember, []string{}
		switch p.Name {
		case gateway.Name:
			role = control.RoleGateway
		case remote.Name:
			role, via = "", []string{gateway.Name}
		}
		if p.Role != role || p.Route.Kind != mesh.RouteLAN || !slices.Equal(p.Route.Via, via) || p.Route.Health != control.RouteOK || p.Route.RTT == 0 {
			return fmt.Errorf("%s, seen by %s: got %q by %+v, want %q through %v, and its round trip", p.Name, n.Name, p.Role, p.Route, role, via)
		}
	}
	return nil
}

func (v *village) seenInPlan(_, gateway, remote *lab.Node) error {
	v.t.Helper()
	var p control.Plan
	v.answer(remote, &p, "plan", "--without", gateway.Name, "-o", "json")
	// The route to the node that takes over changes as well.
	if len(p.Routes) != 2 || !slices.ContainsFunc(p.Routes, func(s string) bool { return strings.HasSuffix(s, "tunnel, was tunnel via "+gateway.Name) }) || len(p.Changes) == 0 {
		return fmt.Errorf("plan of %s without %s: got %+v, want changes, and the paths to the others of a", remote.Name, gateway.Name, p)
	}
	if got := v.gateway(remote, "a"); got != gateway {
		return fmt.Errorf("the gateway of a after the plan: got %s, want %s still", got.Name, gateway.Name)
	}
	return nil
}

func (v *village) seenInGraph(_, gateway, remote *lab.Node) error {
	v.t.Helper()
	var g mesh.Graph
	v.answer(remote, &g, "graph", "-o", "json")
	marked := slices.IndexFunc(g.Nodes, func(n mesh.GraphNode) bool { return n.Gateway })
	if len(g.Nodes) != len(v.nodes) || len(g.Tunnels) != 1 || len(g.Links) != 2 || marked < 0 || g.Nodes[marked].Name != gateway.Name {
		return fmt.Errorf("graph: got %+v, want %d nodes, the gateway %s, one tunnel, two links on the LAN", g, len(v.nodes), gateway.Name)
	}
	return nil
}
