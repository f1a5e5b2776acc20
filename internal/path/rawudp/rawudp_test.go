// SPDX-License-Identifier: Apache-2.0

package rawudp

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

const limit = 30 * time.Second

var magics = [][4]byte{{'t', 'e', 's', 't'}, {'m', 'o', 'r', 'e'}, {1}}

// bound is a UDP socket, as WireGuard's is.
func bound(t *testing.T) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	err = errors.Join(
		c.SetDeadline(time.Now().Add(limit)),
		ipv4.NewPacketConn(c).SetControlMessage(ipv4.FlagTTL, true),
		ipv6.NewPacketConn(c).SetControlMessage(ipv6.FlagHopLimit, true),
	)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// readTTL reads a datagram with its TTL from a socket of both families.
func readTTL(c *net.UDPConn, buf []byte) (n, ttl int, from netip.AddrPort, err error) {
	control := make([]byte, 100)
	n, nn, _, from, err := c.ReadMsgUDPAddrPort(buf, control)
	if err != nil {
		return 0, 0, from, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:nn])
	for _, m := range messages { // IP_TTL or IPV6_HOPLIMIT, nothing else was asked for
		ttl = int(binary.NativeEndian.Uint32(m.Data))
	}
	return n, ttl, from, err
}

func port(c *net.UDPConn) uint16 { return c.LocalAddr().(*net.UDPAddr).AddrPort().Port() }

// open opens a Conn beside a bound socket, and returns what it receives.
func open(t *testing.T, beside *net.UDPConn) (*Conn, <-chan Datagram) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("raw sockets need root")
	}
	c, err := Open(Options{Port: port(beside), Magic: magics})
	if err != nil {
		t.Fatal(err)
	}
	got, done := make(chan Datagram, 100), make(chan error, 1)
	go func() {
		done <- c.Serve(func(d Datagram) {
			d.Payload = append([]byte(nil), d.Payload...)
			got <- d
		})
	}()
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return c, got
}

func TestBesideASocket(t *testing.T) {
	for name, local := range map[string]netip.Addr{"IPv4": netip.MustParseAddr("127.0.0.1"), "IPv6": netip.IPv6Loopback()} {
		t.Run(name, func(t *testing.T) {
			here, there := bound(t), bound(t)
			a, _ := open(t, here)
			_, fromA := open(t, there)
			target := netip.AddrPortFrom(local, port(there))

			for _, p := range []Packet{
				{Payload: []byte("else"), To: target},
				{Payload: []byte("tes"), To: target},
				{Payload: []byte("testing"), To: target}, // an odd length
				{Payload: []byte("\x01\x00\x00\x00 and more"), To: target},
				{Payload: []byte("\x01\x00\x00\x01 else"), To: target},
				{Payload: []byte("more"), To: target},
				{Payload: []byte("test, with all set"), To: target, From: local, TTL: 3},
			} {
				if err := a.Send(p); err != nil {
					t.Fatal(err)
				}
			}
			for _, want := range []string{"testing", "\x01\x00\x00\x00 and more", "more", "test, with all set"} {
				select {
				case d := <-fromA:
					if string(d.Payload) != want || d.From != netip.AddrPortFrom(local, port(here)) || d.To != local || d.Link == 0 {
						t.Errorf("got %q %+v, want %q from port %d to %s by a link", d.Payload, d, want, port(here), local)
					}
				case <-time.After(limit):
					t.Fatalf("%q does not arrive", want)
				}
			}
			// The socket itself gets all, with sums that the kernel takes for right.
			buf := make([]byte, 100)
			for _, want := range []string{"else", "tes", "testing", "\x01\x00\x00\x00 and more", "\x01\x00\x00\x01 else", "more", "test, with all set"} {
				n, ttl, from, err := readTTL(there, buf)
				if err != nil || string(buf[:n]) != want || from.Port() != port(here) {
					t.Errorf("at the socket: got %q from %s, %v, want %q from port %d", buf[:n], from, err, want, port(here))
				}
				if low := want == "test, with all set"; low != (ttl == 3) {
					t.Errorf("%q: got TTL %d, want 3 for the last one alone", want, ttl)
				}
			}
		})
	}
}

func TestSendErrors(t *testing.T) {
	a, _ := open(t, bound(t))
	// TEST-NET-1, RFC 5737, from an address that is not this host's.
	p := Packet{Payload: magics[0][:], From: netip.MustParseAddr("192.0.2.1"), To: netip.MustParseAddrPort("127.0.0.1:9")}
	if err := a.Send(p); err == nil {
		t.Error("send from another host's address: got no error")
	}
}
