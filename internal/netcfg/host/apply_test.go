// SPDX-License-Identifier: Apache-2.0

package host

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/netcfg/netcfgtest"
)

// TestConfigOf checks that a change of peers disturbs no other peer: it replaces no list,
// and creates only new peers.
func TestConfigOf(t *testing.T) {
	keepalive, preshared := 25*time.Second, mesh.PresharedKey{7}
	a, b := netcfgtest.Key(1).PublicKey(), netcfgtest.Key(2).PublicKey()
	got := configOf(
		netcfg.PeerChange{
			Key: a, Add: true, Keepalive: &keepalive, PresharedKey: &preshared,
			Endpoint: netip.MustParseAddrPort("192.0.2.7:51820"), AllowedIPs: netcfgtest.Prefixes("10.42.1.0/24", "fd00:4::2/128"),
		},
		netcfg.PeerChange{Key: b, AllowedIPs: netcfgtest.Prefixes("10.4.0.2/32")},
		netcfg.PeerChange{Key: b, Remove: true},
	)
	want := wgtypes.Config{Peers: []wgtypes.PeerConfig{
		{
			PublicKey: a, PersistentKeepaliveInterval: &keepalive, PresharedKey: (*wgtypes.Key)(&preshared),
			Endpoint: &net.UDPAddr{IP: net.IP{192, 0, 2, 7}, Port: 51820},
			AllowedIPs: []net.IPNet{
				{IP: net.IP{10, 42, 1, 0}, Mask: net.CIDRMask(24, 32)},
				{IP: net.ParseIP("fd00:4::2"), Mask: net.CIDRMask(128, 128)},
			},
		},
		{PublicKey: b, UpdateOnly: true, AllowedIPs: []net.IPNet{{IP: net.IP{10, 4, 0, 2}, Mask: net.CIDRMask(32, 32)}}},
		{PublicKey: b, UpdateOnly: true, Remove: true},
	}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("configuration (-want +got):\n%s", d)
	}
}
