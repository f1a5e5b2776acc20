// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/netcfg/netcfgtest"
)

// stateOf returns the state of one of two hosts. Host n has the overlay addresses
// 10.4.0.n and fd00:4::n and the pod CIDRs 10.42.n.0/24 and fd00:42:n::/64.
func stateOf(s peerSpec) netcfg.State {
	ip := func(format string, n int) netip.Prefix { return netip.MustParsePrefix(fmt.Sprintf(format, n)) }
	self4, self6 := ip("10.4.0.%d/32", s.Self), ip("fd00:4::%d/128", s.Self)
	theirs := []netip.Prefix{
		ip("10.4.0.%d/32", s.Remote), ip("10.42.%d.0/24", s.Remote),
		ip("fd00:4::%d/128", s.Remote), ip("fd00:42:%d::/64", s.Remote),
	}
	state := netcfg.State{
		Device:    netcfg.Tunnel{Interface: "meshd0", PrivateKey: s.Private, ListenPort: 51820, MTU: 1400}.State().Device,
		Peers:     []netcfg.Peer{{Key: s.RemotePublic, Endpoint: s.Endpoint, AllowedIPs: theirs}},
		Addresses: []netip.Prefix{self4, self6},
		Backstops: netcfgtest.Prefixes("10.4.0.0/16", "10.42.0.0/16", "fd00:4::/32", "fd00:42::/32"),
		Firewall: netcfg.Firewall{
			Sets: []netcfg.Set{
				{Name: "inside4", Type: "ipv4_addr", Elements: []netip.Prefix{netip.MustParsePrefix("10.4.0.0/16"), netip.MustParsePrefix("10.42.0.0/15")}},
				{Name: "inside6", Type: "ipv6_addr", Elements: []netip.Prefix{netip.MustParsePrefix("fd00:4::/32"), netip.MustParsePrefix("fd00:42::/32")}},
			},
			Chains: []netcfg.Chain{
				{Name: "guard", Type: "filter", Hook: "prerouting", Priority: -300, Rules: []netcfg.Rule{
					{Text: "iifname lo accept", Hash: "a1"},
					{Text: "ip saddr @inside4 fib saddr . iif oif missing drop", Hash: "a2"},
				}},
				{Name: "mss", Type: "filter", Hook: "forward", Priority: -150, Rules: []netcfg.Rule{
					{Text: "oifname meshd0 tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu", Hash: "c1"},
				}},
				{Name: "nat", Type: "nat", Hook: "postrouting", Priority: 90, Rules: []netcfg.Rule{
					{Text: "ip saddr @inside4 ip daddr != @inside4 masquerade", Hash: "b1"},
					{Text: "ip6 saddr @inside6 ip6 daddr != @inside6 masquerade", Hash: "b2"},
				}},
			},
		},
		Sysctls: []netcfg.Sysctl{
			{Key: "net.ipv4.conf.meshd0.rp_filter", Value: "2"},
			{Key: "net.ipv4.conf.meshd0.forwarding", Value: "1"},
			{Key: "net.ipv4.ip_forward", Value: "1"},
			{Key: "net.ipv6.conf.all.forwarding", Value: "1"},
			{Key: "net.ipv6.conf.meshd0.forwarding", Value: "1"},
		},
	}
	if s.Implementation != "" {
		state.Device.Implementation = s.Implementation
	}
	for i, p := range theirs {
		src := self4
		if p.Addr().Is6() {
			src = self6
		}
		state.Routes = append(state.Routes, netcfg.Route{Destination: p, Link: "meshd0", Source: src.Addr(), MTU: 1300 + 10*i})
	}
	return state
}

// alone returns the state of a host whose peer does not exist.
func alone() netcfg.State {
	return stateOf(peerSpec{
		Private: netcfgtest.Key(8), RemotePublic: netcfgtest.Key(16).PublicKey(), Self: 1, Remote: 2,
		Endpoint: netip.MustParseAddrPort("192.0.2.7:51820"),
	})
}

// reconcile does what the daemon does in one turn.
func reconcile(h *Kernel, want netcfg.State) error {
	got, err := h.Observe(context.Background(), want)
	if err != nil {
		return err
	}
	return h.Apply(context.Background(), diff(got, want))
}

// diff is Diff after gossip has settled.
func diff(got, want netcfg.State) netcfg.Plan {
	return netcfg.Diff(got, want, netcfg.Options{Now: time.Now(), Prune: true})
}

func newKernel(t *testing.T) *Kernel {
	t.Helper()
	h, err := Open(Options{Interface: "meshd0", Bridge: "kube-bridge"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func mustReconcile(t *testing.T, h *Kernel, want netcfg.State) {
	t.Helper()
	if err := reconcile(h, want); err != nil {
		t.Fatalf("reconcile: %v", err)
	}
}

// checkState compares the host with the desired state, and checks that another reconcile
// writes nothing.
func checkState(t *testing.T, h *Kernel, want netcfg.State) {
	t.Helper()
	got, err := h.Observe(t.Context(), want)
	if err != nil {
		t.Fatal(err)
	}
	if want.Device = new(*want.Device); want.Device.Implementation == netcfg.Auto && got.Device != nil {
		want.Device.Implementation = got.Device.Implementation
	}
	opts := cmp.Options{
		cmpopts.EquateEmpty(),
		cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{}),
		cmpopts.IgnoreUnexported(netcfg.Device{}),
		cmpopts.IgnoreFields(netcfg.Peer{}, "LastHandshake", "Received", "Sent"),
		cmpopts.IgnoreFields(netcfg.Rule{}, "Text"),
	}
	if d := cmp.Diff(want, got, opts); d != "" {
		t.Errorf("observed state (-want +got):\n%s", d)
	}
	before := h.Writes()
	mustReconcile(t, h, want)
	if n := h.Writes() - before; n != 0 {
		t.Errorf("second reconcile: got %d writes, want 0", n)
	}
}

func TestTwoHosts(t *testing.T) {
	if !namespaced(t) {
		return
	}
	run(t, "ip link add lan0 type veth peer name lan1")
	run(t, "ip addr add 192.0.2.1/24 dev lan0")
	run(t, "ip link set lan0 up")
	startPeer(t, "apart", peerSpec{
		Private: netcfgtest.Key(16), RemotePublic: netcfgtest.Key(8).PublicKey(), Self: 2, Remote: 1,
	}, func(pid int) {
		run(t, fmt.Sprintf("ip link set lan1 netns %d", pid))
		run(t, fmt.Sprintf("nsenter -t %d -n ip link set lo up", pid))
		run(t, fmt.Sprintf("nsenter -t %d -n ip link set lan1 up", pid))
		run(t, fmt.Sprintf("nsenter -t %d -n ip addr add 192.0.2.2/24 dev lan1", pid))
	})

	h := newKernel(t)
	want := stateOf(peerSpec{
		Private: netcfgtest.Key(8), RemotePublic: netcfgtest.Key(16).PublicKey(), Self: 1, Remote: 2,
		Endpoint: netip.MustParseAddrPort("192.0.2.2:51820"),
	})
	mustReconcile(t, h, want)
	checkState(t, h, want)

	if err := h.InitiateHandshake(t.Context(), netip.MustParseAddr("10.4.0.2")); err != nil {
		t.Error(err)
	}
	eventually(t, "handshake", func() bool {
		got, err := h.Observe(t.Context(), want)
		return err == nil && !got.Peers[0].LastHandshake.IsZero() && got.Peers[0].Received > 0 && got.Peers[0].Sent > 0
	})
	for _, addr := range []string{"10.4.0.2", "fd00:4::2"} {
		eventually(t, "ping "+addr, func() bool { return exec.Command("ping", "-c1", "-W1", addr).Run() == nil })
	}
	checkState(t, h, want)
	if out := run(t, "wg show meshd0 listen-port"); out != "51820\n" {
		t.Errorf("wg show: got %q, want 51820", out)
	}
}

func TestRestore(t *testing.T) {
	if !namespaced(t) {
		return
	}
	peer := netcfgtest.Key(16).PublicKey().String()
	tests := []struct {
		name   string
		damage string
		silent bool // the kernel sends no event
	}{
		{name: "route", damage: "ip route del 10.42.2.0/24"},
		{name: "route of IPv6", damage: "ip -6 route del fd00:42:2::/64"},
		{name: "route changed", damage: fmt.Sprintf("ip route replace 10.42.2.0/24 dev lo proto %d", netcfg.RouteProtocol)},
		{name: "backstop", damage: "ip route del blackhole 10.42.0.0/16 metric 2147483647"},
		{name: "backstop of IPv6", damage: "ip -6 route del blackhole fd00:42::/32 metric 2147483647"},
		{name: "backstop changed", damage: "ip route replace unreachable 10.42.0.0/16 metric 2147483647 proto 77"},
		{name: "all routes", damage: "ip route flush proto 77"},
		{name: "all routes of IPv6", damage: "ip -6 route flush proto 77"},
		{name: "address", damage: "ip addr del 10.4.0.1/32 dev meshd0"},
		{name: "address of IPv6", damage: "ip addr del fd00:4::1/128 dev meshd0"},
		{name: "extra address", damage: "ip addr add 10.9.9.9/32 dev meshd0"},
		{name: "down", damage: "ip link set meshd0 down"},
		{name: "MTU", damage: "ip link set meshd0 mtu 1380"},
		{name: "device", damage: "ip link del meshd0"},
		{name: "table", damage: "nft delete table inet meshd"},
		{name: "table off", damage: "nft add table inet meshd { flags dormant ; }"},
		{name: "rules", damage: "nft flush chain inet meshd guard"},
		{name: "extra rule", damage: "nft insert rule inet meshd mss accept"},
		{name: "policy", damage: "nft add chain inet meshd mss { policy drop ; }"},
		{name: "set", damage: "nft delete element inet meshd inside4 { 10.4.0.0/16 }"},
		{name: "sysctl", damage: "sysctl -qw net.ipv4.ip_forward=0"},
		{name: "forwarding of the device", damage: "sysctl -qw net.ipv4.conf.meshd0.forwarding=0"},
		{name: "forwarding of the device in IPv6", damage: "sysctl -qw net.ipv6.conf.meshd0.forwarding=0"},
		{name: "peer", damage: "wg set meshd0 peer " + peer + " remove", silent: true},
		{name: "port", damage: "wg set meshd0 listen-port 51821", silent: true},
	}
	h, want := newKernel(t), alone()
	mustReconcile(t, h, want)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			changed, err := h.Watch(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			run(t, tt.damage)
			if !tt.silent {
				select {
				case <-changed:
				case <-time.After(patience):
					t.Error("Watch: got no value after a change")
				}
			}
			mustReconcile(t, h, want)
			checkState(t, h, want)
		})
	}
}

func TestTakeover(t *testing.T) {
	if !namespaced(t) {
		return
	}
	spec := peerSpec{
		Implementation: netcfg.Userspace,
		Private:        netcfgtest.Key(8),
		RemotePublic:   netcfgtest.Key(16).PublicKey(),
		Self:           1,
		Remote:         2,
		Endpoint:       netip.MustParseAddrPort("192.0.2.7:51820"),
	}
	first := startPeer(t, "beside", spec, nil)
	h, want := newKernel(t), stateOf(spec)
	checkState(t, h, want) // a device that another process serves can be read

	if err := first.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait()
	if _, err := os.Stat("/run/wireguard/meshd0.sock"); err != nil {
		t.Errorf("stale socket: %v", err)
	}
	index := linkIndex(t, "meshd0")
	left, err := h.Observe(t.Context(), want)
	if err != nil {
		t.Fatal(err)
	}
	if len(left.Routes) != len(want.Routes) || len(left.Addresses) != len(want.Addresses) || len(left.Peers) != 0 {
		t.Errorf("after the kill: got %d routes, %d addresses, %d peers, want %d, %d, 0",
			len(left.Routes), len(left.Addresses), len(left.Peers), len(want.Routes), len(want.Addresses))
	}
	mustReconcile(t, h, want)
	checkState(t, h, want)

	run(t, "rm /run/wireguard/meshd0.sock")
	mustReconcile(t, h, want)
	checkState(t, h, want)

	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	again := newKernel(t)
	mustReconcile(t, again, want)
	checkState(t, again, want)
	if got := linkIndex(t, "meshd0"); got != index {
		t.Errorf("link index: got %d, want %d, the same link", got, index)
	}
}

func linkIndex(t *testing.T, name string) int {
	t.Helper()
	link, err := net.InterfaceByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return link.Index
}

func TestForeignDevice(t *testing.T) {
	if !namespaced(t) {
		return
	}
	for _, kind := range []string{"ip link add meshd0 type bridge", "ip tuntap add meshd0 mode tun"} {
		t.Run(kind, func(t *testing.T) {
			h := newKernel(t)
			run(t, kind)
			defer run(t, "ip link del meshd0")
			if _, err := h.Observe(t.Context(), netcfg.State{}); !errors.Is(err, ErrForeignDevice) || !strings.Contains(err.Error(), "meshd0") {
				t.Errorf("Observe: got %v, want ErrForeignDevice", err)
			}
			if err := h.Apply(t.Context(), diff(netcfg.State{}, alone())); !errors.Is(err, ErrForeignDevice) {
				t.Errorf("Apply: got %v, want ErrForeignDevice", err)
			}
			linkIndex(t, "meshd0")
			if _, err := h.Remove(t.Context()); err != nil {
				t.Errorf("Remove: %v", err)
			}
			linkIndex(t, "meshd0")
		})
	}
}

func TestRemove(t *testing.T) {
	if !namespaced(t) {
		return
	}
	for _, line := range []string{
		"ip link add lan0 type bridge", "ip link set lan0 up", "ip addr add 10.4.7.1/32 dev lan0",
		"ip route add 10.42.99.0/24 dev lan0", "ip route add 10.42.98.0/24 dev lan0 proto 99 table 100",
		"nft add table inet other", "nft add table ip meshd", "ip link add kube-bridge type bridge",
		"ip link add port0 master kube-bridge type bridge_slave",
	} {
		if !strings.HasSuffix(line, "bridge_slave") {
			run(t, line)
		}
	}
	run(t, "ip link add port0 type veth peer name port1")
	run(t, "ip link set port0 master kube-bridge")
	snapshot := func() string {
		return run(t, "ip -o link show") + run(t, "ip -o addr show scope global") + run(t, "ip route show table all proto boot") +
			run(t, "ip route show table 100") + run(t, "nft list tables")
	}
	before := snapshot()
	h, want := newKernel(t), alone()
	mustReconcile(t, h, want)
	run(t, fmt.Sprintf("ip route add 10.42.97.0/24 dev lan0 proto %d table 100", netcfg.RouteProtocol))

	removed, err := h.Remove(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wantRemoved := []string{
		"device meshd0", "nft table inet meshd", "route 10.4.0.0/16", "route 10.42.0.0/16", "route fd00:4::/32", "route fd00:42::/32", "route 10.4.0.2/32", "route 10.42.2.0/24", "route 10.42.97.0/24",
		"route fd00:42:2::/64", "route fd00:4::2/128",
	}
	if d := cmp.Diff(wantRemoved, removed, cmpopts.SortSlices(strings.Compare)); d != "" {
		t.Errorf("removed (-want +got):\n%s", d)
	}
	if d := cmp.Diff(before, snapshot()); d != "" {
		t.Errorf("the host after Remove (-before +after):\n%s", d)
	}
	if _, err := os.Stat("/run/wireguard/meshd0.sock"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("control socket: got %v, want none", err)
	}

	run(t, "ip link del port0")
	removed, err = h.Remove(t.Context())
	if d := cmp.Diff([]string{"bridge kube-bridge"}, removed); err != nil || d != "" {
		t.Errorf("Remove of an empty bridge: %v, removed (-want +got):\n%s", err, d)
	}
	if removed, err := h.Remove(t.Context()); err != nil || len(removed) != 0 {
		t.Errorf("Remove of nothing: got %v, %v", removed, err)
	}
}

// TestLinkedFirewall is TestFirewallOfDesired for a node with a link to another cluster.
func TestLinkedFirewall(t *testing.T) {
	if !namespaced(t) {
		return
	}
	want := netcfg.Desired(netcfgtest.WithLink(netcfgtest.IPv4()), netcfg.Settings{
		Interface: "meshd0", Implementation: netcfg.Auto, PrivateKey: netcfgtest.Key(8), ListenPort: 51820, MTU: 1400, Bridge: "kube-bridge",
	})
	want.Accepts, want.OwnPorts = nil, nil // there is no other firewall here
	h := newKernel(t)
	mustReconcile(t, h, want)
	checkState(t, h, want)
}

// TestFirewallOfDesired checks that the kernel returns the rules of Desired unchanged.
func TestFirewallOfDesired(t *testing.T) {
	if !namespaced(t) {
		return
	}
	inside := []netip.Prefix{
		netip.MustParsePrefix("10.4.0.0/16"), netip.MustParsePrefix("10.5.0.0/16"), netip.MustParsePrefix("10.42.0.0/16"),
		netip.MustParsePrefix("fd00:4::/64"), netip.MustParsePrefix("fd00:42::/48"),
	}
	want := netcfg.Desired(mesh.Topology{
		Addresses: []netip.Addr{netip.MustParseAddr("10.4.0.1"), netip.MustParseAddr("fd00:4::1")},
		PodCIDRs:  []netip.Prefix{netip.MustParsePrefix("10.42.0.0/24"), netip.MustParsePrefix("fd00:42::/64")},
		Inside:    inside, Guarded: inside,
		ServedNetworks: []netip.Prefix{netip.MustParsePrefix("192.168.0.0/24"), netip.MustParsePrefix("fd07::/64"), netip.MustParsePrefix("255.255.255.0/24")},
	}, netcfg.Settings{
		Interface: "meshd0", Implementation: netcfg.Auto, PrivateKey: netcfgtest.Key(8), ListenPort: 51820, MTU: 1400, Bridge: "kube-bridge",
	})
	want.Accepts, want.OwnPorts = nil, nil // there is no other firewall here
	h := newKernel(t)
	mustReconcile(t, h, want)
	checkState(t, h, want)
}

func TestToPeer(t *testing.T) {
	peer := toPeer(wgtypes.Peer{
		PublicKey:                   netcfgtest.Key(8),
		Endpoint:                    &net.UDPAddr{IP: net.ParseIP("::ffff:192.0.2.1"), Port: 7},
		PersistentKeepaliveInterval: 25 * time.Second,
		LastHandshakeTime:           time.Unix(9, 0),
		ReceiveBytes:                1,
		TransmitBytes:               2,
		AllowedIPs:                  []net.IPNet{{IP: net.ParseIP("fd00::"), Mask: net.CIDRMask(64, 128)}, {IP: net.ParseIP("10.0.0.0"), Mask: net.CIDRMask(8, 32)}},
	})
	want := netcfg.Peer{
		Key:           netcfgtest.Key(8),
		Endpoint:      netip.MustParseAddrPort("192.0.2.1:7"),
		AllowedIPs:    []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/64")},
		Keepalive:     25 * time.Second,
		LastHandshake: time.Unix(9, 0),
		Received:      1,
		Sent:          2,
	}
	if d := cmp.Diff(want, sortPeers([]netcfg.Peer{peer})[0], cmpopts.EquateComparable(netip.AddrPort{}, netip.Prefix{})); d != "" {
		t.Errorf("toPeer (-want +got):\n%s", d)
	}
}

func TestForeignRoute(t *testing.T) {
	if !namespaced(t) {
		return
	}
	foreign := []string{
		"10.42.2.0/24 dev lo",
		"fd00:42:2::/64 dev lo metric 1024", // the metric that the kernel uses if none is given
		"10.4.0.2 dev lo metric 5",
	}
	for _, r := range foreign {
		run(t, "ip route add "+r)
	}
	h, want := newKernel(t), alone()
	err := reconcile(h, want)
	for _, text := range []string{"add route 10.42.2.0/24: ", "add route fd00:42:2::/64: "} {
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("got %v, want %q in it", err, text)
		}
	}
	got, err := h.Observe(t.Context(), want)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Routes) != 2 || len(got.Peers) != 1 {
		t.Errorf("got %d routes and %d peers, want 2 and 1, those without a conflict", len(got.Routes), len(got.Peers))
	}
	for _, r := range foreign {
		run(t, "ip route del "+r) // fails if it was removed
	}
}

func TestApplyErrors(t *testing.T) {
	if !namespaced(t) {
		return
	}
	h, want := newKernel(t), alone()

	t.Run("port in use", func(t *testing.T) {
		c, err := net.ListenUDP("udp", &net.UDPAddr{Port: 51820})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		err = reconcile(h, want)
		if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "51820") {
			t.Errorf("got %v, want EADDRINUSE and the port", err)
		}
	})
	t.Run("port is free again", func(t *testing.T) {
		mustReconcile(t, h, want)
		checkState(t, h, want)
		if c, err := net.ListenUDP("udp", &net.UDPAddr{Port: 51820}); err == nil {
			_ = c.Close()
			t.Error("no socket listens on the port")
		}
	})
	t.Run("other port in use", func(t *testing.T) {
		c, err := net.ListenUDP("udp", &net.UDPAddr{Port: 51821})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		bad := alone()
		bad.Device.ListenPort = 51821
		if err := reconcile(h, bad); !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "51821") {
			t.Errorf("got %v, want EADDRINUSE and the port", err)
		}
		mustReconcile(t, h, want)
		checkState(t, h, want)
	})
	t.Run("no MTU", func(t *testing.T) {
		other, err := Open(Options{Interface: "meshd1"})
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		bad := *alone().Device
		bad.Implementation, bad.MTU = netcfg.Userspace, 0
		err = other.Apply(t.Context(), netcfg.Diff(netcfg.State{}, netcfg.State{Device: &bad}, netcfg.Options{}))
		if err == nil || !strings.Contains(err.Error(), "MTU 0 is below 68") {
			t.Errorf("got %v, want an error about the MTU", err)
		}
	})
	t.Run("kernel's WireGuard or none", func(t *testing.T) {
		want := alone()
		want.Device.Implementation, want.Device.ListenPort = netcfg.Kernel, 51822
		other, err := Open(Options{Interface: "meshd1"})
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		err = other.Apply(t.Context(), netcfg.Diff(netcfg.State{}, netcfg.State{Device: want.Device}, netcfg.Options{}))
		if kernelHasWireGuard(t) {
			got, observeErr := other.Observe(t.Context(), netcfg.State{})
			if err := errors.Join(err, observeErr); err != nil || got.Device == nil || got.Device.Implementation != netcfg.Kernel {
				t.Errorf("got %+v, %v, want a device of the kernel", got.Device, err)
			}
			run(t, "ip link delete meshd1")
		} else if !errors.Is(err, unix.EOPNOTSUPP) || !strings.Contains(err.Error(), "modprobe wireguard") {
			t.Errorf("got %v, want EOPNOTSUPP and advice", err)
		}
	})
	t.Run("rule refused", func(t *testing.T) {
		bad := alone()
		bad.Firewall.Chains[0].Rules = []netcfg.Rule{{Text: "no such thing", Hash: "x"}}
		if err := reconcile(h, bad); err == nil || !strings.Contains(err.Error(), "replace table meshd") {
			t.Errorf("got %v, want an error about the table", err)
		}
		checkState(t, h, want) // the failed transaction did not change the old table
	})
	t.Run("parameter missing", func(t *testing.T) {
		bad := alone()
		bad.Sysctls = append(bad.Sysctls, netcfg.Sysctl{Key: "net.ipv4.no_such_thing", Value: "1"})
		if err := reconcile(h, bad); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "no_such_thing") {
			t.Errorf("got %v, want ErrNotExist and the key", err)
		}
	})
	t.Run("no br_netfilter", func(t *testing.T) {
		t.Setenv("PATH", "")
		bad := netcfg.Plan{Sysctls: []netcfg.Sysctl{{Key: "net.bridge.no_such_thing", Value: "1"}}}
		if err := h.Apply(t.Context(), bad); !errors.Is(err, errNoBridgeNetfilter) {
			t.Errorf("got %v, want ErrNoBridgeNetfilter", err)
		}
	})
	t.Run("removing what is missing", func(t *testing.T) {
		p := diff(want, netcfg.State{})
		for range 2 {
			if err := h.Apply(t.Context(), p); err != nil {
				t.Error(err)
			}
		}
		stale := netcfg.Plan{StaleRoutes: want.Routes, StaleAddresses: want.Addresses}
		if err := h.Apply(t.Context(), stale); err != nil {
			t.Error(err)
		}
	})
	t.Run("no nft", func(t *testing.T) {
		t.Setenv("PATH", "")
		other, err := Open(Options{Interface: "meshd1"})
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		if err := other.Apply(t.Context(), netcfg.Plan{Firewall: &want.Firewall}); !errors.Is(err, exec.ErrNotFound) || !strings.Contains(err.Error(), "apt install nftables") {
			t.Errorf("got %v, want ErrNotFound and advice", err)
		}
	})
}

// kernelHasWireGuard reports whether a kernel WireGuard device can be created.
func kernelHasWireGuard(t *testing.T) bool {
	t.Helper()
	if exec.CommandContext(t.Context(), "ip", "link", "add", "trial", "type", "wireguard").Run() != nil {
		return false
	}
	run(t, "ip link delete trial")
	return true
}

func TestForwardingKeepsRouterAdvertisements(t *testing.T) {
	if !namespaced(t) {
		return
	}
	run(t, "ip link add on.1 type veth peer name off0")
	run(t, "sysctl -qw net/ipv6/conf/on.1/accept_ra=1")
	run(t, "sysctl -qw net/ipv6/conf/off0/accept_ra=0")
	h, want := newKernel(t), netcfg.State{Sysctls: []netcfg.Sysctl{{Key: "net.ipv6.conf.all.forwarding", Value: "1"}}}
	mustReconcile(t, h, want)
	wanted := []netcfg.Sysctl{
		{Key: "net.ipv6.conf.all.forwarding", Value: "1"},
		{Key: "net.ipv6.conf.off0.accept_ra", Value: "0"},
		{Key: "net.ipv6.conf.on/1.accept_ra", Value: "2"},
	}
	got, err := observeSysctls(wanted)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(wanted, got); d != "" {
		t.Errorf("sysctls (-want +got):\n%s", d)
	}
}

// A link may be created after the daemon has started, and then takes conf.default, which
// networkd sets to 0.
func TestForwardingOfALaterLink(t *testing.T) {
	if !namespaced(t) {
		return
	}
	h, want := newKernel(t), netcfg.State{Sysctls: []netcfg.Sysctl{
		{Key: "net.ipv4.conf.later/1.forwarding", Value: "1"},
		{Key: "net.ipv4.ip_forward", Value: "1"},
	}}
	mustReconcile(t, h, want)
	run(t, "sysctl -qw net.ipv4.conf.default.forwarding=0")
	changed, err := h.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	run(t, "ip link add later.1 type bridge")
	select {
	case <-changed:
	case <-time.After(patience):
		t.Error("Watch: got no value after a new link")
	}
	if b, err := os.ReadFile(sysctlPath("net.ipv4.conf.later/1.forwarding")); err != nil || strings.TrimSpace(string(b)) != "0" {
		t.Fatalf("forwarding of a new link is %q, %v, want 0", b, err)
	}
	mustReconcile(t, h, want)
	if b, err := os.ReadFile(sysctlPath("net.ipv4.conf.later/1.forwarding")); err != nil || strings.TrimSpace(string(b)) != "1" {
		t.Errorf("forwarding of the link is %q, %v, want 1", b, err)
	}
}

func TestParameterThatCannotBeSet(t *testing.T) {
	if !namespaced(t) {
		return
	}
	run(t, "ip link add on0 type veth peer name off0")
	run(t, "sysctl -qw net/ipv6/conf/on0/accept_ra=1")
	run(t, "mount --bind /proc/sys /proc/sys")
	run(t, "mount -o remount,bind,ro /proc/sys")
	want := netcfg.State{Sysctls: []netcfg.Sysctl{{Key: "net.ipv4.ip_forward", Value: "1"}, {Key: "net.ipv6.conf.all.forwarding", Value: "1"}}}
	refused, rest := SplitSysctl(reconcile(newKernel(t), want))
	if len(refused) != 2 || rest != nil {
		t.Fatalf("got %v and %v, want two parameters that can't be set", refused, rest)
	}
	for i, r := range refused {
		if r.Key != want.Sysctls[i].Key || !errors.Is(r, unix.EROFS) {
			t.Errorf("got %v, want EROFS for %s", r, want.Sysctls[i].Key)
		}
	}
}

func TestWatchEnds(t *testing.T) {
	if !namespaced(t) {
		return
	}
	h := newKernel(t)
	ctx, cancel := context.WithCancel(t.Context())
	changed, err := h.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	for range changed { // until it is closed
	}
}

func TestRetryInterrupted(t *testing.T) {
	tests := []struct {
		name      string
		interrupt int // number of dumps that are interrupted
		want      error
	}{
		{name: "never"},
		{name: "twice", interrupt: 2},
		{name: "always", interrupt: dumpTries, want: netlink.ErrDumpInterrupted},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := 0
			got, err := retryInterrupted(func() ([]int, error) {
				if n++; n <= tt.interrupt {
					return nil, netlink.ErrDumpInterrupted
				}
				return []int{n}, nil
			})
			if !errors.Is(err, tt.want) || err == nil && got[0] != tt.interrupt+1 {
				t.Errorf("got %v, %v, want error %v", got, err, tt.want)
			}
		})
	}
}

func TestSpeakNowhere(t *testing.T) {
	if !namespaced(t) {
		return
	}
	if err := newKernel(t).InitiateHandshake(t.Context(), netip.MustParseAddr("10.4.0.2")); !errors.Is(err, unix.ENODEV) {
		t.Errorf("got %v, want ENODEV", err)
	}
}

func TestFactsOfHost(t *testing.T) {
	if !namespaced(t) {
		return
	}
	h := newKernel(t)
	got, err := h.Facts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got.Nearby.Resolvers = nil // they depend on the machine that runs the test
	if d := cmp.Diff(netcfg.Facts{}, got); d != "" {
		t.Errorf("facts of a host without network (-want +got):\n%s", d)
	}
	for _, line := range []string{
		"ip netns add router", "ip link add lan0 mtu 1450 type veth peer name port0 mtu 1450 netns router", "ip link set lan0 up",
		"ip -n router link set port0 up", "ip addr add 192.168.7.2/24 dev lan0", "ip addr add fd07::2/64 dev lan0 nodad",
		"ip route add default via 192.168.7.1", "ip route add default via fd07::1",
	} {
		run(t, line)
	}
	mustReconcile(t, h, alone())
	got, err = h.Facts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	lan4, lan6 := netip.MustParsePrefix("192.168.7.2/24"), netip.MustParsePrefix("fd07::2/64")
	want := netcfg.Facts{
		Addresses: []netip.Addr{lan4.Addr(), lan6.Addr()},
		Uplinks: []netcfg.Uplink{
			{Link: "lan0", Source: lan4, MTU: 1450, Gateway: netip.MustParseAddr("192.168.7.1")},
			{Link: "lan0", Source: lan6, MTU: 1450, Gateway: netip.MustParseAddr("fd07::1")},
		},
		Cards:    []string{"lan0"},
		Private:  []netcfg.PrivateAddress{{Link: "lan0", Address: lan4, Default: true}, {Link: "lan0", Address: lan6, Default: true}},
		Attached: []netcfg.LAN{{Link: "lan0", Address: lan4, MTU: 1450}, {Link: "lan0", Address: lan6, MTU: 1450}},
		MTU:      1450,
		MTULink:  "lan0",
		Nearby: mesh.Nearby{
			Attached: []mesh.AttachedNetwork{{Prefix: lan4.Masked(), Link: "lan0", LAN: true}, {Prefix: lan6.Masked(), Link: "lan0", LAN: true}},
			Routers:  []netip.Addr{netip.MustParseAddr("192.168.7.1"), netip.MustParseAddr("fd07::1")},
		},
	}
	got.Nearby.Resolvers = nil
	if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); d != "" {
		t.Errorf("facts (-want +got):\n%s", d)
	}
}

// TestFactsWithVPN has another program's tunnel take all traffic of a host, while the peer of
// ours is on the LAN. It checks that the internal IP stays that of the bridge with the card, and that the MTU is that of the way to the peer.
func TestFactsWithVPN(t *testing.T) {
	if !namespaced(t) {
		return
	}
	h := newKernel(t)
	for _, line := range []string{
		"ip netns add router", "ip link add eth0 mtu 1480 type veth peer name port0 netns router", "ip link set eth0 up", "ip -n router link set port0 up",
		"ip link add br0 mtu 1480 type bridge", "ip link set eth0 master br0", "ip link set br0 up", "ip addr add 192.168.7.2/24 dev br0", "ip route add default via 192.168.7.1",
		"ip link add docker0 type bridge", "ip link set docker0 up", "ip addr add 172.17.0.1/16 dev docker0",
		"ip tuntap add tun0 mode tun", "ip link set tun0 mtu 1300 up", "ip addr add 10.8.0.2/24 dev tun0", "ip route add 0.0.0.0/1 dev tun0", "ip route add 128.0.0.0/1 dev tun0",
	} {
		run(t, line)
	}
	describe := func() string {
		got, err := h.Facts(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		chosen, others := got.InternalIPs(netip.Prefix{}, nil)
		return fmt.Sprintf("%v %v %d by %s", chosen, others, got.MTU, got.MTULink)
	}
	const others = "[172.17.0.1/16 on docker0: its link is a bridge without a network card 10.8.0.2/24 on tun0: its link is a tunnel]"
	if got, want := describe(), "[192.168.7.2/24 on br0: the default route leaves by its link] "+others+" 1300 by tun0"; got != want {
		t.Errorf("before there are peers: got %s, want %s", got, want)
	}
	want := alone()
	want.Peers[0].Endpoint = netip.MustParseAddrPort("192.168.7.9:51820")
	mustReconcile(t, h, want)
	if got, want := describe(), "[192.168.7.2/24 on br0: the default route leaves by its link] "+others+" 1480 by br0"; got != want {
		t.Errorf("with a peer on the LAN: got %s, want %s", got, want)
	}
	if got, err := h.Networks(t.Context()); err != nil || got.MTULink != "tun0" || len(got.Attached) != 3 {
		t.Errorf("networks: got %+v, %v, want those of three links, and the MTU of tun0", got, err)
	}
	run(t, "ip route replace default dev tun0")
	if got, want := describe(), "[192.168.7.2/24 on br0: it is the first private address of a network card] "+others+" 1480 by br0"; got != want {
		t.Errorf("when the tunnel has the default route: got %s, want %s", got, want)
	}
}

// TestHostileRouteRefused checks that a route which the kernel refuses, because another
// route to the network exists on this host, is one refused step. All other steps succeed.
func TestHostileRouteRefused(t *testing.T) {
	if !namespaced(t) {
		return
	}
	h := newKernel(t)
	for _, line := range []string{
		"ip link add lan0 type bridge", "ip link set lan0 up", "ip addr add 192.168.7.2/24 dev lan0",
		"ip route add 203.0.113.0/24 via 192.168.7.1",
	} {
		run(t, line)
	}
	given, want := netip.MustParsePrefix("203.0.113.0/24"), alone()
	want.Peers[0].AllowedIPs = append(want.Peers[0].AllowedIPs, given)
	route := want.Routes[0]
	route.Destination = given
	want.Routes = append(want.Routes, route)
	observed, err := h.Observe(t.Context(), want)
	if err != nil {
		t.Fatal(err)
	}
	refused, err := SplitRefused(h.Apply(t.Context(), netcfg.Diff(observed, want, netcfg.Options{})))
	if err != nil {
		t.Errorf("got %v, want no error but refused steps", err)
	}
	if len(refused) != 1 || !strings.Contains(refused[0].Error(), given.String()) || !strings.Contains(refused[0].Error(), "not meshd's") {
		t.Errorf("got refused %v, want one that names %v", refused, given)
	}
	if observed, err = h.Observe(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	rest := netcfg.Diff(observed, want, netcfg.Options{})
	if len(rest.Routes) != 1 || len(rest.Peers) > 0 || len(rest.Addresses) > 0 {
		t.Errorf("got %v, want nothing but that route to be missing", rest)
	}
}

// TestIPv6SwitchedOff checks the mesh's IPv6 on a server that has IPv6 disabled on all
// links, as is common on servers without IPv6 connectivity.
func TestIPv6SwitchedOff(t *testing.T) {
	if !namespaced(t) {
		return
	}
	h, s, topology := newKernel(t), settings(), netcfgtest.IPv4(netcfgtest.Peer(2, "b", "10.4.0.2/32", "fd00:4::2/128"))
	s.Implementation, s.Bridge = netcfg.Auto, ""
	topology.Addresses = netcfgtest.Addrs("10.4.0.1", "fd00:4::1")
	for _, when := range []string{"before", "while it runs"} {
		for _, link := range []string{"all", "default"} {
			if err := os.WriteFile(sysctlPath("net.ipv6.conf."+link+".disable_ipv6"), []byte("1"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want := netcfg.Desired(topology, s)
		mustReconcile(t, h, want)
		got, err := h.Observe(t.Context(), want)
		if err != nil {
			t.Fatal(err)
		}
		if p := diff(got, want); !p.Empty() {
			t.Errorf("%s: the next plan is %s, want none", when, p)
		}
	}
}

func settings() netcfg.Settings {
	return netcfg.Settings{
		Interface: "meshd0", Implementation: netcfg.Kernel, PrivateKey: netcfgtest.Key(1),
		ListenPort: 51820, GossipPort: 7946, MTU: 1420, Bridge: "kube-bridge",
	}
}

// lanSettings are the settings of node 1, whose location has the network 192.168.10.0/24.
func lanSettings() netcfg.Settings {
	s := settings()
	s.ID = mesh.ID{1}
	s.LANs = []netcfg.LAN{
		{Link: "eth0", Address: netip.MustParsePrefix("192.168.10.1/24"), MTU: 1500},
		{Link: "eth1", Address: netip.MustParsePrefix("fd10::1/64"), MTU: 1480},
	}
	return s
}
