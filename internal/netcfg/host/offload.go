// SPDX-License-Identifier: Apache-2.0

package host

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"unsafe"

	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// Linux passes many datagrams of one length through its network stack as one, when it
// sends (UDP_SEGMENT, Linux 4.18) and when it receives (UDP_GRO, Linux 5.0), see udp(7).
// That halves what WireGuard in the daemon costs a CPU: encryption is cheaper than one
// walk through the stack for each packet.

const (
	// maxSegments is how many datagrams the kernel takes as one, UDP_MAX_SEGMENTS.
	maxSegments = 64
	// maxMerged is how long all of them may be, with headers in a packet of IPv4.
	maxMerged = 1<<16 - 1 - 20 - 8
)

// segmentRoom is how many bytes the control message takes that tells how long the
// datagrams of a merged one are: an int from the kernel, an uint16 to it.
var segmentRoom = unix.CmsgSpace(4)

// mergeable returns how many of the packets, from the first one, the kernel takes as one:
// all are as long as the first one, only the last may be shorter.
func mergeable(packets [][]byte) int {
	size, total := len(packets[0]), 0
	for i, p := range packets {
		total += len(p)
		if i > 0 && (i == maxSegments || len(p) > size || total > maxMerged) {
			return i
		}
		if len(p) < size {
			return i + 1
		}
	}
	return len(packets)
}

// appendSegmentSize adds the control message that has the kernel cut a datagram into
// some of this size.
func appendSegmentSize(control []byte, size int) []byte {
	start := len(control)
	control = append(control, make([]byte, unix.CmsgSpace(2))...)
	h := (*unix.Cmsghdr)(unsafe.Pointer(&control[start]))
	h.Level, h.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(control[start+unix.CmsgLen(0):], uint16(size))
	return control
}

// segmentSize returns how long the datagrams are that the kernel has merged into one, or
// 0 if there was only one.
func segmentSize(control []byte) int {
	for len(control) >= unix.SizeofCmsghdr {
		h, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			return 0
		}
		if h.Level == unix.SOL_UDP && h.Type == unix.UDP_GRO && len(data) >= 4 {
			return int(binary.NativeEndian.Uint32(data))
		}
		control = rest
	}
	return 0
}

// packet is a datagram that arrived.
type packet struct {
	payload []byte
	from    *bindEndpoint
	message *ipv6.Message // in which it came
}

// unmerge appends the datagrams of messages as they were sent. Those that came as one have
// one endpoint: they are from one address to one.
func unmerge(packets []packet, messages []ipv6.Message) []packet {
	for i := range messages {
		m := &messages[i]
		control := m.OOB[:m.NN]
		size := segmentSize(control)
		if size == 0 {
			size = max(m.N, 1)
		}
		from := newBindEndpoint(m.Addr.(*net.UDPAddr).AddrPort(), control)
		for payload := range slices.Chunk(m.Buffers[0][:m.N], size) {
			packets = append(packets, packet{payload, from, m})
		}
	}
	return packets
}

// merge fills messages with packets to send, and returns those filled.
func merge(messages []ipv6.Message, packets [][]byte, to netip.AddrPort, o sendOptions) []ipv6.Message {
	addr := net.UDPAddrFromAddrPort(to)
	n := 0
	for len(packets) > 0 {
		m := &messages[n]
		count := 1
		if o.merged {
			count = mergeable(packets)
		}
		m.Addr, m.Buffers, m.OOB = addr, packets[:count], append(m.OOB[:0], o.source...)
		if count > 1 {
			m.OOB = appendSegmentSize(m.OOB, len(packets[0]))
		}
		packets = packets[count:]
		n++
	}
	return messages[:n]
}
