// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/netcfg/netcfgtest"
)

// labHost builds the network around a host, in its network namespace:
//
//	pod1, pod2 ── kube-bridge ── host ── eth0 ──── outside, with the default route
//	                                 └── meshd0 ── mesh
//
// A veth stands for the device: to the firewall it is a link like any other. Packets that
// arrive on it stand for packets that WireGuard has accepted.
const labHost = `
ip link add meshd0 type veth peer name m0 netns mesh
ip link add eth0 type veth peer name o0 netns outside
ip link add v1 type veth peer name p0 netns pod1
ip link add v2 type veth peer name p0 netns pod2
ip link add kube-bridge type bridge
ip link set v1 master kube-bridge up
ip link set v2 master kube-bridge up
ip link set kube-bridge up
ip link set meshd0 mtu 1420 up
ip link set eth0 up
ip addr add 10.4.0.1/32 dev meshd0
ip addr add fd00:4::1/128 dev meshd0
ip addr add 10.42.0.1/24 dev kube-bridge
ip addr add fd00:42::1/64 dev kube-bridge
ip addr add 192.0.2.1/24 dev eth0
ip addr add 2001:db8::1/64 dev eth0
ip -n mesh link set m0 up
ip -n mesh addr add 10.4.0.2/32 dev m0
ip -n mesh addr add fd00:4::2/128 dev m0
ip -n mesh addr add 10.42.1.5/32 dev m0
ip -n mesh addr add fd00:42:0:1::5/128 dev m0
ip -n mesh route add default via 10.4.0.1 dev m0 onlink
ip -n mesh route add default via fd00:4::1 dev m0 onlink
ip -n outside link set o0 up
ip -n outside addr add 192.0.2.254/24 dev o0
ip -n outside addr add 2001:db8::fe/64 dev o0
ip -n outside addr add 198.51.100.7/32 dev lo
ip -n outside addr add 2001:db8:1::7/128 dev lo
ip -n outside route add default via 192.0.2.1
ip -n outside route add default via 2001:db8::1
ip -n pod1 link set p0 up
ip -n pod1 addr add 10.42.0.5/24 dev p0
ip -n pod1 addr add fd00:42::5/64 dev p0
ip -n pod1 route add default via 10.42.0.1
ip -n pod1 route add default via fd00:42::1
ip -n pod2 link set p0 up
ip -n pod2 addr add 10.42.0.6/24 dev p0
ip -n pod2 addr add fd00:42::6/64 dev p0
ip -n pod2 route add default via 10.42.0.1
ip -n pod2 route add default via fd00:42::1
ip route add default via 192.0.2.254
ip route add default via 2001:db8::fe`

// inIPv6 maps IPv4 addresses of the lab to the IPv6 addresses of the same host.
var inIPv6 = map[string]string{
	"10.4.0.1": "fd00:4::1", "10.4.0.2": "fd00:4::2", "10.4.0.77": "fd00:4::4d",
	"10.42.0.1": "fd00:42::1", "10.42.0.5": "fd00:42::5", "10.42.0.6": "fd00:42::6",
	"10.42.1.5": "fd00:42:0:1::5", "10.42.9.9": "fd00:42:0:9::9",
	"192.0.2.1": "2001:db8::1", "192.0.2.254": "2001:db8::fe", "198.51.100.7": "2001:db8:1::7",
}

// startLab builds the lab, gives the host its desired firewall, routes and kernel
// parameters, and returns the plan for that.
func startLab(t *testing.T, changes ...func(*mesh.Topology)) netcfg.Plan {
	t.Helper()
	quiet := func() {
		for key, value := range map[string]string{
			"net.ipv6.conf.default.accept_dad": "0", // addresses can be used at once
			"net.ipv4.conf.default.rp_filter":  "0", // only the guard chain filters sources
			"net.ipv4.conf.all.rp_filter":      "0",
		} {
			if err := os.WriteFile(sysctlPath(key), []byte(value), 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	quiet()
	for _, ns := range []string{"mesh", "outside", "pod1", "pod2"} {
		run(t, "ip netns add "+ns)
		run(t, "ip -n "+ns+" link set lo up")
		within(t, ns, quiet)
	}
	for line := range strings.Lines(strings.TrimSpace(labHost)) {
		run(t, line)
	}
	topology := mesh.Topology{
		Addresses:      []netip.Addr{netip.MustParseAddr("10.4.0.1"), netip.MustParseAddr("fd00:4::1")},
		PodCIDRs:       netcfgtest.Prefixes("10.42.0.0/24", "fd00:42::/64"),
		Inside:         netcfgtest.Prefixes("10.4.0.0/16", "10.42.0.0/16", "fd00:4::/64", "fd00:42::/48"),
		Guarded:        netcfgtest.Prefixes("10.4.0.0/16", "10.42.0.0/16", "fd00:4::/64", "fd00:42::/48"),
		PodsAndClients: netcfgtest.Prefixes("10.4.128.0/17", "10.42.0.0/16", "fd00:4::8000:0:0:0/65", "fd00:42::/48"),
		Hosts:          netcfgtest.Prefixes("10.4.0.0/17", "192.0.2.1/32", "192.0.2.254/32", "fd00:4::/65", "2001:db8::1/128", "2001:db8::fe/128"),
		PodRanges: []mesh.PodRange{
			{Range: netip.MustParsePrefix("10.42.0.0/16"), Bits: 24},
			{Range: netip.MustParsePrefix("fd00:42::/48"), Bits: 64},
		},
		ServedNetworks: netcfgtest.Prefixes("198.51.100.0/24", "2001:db8:1::/64"),
	}
	for _, change := range changes {
		change(&topology)
	}
	s := netcfg.Desired(topology, netcfg.Settings{Interface: "meshd0", Bridge: "kube-bridge", MTU: 1420, ListenPort: 51820, GossipPort: 7946})
	plan := netcfg.Plan{Firewall: &s.Firewall, Backstops: s.Backstops, Sysctls: s.Sysctls}
	for _, r := range s.Routes {
		plan.Routes = append(plan.Routes, netcfg.RouteChange{Route: r})
	}
	if err := newKernel(t).Apply(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	return plan
}

// TestFirewall sends datagrams and checks with which source they arrive.
func TestFirewall(t *testing.T) {
	if !namespaced(t) {
		return
	}
	startLab(t)
	tests := []struct {
		name string
		from string // namespace of the sender, "" for the host
		src  string
		to   string
		dst  string
		mark int
		want string // the source on arrival, "" if the datagram must not arrive
	}{
		{name: "peer to host", from: "mesh", src: "10.4.0.2", dst: "10.4.0.1", want: "10.4.0.2"},
		{name: "remote pod to pod", from: "mesh", src: "10.42.1.5", to: "pod1", dst: "10.42.0.5", want: "10.42.1.5"},
		{name: "pod to remote pod", from: "pod1", src: "10.42.0.5", to: "mesh", dst: "10.42.1.5", want: "10.42.0.5"},
		{name: "pod to pod over the bridge", from: "pod1", src: "10.42.0.5", to: "pod2", dst: "10.42.0.6", want: "10.42.0.5"},
		{name: "pod to its node", from: "pod1", src: "10.42.0.5", dst: "10.4.0.1", want: "10.42.0.5"},
		{name: "pod to its node's other address", from: "pod1", src: "10.42.0.5", dst: "192.0.2.1", want: "10.42.0.5"},
		{name: "host to its pod", src: "192.0.2.1", to: "pod1", dst: "10.42.0.5", want: "192.0.2.1"},
		{name: "host to itself", src: "192.0.2.1", dst: "10.4.0.1", want: "192.0.2.1"},
		{name: "host to itself on the overlay", src: "10.4.0.1", dst: "10.4.0.1", want: "10.4.0.1"},
		{name: "outside to host", from: "outside", src: "192.0.2.254", dst: "192.0.2.1", want: "192.0.2.254"},

		{name: "host to the mesh", src: "10.4.0.1", to: "mesh", dst: "10.42.1.5", want: "10.4.0.1"},
		{name: "host to the mesh from another address", src: "192.0.2.1", to: "mesh", dst: "10.42.1.5", want: "10.4.0.1"},
		{name: "host to the mesh from the bridge's address", src: "10.42.0.1", to: "mesh", dst: "10.42.1.5", want: "10.42.0.1"},
		{name: "marked by kube-proxy", src: "10.42.0.1", to: "mesh", dst: "10.42.1.5", mark: 0x4000, want: "10.4.0.1"},
		{name: "marked by another program", src: "10.42.0.1", to: "mesh", dst: "10.42.1.5", mark: 0x8000, want: "10.42.0.1"},

		{name: "pod to the internet", from: "pod1", src: "10.42.0.5", to: "outside", dst: "192.0.2.254", want: "192.0.2.1"},
		{name: "mesh to the internet", from: "mesh", src: "10.42.1.5", to: "outside", dst: "192.0.2.254"},
		{name: "host to the internet with a source in the mesh", src: "10.4.0.1", to: "outside", dst: "192.0.2.254"},
		{name: "former pod to the internet", src: "10.42.9.9", to: "outside", dst: "192.0.2.254"},
		{name: "mesh to a network behind us", from: "mesh", src: "10.42.1.5", to: "outside", dst: "198.51.100.7", want: "192.0.2.1"},
		{name: "pod to a network behind us", from: "pod1", src: "10.42.0.5", to: "outside", dst: "198.51.100.7", want: "192.0.2.1"},

		{name: "outside as a peer", from: "outside", src: "10.4.0.2", dst: "192.0.2.1"},
		{name: "outside as an unknown node", from: "outside", src: "10.4.0.77", dst: "192.0.2.1"},
		{name: "outside as ourselves", from: "outside", src: "10.4.0.1", dst: "192.0.2.1"},
		{name: "outside as our pod", from: "outside", src: "10.42.0.6", dst: "192.0.2.1"},
		{name: "outside as a peer to a pod", from: "outside", src: "10.4.0.2", to: "pod1", dst: "10.42.0.5"},
		{name: "peer as our pod", from: "mesh", src: "10.42.0.6", dst: "10.4.0.1"},
		{name: "pod as a remote pod", from: "pod1", src: "10.42.1.5", dst: "10.4.0.1"},
		{name: "pod as a peer", from: "pod1", src: "10.4.0.2", to: "pod2", dst: "10.42.0.6"},
		{name: "pod as its node", from: "pod1", src: "10.42.0.1", dst: "10.4.0.1"},
	}
	honest := map[string]string{"mesh": "10.4.0.2", "outside": "192.0.2.254", "pod1": "10.42.0.5", "": "10.4.0.1"}
	for _, six := range []bool{false, true} {
		addr := func(s string) netip.Addr {
			if six && s != "" {
				s = inIPv6[s]
			}
			a, _ := netip.ParseAddr(s)
			return a
		}
		for _, tt := range tests {
			name := tt.name
			if six {
				name += " in IPv6"
			}
			t.Run(name, func(t *testing.T) {
				s := newSender(t, tt.from, addr(tt.src), tt.mark)
				from := tt.from
				if tt.to == "outside" {
					from = "pod1" // the only one that may reach the outside
				}
				marker := newSender(t, from, addr(honest[from]), 0)
				got := arrival(t, tt.to, addr(tt.dst), s, marker)
				if want := addr(tt.want); got != want {
					t.Errorf("arrives from %s, want %s\n%s", got, want, run(t, "nft list table inet meshd"))
				}
			})
		}
	}
}

// TestPodsOfAnotherCNI tests pods on a bridge that meshd does not know.
func TestPodsOfAnotherCNI(t *testing.T) {
	if !namespaced(t) {
		return
	}
	startLab(t)
	firewall := netcfg.Desired(netcfgtest.DualStack(), netcfg.Settings{Interface: "meshd0", MTU: 1420}).Firewall
	if err := newKernel(t).Apply(t.Context(), netcfg.Plan{Firewall: &firewall}); err != nil {
		t.Fatal(err)
	}
	for _, pair := range [][2]string{{"10.42.1.5", "10.42.0.5"}, {"fd00:42:0:1::5", "fd00:42::5"}} {
		far, pod := netip.MustParseAddr(pair[0]), netip.MustParseAddr(pair[1])
		udpPair(t, "mesh", far, "pod1", pod)
		udpPair(t, "pod1", pod, "mesh", far)
	}
}

// TestForgetStranded opens connections to a destination with and without NAT, and one to
// another destination. When the route to the network is removed, only the connection with
// NAT is deleted. When the route to the address itself is removed, both are.
func TestForgetStranded(t *testing.T) {
	if !namespaced(t) {
		return
	}
	startLab(t)
	h, err := Open(Options{Interface: "meshd0", Bridge: "kube-bridge"})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for _, six := range []bool{false, true} {
		addr := func(s string) netip.Addr {
			if six {
				s = inIPv6[s]
			}
			return netip.MustParseAddr(s)
		}
		families := map[bool]netlink.InetFamily{false: unix.AF_INET, true: unix.AF_INET6}
		there := func() []string {
			flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, families[six])
			if err != nil {
				t.Fatal(err)
			}
			var out []string
			for _, f := range flows {
				if f.Forward.Protocol == unix.IPPROTO_UDP {
					out = append(out, f.Forward.SrcIP.String()+" to "+f.Forward.DstIP.String())
				}
			}
			slices.Sort(out)
			return out
		}
		var all []string
		for _, flow := range [][2]string{{"10.4.0.1", "10.42.1.5"}, {"192.0.2.1", "10.42.1.5"}, {"192.0.2.1", "10.4.0.2"}} {
			src, dst := addr(flow[0]), addr(flow[1])
			s := newSender(t, "", src, 0)
			if _, err := s.WriteToUDPAddrPort([]byte("try"), netip.AddrPortFrom(dst, 9)); err != nil {
				t.Fatal(err)
			}
			all = append(all, src.String()+" to "+dst.String())
		}
		slices.Sort(all)
		if diff := cmp.Diff(all, there()); diff != "" {
			t.Errorf("connections before (-want +got):\n%s", diff)
		}
		to := addr("10.42.1.5")
		network, _ := to.Prefix(to.BitLen() - 8)
		for _, end := range []struct {
			of   netip.Prefix
			took string // suffix of the flows to delete
		}{
			{network, addr("192.0.2.1").String() + " to " + to.String()},
			{netip.PrefixFrom(to, to.BitLen()), " to " + to.String()},
		} {
			if err := h.forgetStranded([]netip.Prefix{end.of}); err != nil {
				t.Error(err)
			}
			all = slices.DeleteFunc(all, func(s string) bool { return strings.HasSuffix(s, end.took) })
			if diff := cmp.Diff(all, there()); diff != "" {
				t.Errorf("connections after the removal of %s (-want +got):\n%s", end.of, diff)
			}
		}
	}
}

// TestClampMSS opens a connection between links with a larger MTU than the device.
func TestClampMSS(t *testing.T) {
	if !namespaced(t) {
		return
	}
	startLab(t)
	for _, tt := range []struct{ name, from, to, dst string }{
		{name: "to the mesh", from: "pod1", to: "mesh", dst: "10.42.1.5"},
		{name: "from the mesh", from: "mesh", to: "pod1", dst: "10.42.0.5"},
		{name: "to the mesh in IPv6", from: "pod1", to: "mesh", dst: "fd00:42:0:1::5"},
		{name: "from the mesh in IPv6", from: "mesh", to: "pod1", dst: "fd00:42::5"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var l net.Listener
			var client net.Conn
			var err error
			within(t, tt.to, func() { l, err = net.Listen("tcp", net.JoinHostPort(tt.dst, "0")) })
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			within(t, tt.from, func() { client, err = net.DialTimeout("tcp", l.Addr().String(), patience) })
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			server, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			// 1420 minus the headers of TCP and IP.
			most := 1420 - 40
			if strings.Contains(tt.dst, ":") {
				most -= 20
			}
			if got := segment(t, client); got > most {
				t.Errorf("client sends segments of %d bytes, want at most %d", got, most)
			}
			if got := segment(t, server); got > most {
				t.Errorf("server sends segments of %d bytes, want at most %d", got, most)
			}
		})
	}
}

// segment returns the segment size of a TCP connection, including TCP options.
func segment(t *testing.T, c net.Conn) int {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var mss int
	if ctlErr := raw.Control(func(fd uintptr) {
		mss, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG)
	}); ctlErr != nil || err != nil {
		t.Fatal(ctlErr, err)
	}
	return mss
}

// within runs f in a network namespace, "" for the current one. Sockets stay in the
// namespace in which they were opened.
func within(t *testing.T, ns string, f func()) {
	t.Helper()
	if ns == "" {
		f()
		return
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	old, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	inner, err := netns.GetFromName(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	if err := netns.Set(inner); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := netns.Set(old); err != nil {
			t.Fatal(err)
		}
	}()
	f()
}

// newSender opens a UDP socket that sends with the source src, even if src belongs to no
// link here.
func newSender(t *testing.T, ns string, src netip.Addr, mark int) *net.UDPConn {
	t.Helper()
	return newSenderAt(t, ns, netip.AddrPortFrom(src, 0), mark)
}

// newSenderAt is newSender with a port.
func newSenderAt(t *testing.T, ns string, src netip.AddrPort, mark int) *net.UDPConn {
	t.Helper()
	var c net.PacketConn
	var err error
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var errs [3]error
		if err := raw.Control(func(fd uintptr) {
			errs[0] = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1)
			if src.Addr().Is6() {
				errs[1] = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1)
			}
			errs[2] = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark)
		}); err != nil {
			return err
		}
		for _, err := range errs {
			if err != nil {
				return err
			}
		}
		return nil
	}}
	within(t, ns, func() { c, err = lc.ListenPacket(t.Context(), "udp", src.String()) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.UDPConn)
}

// arrival returns the source with which the datagram that s sends arrives at dst. It
// returns the zero Addr if only the datagram that marker sends after it arrives.
func arrival(t *testing.T, ns string, dst netip.Addr, s, marker *net.UDPConn) netip.Addr {
	t.Helper()
	var c *net.UDPConn
	var err error
	within(t, ns, func() { c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(dst, 0))) })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	to := c.LocalAddr().(*net.UDPAddr).AddrPort()
	if _, err := s.WriteToUDPAddrPort([]byte("try"), to); err != nil && !errors.Is(err, unix.EPERM) { // dropped
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if _, err := marker.WriteToUDPAddrPort([]byte("marker"), to); err != nil {
			t.Fatal(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, from, err := c.ReadFromUDPAddrPort(buf)
		switch {
		case err != nil:
			continue
		case string(buf[:n]) == "try":
			return from.Addr().Unmap()
		default:
			return netip.Addr{}
		}
	}
	t.Fatalf("nothing arrives at %s in %v", to, patience)
	return netip.Addr{}
}

// TestReplaceElements changes the elements of sets at random, also to prefixes next to each other, to the
// highest ones of a family, and to more than one message can carry.
func TestReplaceElements(t *testing.T) {
	if !namespaced(t) {
		return
	}
	h := newKernel(t)
	rules := netcfg.Desired(netcfgtest.DualStack(), settings()).Firewall
	mustReconcile(t, h, netcfg.State{Firewall: rules})
	rapid.Check(t, func(t *rapid.T) {
		want := netcfg.Firewall{Chains: rules.Chains}
		for _, s := range rules.Sets {
			size := map[string]int{"ipv4_addr": 4, "ipv6_addr": 16}[s.Type]
			s.Elements = disjoint(t, size, rapid.SampledFrom([]int{0, 3, maxElements}).Draw(t, "most"))
			want.Sets = append(want.Sets, s)
		}
		observed, err := h.Observe(context.Background(), netcfg.State{})
		if err != nil {
			t.Fatal(err)
		}
		plan := netcfg.Diff(observed, netcfg.State{Firewall: want}, netcfg.Options{})
		if plan.Firewall != nil && len(plan.Sets) == 0 {
			t.Fatalf("the table is to be replaced:\n%s", plan)
		}
		if err := h.replaceElements(plan.Sets); err != nil {
			t.Fatal(err)
		}
		if observed, err = h.Observe(context.Background(), netcfg.State{}); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want.Sets, observed.Firewall.Sets, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Prefix{})); d != "" {
			t.Fatalf("sets (-want +got):\n%s", d)
		}
	})
}

// TestElementsRefused: if the kernel refuses elements, the table is replaced.
func TestElementsRefused(t *testing.T) {
	if !namespaced(t) {
		return
	}
	h := newKernel(t)
	want := netcfg.Desired(netcfgtest.DualStack(), settings()).Firewall
	if err := h.applyFirewall(t.Context(), want, []netcfg.Set{{Name: "absent"}}); err != nil {
		t.Fatal(err)
	}
	got, err := h.observeFirewall()
	if err != nil {
		t.Fatal(err)
	}
	if plan := netcfg.Diff(netcfg.State{Firewall: got}, netcfg.State{Firewall: want}, netcfg.Options{}); !plan.Empty() {
		t.Errorf("got a table that differs:\n%s", plan)
	}
}
