// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/netcfg/netcfgtest"
)

// lanLinks creates eth0 and eth1 of lanSettings.
func lanLinks(t *testing.T) {
	t.Helper()
	for _, line := range []string{
		"ip link add eth0 type bridge", "ip link set eth0 up", "ip addr add 192.168.10.1/24 dev eth0",
		"ip link add eth1 type bridge", "ip link set eth1 up", "ip addr add fd10::1/64 dev eth1 nodad",
	} {
		run(t, line)
	}
}

// memberState is the desired state of a member, with any implementation of WireGuard.
func memberState(topology mesh.Topology) netcfg.State {
	s := lanSettings()
	s.Implementation, s.Bridge = netcfg.Auto, ""
	return netcfg.Desired(topology, s)
}

// checkSettled checks that the host is in the desired state, and that another reconcile
// writes nothing.
func checkSettled(t *testing.T, h *Kernel, want netcfg.State) {
	t.Helper()
	got, err := h.Observe(t.Context(), want)
	if err != nil {
		t.Fatal(err)
	}
	if p := diff(got, want); !p.Empty() {
		t.Errorf("plan after the plan: got\n%s, want none", p)
	}
}

func TestVXLANComesAndGoes(t *testing.T) {
	if !namespaced(t) {
		return
	}
	lanLinks(t)
	before := run(t, "ip -o link show")
	h := newKernel(t)
	for _, step := range []struct {
		name     string
		topology mesh.Topology
	}{
		{"member", netcfgtest.Member()},
		{"gateway", netcfgtest.Gateway()},
		{"member again", netcfgtest.Member()},
		{"without VXLAN", netcfgtest.Plain(netcfgtest.Member())},
		{"with IPv6 outside", netcfgtest.MemberOnIPv6()},
		{"with IPv4 outside", netcfgtest.Member()},
		{"alone", netcfgtest.DualStack()},
		{"gateway from nothing", netcfgtest.Gateway()},
	} {
		t.Run(step.name, func(t *testing.T) {
			want := memberState(step.topology)
			mustReconcile(t, h, want)
			checkSettled(t, h, want)
			if got := strings.Contains(run(t, "ip link show"), "meshd0-vx"); got != (want.VXLAN != nil) {
				t.Errorf("meshd0-vx exists: got %v, want %v", got, want.VXLAN != nil)
			}
		})
	}
	removed, err := h.Remove(t.Context())
	if err != nil || !strings.Contains(strings.Join(removed, "\n"), "device meshd0-vx") {
		t.Errorf("Remove: got %v, %v, want the device among what was removed", removed, err)
	}
	if d := cmp.Diff(before, run(t, "ip -o link show")); d != "" {
		t.Errorf("links after Remove (-before +after):\n%s", d)
	}
}

func TestVXLANRestore(t *testing.T) {
	if !namespaced(t) {
		return
	}
	lanLinks(t)
	h, want := newKernel(t), memberState(netcfgtest.Member())
	mustReconcile(t, h, want)
	for _, tt := range []struct{ name, damage string }{
		{"device", "ip link del meshd0-vx"},
		{"down", "ip link set meshd0-vx down"},
		{"MTU", "ip link set meshd0-vx mtu 1300"},
		{"MAC", "ip link set meshd0-vx address 02:99:00:00:00:01"},
		{"learning", "ip link set meshd0-vx type vxlan learning"},
		{"forwarding entry", "bridge fdb del 02:02:00:00:00:00 dev meshd0-vx dst 192.168.10.2"},
		{"forwarding entry to elsewhere", "bridge fdb replace 02:02:00:00:00:00 dev meshd0-vx dst 192.168.10.99"},
		{"second place", "bridge fdb append 02:02:00:00:00:00 dev meshd0-vx dst 192.168.10.99"},
		{"extra forwarding entry", "bridge fdb append 00:00:00:00:00:00 dev meshd0-vx dst 192.168.10.99"},
		{"neighbor entry", "ip neigh del 10.4.0.2 dev meshd0-vx"},
		{"neighbor entry of IPv6", "ip neigh del fd00:4::2 dev meshd0-vx"},
		{"neighbor entry changed", "ip neigh replace 10.4.0.2 lladdr 02:99:00:00:00:01 dev meshd0-vx nud permanent"},
		{"neighbor entry that may go", "ip neigh change 10.4.0.2 dev meshd0-vx nud stale"},
		{"extra neighbor entry", "ip neigh add 10.4.0.99 lladdr 02:99:00:00:00:01 dev meshd0-vx nud permanent"},
		{"route", "ip route del 10.42.1.0/24"},
		{"route to another neighbor", fmt.Sprintf("ip route replace 10.42.1.0/24 via 10.4.0.3 dev meshd0-vx onlink src 10.4.0.1 proto %d", netcfg.RouteProtocol)},
		{"route to another neighbor in IPv6", fmt.Sprintf("ip route replace fd00:42:0:1::/64 via fd00:4::3 dev meshd0-vx onlink src fd00:4::1 proto %d", netcfg.RouteProtocol)},
		{"second next hop in IPv6", fmt.Sprintf("ip -6 route append fd00:42:0:1::/64 via fd00:4::3 dev meshd0-vx onlink src fd00:4::1 proto %d", netcfg.RouteProtocol)},
		{"route of several next hops", fmt.Sprintf("ip route replace 10.42.1.0/24 proto %d nexthop via 10.4.0.2 dev meshd0-vx onlink nexthop via 10.4.0.3 dev meshd0-vx onlink", netcfg.RouteProtocol)},
		{"route to the tunnel in IPv6", fmt.Sprintf("ip -6 route replace fd00:42:0:1::/64 dev meshd0 src fd00:4::1 proto %d", netcfg.RouteProtocol)},
		{"sysctl", "sysctl -qw net.ipv4.conf.meshd0-vx.rp_filter=1"},
		{"WireGuard device", "ip link del meshd0"},
		{"rules", "nft flush chain inet meshd input"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			changed, err := h.Watch(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			run(t, tt.damage)
			if !strings.HasPrefix(tt.damage, "sysctl") && !strings.HasSuffix(tt.damage, " learning") {
				select {
				case <-changed:
				case <-time.After(patience):
					t.Error("Watch: got no value after a change")
				}
			}
			mustReconcile(t, h, want)
			checkSettled(t, h, want)
		})
	}
}

func TestVXLANErrors(t *testing.T) {
	if !namespaced(t) {
		return
	}
	lanLinks(t)
	h, want := newKernel(t), memberState(netcfgtest.Member())
	t.Run("foreign link of its name", func(t *testing.T) {
		run(t, "ip link add meshd0-vx type bridge")
		if err := reconcile(h, want); !errors.Is(err, ErrForeignDevice) || !strings.Contains(err.Error(), "meshd0-vx") || strings.Count(err.Error(), "\n") > 0 {
			t.Errorf("got %v, want ErrForeignDevice with the link's name, and nothing more", err)
		}
		got, err := h.Observe(t.Context(), want)
		if err != nil || len(got.Peers) != len(want.Peers) || len(got.Addresses) != len(want.Addresses) {
			t.Errorf("the rest: got %v, %v, want it done", got, err)
		}
		if removed, err := h.Remove(t.Context()); err != nil {
			t.Errorf("Remove: got %v, %v", removed, err)
		}
		run(t, "ip link del meshd0-vx") // fails if it was removed
	})
	t.Run("port in use", func(t *testing.T) {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{Port: netcfg.VXLANPort})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := reconcile(h, want); err == nil || !strings.Contains(err.Error(), "UDP port 7947") {
			t.Errorf("got %v, want an error with the port", err)
		}
	})
	t.Run("port is free again", func(t *testing.T) {
		mustReconcile(t, h, want)
		checkSettled(t, h, want)
	})
	t.Run("killed between creating and marking", func(t *testing.T) {
		run(t, "ip link del meshd0-vx")
		run(t, "ip link add meshd0-vx type vxlan id 77 dstport 7947 local 192.168.10.1 nolearning")
		mustReconcile(t, h, want)
		checkSettled(t, h, want)
	})
}

// The lab has one location and a remote network:
//
//	          ┌─ eth0 ─ node 1 (the test) ─ meshd0 ─┐
//	lan ──────┼─ eth0 ─ node 2 ──────────── meshd0 ─┼── far
//	          └─ eth0 ─ node 3 ──────────── meshd0 ─┘
//
// Veths stand for the WireGuard devices. far is another location, reachable through any
// of them.
const locationLab = `
ip netns add lan
ip -n lan link add br0 type bridge
ip -n lan link set br0 up
ip netns add far
ip -n far link set lo up
ip -n far addr add 10.42.8.5/32 dev lo`

// locationNode has the commands that add node N to the lab.
const locationNode = `
ip IN link add eth0 type veth peer name pN netns lan
ip -n lan link set pN master br0 up
ip IN link add meshd0 type veth peer name mN netns far
ip IN addr add 192.168.10.N/24 dev eth0
ip IN addr add fd10::N/64 dev eth0 nodad
ip IN link set eth0 up
ip IN link set meshd0 up
ip IN addr add 10.4.0.N/32 dev meshd0
ip IN addr add fd00:4::N/128 dev meshd0 nodad
ip -n far link set mN up
ip -n far addr add 10.99.N.1/32 dev mN
ip -n far addr add fd99:N::1/64 dev mN nodad
ip -n far addr add fd00:42:0:8::5/128 dev mN nodad
ip IN addr add fd99:N::2/64 dev meshd0 nodad
ip -n far route add 10.4.0.N/32 via inet6 fd99:N::2 dev mN src 10.42.8.5
ip -n far route add fd00:4::N/128 via fd99:N::2 dev mN src fd00:42:0:8::5`

// labNode is a node of the lab, with the state that was applied last.
type labNode struct {
	ns   string
	n    byte
	h    *Kernel
	last netcfg.State
}

func startLocation(t *testing.T) []*labNode {
	t.Helper()
	for line := range strings.Lines(strings.TrimSpace(locationLab)) {
		run(t, line)
	}
	var nodes []*labNode
	for n := byte(1); n <= 3; n++ {
		node, in := &labNode{n: n}, ""
		if n > 1 {
			node.ns = fmt.Sprintf("node%d", n)
			in = "-n " + node.ns
			run(t, "ip netns add "+node.ns)
			run(t, "ip "+in+" link set lo up")
		}
		for line := range strings.Lines(strings.TrimSpace(locationNode)) {
			run(t, strings.NewReplacer("IN", in, "N", fmt.Sprint(n)).Replace(line))
		}
		within(t, node.ns, func() { node.h = newKernel(t) })
		nodes = append(nodes, node)
	}
	return nodes
}

// view returns the topology of a node if gateway carries the traffic to far. The node
// reaches far by its own WireGuard device if it is the gateway, or else through that
// neighbor.
func view(self, gateway byte) mesh.Topology {
	far := []string{"10.42.8.0/24", "fd00:42:0:8::/64"}
	t := netcfgtest.DualStack()
	t.Addresses = netcfgtest.Addrs(fmt.Sprintf("10.4.0.%d", self), fmt.Sprintf("fd00:4::%d", self))
	t.PodCIDRs = nil
	if gateway == self {
		t.Peers = []mesh.Peer{netcfgtest.Peer(9, "far", far...)}
	}
	for n := byte(1); n <= 3; n++ {
		if n == self {
			continue
		}
		next := netcfgtest.Neighbor(n, fmt.Sprint(n))
		if n == gateway {
			next.Prefixes = netcfgtest.Prefixes(far...)
		}
		t.Neighbors = append(t.Neighbors, next)
	}
	return t
}

// apply makes the plan for the topology and applies it, without the parts that veths
// can't have.
func (n *labNode) apply(t *testing.T, view mesh.Topology, edit func(*netcfg.Plan)) {
	t.Helper()
	want := netcfg.Desired(view, netcfg.Settings{
		Interface: "meshd0", ID: mesh.ID{n.n}, MTU: 1420,
		LANs: []netcfg.LAN{
			{Link: "eth0", Address: netip.MustParsePrefix(fmt.Sprintf("192.168.10.%d/24", n.n)), MTU: 1500},
			{Link: "eth0", Address: netip.MustParsePrefix(fmt.Sprintf("fd10::%d/64", n.n)), MTU: 1500},
		},
	})
	have := n.last
	have.Device, have.Addresses = want.Device, want.Addresses // the veth has its own
	plan := diff(have, want)
	plan.Peers = nil
	if edit != nil {
		edit(&plan)
	}
	within(t, n.ns, func() {
		if err := n.h.Apply(t.Context(), plan); err != nil {
			t.Errorf("node %d: %v", n.n, err)
		}
	})
	n.last = want
}

// TestLocationForwards sends through the location with each kind of encapsulation.
func TestLocationForwards(t *testing.T) {
	if !namespaced(t) {
		return
	}
	nodes := startLocation(t)
	for _, tt := range []struct {
		name string
		edit func(mesh.Topology) mesh.Topology
		only string // the family that works; "" for both
	}{
		{name: "VXLAN over IPv4", edit: func(t mesh.Topology) mesh.Topology { return t }},
		{name: "VXLAN over IPv6", edit: onIPv6},
		{name: "without VXLAN over IPv4", edit: netcfgtest.Plain, only: "4"},
		{name: "without VXLAN over IPv6", edit: func(t mesh.Topology) mesh.Topology { return netcfgtest.Plain(onIPv6(t)) }, only: "6"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, n := range nodes {
				n.apply(t, tt.edit(view(n.n, 2)), nil)
			}
			for _, dst := range []string{"10.4.0.2", "10.4.0.3", "10.42.8.5", "fd00:4::2", "fd00:4::3", "fd00:42:0:8::5"} {
				if six := strings.Contains(dst, ":"); six && tt.only == "4" || !six && tt.only == "6" {
					continue
				}
				// far replies through the node that sent the request.
				run(t, "ip -n far route replace 10.4.0.1/32 via inet6 fd99:2::2 dev m2 src 10.42.8.5")
				run(t, "ip -n far route replace fd00:4::1/128 via fd99:2::2 dev m2 src fd00:42:0:8::5")
				eventually(t, "ping "+dst, func() bool { return exec.Command("ping", "-c1", "-W1", "-s1300", dst).Run() == nil })
			}
		})
	}
}

// onIPv6 returns the topology with IPv6 on the LAN.
func onIPv6(t mesh.Topology) mesh.Topology {
	for i := range t.Neighbors {
		t.Neighbors[i].InternalIP = netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x10, 15: t.Neighbors[i].ID[0]})
	}
	return t
}

// TestRouteMoves moves the route to far from gateway to gateway while traffic flows, and
// counts lost packets. All gateways can forward.
func TestRouteMoves(t *testing.T) {
	if !namespaced(t) {
		return
	}
	nodes := startLocation(t)
	noGuard := func(p *netcfg.Plan) { p.Firewall = nil } // far replies through one gateway, whichever one sent the request
	through := func(self, gateway byte) mesh.Topology {
		top := view(self, gateway)
		top.Guarded = nil // otherwise the route to the range would be used during a move
		return top
	}
	for _, n := range nodes {
		n.apply(t, through(n.n, n.n), noGuard)
	}
	for _, dst := range []string{"10.42.8.5", "fd00:42:0:8::5"} {
		eventually(t, "ping "+dst, func() bool { return exec.Command("ping", "-c1", "-W1", dst).Run() == nil })
	}
	var pings []*exec.Cmd
	var outs []*strings.Builder
	for _, dst := range []string{"10.42.8.5", "fd00:42:0:8::5"} {
		cmd, out := exec.Command("ping", "-q", "-i0.005", "-c400", "-W10", dst), new(strings.Builder)
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		pings, outs = append(pings, cmd), append(outs, out)
	}
	done := make(chan error)
	go func() {
		var errs []error
		for _, cmd := range pings {
			errs = append(errs, cmd.Wait())
		}
		done <- errors.Join(errs...)
	}()
	moves := 0
	for gateway := byte(1); ; gateway = gateway%3 + 1 {
		select {
		case err := <-done:
			for _, out := range outs {
				if err != nil || !strings.Contains(out.String(), " 0% packet loss") {
					t.Errorf("%d moves: %v\n%s", moves, err, out)
				}
			}
			if moves < 3 {
				t.Errorf("got %d moves, want more", moves)
			}
			t.Logf("%d moves", moves)
			return
		default:
			nodes[0].apply(t, through(1, gateway), noGuard)
			moves++
		}
	}
}

// TestVXLANIsClosed sends VXLAN packets that no node of the location would send.
func TestVXLANIsClosed(t *testing.T) {
	if !namespaced(t) {
		return
	}
	nodes := startLocation(t)
	for _, n := range nodes {
		n.apply(t, view(n.n, 2), nil)
	}
	eventually(t, "a member's ping", func() bool {
		return exec.Command("ip", "netns", "exec", "node3", "ping", "-c1", "-W1", "10.4.0.1").Run() == nil
	})
	for _, chain := range []string{"input", "guard"} {
		if dropsVXLAN(t, chain) {
			t.Errorf("chain %s drops a member's packets", chain)
		}
	}
	run(t, "ip -n node3 addr add 192.168.10.33/24 dev eth0")
	run(t, "ip -n far addr add 192.168.10.3/32 dev lo")
	run(t, "ip -n far route add 192.168.10.1/32 via inet6 fd99:1::2 dev m1 src 192.168.10.3")
	for _, tt := range []struct{ name, ns, src, chain string }{
		{"an address of no member", "node3", "192.168.10.33", "input"},
		{"a member's address on another link", "far", "192.168.10.3", "guard"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSender(t, tt.ns, netip.MustParseAddr(tt.src), 0)
			to := netip.AddrPortFrom(netip.MustParseAddr("192.168.10.1"), netcfg.VXLANPort)
			eventually(t, "a drop", func() bool {
				if _, err := s.WriteToUDPAddrPort(make([]byte, 64), to); err != nil {
					t.Fatal(err)
				}
				return dropsVXLAN(t, tt.chain)
			})
		})
	}
}

// dropsVXLAN reports whether the chain has dropped a packet because of its source.
func dropsVXLAN(t *testing.T, chain string) bool {
	t.Helper()
	for line := range strings.Lines(run(t, "nft list chain inet meshd "+chain)) {
		if strings.Contains(line, "@members4") {
			return !strings.Contains(line, "packets 0 ")
		}
	}
	t.Fatalf("chain %s has no rule about members", chain)
	return false
}
