// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// openBind returns WireGuard's sockets, at the returned port, and what they receive.
func openBind(t *testing.T) (*bind, uint16, <-chan conn.Endpoint) {
	t.Helper()
	b := &bind{}
	fns, port, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	got, done := make(chan conn.Endpoint, 100), make(chan error, len(fns))
	for _, receive := range fns {
		go func() {
			packets, sizes, eps := make([][]byte, b.BatchSize()), make([]int, b.BatchSize()), make([]conn.Endpoint, b.BatchSize())
			for i := range packets {
				packets[i] = make([]byte, 100)
			}
			for {
				n, err := receive(packets, sizes, eps)
				if err != nil {
					done <- err
					return
				}
				for i := range n {
					if sizes[i] > 0 {
						got <- eps[i]
					}
				}
			}
		}()
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		for range fns {
			if err := <-done; !errors.Is(err, net.ErrClosed) {
				t.Errorf("receive after Close: got %v, want %v", err, net.ErrClosed)
			}
		}
	})
	return b, port, got
}

// TestBind asks an address of this host, and wants answers from there: some at once, some
// after the source was cleared, and some from an address that the host does not have any more.
func TestBind(t *testing.T) {
	b, port, got := openBind(t)
	for _, tt := range []struct{ asked, other string }{{"127.0.0.2", "127.0.0.1"}, {"::1", "::1"}} {
		t.Run(tt.asked, func(t *testing.T) {
			peer, err := net.ListenUDP("udp", nil)
			if err != nil {
				t.Fatal(err)
			}
			defer peer.Close()
			if err := peer.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
				t.Fatal(err)
			}
			asked := netip.AddrPortFrom(netip.MustParseAddr(tt.asked), port)
			if _, err := peer.WriteToUDPAddrPort([]byte("question"), asked); err != nil {
				t.Fatal(err)
			}
			ep := <-got
			if ep.SrcIP() != asked.Addr() {
				t.Errorf("source of answers: got %v, want %v", ep.SrcIP(), asked.Addr())
			}
			answers := func(want string) {
				t.Helper()
				const most = 3
				var packets [][]byte
				for i := range most {
					packets = append(packets, fmt.Appendf(nil, "answer %d", i))
				}
				if err := b.Send(packets, ep); err != nil {
					t.Fatal(err)
				}
				buf := make([]byte, 100)
				for i := range most {
					n, from, err := peer.ReadFromUDPAddrPort(buf)
					from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
					if want := netip.AddrPortFrom(netip.MustParseAddr(want), port); err != nil || from != want || string(buf[:n]) != fmt.Sprintf("answer %d", i) {
						t.Errorf("got %q from %v, %v, want answer %d from %v", buf[:n], from, err, i, want)
					}
				}
			}
			answers(tt.asked)
			clearing := make(chan struct{}) // while another goroutine sends
			go func() {
				ep.ClearSrc()
				close(clearing)
			}()
			if err := b.Send([][]byte{[]byte("in between")}, ep); err != nil {
				t.Error(err)
			}
			<-clearing
			if _, _, err := peer.ReadFromUDPAddrPort(make([]byte, 100)); err != nil {
				t.Error(err)
			}
			answers(tt.other)
			gone := ep.(*bindEndpoint)
			if gone.DstIP().Unmap().Is4() {
				control := unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: [4]byte{192, 0, 2, 1}}) // TEST-NET-1, RFC 5737
				gone.src.Store(&bindSource{netip.MustParseAddr("192.0.2.1"), control})
				answers(tt.other)
			}
		})
	}
}

func TestParseEndpoint(t *testing.T) {
	ep, err := (&bind{}).ParseEndpoint("[2001:db8::1]:51820")
	if err != nil || ep.DstToString() != "[2001:db8::1]:51820" || ep.SrcIP().IsValid() {
		t.Errorf("got %v, %v, want the address without a source", ep, err)
	}
	if _, err := (&bind{}).ParseEndpoint("example.com:51820"); err == nil {
		t.Error("a name: got no error")
	}
}
