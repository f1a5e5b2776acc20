// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"net/netip"
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/mesh"

	"github.com/meshd/meshd/internal/netcfg/netcfgtest"
)

func TestBridgeAddresses(t *testing.T) {
	top := mesh.Topology{PodRanges: []mesh.PodRange{
		{Range: netip.MustParsePrefix("10.42.0.0/16"), Bits: 22},
		{Range: netip.MustParsePrefix("10.99.0.0/24"), Bits: 30},
		{Range: netip.MustParsePrefix("fd00:42::/48"), Bits: 64},
	}}
	got := append(families()[0].bridgeAddresses(top, nil), families()[1].bridgeAddresses(top, nil)...)
	got = append(got, families()[0].bridgeAddresses(top, netcfgtest.Prefixes("10.99.0.1/32", "192.0.2.0/24"))...)
	want := []string{
		"ip daddr 10.42.0.0/16 ip daddr & 0.0.3.255 { 0.0.0.0, 0.0.0.1, 0.0.3.255 }",
		"ip daddr 10.99.0.0/24 ip daddr & 0.0.0.3 { 0.0.0.0, 0.0.0.1, 0.0.0.3 }",
		"ip6 daddr fd00:42::/48 ip6 daddr & ::ffff:ffff:ffff:ffff { ::, ::1 }",
		"ip daddr 10.99.0.1/32 ip daddr & 0.0.0.3 { 0.0.0.0, 0.0.0.1, 0.0.0.3 }",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("matches (-want +got):\n%s", d)
	}
}

// TestAcceptedFirst checks that what a chain accepts first no other rule of it would match.
func TestAcceptedFirst(t *testing.T) {
	for name, topology := range map[string]mesh.Topology{
		"IPv4": netcfgtest.IPv4(), "both families": netcfgtest.DualStack(), "gateway": netcfgtest.Gateway(), "member": netcfgtest.Member(),
		"clients": netcfgtest.WithClients(netcfgtest.IPv4()), "link": netcfgtest.WithLink(netcfgtest.IPv4()),
	} {
		s := settings()
		s.LANs = []LAN{{Link: "eth0", Address: netip.MustParsePrefix("192.168.10.1/24")}}
		b := newBuilder(topology, s)
		for _, c := range Desired(topology, s).Firewall.Chains {
			var needs string // in each rule after those that accept
			switch c.Name {
			case chainGuard:
				needs = `fib saddr \. iif oif missing`
			case chainExit:
				needs = regexp.QuoteMeta(b.leavesMesh())
			case chainForward:
				needs = `^udp dport (7947|\{ 7946, 51820 \}) |^tcp dport 7946 |^tcp flags & \(syn \| rst\) == syn `
			default:
				continue
			}
			last := -1
			for i, r := range c.Rules {
				if slices.Contains([]Rule{b.passGenuine(), b.passInside()}, r) || slices.Contains(b.passOrdinary(), r) {
					last = i
				}
			}
			if last < 0 {
				t.Errorf("%s: chain %s accepts nothing first", name, c.Name)
			}
			for _, r := range c.Rules[last+1:] {
				if !regexp.MustCompile(needs).MatchString(r.Text) {
					t.Errorf("%s: chain %s: a packet that is accepted first may match %q", name, c.Name, r.Text)
				}
			}
		}
	}
}
