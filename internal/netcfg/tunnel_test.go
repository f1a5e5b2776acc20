// SPDX-License-Identifier: Apache-2.0

package netcfg_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/netcfg/fakekernel"
	"github.com/meshd/meshd/internal/netcfg/netcfgtest"
)

// tunnel returns the configuration of a client with two peers, the first of which is its exit.
func tunnel(addresses ...string) netcfg.Tunnel {
	peer := func(n byte, allowed ...string) netcfg.Peer {
		return netcfg.Peer{Key: netcfgtest.Key(n).PublicKey(), AllowedIPs: netcfgtest.Prefixes(allowed...)}
	}
	return netcfg.Tunnel{
		Interface: "mesh0", PrivateKey: netcfgtest.Key(1), ListenPort: 40000, MTU: 1420, Internet: true, Addresses: netcfgtest.Addrs(addresses...),
		Peers: []netcfg.Peer{peer(8, "0.0.0.0/0", "::/0", "10.4.0.1/32"), peer(16, "10.4.0.2/32")},
	}
}

// The state of a client that reaches the internet through the tunnel, and the plan for a new host,
// as text. The second client has no IPv6: nothing but the backstop has its default route.
func TestTunnelToInternet(t *testing.T) {
	for name, addresses := range map[string][]string{"internet": {"10.4.128.1", "fd00:4::8000:0:0:1"}, "internet-ipv4": {"10.4.128.1"}} {
		want := tunnel(addresses...).State()
		netcfg.CheckGolden(t, "tunnel-"+name, want.String()+"\n"+netcfg.Diff(netcfg.State{}, want, netcfg.Options{}).String())
	}
}

// Whatever becomes of the device, the rules and the backstops stay until the tunnel is not to have
// the internet any more.
func TestTunnelKeepsOthersOut(t *testing.T) {
	var k fakekernel.Kernel
	apply := func(want netcfg.State) netcfg.Plan {
		t.Helper()
		p := netcfg.Diff(k.State, want, netcfg.Options{Now: time.Unix(1, 0), Prune: true})
		if err := k.Apply(p); err != nil {
			t.Fatal(err)
		}
		if rest := netcfg.Diff(k.State, want, netcfg.Options{Now: time.Unix(1, 0), Prune: true}); !rest.Empty() {
			t.Errorf("after the plan: %s", rest)
		}
		return p
	}
	with := tunnel("10.4.128.1", "fd00:4::8000:0:0:1")
	apply(with.State())
	k.DeleteDevice()
	if left := k.State.String(); !strings.Contains(left, "route blackhole 0.0.0.0/0 table 7948") || len(k.Policies) != 4 || strings.Contains(left, "dev mesh0") {
		t.Errorf("without the device: got\n%s", left)
	}
	apply(with.State())
	moved := with
	moved.Peers = []netcfg.Peer{with.Peers[0], with.Peers[1]}
	moved.Peers[0].AllowedIPs, moved.Peers[1].AllowedIPs = netcfgtest.Prefixes("10.4.0.1/32"), netcfgtest.Prefixes("0.0.0.0/0", "::/0", "10.4.0.2/32")
	if p := apply(moved.State()); len(p.Routes)+len(p.StaleRoutes)+len(p.Policies)+len(p.StalePolicies) > 0 || len(p.Peers) != 1 {
		t.Errorf("another exit: got\n%s", p)
	}
	moved.Peers[1].AllowedIPs = netcfgtest.Prefixes("10.4.0.2/32")
	if apply(moved.State()); len(k.Policies) != 4 || len(k.Backstops) != 2 {
		t.Errorf("no exit at all: got\n%s", k.State)
	}
	moved.Internet = false
	if apply(moved.State()); len(k.Policies)+len(k.Backstops) > 0 {
		t.Errorf("without the internet: got\n%s", k.State)
	}
	if got := netcfg.TableOf(netip.MustParsePrefix("0.0.0.0/1")); got != 254 {
		t.Errorf("half of the internet: got table %d", got)
	}
}
