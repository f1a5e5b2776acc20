// SPDX-License-Identifier: Apache-2.0

package relaynft

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// long is longer than any test.
func long() time.Time { return time.Now().Add(time.Hour) }

// TestForward has the kernel forward between two hosts, one of them behind a router, and nothing that
// is not a data packet of a session of theirs.
func TestForward(t *testing.T) {
	if !namespaced(t) {
		return
	}
	b := newBed(t, plain, bridge)
	b.relay.set(b.bound(long())...)
	b.forward(t, 0)
	b.forwards(t, atPeer)

	run(t, "ip address add 10.0.1.9/24 dev up1; ip address add fd00:1::9/64 dev up1 nodad")
	first := b.hosts[0]
	sockets := func(f func(fd int) error) func() {
		return func() {
			for _, c := range first.conns {
				raw, err := c.SyscallConn()
				if err != nil {
					t.Fatal(err)
				}
				if err := raw.Control(func(fd uintptr) { err = f(int(fd)) }); err != nil {
					t.Fatal(err)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	hops := func(n int) func() {
		return sockets(func(fd int) error {
			domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
			if err == nil && domain == unix.AF_INET {
				return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, n)
			}
			return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, n)
		})
	}
	checksums := func(without int) func() {
		return sockets(func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_NO_CHECK, without) })
	}
	changed := func(place int, value byte) func([]byte) {
		return func(p []byte) { p[place] ^= value }
	}
	tests := []struct {
		name          string
		length        int
		change        func([]byte)
		before, after func()
		want          arrival
		only4         bool
	}{
		{name: "the shortest", length: 32, want: atPeer},
		{name: "the longest", length: 1500 - 48, want: atPeer},
		{name: "an odd length", length: 333, want: atPeer},
		{name: "a handshake", length: 148, change: changed(0, 4^1), want: atUser},
		{name: "a cookie", length: 64, change: changed(0, 4^3), want: atUser},
		{name: "reserved bytes", length: 64, change: changed(2, 1), want: atUser},
		{name: "another index", length: 64, change: changed(4, 1), want: atUser},
		{name: "gossip", length: 64, change: changed(0, 0xf0), want: atUser},
		{name: "fragments", length: 4000, want: atUser},
		{name: "the last hop", length: 64, before: hops(1), after: hops(64), want: atUser},
		{name: "one hop more", length: 64, before: hops(3), after: hops(64), want: atPeer},
		{name: "no checksum", length: 64, before: checksums(1), after: checksums(0), want: atUser, only4: true},
	}
	for _, tt := range tests {
		for _, is4 := range []bool{true, false} {
			if tt.only4 && !is4 {
				continue
			}
			p := data(index(first, is4), tt.length)
			if tt.change != nil {
				tt.change(p)
			}
			if tt.before != nil {
				tt.before()
			}
			if got, _ := b.send(t, 0, is4, p); got != tt.want {
				t.Errorf("%s, IPv4 %t: came to %s, want %s", tt.name, is4, got, tt.want)
			}
			if tt.after != nil {
				tt.after()
			}
		}
	}

	// From another port, and to another address of the relay.
	var stranger map[bool]*net.UDPConn
	within(t, first.netns, func() { stranger = listen(t, nodePort+1) })
	for is4, c := range stranger {
		p := data(index(first, is4), 64)
		if _, err := c.WriteToUDPAddrPort(p, netip.AddrPortFrom(first.local[is4], relayPort)); err != nil {
			t.Fatal(err)
		}
		if got, _ := b.await(t, 0, is4, p); got != atUser {
			t.Errorf("what a stranger has sent came to %s", got)
		}
		other := map[bool]string{true: "10.0.1.9", false: "fd00:1::9"}[is4]
		if _, err := first.conns[is4].WriteToUDPAddrPort(p, netip.AddrPortFrom(netip.MustParseAddr(other), relayPort)); err != nil {
			t.Fatal(err)
		}
		if got, _ := b.await(t, 0, is4, p); got != atUser {
			t.Errorf("what was sent to another address of the relay came to %s", got)
		}
	}
	eventually(t, "what was forwarded is counted", func() bool {
		c := b.forwarder.Counts()
		return c.Packets >= 12 && c.Bytes >= 2*(32+1452+333) && c.Limited == 0
	})
}
