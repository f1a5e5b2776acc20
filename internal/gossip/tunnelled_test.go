// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"net/netip"
	"testing"

	"github.com/meshd/meshd/internal/mesh"
)

// TestTunnelled has two nodes gossip at addresses inside the mesh and outside.
func TestTunnelled(t *testing.T) {
	t.Parallel()
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	for name, overlay := range map[string]netip.Prefix{"inside": loopback, "outside": testCluster().Overlay[0]} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			within := func(o *Options) { o.Cluster.Overlay = []netip.Prefix{overlay} }
			a := startNode(t, 0, within)
			b := startNode(t, 1, func(o *Options) { within(o); joining(a)(o) })
			eventually(t, "alive", []*testNode{a, b}, func(v mesh.View) bool { return len(v.Alive) == 2 })
			for _, pair := range [][2]*testNode{{a, b}, {b, a}} {
				sent, received := pair[0].Tunnelled(pair[1].self)
				if inside := overlay == loopback; sent > 0 != inside || received > 0 != inside {
					t.Errorf("sent %d and received %d bytes through a tunnel", sent, received)
				}
			}
		})
	}
}

func TestInTunnel(t *testing.T) {
	for _, tt := range []struct {
		to            string
		payload, want int
	}{
		{"10.4.0.1", 100, 32 + 128},
		{"::ffff:10.4.0.1", 101, 32 + 144},
		{"fd00:4::1", 96, 32 + 144},
	} {
		if got := inTunnel(tt.payload, netip.MustParseAddr(tt.to)); got != tt.want {
			t.Errorf("%d bytes to %s: got %d, want %d", tt.payload, tt.to, got, tt.want)
		}
	}
}
