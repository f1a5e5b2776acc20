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
