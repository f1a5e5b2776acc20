// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/netcfg/netcfgtest"
)

// TestPolicies sets up a client's tunnel to the internet. The kernel has what was asked for, routes
// what is not marked into the tunnel, and nowhere while the device is gone, and is as before
// in the end.
func TestPolicies(t *testing.T) {
	if !namespaced(t) {
		return
	}
	run(t, "ip link set lo up")
	run(t, "ip link add up0 type veth peer name up1")
	run(t, "ip link set up0 up")
	run(t, "ip link set up1 up")
	run(t, "ip addr add 192.0.2.9/24 dev up0")
	run(t, "ip addr add 2001:db8::9/64 dev up0 nodad")
	run(t, "ip route add default via 192.0.2.1")
	run(t, "ip route add default via 2001:db8::1")
	before := run(t, "ip rule") + run(t, "ip -6 rule")
	k := newKernel(t)
	want := netcfg.Tunnel{
		Interface: "meshd0", PrivateKey: netcfgtest.Key(1), ListenPort: 40000, MTU: 1420, Internet: true,
		Addresses: netcfgtest.Addrs("10.4.128.1", "fd00:4::8000:0:0:1"),
		Peers:     []netcfg.Peer{{Key: netcfgtest.Key(8).PublicKey(), AllowedIPs: netcfgtest.Prefixes("0.0.0.0/0", "::/0", "10.4.0.1/32")}},
	}.State()
	mustReconcile(t, k, want)
	got, err := k.Observe(context.Background(), want)
	if err != nil {
		t.Fatal(err)
	}
	if rest := diff(got, want); !rest.Empty() {
		t.Errorf("a second plan: got\n%s", rest)
	}
	if got.Device.Mark != netcfg.TunnelMark {
		t.Errorf("mark: got %d", got.Device.Mark)
	}
	leads := func(where string, to ...string) {
		t.Helper()
		for _, a := range to {
			out, err := exec.Command("ip", append([]string{"route", "get"}, strings.Fields(a)...)...).CombinedOutput()
			if (err != nil) != (where == "") || !strings.Contains(string(out), where) {
				t.Errorf("%s: got %s %v, want %q", a, out, err, where)
			}
		}
	}
	leads("dev meshd0", "198.51.100.1", "2001:db8:1::1", "10.4.0.1")
	leads("dev up0", "192.0.2.7", "2001:db8::7", "198.51.100.1 mark 7948", "2001:db8:1::1 mark 7948")
	run(t, "ip rule del priority 32751")
	mustReconcile(t, k, want)
	leads("dev meshd0", "198.51.100.1")
	if err := k.deleteDevice(); err != nil {
		t.Fatal(err)
	}
	leads("", "198.51.100.1", "2001:db8:1::1")
	leads("dev up0", "192.0.2.7", "198.51.100.1 mark 7948")
	mustReconcile(t, k, want)
	leads("dev meshd0", "198.51.100.1", "2001:db8:1::1")
	removed, err := k.Remove(context.Background())
	if err != nil || !slices.Contains(removed, "rule -6 priority 32751 not fwmark 7948 lookup 7948") {
		t.Errorf("removed %q, %v", removed, err)
	}
	if after := run(t, "ip rule") + run(t, "ip -6 rule"); after != before {
		t.Errorf("rules afterwards: got\n%s\nwant\n%s", after, before)
	}
	leads("dev up0", "198.51.100.1", "2001:db8:1::1")
	if left := run(t, "ip route show table all") + run(t, "ip -6 route show table all"); strings.Contains(left, "7948") {
		t.Errorf("routes afterwards: got\n%s", left)
	}
}
