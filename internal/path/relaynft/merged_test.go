// SPDX-License-Identifier: Apache-2.0

package relaynft

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sendMerged sends datagrams of one length as one, as WireGuard in a process does. A veth passes
// them on like that, and so does the network card of a virtual machine.
func (b *bed) sendMerged(t *testing.T, from int, is4 bool, packets ...[]byte) {
	t.Helper()
	h := b.hosts[from]
	control := make([]byte, unix.CmsgSpace(2))
	header := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
	header.Level, header.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	header.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(control[unix.CmsgLen(0):], uint16(len(packets[0])))
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(h.local[is4], relayPort))
	if _, _, err := h.conns[is4].WriteMsgUDP(bytes.Join(packets, nil), control, to); err != nil {
		t.Fatal(err)
	}
}

// receiveAll waits for datagrams in whatever order.
func receiveAll(t *testing.T, c *net.UDPConn, packets [][]byte) {
	t.Helper()
	missing := map[string]bool{}
	for _, p := range packets {
		missing[string(p)] = true
	}
	buf := make([]byte, 1<<16)
	for len(missing) > 0 {
		if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("%d of %d datagrams that were sent as one are lost", len(missing), len(packets))
		}
		if err != nil {
			t.Fatal(err)
		}
		delete(missing, string(buf[:n]))
	}
}

// numbered returns different data packets of one session.
func numbered(index uint32, count, length int) [][]byte {
	var all [][]byte
	for i := range count {
		p := data(index, length)
		p[length-1] = byte(i)
		all = append(all, p)
	}
	return all
}

// TestMerged has datagrams come that were sent as one. They are forwarded as one if that is not longer
// than the next link takes, and each of them arrives. Longer ones go to user space, where each
// arrives, too.
func TestMerged(t *testing.T) {
	if !namespaced(t) {
		return
	}
	b := newBed(t, plain, plain)
	b.relay.set(b.bound(long())...)
	b.forward(t, 0)
	b.forwards(t, atPeer)
	for _, is4 := range []bool{true, false} {
		few := numbered(index(b.hosts[0], is4), 4, 128)
		b.sendMerged(t, 0, is4, few...)
		receiveAll(t, b.hosts[1].conns[is4], few)
		many := numbered(index(b.hosts[0], is4), 20, 1200)
		b.sendMerged(t, 0, is4, many...)
		receiveAll(t, b.user[is4], many)
	}
}

// TestMergingLink has a link that passes on received datagrams merged, which may be of several sessions:
// all go to user space, and none is lost.
func TestMergingLink(t *testing.T) {
	if !namespaced(t) {
		return
	}
	b := newBed(t, plain, bridge)
	b.relay.set(b.bound(long())...)
	b.forward(t, 0)
	b.forwards(t, atPeer)
	for _, feature := range mergingFeatures {
		for _, link := range []string{"up1", "port2"} {
			setFeature(t, link, feature, true)
			b.forwards(t, atUser)
			for _, is4 := range []bool{true, false} {
				many := numbered(index(b.hosts[0], is4), 20, 1200)
				for _, p := range many {
					b.write(t, 0, is4, p)
				}
				receiveAll(t, b.user[is4], many)
			}
			setFeature(t, link, feature, false)
			b.forwards(t, atPeer)
		}
	}
}

// setFeature switches a feature of a link, see features.merges.
func setFeature(t *testing.T, link, feature string, on bool) {
	t.Helper()
	f, err := openFeatures()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	bits, ok := f.find(link, feature)
	if !ok || len(bits) != 1 {
		t.Fatalf("this kernel has no feature %s", feature)
	}
	bit := bits[0]
	// struct ethtool_sfeatures: command, size, and for each 32 features: which to set, and how.
	words := bit/32 + 1
	b := make([]byte, 8+8*words)
	binary.NativeEndian.PutUint32(b, unix.ETHTOOL_SFEATURES)
	binary.NativeEndian.PutUint32(b[4:], uint32(words))
	binary.NativeEndian.PutUint32(b[8+8*(bit/32):], 1<<(bit%32))
	if on {
		binary.NativeEndian.PutUint32(b[8+8*(bit/32)+4:], 1<<(bit%32))
	}
	if !f.ioctl(link, b) {
		t.Fatalf("set %s of %s to %t", feature, link, on)
	}
	if got := f.merges(link); got != on {
		t.Fatalf("%s merges: %t, want %t", link, got, on)
	}
}
