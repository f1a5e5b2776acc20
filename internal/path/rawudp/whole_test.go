// SPDX-License-Identifier: Apache-2.0

package rawudp

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// TestNoFragments sends datagrams that are longer than the link's MTU, or than what a route says of
// the path: the former are refused, the latter go as they are, and neither is cut.
func TestNoFragments(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("raw sockets need root")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		sendLong(t)
	}()
	<-done
}

func sendLong(t *testing.T) {
	ns, err := netns.New()
	if err != nil {
		t.Error(err)
		return
	}
	defer ns.Close()
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "out", MTU: 1400}, PeerName: "in"}
	six := netlink.Addr{IPNet: prefix("fd00::1/64"), Flags: unix.IFA_F_NODAD}
	if err := errors.Join(
		netlink.LinkAdd(link), netlink.LinkSetUp(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "in"}}), netlink.LinkSetUp(link),
		netlink.AddrAdd(link, &netlink.Addr{IPNet: prefix("192.0.2.1/24")}), netlink.AddrAdd(link, &six),
		netlink.RouteAdd(&netlink.Route{LinkIndex: link.Index, Dst: prefix("192.0.2.9/32"), MTU: 1300}),
		netlink.RouteAdd(&netlink.Route{LinkIndex: link.Index, Dst: prefix("fd00::9/128"), MTU: 1300}),
	); err != nil {
		t.Error(err)
		return
	}
	c, err := Open(Options{Port: 51820, Magic: magics})
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	for _, to := range []string{"192.0.2.2:1", "[fd00::2]:1", "192.0.2.9:1", "[fd00::9]:1"} {
		at := netip.MustParseAddrPort(to)
		header := 28
		if at.Addr().Is6() {
			header = 48
		}
		neighbor := netlink.Neigh{LinkIndex: link.Index, IP: at.Addr().AsSlice(), State: netlink.NUD_PERMANENT, HardwareAddr: []byte{2, 0, 0, 0, 0, 2}}
		if err := netlink.NeighAdd(&neighbor); err != nil {
			t.Error(err)
		}
		if err := c.Send(Packet{Payload: make([]byte, 1400-header), To: at}); err != nil {
			t.Errorf("%s: as long as the link allows: %v", to, err)
		}
		if err := c.Send(Packet{Payload: make([]byte, 1400-header+1), To: at}); !errors.Is(err, unix.EMSGSIZE) {
			t.Errorf("%s: longer than the link allows: got %v, want %v", to, err, unix.EMSGSIZE)
		}
	}
	counts4, errFour := os.ReadFile("/proc/thread-self/net/snmp")
	counts6, errSix := os.ReadFile("/proc/thread-self/net/snmp6")
	if err := errors.Join(errFour, errSix); err != nil {
		t.Error(err)
		return
	}
	lines := strings.Split(string(counts4), "\n") // of names and of values
	made := strings.Fields(lines[1])[slices.Index(strings.Fields(lines[0]), "FragCreates")]
	if made != "0" || !regexp.MustCompile(`Ip6FragCreates\s+0\n`).Match(counts6) {
		t.Errorf("fragments were made:\n%s%s", counts4, counts6)
	}
}

func prefix(s string) *net.IPNet {
	ip, n, err := net.ParseCIDR(s)
	if err != nil {
		panic(err)
	}
	n.IP = ip
	return n
}
