// SPDX-License-Identifier: Apache-2.0

package host

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg/netcfgtest"
)

// TestAccess sends datagrams from clients whose tunnels end here. A table like
// kube-proxy's translates the addresses of two Services, one to a pod of this node and
// one to a pod of another node.
func TestAccess(t *testing.T) {
	if !namespaced(t) {
		return
	}
	startLab(t, func(top *mesh.Topology) { *top = netcfgtest.WithClients(*top) })
	run(t, "ip netns exec mesh ip addr add 10.42.1.6/32 dev m0")
	for _, rule := range []string{
		"add table ip kube", "add chain ip kube pre { type nat hook prerouting priority dstnat; }",
		"add rule ip kube pre ip daddr 10.43.0.10 udp dport 53 dnat to 10.42.0.5:5353",
		"add rule ip kube pre ip daddr 10.43.0.11 udp dport 53 dnat to 10.42.1.6:5353",
	} {
		run(t, "nft "+rule)
	}
	tryDatagrams(t, []datagram{
		{"pod", "10.4.128.1", "10.42.0.5:5353", "pod1", "10.42.0.5:5353", "10.4.128.1"},
		{"node", "10.4.128.1", "10.4.0.1:99", "", "10.4.0.1:99", "10.4.128.1"},
		{"gossip", "10.4.128.1", "10.4.0.1:7946", "", "10.4.0.1:7946", ""},
		{"gossip at another port", "10.4.128.1", "10.4.0.1:17946", "", "10.4.0.1:17946", ""},
		{"a pod at gossip's port", "10.4.128.1", "10.42.0.5:7946", "pod1", "10.42.0.5:7946", "10.4.128.1"},
		{"the node's own network", "10.4.128.1", "192.0.2.1:99", "", "192.0.2.1:99", ""},
		{"the internet", "10.4.128.1", "192.0.2.254:99", "outside", "192.0.2.254:99", ""},
		{"Service with a backend here", "10.4.128.1", "10.43.0.10:53", "pod1", "10.42.0.5:5353", "10.4.0.1"},
		{"Service with a backend elsewhere", "10.4.128.1", "10.43.0.11:53", "mesh", "10.42.1.6:5353", "10.4.0.1"},
		{"client of another node through here", "10.4.128.9", "10.43.0.10:53", "pod1", "10.42.0.5:5353", "10.4.0.1"},
		{"restricted, the allowed Service", "10.4.128.3", "10.43.0.10:53", "pod1", "10.42.0.5:5353", "10.4.0.1"},
		{"restricted, the other Service", "10.4.128.3", "10.43.0.11:53", "mesh", "10.42.1.6:5353", ""},
		{"restricted, the backend itself", "10.4.128.3", "10.42.0.5:5353", "pod1", "10.42.0.5:5353", ""},
		{"restricted, a node", "10.4.128.3", "10.4.0.1:99", "", "10.4.0.1:99", ""},
	})
}

// TestAccessToInternet sends datagrams from clients to a host outside, through an exit: one may
// send to one port there, one nothing, one all.
func TestAccessToInternet(t *testing.T) {
	if !namespaced(t) {
		return
	}
	startLab(t, func(top *mesh.Topology) { *top = netcfgtest.WithInternet(netcfgtest.WithClients(*top)) })
	tryDatagrams(t, []datagram{
		{"the allowed port", "10.4.128.1", "192.0.2.254:99", "outside", "192.0.2.254:99", "192.0.2.1"},
		{"another port", "10.4.128.1", "192.0.2.254:98", "outside", "192.0.2.254:98", ""},
		{"not allowed", "10.4.128.2", "192.0.2.254:99", "outside", "192.0.2.254:99", ""},
		{"all", "10.4.128.3", "192.0.2.254:98", "outside", "192.0.2.254:98", "192.0.2.1"},
		{"the exit itself", "10.4.128.3", "192.0.2.1:99", "", "192.0.2.1:99", ""},
		{"a pod", "10.4.128.3", "10.42.0.5:99", "pod1", "10.42.0.5:99", ""},
	})
}

// datagram is one that a client sends.
type datagram struct {
	name string
	src  string
	dst  string // the requested destination
	to   string // the namespace of the receiver, "" for the host
	at   string // the address of the receiver
	want string // the source on arrival, "" if the datagram must not arrive
}

// tryDatagrams sends datagrams and checks which arrive.
func tryDatagrams(t *testing.T, list []datagram) {
	t.Helper()
	for _, tt := range list {
		t.Run(tt.name, func(t *testing.T) {
			var c *net.UDPConn
			var err error
			within(t, tt.to, func() { c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(tt.at))) })
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			s := newSender(t, "mesh", netip.MustParseAddr(tt.src), 0)
			if _, err := s.WriteToUDPAddrPort([]byte("try"), netip.MustParseAddrPort(tt.dst)); err != nil {
				t.Fatal(err)
			}
			wait := patience
			if tt.want == "" {
				wait = 200 * time.Millisecond
			}
			if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
				t.Fatal(err)
			}
			_, from, _ := c.ReadFromUDPAddrPort(make([]byte, 16))
			if want, _ := netip.ParseAddr(tt.want); from.Addr().Unmap() != want {
				t.Errorf("arrives from %s, want %s\n%s", from, want, run(t, "nft list table inet meshd"))
			}
		})
	}
}

// A client that may not open any connection may reply to a pod.
func TestAccessLetsAnswersThrough(t *testing.T) {
	if !namespaced(t) {
		return
	}
	startLab(t, func(top *mesh.Topology) { *top = netcfgtest.WithClients(*top) })
	client := newSender(t, "mesh", netip.MustParseAddr("10.4.128.3"), 0)
	run(t, "ip netns exec mesh ip addr add 10.4.128.3/32 dev m0")
	pod := newSender(t, "pod1", netip.MustParseAddr("10.42.0.5"), 0)
	buf := make([]byte, 16)
	for _, way := range [][2]*net.UDPConn{{pod, client}, {client, pod}} {
		if _, err := way[0].WriteToUDPAddrPort([]byte("try"), way[1].LocalAddr().(*net.UDPAddr).AddrPort()); err != nil {
			t.Fatal(err)
		}
		if err := way[1].SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := way[1].ReadFromUDPAddrPort(buf); err != nil {
			t.Fatalf("%v to %v: %v", way[0].LocalAddr(), way[1].LocalAddr(), err)
		}
	}
}
