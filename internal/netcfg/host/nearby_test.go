// SPDX-License-Identifier: Apache-2.0

package host

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/mesh"
)

var compareNetip = cmp.Options{
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
}

func TestHostileNearby(t *testing.T) {
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	raw := rawFacts{
		links: []rawLink{{index: 1, name: "lo", mtu: 65536, flags: net.FlagLoopback}, {index: 2, name: "eth0", mtu: 1500, flags: net.FlagUp | net.FlagRunning}, {index: 3, name: "docker0", mtu: 1500, kind: "bridge", flags: net.FlagUp}, {index: 4, name: "meshd0", mtu: 1420, kind: "wireguard"}, {index: 5, name: "meshd0-vx", mtu: 1370, kind: "vxlan"}, {index: 6, name: "kube-bridge", mtu: 1420, kind: "bridge"}},
		addrs: []rawAddr{
			{1, prefix("127.0.0.1/8"), 0},
			{2, prefix("192.168.1.5/24"), 0},
			{2, prefix("fe80::1/64"), 0},
			{2, prefix("2001:db8:1::5/64"), 0},
			{3, prefix("172.17.0.1/16"), 0},
			{4, prefix("10.4.0.1/32"), 0},
			{6, prefix("10.42.0.1/24"), 0},
		},
		routes: []rawRoute{
			{links: []int{2}, to: prefix("0.0.0.0/0"), via: []netip.Addr{addr("192.168.1.1")}},
			{links: []int{2}, to: prefix("::/0"), via: []netip.Addr{addr("fe80::ff")}},
			{links: []int{2}, to: prefix("192.168.1.0/24")},
			{links: []int{2}, to: prefix("172.31.1.1/32")},
			{links: []int{2, 3}, to: prefix("10.99.0.0/16"), via: []netip.Addr{addr("192.168.1.2"), addr("192.168.1.3")}},
			{links: []int{4}, to: prefix("10.77.0.0/16"), via: []netip.Addr{addr("10.4.0.9")}},
			{links: []int{2}, to: prefix("0.0.0.0/0")}, // ppp
			{links: []int{2}, to: prefix("0.0.0.0/1")}, // a VPN for all traffic
			{links: []int{2}, to: prefix("128.0.0.0/1"), via: []netip.Addr{addr("192.168.1.1")}},
			{links: []int{2}, to: prefix("2000::/3")},
		},
	}
	want := mesh.Nearby{
		Attached: []mesh.AttachedNetwork{
			{Prefix: prefix("10.99.0.0/16"), Routed: true},
			{Prefix: prefix("172.17.0.0/16"), Link: "docker0", Containers: true, Down: true},
			{Prefix: prefix("172.31.1.1/32"), Link: "eth0", LAN: true},
			{Prefix: prefix("192.168.1.0/24"), Link: "eth0", LAN: true},
			{Prefix: prefix("2001:db8:1::/64"), Link: "eth0", LAN: true},
		},
		Routers: []netip.Addr{addr("192.168.1.1"), addr("192.168.1.2"), addr("192.168.1.3"), addr("fe80::ff")},
	}
	if diff := cmp.Diff(want, nearby(raw, newLinks(raw.links, "meshd0", "kube-bridge")), compareNetip); diff != "" {
		t.Errorf("nearby (-want +got):\n%s", diff)
	}
}

func TestResolvers(t *testing.T) {
	dir := t.TempDir()
	stub, behind := filepath.Join(dir, "stub"), filepath.Join(dir, "behind")
	for name, text := range map[string]string{
		stub:   "# stub\nnameserver 127.0.0.53\noptions edns0\nsearch example.com\n",
		behind: "nameserver 10.0.0.53\nnameserver fe80::1%eth0\n;nameserver 10.0.0.54\nnameserver\t2001:db8::53 # comment\nnameserver x\nnameserver",
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := []netip.Addr{netip.MustParseAddr("10.0.0.53"), netip.MustParseAddr("2001:db8::53")}
	if diff := cmp.Diff(want, resolvers([]string{stub, filepath.Join(dir, "missing"), behind}), compareNetip); diff != "" {
		t.Errorf("resolvers (-want +got):\n%s", diff)
	}
}
