// SPDX-License-Identifier: Apache-2.0

package host

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/netcfg/filter"
	"github.com/meshd/meshd/internal/netcfg/netcfgtest"
)

// delivery is a datagram to send, and where it should arrive.
type delivery struct {
	name string
	from string // namespace of the sender, "" for the host
	src  string
	port int    // of the sender, 0 for any
	dst  string // address and port
	to   string // namespace of the receiver, "" for the host
	at   string // address and port of the receiver; "" for dst
	want string // the source on arrival, "" if the datagram must not arrive
}

// deliver sends the datagram and waits for it. It waits only a moment for a datagram that
// should not arrive; waiting too briefly can't make the test fail.
func deliver(t *testing.T, d delivery) {
	t.Helper()
	at := d.dst
	if d.at != "" {
		at = d.at
	}
	var c *net.UDPConn
	var err error
	within(t, d.to, func() { c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at))) })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s := newSenderAt(t, d.from, netip.AddrPortFrom(netip.MustParseAddr(d.src), uint16(d.port)), 0)
	defer s.Close()
	if _, err := s.WriteToUDPAddrPort([]byte("try"), netip.MustParseAddrPort(d.dst)); err != nil {
		t.Fatal(err)
	}
	wait := patience
	if d.want == "" {
		wait = 150 * time.Millisecond
	}
	if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
		t.Fatal(err)
	}
	_, from, _ := c.ReadFromUDPAddrPort(make([]byte, 16))
	if want, _ := netip.ParseAddr(d.want); from.Addr().Unmap() != want {
		t.Errorf("arrives from %s, want %s\n%s", from, want, run(t, "nft list table inet meshd"))
	}
}

// in6 translates an IPv4 delivery to IPv6.
func (d delivery) in6() delivery {
	translate := func(s string) string {
		addr, port, ok := strings.Cut(s, ":")
		if !ok {
			return inIPv6[s]
		}
		return net.JoinHostPort(inIPv6[addr], port)
	}
	d.name += " in IPv6"
	d.src, d.dst = translate(d.src), translate(d.dst)
	if d.at != "" {
		d.at = translate(d.at)
	}
	if d.want != "" {
		d.want = translate(d.want)
	}
	return d
}

// TestHostileBorder sends packets that only hosts may send, from a pod and from the mesh:
// to our ports, and with all kinds of sources that don't belong to the sender.
func TestHostileBorder(t *testing.T) {
	if !namespaced(t) {
		return
	}
	startLab(t)
	run(t, "ip netns exec outside ip addr add 203.0.113.7/32 dev lo")
	run(t, "ip netns exec outside ip addr add 2001:db8:2::7/128 dev lo nodad")
	inIPv6["203.0.113.7"], inIPv6["10.4.128.1"] = "2001:db8:2::7", "fd00:4::8000:0:0:1"
	inIPv6["10.42.1.1"], inIPv6["192.0.2.50"] = "fd00:42:0:1::1", "2001:db8::50"
	for _, rule := range []string{
		"add table inet kube", "add chain inet kube pre { type nat hook prerouting priority dstnat; }",
		"add rule inet kube pre ip daddr 192.0.2.1 udp dport 30001 dnat ip to 192.0.2.254:7947",
		"add rule inet kube pre ip6 daddr 2001:db8::1 udp dport 30001 dnat ip6 to [2001:db8::fe]:7947",
		"add rule inet kube pre ip daddr 192.0.2.1 udp dport 30002 dnat ip to 10.42.0.5:9",
		"add rule inet kube pre ip6 daddr 2001:db8::1 udp dport 30002 dnat ip6 to [fd00:42::5]:9",
	} {
		run(t, "nft "+rule)
	}
	tests := []delivery{
		{name: "pod to another node's vxlan", from: "pod1", src: "10.42.0.5", dst: "192.0.2.254:7947", to: "outside"},
		{name: "pod to vxlan by a Service", from: "pod1", src: "10.42.0.5", dst: "192.0.2.1:30001", at: "192.0.2.254:7947", to: "outside"},
		{name: "pod to vxlan at an address in no record", from: "pod1", src: "10.42.0.5", dst: "203.0.113.7:7947", to: "outside"},
		{name: "mesh to vxlan behind us", from: "mesh", src: "10.42.1.5", dst: "198.51.100.7:7947", to: "outside"},
		{name: "pod to this host's vxlan", from: "pod1", src: "10.42.0.5", dst: "192.0.2.1:7947"},
		{name: "mesh to this host's vxlan", from: "mesh", src: "10.42.1.5", dst: "192.0.2.1:7947"},
		{name: "pod to another node's WireGuard", from: "pod1", src: "10.42.0.5", dst: "192.0.2.254:51820", to: "outside"},
		{name: "pod to another node's gossip", from: "pod1", src: "10.42.0.5", dst: "192.0.2.254:7946", to: "outside"},
		{name: "pod to this host's gossip", from: "pod1", src: "10.42.0.5", dst: "10.4.0.1:7946"},
		{name: "pod to gossip at the bridge", from: "pod1", src: "10.42.0.5", dst: "10.42.0.1:7946"},
		{name: "remote pod to this host's WireGuard", from: "mesh", src: "10.42.1.5", dst: "10.4.0.1:51820"},

		{name: "pod at vxlan's port", from: "mesh", src: "10.42.1.5", dst: "10.42.0.5:7947", to: "pod1", want: "10.42.1.5"},
		{name: "pod at gossip's port", from: "pod1", src: "10.42.0.5", dst: "10.42.1.5:7946", to: "mesh", want: "10.42.0.5"},
		{name: "pod to WireGuard on the internet", from: "pod1", src: "10.42.0.5", dst: "203.0.113.7:51820", to: "outside", want: "192.0.2.1"},
		{name: "pod to a node", from: "pod1", src: "10.42.0.5", dst: "192.0.2.254:10250", to: "outside", want: "192.0.2.1"},
		{name: "pod to its node", from: "pod1", src: "10.42.0.5", dst: "10.4.0.1:10250", want: "10.42.0.5"},
		{name: "gossip through the mesh", from: "mesh", src: "10.4.0.2", dst: "10.4.0.1:7946", want: "10.4.0.2"},
		{name: "gossip from the LAN", from: "outside", src: "192.0.2.254", dst: "192.0.2.1:7946", want: "192.0.2.254"},
		{name: "host to another node's gossip", src: "192.0.2.1", dst: "192.0.2.254:7946", to: "outside", want: "192.0.2.1"},
		{name: "host to another node's vxlan", src: "192.0.2.1", dst: "192.0.2.254:7947", to: "outside", want: "192.0.2.1"},
		{name: "request from the internet with vxlan's source port", from: "outside", src: "203.0.113.7", port: 7947, dst: "192.0.2.1:30002", at: "10.42.0.5:9", to: "pod1", want: "203.0.113.7"},

		{name: "pod as another node's internal IP", from: "pod1", src: "192.0.2.254", dst: "192.0.2.1:99"},
		{name: "pod as another node's internal IP to a pod elsewhere", from: "pod1", src: "192.0.2.254", dst: "10.42.1.5:99", to: "mesh"},
		{name: "pod as its own node", from: "pod1", src: "192.0.2.1", dst: "10.42.1.5:99", to: "mesh"},
		{name: "pod as an unknown host", from: "pod1", src: "192.0.2.50", dst: "192.0.2.254:99", to: "outside"},
		{name: "pod as a client", from: "pod1", src: "10.4.128.1", dst: "10.42.1.5:99", to: "mesh"},
		{name: "pod as another node", from: "pod1", src: "10.4.0.2", dst: "192.0.2.254:99", to: "outside"},
		{name: "pod as a remote pod", from: "pod1", src: "10.42.1.5", dst: "10.4.0.1:99"},
		{name: "mesh as a node's internal IP", from: "mesh", src: "192.0.2.254", dst: "192.0.2.1:99"},
		{name: "mesh as a node's internal IP to a pod", from: "mesh", src: "192.0.2.254", dst: "10.42.0.5:99", to: "pod1"},
		{name: "mesh as this node's pod", from: "mesh", src: "10.42.0.6", dst: "10.42.0.5:99", to: "pod1"},
	}
	for _, tt := range tests {
		for _, d := range []delivery{tt, tt.in6()} {
			t.Run(d.name, func(t *testing.T) { deliver(t, d) })
		}
	}
}

// TestHostileSourcePorts sends from a pod with the ports of its node as source ports. If
// NAT kept such a port, packets that other nodes send to it would be treated as replies
// to the pod.
func TestHostileSourcePorts(t *testing.T) {
	if !namespaced(t) {
		return
	}
	startLab(t)
	run(t, "ip netns exec outside ip addr add 203.0.113.7/32 dev lo")
	run(t, "ip netns exec outside ip addr add 2001:db8:2::7/128 dev lo nodad")
	for src, dst := range map[string]string{"10.42.0.5": "203.0.113.7:53", inIPv6["10.42.0.5"]: "[2001:db8:2::7]:53"} {
		var c *net.UDPConn
		var err error
		within(t, "outside", func() { c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(dst))) })
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for port, kept := range map[uint16]bool{51820: false, 7946: false, 7947: false, 4001: true} {
			s := newSenderAt(t, "pod1", netip.AddrPortFrom(netip.MustParseAddr(src), port), 0)
			defer s.Close()
			if _, err := s.WriteToUDPAddrPort([]byte("try"), netip.MustParseAddrPort(dst)); err != nil {
				t.Fatal(err)
			}
			if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			if _, from, err := c.ReadFromUDPAddrPort(make([]byte, 16)); err != nil || (from.Port() == port) != kept {
				t.Errorf("sent by %s from port %d: it arrives from %v, %v; want the port kept: %t", src, port, from, err, kept)
			}
		}
	}
}

// TestHostileAccessToBridges lets clients that may reach only pods try the addresses that
// nodes have in the pod ranges.
func TestHostileAccessToBridges(t *testing.T) {
	if !namespaced(t) {
		return
	}
	startLab(t, func(top *mesh.Topology) {
		*top = netcfgtest.WithClients(*top)
		pods := netcfgtest.Prefixes("10.42.0.0/16", "fd00:42::/48")
		top.Clients[1].Allowed = []mesh.Allowance{{Destinations: pods}}
		top.Clients[2].Allowed = []mesh.Allowance{
			{Destinations: append(pods, netcfgtest.Prefixes("10.42.7.1/32")...), Bridges: netcfgtest.Prefixes("10.42.7.1/32")},
			{Protocol: "udp", Port: 98, Bridges: pods, Destinations: netcfgtest.Prefixes("10.4.0.0/17")},
		}
	})
	// The namespace of a pod stands for another node, since the mesh's namespace sends
	// these packets.
	run(t, "ip -n pod2 addr add 10.42.7.1/32 dev p0")
	run(t, "ip -n pod2 addr add 10.42.7.0/32 dev p0")
	run(t, "ip route add 10.42.7.0/24 via 10.42.0.6 dev kube-bridge")
	const all, pods, some = "10.4.128.1", "10.4.128.2", "10.4.128.3"
	for _, tt := range []delivery{
		{name: "pods only, a pod", src: pods, dst: "10.42.0.5:99", to: "pod1", want: pods},
		{name: "pods only, this node's bridge", src: pods, dst: "10.42.0.1:99"},
		{name: "pods only, this node's broadcast", src: pods, dst: "10.42.0.255:99", at: "0.0.0.0:99"},
		{name: "pods only, another node's bridge", src: pods, dst: "10.42.7.1:99", to: "pod2"},
		{name: "pods only, another node's flannel", src: pods, dst: "10.42.7.0:99", to: "pod2"},
		{name: "pods and nodes, this node's bridge", src: all, dst: "10.42.0.1:99", want: all},
		{name: "pods and nodes, another node's bridge", src: all, dst: "10.42.7.1:99", to: "pod2", want: all},
		{name: "a listed address", src: some, dst: "10.42.7.1:99", to: "pod2", want: some},
		{name: "an address that is not listed", src: some, dst: "10.42.0.1:99"},
		{name: "a port of nodes", src: some, dst: "10.42.0.1:98", want: some},
		{name: "pods only in IPv6, a pod", src: "fd00:4::8000:0:0:2", dst: "[fd00:42::5]:99", to: "pod1", want: "fd00:4::8000:0:0:2"},
		{name: "pods only in IPv6, this node's bridge", src: "fd00:4::8000:0:0:2", dst: "[fd00:42::1]:99"},
		{name: "pods only in IPv6, anycast", src: "fd00:4::8000:0:0:2", dst: "[fd00:42::]:99", at: "[::]:99"},
		{name: "pods and nodes in IPv6, this node's bridge", src: "fd00:4::8000:0:0:1", dst: "[fd00:42::1]:99", want: "fd00:4::8000:0:0:1"},
	} {
		tt.from = "mesh"
		t.Run(tt.name, func(t *testing.T) { deliver(t, tt) })
	}
}

// TestHostileDNAT adds rules of other programs that redirect our ports, like those for a
// pod's hostPort and a Service's external IP. Each program that can write such rules is
// tried.
func TestHostileDNAT(t *testing.T) {
	if !namespaced(t) {
		return
	}
	startLab(t)
	desired := netcfg.Desired(netcfgtest.IPv4(), settings())
	if got := portProblems(t, desired); len(got) > 0 {
		t.Errorf("problems before: %v", got)
	}
	for _, six := range []bool{false, true} {
		family, pod, host, node := "ip", "10.42.0.5", "192.0.2.1", "192.0.2.254"
		if six {
			family, pod, host, node = "ip6", "[fd00:42::5]", inIPv6[host], inIPv6[node]
		}
		writers := map[string][]string{"nft": {
			"nft add table inet others",
			"nft add chain inet others in { type nat hook prerouting priority dstnat; }",
			"nft add chain inet others out { type nat hook output priority -100; }",
			fmt.Sprintf("nft add rule inet others in fib daddr type local meta l4proto { tcp, udp } th dport { 51820, 7946, 7947, 7948, 80 } dnat %s to %s:99", family, pod),
			fmt.Sprintf("nft add rule inet others in %s daddr %s udp dport { 51820, 7946 } dnat %s to %s:99", family, node, family, pod),
			fmt.Sprintf("nft add rule inet others out udp dport { 51820, 7946, 7947, 80 } dnat %s to %s:99", family, pod),
		}}
		for _, program := range []string{filter.XTNFT.Program(family), filter.Legacy.Program(family)} {
			if installed(program) == "" {
				continue
			}
			for _, hook := range []string{"PREROUTING", "OUTPUT"} {
				writers[program] = append(writers[program],
					fmt.Sprintf("%s -t nat -A %s -p udp -m multiport --dports 51820,7946,7947,80 -j DNAT --to-destination %s:99", program, hook, pod))
			}
		}
		for name, commands := range writers {
			for _, c := range commands {
				run(t, c)
			}
			named := false
			for _, p := range portProblems(t, desired) {
				named = named || strings.Contains(p.Text, "UDP port 51820 ") && strings.Contains(p.Text, strings.Trim(pod, "[]"))
			}
			if !named {
				t.Errorf("%s: got problems %v, want one that names port 51820 and the new destination", name, portProblems(t, desired))
			}
			at := func(addr string, port int) string {
				return netip.AddrPortFrom(netip.MustParseAddr(addr), uint16(port)).String()
			}
			podAt := strings.Trim(pod, "[]")
			tests := []delivery{
				{name: "another port is redirected", from: "outside", src: node, dst: at(host, 80), at: at(podAt, 99), to: "pod1", want: node},
				{name: "another port of the host is redirected", src: host, dst: at(node, 80), at: at(podAt, 99), to: "pod1", want: host},
			}
			for _, port := range []int{51820, 7946, 7947} {
				tests = append(tests,
					delivery{name: fmt.Sprintf("from the LAN to %d", port), from: "outside", src: node, dst: at(host, port), want: node},
					delivery{name: fmt.Sprintf("from here to %d", port), src: host, dst: at(host, port), want: host},
					delivery{name: fmt.Sprintf("from here to a node's %d", port), src: host, dst: at(node, port), to: "outside", want: host})
			}
			// WireGuard's socket sends also to addresses that are in no record.
			tests = append(tests, delivery{name: "from WireGuard's port", src: host, port: 51820, dst: at(node, 80), to: "outside", want: host})
			for _, d := range tests {
				t.Run(name+", "+d.name, func(t *testing.T) { deliver(t, d) })
			}
			for _, c := range commands {
				if strings.Contains(c, " -A ") {
					run(t, strings.Replace(c, " -A ", " -D ", 1))
				}
			}
			if name == "nft" {
				run(t, "nft delete table inet others")
			}
		}
	}
}

// TestHostileForgetRedirected opens a connection that is redirected before our rules
// exist.
func TestHostileForgetRedirected(t *testing.T) {
	if !namespaced(t) {
		return
	}
	startLab(t)
	run(t, "nft delete table inet meshd")
	run(t, "nft add table inet others")
	run(t, "nft add chain inet others in { type nat hook prerouting priority dstnat; }")
	run(t, "nft add rule inet others in ip daddr 192.0.2.1 udp dport { 51820, 80 } dnat ip to 10.42.0.5:99")
	for _, port := range []string{"51820", "80"} {
		deliver(t, delivery{from: "outside", src: "192.0.2.254", port: 4000, dst: "192.0.2.1:" + port, at: "10.42.0.5:99", to: "pod1", want: "192.0.2.254"})
	}
	h := newKernel(t)
	desired := netcfg.Desired(netcfgtest.IPv4(), settings())
	if err := h.Apply(t.Context(), netcfg.Diff(netcfg.State{}, netcfg.State{Firewall: desired.Firewall, OwnPorts: desired.OwnPorts}, netcfg.Options{})); err != nil {
		t.Fatal(err)
	}
	deliver(t, delivery{from: "outside", src: "192.0.2.254", port: 4000, dst: "192.0.2.1:51820", want: "192.0.2.254"})
	deliver(t, delivery{from: "outside", src: "192.0.2.254", port: 4000, dst: "192.0.2.1:80", at: "10.42.0.5:99", to: "pod1", want: "192.0.2.254"})
}

// portProblems returns the problems about rules that redirect our ports.
func portProblems(t *testing.T, desired netcfg.State) []mesh.Problem {
	t.Helper()
	tables, err := newKernel(t).Filters(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	problems := netcfg.Problems(netcfg.State{Filters: tables}, desired)
	return slices.DeleteFunc(problems, func(p mesh.Problem) bool { return p.Kind != netcfg.ProblemPort })
}
