// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"net/netip"
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
