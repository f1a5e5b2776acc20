// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/test/lab"
)

// nft applies foreign rules on a host.
func nft(ctx context.Context, n *lab.Node, rules string) error {
	path := "/run/rules.nft"
	if err := n.WriteFile(path, rules, 0o600); err != nil {
		return err
	}
	_, err := n.Run(ctx, "nft", "-f", path)
	return err
}

// TestEncapsulation changes the encapsulation of a running mesh. One location has two
// subnets, whose router has no routes to pods; another one has an IPv6 LAN, which can't
// carry the pods' IPv4 without encapsulation. Some LANs have a smaller MTU: packets that
// fit the smaller one pass.
func TestEncapsulation(t *testing.T) {
	t.Parallel()
	v := newVillage(t, func(m *testbed) []*lab.Host {
		a, err := m.lab.Site(m.ctx, "a", lab.SiteOptions{Underlay: lab.NAT, Subnets: []netip.Prefix{
			netip.MustParsePrefix("172.20.1.0/25"), netip.MustParsePrefix("172.20.1.128/25"),
		}})
		m.must(err)
		var all []*lab.Host
		for i, name := range []string{"a1", "a2", "a3"} {
			h, err := a.HostIn(m.ctx, i/2, name) // the third one is in the second subnet
			m.must(err)
			all = append(all, h)
		}
		return append(all, m.site("b", lab.SiteOptions{Underlay: lab.NAT, ULA: true}, "b1", "b2")...)
	})
	configure := func(v *village, generation int, encapsulation mesh.Encapsulation) {
		for _, n := range v.nodes {
			lines := []string{"cluster:", fmt.Sprintf("  generation: %d", generation), "  mode: location", "  encapsulation: " + string(encapsulation)}
			if n.Location() == "b" {
				lines = append([]string{fmt.Sprintf("  internal-ip: %s/64", n.ULA())}, lines...)
			}
			v.configure(n, lines...)
		}
	}
	for _, n := range v.nodes[2:] {
		v.must(n.SetMTU(v.ctx, smallFrames)) // the second subnet, and b
	}
	configure(v, 1, mesh.EncapsulationCrossSubnet)
	v.live()
	v.await(settleLimit, "aware of the smaller frames", func(s control.Status) bool {
		return s.Device.MTU == smallFrames-wireguardOverhead
	}, v.nodes[2:]...)
	a1, a2, a3, b1, b2 := v.nodes[0], v.nodes[1], v.nodes[2], v.nodes[3], v.nodes[4]

	for i, step := range []struct {
		encapsulation mesh.Encapsulation
		near          bool // in vxlan, like the others
	}{
		{mesh.EncapsulationCrossSubnet, false},
		{mesh.EncapsulationAlways, true},
	} {
		t.Run(string(step.encapsulation), func(t *testing.T) {
			v := v.in(t)
			if i > 0 {
				configure(v, i+1, step.encapsulation)
				v.must(a1.Reload())
				v.adopt(uint64(i + 1))
			}
			v.full(v.nodes...)
			for _, p := range []struct {
				from, to *lab.Node
				want     bool
			}{{a1, a2, step.near}, {a1, a3, true}, {a3, a2, true}, {b1, b2, true}} {
				v.eventually(settleLimit, func() error {
					out, err := p.from.Run(v.ctx, "ip", "-o", "route", "get", v.pods[p.to].Addresses[0].String())
					if got := !strings.Contains(out, "dev "+lab.HostLink+" "); err != nil || got != p.want {
						return fmt.Errorf("route from %s to the pod on %s: got %q, %v, want that it is in vxlan: %t", p.from.Name, p.to.Name, out, err, p.want)
					}
					return nil
				})
				v.fits(p.from, p.to)
			}
			v.fits(a3, b2)
			v.fits(a1, b2)
			v.encrypted()
		})
	}
	t.Run(string(mesh.EncapsulationNever), func(t *testing.T) {
		v := v.in(t)
		configure(v, 3, mesh.EncapsulationNever)
		v.must(a1.Reload())
		v.adopt(3)
		v.await(settleLimit, "aware that the other subnet can't be reached so", has(mesh.ProblemNeighbor, a3.Name, "encapsulation"), a1)
		v.await(settleLimit, "aware that the LAN has no IPv4", has(mesh.ProblemNeighbor, b2.Name, "encapsulation"), b1)
		v.full(a1, a2)
		v.fits(a1, a2)
		v.encrypted()
	})
}

// smallFrames is the MTU of the LANs with small frames.
const smallFrames = 1400

// fits checks that packets of the largest size that fits between the pods of two nodes
// arrive unfragmented, both ways, and in large numbers.
func (v *village) fits(a, b *lab.Node) {
	v.t.Helper()
	size := lab.UnderlayMTU - wireguardOverhead
	for _, n := range []*lab.Node{a, b} {
		s, err := n.Status(v.ctx)
		v.must(err)
		size = min(size, s.Device.MTU)
	}
	const headers = 20 + 8 // of IPv4 and of ICMP
	for _, way := range [][2]*lab.Node{{a, b}, {b, a}} {
		from, to := v.pods[way[0]], v.pods[way[1]]
		v.run(from, "ping", "-q", "-c", "1", "-w", "60", "-M", "do", "-s", strconv.Itoa(size-headers), to.Addresses[0].String())
		v.must(lab.Transfer(v.ctx, from.Do, party(to), transferSize))
	}
}

// TestAntiSpoofing has a LAN that drops packets whose addresses are not those of the
// sender and the receiver. Nodes reach each other there, but nothing can be routed. meshd
// must report this, with advice.
func TestAntiSpoofing(t *testing.T) {
	t.Parallel()
	v := newVillage(t, func(m *testbed) []*lab.Host {
		far, err := m.lab.Host(m.ctx, "far", lab.NAT)
		m.must(err)
		return append(m.site("a", lab.SiteOptions{Underlay: lab.NAT, AntiSpoofing: true}, "a1", "a2"), far)
	})
	configure := func(generation int, encapsulation mesh.Encapsulation) {
		for _, n := range v.nodes {
			v.configure(n, cluster(generation, mesh.ModeLocation, "  encapsulation: "+string(encapsulation))...)
		}
	}
	configure(1, mesh.EncapsulationNever)
	v.live()
	a1, a2 := v.nodes[0], v.nodes[1]
	v.run(a1, "ping", "-q", "-c", "1", "-w", "60", a2.Address().String())
	v.silent(a1, a2)
	v.await(settleLimit, "aware that the LAN drops pods' packets", has(mesh.ProblemNeighbor, a2.Name, "encapsulation: always"), a1)
	v.await(settleLimit, "aware that the LAN drops pods' packets", has(mesh.ProblemNeighbor, a1.Name, "encapsulation: always"), a2)

	configure(2, mesh.EncapsulationAlways)
	v.must(a1.Reload())
	v.adopt(2)
	v.full(v.nodes...)
	v.await(settleLimit, "content", fine(mesh.ProblemNeighbor), a1, a2)
	v.encrypted()
}
