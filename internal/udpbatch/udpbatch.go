// SPDX-License-Identifier: Apache-2.0

// Package udpbatch sends many UDP datagrams in few calls. Datagrams of one length that go to one place are
// given to the kernel as one, which it takes apart as late as it can: at the network card, or at the
// receiver's socket on the same machine (UDP_SEGMENT, see udp(7)). So the kernel takes one way for all of
// them, which is most of what sending costs.
package udpbatch

import (
	"encoding/binary"
	"net"
	"unsafe"

	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// Bounds of what the kernel takes as one: UDP_MAX_SEGMENTS in include/linux/udp.h (64 in old kernels), and the
// length of an IP packet, with room for headers.
const (
	maxSegments = 64
	maxBytes    = 65000
)

// Writer is a socket. Messages of both families have one type in package net.
type Writer interface {
	WriteBatch(messages []ipv6.Message, flags int) (int, error)
}

// Datagram is one to send.
type Datagram struct {
	Payload []byte
	To      net.Addr // nil if the socket is connected
	Control []byte   // control messages for the socket; of one To always the same
	// Merge says that the datagram may be given to the kernel together with others. A raw socket
	// at the receiver would see them as one.
	Merge bool
}

// Batch collects datagrams. The zero value is empty.
type Batch struct {
	messages []ipv6.Message
	segments []int    // of each message: the length of its first datagram, 0 if no further one may follow
	payloads [][]byte // of all messages, one after the other
	controls []byte   // those that are made here
}

// Add adds a datagram, whose bytes must stay until Send.
func (b *Batch) Add(d Datagram) {
	b.payloads = append(b.payloads, d.Payload)
	if d.Merge && b.merge(d) {
		return
	}
	n, segment := len(b.payloads), 0
	if d.Merge {
		segment = len(d.Payload)
	}
	b.messages = append(b.messages, ipv6.Message{Buffers: b.payloads[n-1:], Addr: d.To, OOB: d.Control})
	b.segments = append(b.segments, segment)
}

// merge makes the last payload a part of the last message if it can be.
func (b *Batch) merge(d Datagram) bool {
	last := len(b.messages) - 1
	if last < 0 {
		return false
	}
	m, segment := &b.messages[last], b.segments[last]
	count := len(m.Buffers)
	if m.Addr != d.To || len(d.Payload) > segment || count == maxSegments || (count+1)*segment > maxBytes {
		return false
	}
	m.Buffers = b.payloads[len(b.payloads)-1-count:]
	if len(d.Payload) < segment {
		b.segments[last] = 0 // only the last datagram may be shorter
	}
	return true
}

// Send sends what was added, and empties the batch. It returns how many datagrams could not be sent, and to
// which places datagrams can't go as one: they went there one by one.
func (b *Batch) Send(w Writer) (failed uint64, alone []net.Addr) {
	b.controls = b.controls[:0]
	for i := range b.messages {
		if m := &b.messages[i]; len(m.Buffers) > 1 {
			begin := len(b.controls)
			b.controls = appendSegment(append(b.controls, m.OOB...), len(m.Buffers[0]))
			m.OOB = b.controls[begin:]
		}
	}
	for rest := b.messages; len(rest) > 0; {
		n, err := w.WriteBatch(rest, 0)
		if err != nil {
			n = 1 // the kernel reports the error of the first one only, sendmmsg(2)
			if m := rest[0]; len(m.Buffers) == 1 {
				failed++
			} else {
				alone = append(alone, m.Addr)
				failed += sendEach(w, m)
			}
		}
		rest = rest[n:]
	}
	b.messages, b.segments, b.payloads = b.messages[:0], b.segments[:0], b.payloads[:0]
	return failed, alone
}

// sendEach sends the datagrams of a message one by one, and returns how many could not be sent.
func sendEach(w Writer, merged ipv6.Message) (failed uint64) {
	control := merged.OOB[:len(merged.OOB)-segmentRoom]
	for i := range merged.Buffers {
		one := []ipv6.Message{{Buffers: merged.Buffers[i : i+1], Addr: merged.Addr, OOB: control}}
		if _, err := w.WriteBatch(one, 0); err != nil {
			failed++
		}
	}
	return failed
}

// segmentSize is the length of what follows the header of the control message UDP_SEGMENT, a uint16.
const segmentSize = 2

var segmentRoom = unix.CmsgSpace(segmentSize)

// appendSegment appends the control message by which the kernel takes a message apart into datagrams of a
// length. Of the last one there may be less.
func appendSegment(b []byte, length int) []byte {
	begin := len(b)
	b = append(b, make([]byte, segmentRoom)...)
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[begin]))
	h.Level, h.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(segmentSize))
	binary.NativeEndian.PutUint16(b[begin+unix.CmsgLen(0):], uint16(length))
	return b
}

// CanMerge reports whether the kernel knows how to send several datagrams as one. Linux does since 4.18.
func CanMerge(conn *net.UDPConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	can := false
	err = raw.Control(func(fd uintptr) {
		_, err := unix.GetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT)
		can = err == nil
	})
	return err == nil && can
}
