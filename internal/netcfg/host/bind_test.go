// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"github.com/meshd/meshd/internal/path/rawudp"
	"github.com/meshd/meshd/internal/pktinfo"
)

// openBind returns WireGuard's sockets, at the returned port, and what they receive.
func openBind(t *testing.T, b *bind) (uint16, <-chan conn.Endpoint) {
	t.Helper()
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
	return port, got
}

// TestBind asks an address of this host, and wants answers from there: some at once, some
// after the source was cleared, and some from an address that the host does not have any more.
func TestBind(t *testing.T) {
	b := &bind{}
	port, got := openBind(t, b)
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

// TestBindProbes sends more probes than may wait between packets of WireGuard's, which are all
// that WireGuard gets. The one that begins a session counts as a probe, too.
func TestBindProbes(t *testing.T) {
	const room, excess = 3, 5
	probes := make(chan rawudp.Datagram, room)
	b := &bind{probes: probes}
	port, got := openBind(t, b)
	for name, local := range map[string]netip.Addr{"IPv4": netip.MustParseAddr("127.0.0.2"), "IPv6": netip.IPv6Loopback()} {
		t.Run(name, func(t *testing.T) {
			peer, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(local, 0)))
			if err != nil {
				t.Fatal(err)
			}
			defer peer.Close()
			self := peer.LocalAddr().(*net.UDPAddr).AddrPort()
			begins := append([]byte{1}, make([]byte, device.MessageInitiationSize-1)...)
			packets, probed := [][]byte{[]byte("one"), probeMagic[:3], begins}, [][]byte{begins}
			for i := range room + excess {
				probed = append(probed, probe(fmt.Sprint(i)))
			}
			packets = append(packets, probed[1:]...)
			for _, p := range append(packets, []byte("another")) {
				if _, err := peer.WriteToUDPAddrPort(p, netip.AddrPortFrom(local, port)); err != nil {
					t.Fatal(err)
				}
			}
			for i := range 4 {
				if ep := <-got; ep.DstToString() != self.String() {
					t.Errorf("packet %d: got it from %s, want %s", i, ep.DstToString(), self)
				}
			}
			for i := range room {
				d := <-probes
				if want := probed[i]; string(d.Payload) != string(want) || d.From != self || d.To != local || d.Link == 0 {
					t.Errorf("got %q %+v, want %q from %s to %s by a link", d.Payload, d, want, self, local)
				}
			}
			if n := len(probes) + len(got); n != 0 {
				t.Errorf("got %d more packets, want none", n)
			}
		})
	}
}

func TestBindSendProbe(t *testing.T) {
	b := &bind{}
	if err := b.sendProbe(rawudp.Packet{To: netip.MustParseAddrPort("127.0.0.1:9")}); !errors.Is(err, ErrNoPort) {
		t.Errorf("while closed: got %v, want %v", err, ErrNoPort)
	}
	port, _ := openBind(t, b)
	peer, err := net.ListenUDP("udp4", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	if err := peer.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	p := ipv4.NewPacketConn(peer)
	if err := p.SetControlMessage(ipv4.FlagTTL, true); err != nil {
		t.Fatal(err)
	}
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), peer.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	for _, tt := range []struct {
		packet rawudp.Packet
		from   string
		ttl    int
	}{
		{rawudp.Packet{Payload: probe("low"), From: netip.MustParseAddr("127.0.0.2"), To: to, TTL: 2}, "127.0.0.2", 2},
		{rawudp.Packet{Payload: probe("high"), To: to}, "127.0.0.1", defaultTTL(t)}, // the other one's TTL does not stay
	} {
		if err := b.sendProbe(tt.packet); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 200)
		n, cm, from, err := p.ReadFrom(buf)
		if want := fmt.Sprintf("%s:%d", tt.from, port); err != nil || string(buf[:n]) != string(tt.packet.Payload) || cm.TTL != tt.ttl || from.String() != want {
			t.Errorf("got %q from %v with TTL %v, %v, want %q from %s with TTL %d", buf[:n], from, cm, err, tt.packet.Payload, want, tt.ttl)
		}
	}
	if err := b.sendProbe(rawudp.Packet{From: netip.MustParseAddr("192.0.2.1"), To: to}); err == nil { // TEST-NET-1, RFC 5737
		t.Error("from another host's address: got no error")
	}
}

func defaultTTL(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_default_ttl")
	if err != nil {
		t.Fatal(err)
	}
	ttl, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return ttl
}

// fullSocket always has a batch of packets.
type fullSocket struct {
	batchConn
	from    *net.UDPAddr
	control []byte
}

func (s fullSocket) ReadBatch(messages []ipv6.Message, _ int) (int, error) {
	for i := range messages {
		m := &messages[i]
		m.N, m.NN, m.Addr = len(m.Buffers[0]), copy(m.OOB, s.control), s.from
	}
	return len(messages), nil
}

// BenchmarkReceive takes WireGuard's packets from a socket without the kernel's part of it.
func BenchmarkReceive(b *testing.B) {
	s := &bindSocket{batch: fullSocket{
		from:    net.UDPAddrFromAddrPort(netip.MustParseAddrPort("192.0.2.1:51820")),
		control: pktinfo.Source(netip.MustParseAddr("192.0.2.2"), false),
	}}
	receive := s.receiver(nil)
	packets, sizes, eps := make([][]byte, conn.IdealBatchSize), make([]int, conn.IdealBatchSize), make([]conn.Endpoint, conn.IdealBatchSize)
	for i := range packets {
		packets[i] = append([]byte{4, 0, 0, 0}, make([]byte, 1400)...)
	}
	for b.Loop() {
		if _, err := receive(packets, sizes, eps); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(packets)), "ns/packet")
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

// TestBindSendWhole sends probes that are longer than a route says of the path: one that must not be
// cut goes as it is, and others are cut, also afterwards.
func TestBindSendWhole(t *testing.T) {
	if !namespaced(t) {
		return
	}
	run(t, "ip link add out mtu 1400 type veth peer name in")
	run(t, "ip link set in up")
	run(t, "ip link set out up")
	run(t, "ip address add 192.0.2.1/24 dev out")
	run(t, "ip address add fd00::1/64 dev out nodad")
	run(t, "ip route add 192.0.2.9 dev out mtu 1300")
	run(t, "ip route add fd00::9 dev out mtu 1300")
	run(t, "ip neighbor add 192.0.2.9 dev out lladdr 02:00:00:00:00:02")
	run(t, "ip neighbor add fd00::9 dev out lladdr 02:00:00:00:00:02")
	b := &bind{}
	openBind(t, b)
	for _, to := range []string{"192.0.2.9:1", "[fd00::9]:1"} {
		p := rawudp.Packet{Payload: make([]byte, 1340), To: netip.MustParseAddrPort(to)}
		for _, whole := range []bool{false, true, false} {
			p.Whole = whole
			before := fragments(t)
			if err := b.sendProbe(p); err != nil {
				t.Fatal(err)
			}
			if cut := fragments(t) > before; cut == whole {
				t.Errorf("to %s, whole %t: got cut %t", to, whole, cut)
			}
		}
		p.Whole, p.Payload = true, make([]byte, 1400)
		if err := b.sendProbe(p); !errors.Is(err, unix.EMSGSIZE) {
			t.Errorf("to %s, longer than the link allows: got %v, want %v", to, err, unix.EMSGSIZE)
		}
	}
}

// fragments returns how many fragments the host has made of packets of both families.
func fragments(t *testing.T) (n int) {
	t.Helper()
	four, six := run(t, "cat /proc/net/snmp"), run(t, "cat /proc/net/snmp6")
	lines := strings.Split(four, "\n") // of names and of values
	values := strings.Fields(lines[1])
	for _, value := range []string{
		values[slices.Index(strings.Fields(lines[0]), "FragCreates")],
		strings.Fields(six[strings.Index(six, "Ip6FragCreates"):])[1],
	} {
		made, err := strconv.Atoi(value)
		if err != nil {
			t.Fatal(err)
		}
		n += made
	}
	return n
}
