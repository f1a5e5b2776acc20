// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

// A socket tells at which address a packet arrived, and sends from the address that it is
// told, whichever families it serves.
func TestSourceOfPackets(t *testing.T) {
	tests := []struct{ name, network, here, peer string }{
		{"IPv4", "udp4", "127.0.0.2", "127.0.0.1"},
		{"IPv4 on a socket of both families", "udp", "127.0.0.2", "127.0.0.1"},
		{"IPv6 on a socket of both families", "udp", "::1", "::1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			socket := listenUDP(t, tt.network, "")
			peer := listenUDP(t, "udp", tt.peer)
			here := netip.MustParseAddr(tt.here)
			to := netip.AddrPortFrom(here, socket.LocalAddr().(*net.UDPAddr).AddrPort().Port())
			if err := peer.send([]byte("question"), to, netip.Addr{}); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 100)
			n, from, at, err := socket.receive(b)
			if err != nil || string(b[:n]) != "question" || at != here {
				t.Fatalf("got %q at %s: %v; want it at %s", b[:n], at, err, here)
			}
			// The second one is no address of this host: then the kernel chooses.
			for _, source := range []netip.Addr{here, netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")} {
				if err := socket.send([]byte("answer"), from, source); err != nil {
					t.Fatal(err)
				}
				n, answered, _, err := peer.receive(b)
				if err != nil || string(b[:n]) != "answer" || source == here && answered != to {
					t.Errorf("got %q from %s: %v; want it from %s", b[:n], answered, err, to)
				}
			}
		})
	}
}

func listenUDP(t *testing.T, network, addr string) udpSocket {
	t.Helper()
	c, err := net.ListenUDP(network, &net.UDPAddr{IP: net.ParseIP(addr)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	s, err := newUDPSocket(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestArrivals(t *testing.T) {
	now := time.Unix(1000, 0)
	a := make(arrivals)
	peer, here := netip.MustParseAddrPort("203.0.113.7:7946"), netip.MustParseAddr("192.168.1.5")
	if got := a.source(peer, now); got.IsValid() {
		t.Errorf("source %s for an unknown peer, want none", got)
	}
	a.note(peer, here, now)
	for range 2 {
		if got := a.source(peer, now.Add(freshAddress)); got != here {
			t.Errorf("source %s while the peer is heard, want %s", got, here)
		}
	}
	later := now.Add(freshAddress + 1)
	if got := a.source(peer, later); got != here {
		t.Errorf("source %s of the first packet after silence, want %s", got, here)
	}
	if got := a.source(peer, later); got.IsValid() {
		t.Errorf("source %s of the next packet, want none", got)
	}
	for i := range maxSenders + 10 {
		a.note(netip.AddrPortFrom(here, uint16(i)), here, now)
	}
	if len(a) != maxSenders {
		t.Errorf("%d peers are remembered, want %d", len(a), maxSenders)
	}
}

// An address that the host will have later can be bound to now.
func TestBindBeforeTheAddressIsThere(t *testing.T) {
	for _, bind := range []string{"192.0.2.77:0", "[2001:db8::77]:0"} {
		udp, tcp, err := bindBoth(t.Context(), bind)
		if err != nil {
			t.Errorf("%s: %v", bind, err)
			continue
		}
		udp.Close()
		tcp.Close()
	}
}
