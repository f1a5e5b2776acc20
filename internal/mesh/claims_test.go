// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"net/netip"
	"testing"
)

func TestHostileNetworksNobodyMayGiveAway(t *testing.T) {
	tests := []struct {
		network string
		ok      bool
	}{
		{"10.0.0.0/8", true},
		{"192.168.0.0/16", true},
		{"198.51.100.0/24", true},
		{"203.0.113.7/32", true},
		{"100.64.0.0/10", true},
		{"240.0.0.0/8", true},
		{"2001:db8::/32", true},
		{"64:ff9b::/96", true},
		{"fc00::/7", false}, // fd00:ec2::
		{"fd12::/16", true},
		{"0.0.0.0/0", false},
		{"0.0.0.0/1", false},
		{"128.0.0.0/1", false},
		{"128.0.0.0/3", false},
		{"16.0.0.0/4", false},
		{"0.0.0.0/32", false},
		{"127.0.0.53/32", false},
		{"126.0.0.0/7", false},
		{"169.254.169.254/32", false},
		{"169.254.0.0/16", false},
		{"168.0.0.0/7", false},
		{"168.63.0.0/16", false},
		{"224.0.0.251/32", false},
		{"239.0.0.0/8", false},
		{"255.255.255.255/32", false},
		{"::/0", false},
		{"2000::/3", false},
		{"8000::/1", false},
		{"::/128", false},
		{"::1/128", false},
		{"::7f00:1/128", false},
		{"::ffff:10.0.0.0/104", false},
		{"::ffff:0:0/96", false},
		{"fe80::1/128", false},
		{"fe00::/8", false},
		{"ff02::1/128", false},
		{"fd00:ec2::254/128", false},
	}
	for _, tt := range tests {
		p := netip.MustParsePrefix(tt.network)
		if err := CheckNetwork(p); (err == nil) != tt.ok {
			t.Errorf("%v: got %v, want ok %v", p, err, tt.ok)
		}
	}
	if CheckNetwork(netip.Prefix{}) == nil {
		t.Error("the zero prefix is accepted as a network")
	}
	for _, s := range []string{"127.0.0.1", "0.0.0.0", "fe80::1", "fe80::1%eth0", "fd12::1%x", "::ffff:127.0.0.1", "224.0.0.1", "255.255.255.255"} {
		if CheckHost(netip.MustParseAddr(s)) == nil {
			t.Errorf("%s is accepted as a host's address", s)
		}
	}
	for _, s := range []string{"10.0.0.5/0", "10.0.0.5/7", "169.254.1.1/16", "::ffff:10.0.0.5/120", "168.63.129.17/24"} {
		if CheckInternalIP(netip.MustParsePrefix(s)) == nil {
			t.Errorf("%s is accepted as an internal IP", s)
		}
	}
	for _, s := range []string{"10.0.0.5/8", "192.168.1.1/32", "fd12::1/64", "203.0.113.5/24"} {
		if err := CheckInternalIP(netip.MustParsePrefix(s)); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
}

func TestHostileEndpointsInsideTheMesh(t *testing.T) {
	of := func(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }
	c := Cluster{Overlay: of("10.4.0.0/16"), Pods: of("10.42.0.0/16"), Services: of("10.43.0.0/16")}
	for s, want := range map[string]bool{
		"203.0.113.1": true, "192.168.1.1": true, "10.4.0.1": false, "10.42.1.1": false, "10.43.0.10": false,
		"::ffff:10.4.0.1": false, "127.0.0.1": false, "169.254.169.254": false,
	} {
		if got := c.Outside(netip.MustParseAddr(s)); got != want {
			t.Errorf("%s: got %v, want %v", s, got, want)
		}
	}
}
