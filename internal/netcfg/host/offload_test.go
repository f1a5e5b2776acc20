// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"net"
	"net/netip"
	"os/exec"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/ipv6"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/meshd/meshd/internal/pktinfo"
)

// lengths makes packets of some lengths, no two of them alike.
func lengths(lengths ...int) (packets [][]byte) {
	for i, n := range lengths {
		packets = append(packets, bytes.Repeat([]byte{byte(i)}, n))
	}
	return packets
}

func repeat(length, count int) (out []int) {
	for range count {
		out = append(out, length)
	}
	return out
}

func TestMergeable(t *testing.T) {
	for _, tt := range []struct {
		name    string
		lengths []int
		want    int
	}{
		{"one", []int{148}, 1},
		{"one that is longer than all may be", []int{maxMerged + 1, 5}, 1},
		{"all alike", []int{100, 100, 100}, 3},
		{"the last is shorter", []int{100, 100, 32}, 3},
		{"one in between is shorter", []int{100, 32, 100}, 2},
		{"the next is longer", []int{32, 100}, 1},
		{"as many as the kernel takes", repeat(100, maxSegments+1), maxSegments},
		{"as long as the kernel takes", repeat(1452, 64), maxMerged / 1452},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := mergeable(lengths(tt.lengths...)); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
}

// socketAt opens a socket of WireGuard and returns its address, to which packets are sent.
func socketAt(t *testing.T, network, local string) (*bindSocket, netip.AddrPort) {
	t.Helper()
	s, err := openSocket(network, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.udp.Close() })
	if err := s.udp.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return s, netip.AddrPortFrom(netip.MustParseAddr(local), uint16(s.udp.LocalAddr().(*net.UDPAddr).Port))
}

// read returns so many packets, and in how many messages they came. All must have come to
// an address of this host.
func (s *bindSocket) read(t *testing.T, count int, to netip.Addr) (packets [][]byte, came int) {
	t.Helper()
	for len(packets) < count {
		messages := make([]ipv6.Message, readBatch)
		for i := range messages {
			messages[i].Buffers = [][]byte{make([]byte, 1<<16)}
			messages[i].OOB = make([]byte, pktinfo.Room+segmentRoom)
		}
		n, err := s.batch.ReadBatch(messages, 0)
		if err != nil {
			t.Fatalf("after %d of %d packets: %v", len(packets), count, err)
		}
		came += n
		for _, p := range unmerge(nil, messages[:n]) {
			packets = append(packets, p.payload)
			if p.from.SrcIP() != to {
				t.Errorf("packet %d has come to %v, want %v", len(packets), p.from.SrcIP(), to)
			}
		}
	}
	return packets, came
}

// TestMerged sends merged packets to an address that is not the one that the kernel would
// answer from.
func TestMerged(t *testing.T) {
	for network, local := range map[string]string{"udp4": "127.0.0.2", "udp6": "::1"} {
		t.Run(network, func(t *testing.T) {
			from, _ := socketAt(t, network, local)
			to, addr := socketAt(t, network, local)
			packets := lengths(148, 1452, 1452, 1452, 1452, 32, 1452, 1452, 100, 32, 148)
			source := addr.Addr()
			if rest, err := from.send(packets, addr, sendOptions{pktinfo.Source(source, source.Is6()), true}); err != nil {
				t.Fatalf("%d of %d packets remain: %v", len(rest), len(packets), err)
			}
			got, came := to.read(t, len(packets), source)
			if diff := cmp.Diff(packets, got); diff != "" {
				t.Errorf("packets (-want +got):\n%s", diff)
			}
			if came >= len(packets) {
				t.Errorf("%d packets came in %d messages, want fewer", len(packets), came)
			}
		})
	}
}

// TestTooLongToMerge sends packets that are longer than the link's MTU, which the kernel
// takes only as single ones.
func TestTooLongToMerge(t *testing.T) {
	if !namespaced(t) {
		return
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "mtu", "1280", "up").CombinedOutput(); err != nil {
		t.Fatalf("set up loopback: %v: %s", err, out)
	}
	b := &bind{}
	openBind(t, b)
	to, addr := socketAt(t, "udp4", "127.0.0.1")
	packets := lengths(100, 100, 1452, 1452, 1452)
	if err := b.Send(packets, &bindEndpoint{dst: addr}); err != nil {
		t.Fatal(err)
	}
	got, _ := to.read(t, len(packets), addr.Addr())
	if diff := cmp.Diff(packets, got); diff != "" {
		t.Errorf("packets (-want +got):\n%s", diff)
	}
}

// TestReceiveMerged reads more packets than fit into one call.
func TestReceiveMerged(t *testing.T) {
	from, _ := socketAt(t, "udp4", "127.0.0.1")
	to, addr := socketAt(t, "udp4", "127.0.0.1")
	packets := lengths(repeat(1000, 100)...)
	if _, err := from.send(packets, addr, sendOptions{merged: true}); err != nil {
		t.Fatal(err)
	}
	receive := to.receiver(nil)
	const room = 7
	bufs, sizes, eps := lengths(repeat(2000, room)...), make([]int, room), make([]conn.Endpoint, room)
	var got [][]byte
	for len(got) < len(packets) {
		n, err := receive(bufs, sizes, eps)
		if err != nil {
			t.Fatalf("after %d of %d packets: %v", len(got), len(packets), err)
		}
		for i := range n {
			got = append(got, bytes.Clone(bufs[i][:sizes[i]]))
			if from := from.udp.LocalAddr().(*net.UDPAddr).AddrPort().Port(); eps[i].(*bindEndpoint).dst.Port() != from {
				t.Errorf("packet %d is from %s, want port %d", len(got), eps[i].DstToString(), from)
			}
		}
	}
	if diff := cmp.Diff(packets, got); diff != "" {
		t.Errorf("packets (-want +got):\n%s", diff)
	}
}
