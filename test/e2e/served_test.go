// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"testing"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/test/lab"
)

// served is a network behind a node, with a host without meshd in it that knows no way but into
// that network.
type served struct {
	name     string
	by       *lab.Node
	prefix   netip.Prefix
	own      netip.Addr // the node's address there
	host     netip.Addr
	hostOnly bool // the node is not attached to the network, and has a route to that host alone
}

// serve adds the network behind its node, and an echo server on its host.
func (v *village) serve(s served) {
	v.t.Helper()
	bits := s.prefix.Bits()
	if s.hostOnly {
		bits = s.host.BitLen()
	}
	v.card(s.by, s.name, s.name)
	commands := []string{
		fmt.Sprintf("ip address add %s/%d dev %s nodad", s.own, bits, s.name),
		fmt.Sprintf("ip -n %s address add %s/%d dev eth0 nodad", s.name, s.host, bits),
	}
	if s.hostOnly {
		commands = append(commands, fmt.Sprintf("ip route add %s dev %s", s.host, s.name), fmt.Sprintf("ip -n %s route add %s dev eth0", s.name, s.own))
	}
	v.commands(s.by, commands)
	inside := lab.Pod{Name: s.name, Host: s.by.Host}
	echo, err := lab.ListenEcho(inside.Do, 7000)
	v.must(err)
	v.t.Cleanup(func() { echo.Close() })
}

// card adds a link to a node, with the eth0 of a new network namespace at its other end.
func (m *testbed) card(n *lab.Node, link, netns string) {
	m.t.Helper()
	m.commands(n, []string{
		"mkdir -p /run/netns", "ip netns add " + netns,
		fmt.Sprintf("ip link add %s type veth peer name eth0 netns %s", link, netns), fmt.Sprintf("ip link set %s up", link),
		fmt.Sprintf("ip -n %s link set eth0 up", netns),
	})
}

// reached waits until the hosts and the pods of all nodes have reached each of the networks through
// its node.
func (v *village) reached(networks []served) {
	v.t.Helper()
	for _, n := range v.nodes {
		for name, from := range map[string]lab.Place{"host": n.Do, "pod": v.pods[n].Do} {
			for _, to := range networks {
				v.eventually(settleLimit, func() error {
					if err := v.seenAs(to.own, from, netip.AddrPortFrom(to.host, 7000)); err != nil {
						return fmt.Errorf("%s of %s to %v in %v: %w", name, n.Name, to.host, to.prefix, err)
					}
					return nil
				})
			}
		}
	}
}

// seenAs returns an error unless an echo server at an address answers within half a minute, and sees the
// given source.
func (v *village) seenAs(want netip.Addr, from lab.Place, at netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(v.ctx, pingLimit/6)
	defer cancel()
	got, err := lab.SourceSeen(ctx, from, at)
	if err == nil && got != want {
		err = fmt.Errorf("source seen: got %v, want %v", got, want)
	}
	return err
}

// TestNestedNetworks has a node serve hosts in the midst of networks that another node of its location
// serves. All nodes and pods reach all of them, in every mode, whichever node is the gateway.
func TestNestedNetworks(t *testing.T) {
	t.Parallel()
	v := newVillage(t, func(m *testbed) []*lab.Host {
		return append(m.site("a", lab.SiteOptions{Underlay: lab.NAT, ULA: true}, "a1", "a2", "a3"), m.site("far", lab.SiteOptions{Underlay: lab.NAT}, "r")...)
	})
	inner, wide := v.node("a1"), v.node("a3")
	networks := []served{
		{"inner4", inner, netip.MustParsePrefix("10.77.5.9/32"), netip.MustParseAddr("10.77.5.1"), netip.MustParseAddr("10.77.5.9"), true},
		{"wide4", wide, netip.MustParsePrefix("10.77.0.0/16"), netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("10.77.0.5"), false},
		{"inner6", inner, netip.MustParsePrefix("fd77:0:0:5::9/128"), netip.MustParseAddr("fd77:0:0:5::1"), netip.MustParseAddr("fd77:0:0:5::9"), true},
		{"wide6", wide, netip.MustParsePrefix("fd77::/48"), netip.MustParseAddr("fd77::1"), netip.MustParseAddr("fd77::5"), false},
	}
	configure := func(generation int, mode mesh.Mode, encapsulation mesh.Encapsulation, gateway string) {
		for _, n := range v.nodes {
			var lines []string
			if n.Name == gateway {
				lines = append(lines, "  gateway: prefer")
			}
			if n == inner {
				lines = append(lines, "  allowed-location-ips: [10.77.5.9/32, fd77:0:0:5::9/128]")
			}
			if n == wide {
				lines = append(lines, "  allowed-location-ips: [10.77.0.0/16, fd77::/48]")
			}
			v.configure(n, append(lines, cluster(generation, mode, "  encapsulation: "+string(encapsulation))...)...)
		}
	}
	configure(1, mesh.ModeFull, mesh.EncapsulationAlways, "")
	v.live()
	for _, s := range networks {
		v.serve(s)
	}
	v.reached(networks)
	for i, step := range []struct {
		mode          mesh.Mode
		encapsulation mesh.Encapsulation
		gateway       string
	}{
		{mesh.ModeCross, mesh.EncapsulationAlways, ""},
		{mesh.ModeLocation, mesh.EncapsulationAlways, inner.Name},
		{mesh.ModeLocation, mesh.EncapsulationAlways, wide.Name},
		{mesh.ModeLocation, mesh.EncapsulationAlways, "a2"},
		{mesh.ModeLocation, mesh.EncapsulationCrossSubnet, "a2"}, // without vxlan, since all are in one subnet
	} {
		t.Run(fmt.Sprintf("%d %s %s %s", i+2, step.mode, step.encapsulation, step.gateway), func(t *testing.T) {
			v := v.in(t)
			configure(i+2, step.mode, step.encapsulation, step.gateway)
			for _, n := range v.nodes {
				v.must(n.Reload())
			}
			v.adopt(uint64(i + 2))
			if step.gateway != "" {
				v.eventually(settleLimit, func() error {
					if got := v.gateway(v.node("r"), "a"); got == nil || got.Name != step.gateway {
						return fmt.Errorf("gateway: got %s, want %s", nameOf(got), step.gateway)
					}
					return nil
				})
			}
			v.full(v.nodes...)
			v.reached(networks)
			v.encrypted()
		})
	}
}
