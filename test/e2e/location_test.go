// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"testing"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/test/lab"
)

// nodePort is what kube-proxy makes of a Service of type NodePort: whoever asks
// for the port gets the backend, under an address of the node that was asked.
const nodePort = `
table ip kube {
	chain services {
		type nat hook prerouting priority dstnat
		tcp dport 30080 fib daddr type local meta mark set meta mark or 0x4000 dnat to %s
	}
	chain postrouting {
		type nat hook postrouting priority srcnat
		meta mark & 0x4000 == 0 return
		meta mark set meta mark xor 0x4000
		masquerade fully-random
	}
}
`

// TestNodePortAwayFromGateway has three nodes share a LAN, and a fourth one be
// elsewhere, with the same private range and the same address in it as one of the
// three. A pod there asks for a NodePort on a node that is no gateway. Its
// MASQUERADE picks the LAN's address, with which no answer would come back.
func TestNodePortAwayFromGateway(t *testing.T) {
	t.Parallel()
	same := []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24")}
	v := newVillage(t, func(m *testbed) []*lab.Host {
		return append(m.site("a", lab.SiteOptions{Underlay: lab.NAT, Subnets: same}, "a1", "a2", "a3"),
			m.site("far", lab.SiteOptions{Underlay: lab.NAT, Subnets: same}, "r")...)
	})
	for _, n := range v.nodes {
		v.configure(n, cluster(1, mesh.ModeLocation)...)
	}
	v.live()
	v.full(v.nodes...)

	remote := v.node("r")
	gateway := v.gateway(remote, "a")
	port := v.without(gateway, remote)[0]
	asked := v.overlay[port][0]
	for _, backend := range v.nodes {
		t.Run("backend on "+backend.Name, func(t *testing.T) {
			v := v.in(t)
			v.must(nft(v.ctx, port, fmt.Sprintf(nodePort, netip.AddrPortFrom(v.pods[backend].Addresses[0], 7000))))
			defer func() { v.must(nft(v.ctx, port, "delete table ip kube\n")) }()
			echo, err := lab.ListenEcho(v.pods[backend].Do, 7000)
			v.must(err)
			defer echo.Close()
			for name, from := range map[string]lab.Place{"pod": v.pods[remote].Do, "host": remote.Do} {
				ctx, cancel := context.WithTimeout(v.ctx, pingLimit)
				got, err := lab.SourceSeen(ctx, from, netip.AddrPortFrom(asked, 30080))
				cancel()
				switch {
				case err != nil:
					t.Errorf("%s: %v", name, err)
				case backend != port && got != asked:
					t.Errorf("%s: source seen: got %s, want the overlay address %s of the node that was asked", name, got, asked)
				}
			}
		})
	}
	v.hidden()
}
