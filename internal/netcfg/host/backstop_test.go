// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/netcfg/netcfgtest"
)

// wireTap counts packets with an address of the mesh that arrive at the outside.
const wireTap = `
table inet tap {
	counter plain { }
	chain count {
		type filter hook prerouting priority -500
		ip daddr { 10.4.0.0/16, 10.42.0.0/16 } counter name plain
		ip saddr { 10.4.0.0/16, 10.42.0.0/16 } counter name plain
		ip6 daddr { fd00:4::/64, fd00:42::/48 } counter name plain
		ip6 saddr { fd00:4::/64, fd00:42::/48 } counter name plain
	}
}
`

// tapWire starts counting at the outside, and returns a function that returns the count.
func tapWire(t *testing.T) func() int {
	t.Helper()
	cmd := exec.Command("ip", "netns", "exec", "outside", "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(wireTap)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tap the wire: %v\n%s", err, out)
	}
	return func() int { return tapped(t, "plain") }
}

// tapped returns the value of a counter at the outside.
func tapped(t *testing.T, counter string) int {
	t.Helper()
	_, after, _ := strings.Cut(run(t, "ip netns exec outside nft list counter inet tap "+counter), "packets ")
	n, err := strconv.Atoi(strings.Fields(after)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// udpPair opens a UDP connection between addresses in two namespaces. Afterwards
// conntrack has seen packets in both directions.
func udpPair(t *testing.T, from string, src netip.Addr, to string, dst netip.Addr) (opened, answering *net.UDPConn) {
	t.Helper()
	listen := func(ns string, a netip.Addr) *net.UDPConn {
		var c *net.UDPConn
		var err error
		within(t, ns, func() { c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0))) })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	opened, answering = listen(from, src), listen(to, dst)
	for _, way := range [][2]*net.UDPConn{{opened, answering}, {answering, opened}} {
		eventually(t, "datagram from "+way[0].LocalAddr().String(), func() bool {
			send(t, way[0], way[1])
			if err := way[1].SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			_, _, err := way[1].ReadFromUDPAddrPort(make([]byte, 16))
			return err == nil
		})
	}
	return opened, answering
}

// send sends a datagram. It accepts errors that mean that there is no route.
func send(t *testing.T, from, to *net.UDPConn) {
	t.Helper()
	_, err := from.WriteToUDPAddrPort([]byte("hello"), to.LocalAddr().(*net.UDPAddr).AddrPort())
	for _, refused := range []error{nil, unix.EPERM, unix.EINVAL, unix.ENETUNREACH, unix.EHOSTUNREACH} {
		if errors.Is(err, refused) {
			return
		}
	}
	t.Fatal(err)
}

// TestHostileNothingInPlainText lets pods and hosts of the mesh communicate over
// connections opened by either side. Then it removes what carries their packets, and
// checks that none of these packets arrives at the outside.
func TestHostileNothingInPlainText(t *testing.T) {
	if !namespaced(t) {
		return
	}
	plan := startLab(t)
	plain := tapWire(t)
	var talks [][2]*net.UDPConn
	for _, pair := range [][2]string{{"10.42.0.5", "10.42.1.5"}, {"10.4.0.1", "10.42.1.5"}, {"10.42.0.5", "10.4.0.2"}} {
		place := map[string]string{"10.42.0.5": "pod1"}[pair[0]]
		for _, six := range []bool{false, true} {
			if six {
				pair = [2]string{inIPv6[pair[0]], inIPv6[pair[1]]}
			}
			near, far := netip.MustParseAddr(pair[0]), netip.MustParseAddr(pair[1])
			mine, theirs := udpPair(t, place, near, "mesh", far)
			talks = append(talks, [2]*net.UDPConn{mine, theirs})
			theirs, mine = udpPair(t, "mesh", far, place, near)
			talks = append(talks, [2]*net.UDPConn{mine, theirs})
		}
	}
	check := func(when string) {
		t.Helper()
		for range 5 {
			for _, talk := range talks {
				send(t, talk[0], talk[1])
			}
		}
		if n := plain(); n > 0 {
			t.Errorf("%s: got %d packets in plain text, want none\n%s", when, n, run(t, "ip route"))
			run(t, "ip netns exec outside nft reset counter inet tap plain")
		}
	}
	check("while all is well")
	run(t, "ip route flush proto 77")
	run(t, "ip -6 route flush proto 77")
	check("all routes deleted, and the chain alone left")
	plan.Firewall, plan.Sysctls = nil, nil
	if err := newKernel(t).Apply(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	for _, damage := range []string{"ip link set meshd0 down", "ip link delete meshd0", "nft delete table inet meshd"} {
		run(t, damage)
		check("after " + damage)
	}
}

// TestHostileVXLANStaysOnTheLAN removes the link to the LAN from a host that has another
// uplink.
func TestHostileVXLANStaysOnTheLAN(t *testing.T) {
	if !namespaced(t) {
		return
	}
	for _, line := range []string{
		"ip netns add outside", "ip link add eth0 type veth peer name l0 netns outside", "ip link add wan0 type veth peer name o0 netns outside",
		"ip -n outside link set l0 up", "ip -n outside link set o0 up", "ip link set eth0 up", "ip link set wan0 up",
		"ip addr add 192.168.10.1/24 dev eth0", "ip -n outside addr add 192.168.10.2/24 dev l0",
		"ip addr add 192.0.2.1/24 dev wan0", "ip -n outside addr add 192.0.2.254/24 dev o0", "ip route add default via 192.0.2.254",
		"ip netns exec outside nft add table inet tap",
		"ip netns exec outside nft add counter inet tap plain",
		"ip netns exec outside nft add counter inet tap lan",
		"ip netns exec outside nft add chain inet tap count { type filter hook prerouting priority -500 ; }",
		"ip netns exec outside nft add rule inet tap count iifname o0 udp dport 7947 counter name plain",
		"ip netns exec outside nft add rule inet tap count iifname l0 udp dport 7947 counter name lan",
	} {
		run(t, line)
	}
	firewall := netcfg.Desired(netcfgtest.Member(), lanSettings()).Firewall
	if err := newKernel(t).Apply(t.Context(), netcfg.Plan{Firewall: &firewall}); err != nil {
		t.Fatal(err)
	}
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("192.168.10.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	send := func() {
		_, err := c.WriteToUDPAddrPort([]byte("frame"), netip.MustParseAddrPort("192.168.10.2:7947"))
		if err != nil && !errors.Is(err, unix.EPERM) {
			t.Fatal(err)
		}
	}
	eventually(t, "packet over the LAN", func() bool {
		send()
		return tapped(t, "lan") > 0
	})
	run(t, "ip link set eth0 down")
	for range 5 {
		send()
	}
	if n := tapped(t, "plain"); n > 0 {
		t.Errorf("packets of vxlan that left by the default route: got %d, want none", n)
	}
}

// TestHostileNoAnswerBeforeRoutes pings a host that has its overlay address, but no route
// to the neighbor yet.
func TestHostileNoAnswerBeforeRoutes(t *testing.T) {
	if !namespaced(t) {
		return
	}
	startLab(t)
	plain := tapWire(t)
	run(t, "ip route flush proto 77 dev meshd0")
	run(t, "ip -6 route flush proto 77 dev meshd0")
	for _, line := range []string{
		"ip -n outside addr add 10.4.0.3/32 dev lo", "ip -n outside route add 10.4.0.1 via 192.0.2.1 src 10.4.0.3",
		"ip -n outside addr add fd00:4::3/128 dev lo nodad", "ip -n outside route add fd00:4::1 via 2001:db8::1 src fd00:4::3",
	} {
		run(t, line)
	}
	for _, a := range []string{"10.4.0.1", "fd00:4::1"} {
		if out, err := exec.Command("ip", "netns", "exec", "outside", "ping", "-c", "2", "-i", "0.2", "-W", "1", a).CombinedOutput(); err == nil {
			t.Errorf("ping %s: got an answer, want none\n%s", a, out)
		}
	}
	if n := plain(); n > 0 {
		t.Errorf("answers in plain text: got %d, want none", n)
	}
}

// TestHostileBackstopIsFirstAndLast reads from the kernel's events in which order the
// configuration of a host is added and removed.
func TestHostileBackstopIsFirstAndLast(t *testing.T) {
	if !namespaced(t) {
		return
	}
	var events eventLog
	monitor := exec.CommandContext(t.Context(), "ip", "-o", "monitor", "link", "address", "route")
	monitor.Stdout = &events
	if err := monitor.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "events", func() bool {
		run(t, "ip link set lo mtu 60000")
		run(t, "ip link set lo mtu 65536")
		return strings.Contains(events.String(), "lo:")
	})
	h, want := newKernel(t), alone()
	mustReconcile(t, h, want)
	if _, err := h.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the last event", func() bool { return strings.Contains(events.String(), "Deleted blackhole fd00:42::/32") })
	if err := monitor.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = monitor.Wait()
	at := 0
	for _, next := range []string{
		"blackhole 10.4.0.0/16", "blackhole 10.42.0.0/16", "blackhole fd00:4::/32", "blackhole fd00:42::/32",
		"meshd0:", "inet 10.4.0.1/32", "10.4.0.2 dev meshd0", "Deleted 10.4.0.2 dev meshd0", "Deleted local 10.4.0.1",
		"Deleted blackhole 10.4.0.0/16", "Deleted blackhole 10.42.0.0/16",
	} {
		i := strings.Index(events.String()[at:], next)
		if i < 0 {
			t.Fatalf("%q is missing or out of order:\n%s", next, events.String())
		}
		at += i
	}
}

// eventLog collects the output of a process and can be read at the same time.
type eventLog struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *eventLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *eventLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}
