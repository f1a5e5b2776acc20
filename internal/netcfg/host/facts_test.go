// SPDX-License-Identifier: Apache-2.0

package host

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/netcfg"
)

func TestChooseFacts(t *testing.T) {
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	tests := []struct {
		name string
		raw  rawFacts
		want netcfg.Facts
	}{
		{name: "nothing"},
		{
			name: "public address",
			raw: rawFacts{
				links:   []rawLink{{1, "lo", 65536}, {2, "eth0", 1500}},
				addrs:   []rawAddr{{1, prefix("127.0.0.1/8"), 0}, {2, prefix("203.0.113.7/24"), 0}, {2, prefix("fe80::1/64"), 0}},
				sources: []rawSource{{2, addr("203.0.113.7")}},
			},
			want: netcfg.Facts{
				Addresses: []netip.Addr{addr("203.0.113.7")},
				Uplinks:   []netcfg.Uplink{{Link: "eth0", Source: prefix("203.0.113.7/24"), MTU: 1500}},
				Attached:  []netcfg.LAN{{Link: "eth0", Address: prefix("203.0.113.7/24"), MTU: 1500}},
				MTU:       1500,
			},
		},
		{
			name: "private and shared address, one link each, lowest MTU",
			raw: rawFacts{
				links: []rawLink{{2, "eth0", 9001}, {3, "ppp0", 1492}},
				addrs: []rawAddr{
					{3, prefix("fd12::5/64"), 0}, {2, prefix("100.64.3.4/10"), 0}, {2, prefix("192.168.1.9/24"), unix.IFA_F_SECONDARY},
				},
				sources: []rawSource{{2, addr("100.64.3.4")}, {3, addr("fd12::5")}},
			},
			want: netcfg.Facts{
				Addresses:   []netip.Addr{addr("100.64.3.4"), addr("192.168.1.9"), addr("fd12::5")},
				Uplinks:     []netcfg.Uplink{{Link: "eth0", Source: prefix("100.64.3.4/10"), MTU: 9001}, {Link: "ppp0", Source: prefix("fd12::5/64"), MTU: 1492}},
				InternalIPs: []netip.Prefix{prefix("100.64.3.4/10"), prefix("fd12::5/64")},
				Attached: []netcfg.LAN{
					{Link: "eth0", Address: prefix("100.64.3.4/10"), MTU: 9001}, {Link: "eth0", Address: prefix("192.168.1.9/24"), MTU: 9001}, {Link: "ppp0", Address: prefix("fd12::5/64"), MTU: 1492},
				},
				MTU: 1492,
			},
		},
		{
			name: "ours and containers'",
			raw: rawFacts{
				links: []rawLink{{1, "meshd0-vx", 1420}, {2, "meshd0", 1420}, {3, "pods", 1420}, {4, "docker0", 1500}, {5, "br-1f2e", 1500}, {6, "kube-ipvs0", 1500}, {7, "vethab", 1500}},
				addrs: []rawAddr{
					{1, prefix("10.4.0.1/32"), 0},
					{2, prefix("10.4.0.1/32"), 0},
					{3, prefix("10.42.0.1/24"), 0},
					{4, prefix("172.17.0.1/16"), 0},
					{5, prefix("172.18.0.1/16"), 0},
					{6, prefix("10.43.0.1/32"), 0},
					{7, prefix("203.0.113.9/32"), 0},
				},
				sources: []rawSource{{2, addr("10.4.0.1")}},
			},
			want: netcfg.Facts{Attached: []netcfg.LAN{
				{Link: "kube-ipvs0", Address: prefix("10.43.0.1/32"), MTU: 1500},
				{Link: "docker0", Address: prefix("172.17.0.1/16"), MTU: 1500},
				{Link: "br-1f2e", Address: prefix("172.18.0.1/16"), MTU: 1500},
				{Link: "vethab", Address: prefix("203.0.113.9/32"), MTU: 1500},
			}},
		},
		{
			name: "addresses that do not last",
			raw: rawFacts{
				links: []rawLink{{2, "eth0", 1500}},
				addrs: []rawAddr{
					{2, prefix("2001:db8::1/64"), unix.IFA_F_TENTATIVE},
					{2, prefix("2001:db8::2/64"), unix.IFA_F_DEPRECATED},
					{2, prefix("2001:db8::3/64"), unix.IFA_F_TEMPORARY},
					{2, prefix("2001:db8::4/64"), unix.IFA_F_DADFAILED},
					{2, prefix("2001:db8::5/64"), unix.IFA_F_PERMANENT},
					{2, prefix("2001:db8::5/128"), 0},
				},
			},
			want: netcfg.Facts{
				Addresses: []netip.Addr{addr("2001:db8::5")},
				Attached:  []netcfg.LAN{{Link: "eth0", Address: prefix("2001:db8::5/64"), MTU: 1500}, {Link: "eth0", Address: prefix("2001:db8::5/128"), MTU: 1500}},
			},
		},
		{
			name: "source on another link",
			raw: rawFacts{
				links:   []rawLink{{1, "lo", 65536}, {2, "eth0", 1500}},
				addrs:   []rawAddr{{1, prefix("10.0.0.1/32"), 0}},
				sources: []rawSource{{2, addr("10.0.0.1")}},
			},
			want: netcfg.Facts{
				Addresses:   []netip.Addr{addr("10.0.0.1")},
				Uplinks:     []netcfg.Uplink{{Link: "eth0", Source: prefix("10.0.0.1/32"), MTU: 1500}},
				InternalIPs: []netip.Prefix{prefix("10.0.0.1/32")},
				Attached:    []netcfg.LAN{{Link: "lo", Address: prefix("10.0.0.1/32"), MTU: 65536}},
				MTU:         1500,
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := chooseFacts(tt.raw, "meshd0", "pods")
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
				t.Errorf("facts (-want +got):\n%s", diff)
			}
		})
	}
}
