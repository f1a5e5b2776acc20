// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"net/netip"
	"slices"
	"testing"
)

func TestSpare(t *testing.T) {
	lan := func(link, address string) LAN { return LAN{Link: link, Address: netip.MustParsePrefix(address)} }
	f := Facts{
		Uplinks: []Uplink{{Link: "eth0", Source: netip.MustParsePrefix("198.51.100.1/24")}, {Link: "eth0", Source: netip.MustParsePrefix("2a01:db9::1/64")}},
	}
	for _, tt := range []struct {
		name     string
		attached []LAN
		want     []netip.Addr
	}{
		{"none", []LAN{lan("eth0", "198.51.100.1/24"), lan("eth0", "2a01:db9::1/64")}, nil},
		{"of one family", []LAN{lan("eth0", "198.51.100.1/24"), lan("eth0", "198.51.100.2/24"), lan("eth0", "198.51.100.3/24")}, []netip.Addr{netip.MustParseAddr("198.51.100.2")}},
		{"of both", []LAN{lan("eth0", "2a01:db9::2/64"), lan("eth0", "198.51.100.9/32")}, []netip.Addr{netip.MustParseAddr("198.51.100.9"), netip.MustParseAddr("2a01:db9::2")}},
		{"on another link", []LAN{lan("eth1", "198.51.100.2/24")}, nil},
		{"of another network, which may be routed otherwise", []LAN{lan("eth0", "203.0.113.1/24"), lan("eth0", "192.168.1.2/24")}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f.Attached = tt.attached
			if got := f.Spare(); !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}
