// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"net"
	"net/netip"
	"testing"
)

// TestDialStrange checks that nodes are tried from an address that was set, if it is of their family.
func TestDialStrange(t *testing.T) {
	p := &pathAgent{}
	for _, tt := range []struct{ strange, want string }{
		{"", "127.0.0.1"}, {"127.0.0.2", "127.0.0.2"}, {"::1", "127.0.0.1"},
	} {
		p.SetStrange(nil)
		if tt.strange != "" {
			p.SetStrange([]netip.Addr{netip.MustParseAddr(tt.strange)})
		}
		c, err := p.dial(netip.MustParseAddrPort("127.0.0.1:9"))
		if err != nil {
			t.Fatal(err)
		}
		if got := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr(); got != netip.MustParseAddr(tt.want) {
			t.Errorf("with %q: tries from %v, want %s", tt.strange, got, tt.want)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestLinksOfPaths checks what the agent is told of the links by which probes arrive: which ones are the
// mesh's, and which ones the private network's. One that is gone is neither.
func TestLinksOfPaths(t *testing.T) {
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	const gone = 1 << 30
	for _, tt := range []struct {
		inside, lan  string
		link         int
		isIn, isOnIt bool
	}{
		{"lo", "eth0", lo.Index, true, false},
		{"meshd0", "lo", lo.Index, false, true},
		{"", "", gone, false, false},
	} {
		p := &pathAgent{inside: []string{tt.inside}, names: map[int]string{}}
		p.SetLAN([]string{tt.lan})
		for range 2 { // the second time it is not looked up
			if isIn, isOnIt := p.isInside(tt.link), p.onLAN(tt.link); isIn != tt.isIn || isOnIt != tt.isOnIt {
				t.Errorf("link %d, mesh %q, LAN %q: got %t and %t, want %t and %t", tt.link, tt.inside, tt.lan, isIn, isOnIt, tt.isIn, tt.isOnIt)
			}
		}
	}
}
