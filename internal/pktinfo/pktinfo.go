// SPDX-License-Identifier: Apache-2.0

// Package pktinfo tells at which address of this host a UDP packet arrived, and sends from
// a certain address, with a TTL of its own, or in one piece: IP_PKTINFO, IP_TTL and IP_MTU_DISCOVER
// of ip(7), IPV6_PKTINFO, IPV6_HOPLIMIT and IPV6_MTU_DISCOVER of ipv6(7). On a host with two
// cards, the kernel would otherwise take the source of an answer from the route to the peer,
// which may lead out of the card that the peer does not know.
package pktinfo

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Room is how many bytes the control messages of a packet take.
var Room = unix.CmsgSpace(unix.SizeofInet6Pktinfo)

// Enable asks the kernel for the local addresses of a socket's packets. A socket that is six
// is one of AF_INET6, also if it serves both families.
func Enable(fd int, six bool) error {
	if six {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
}

// Local returns the local address in a packet's control messages, or the zero Addr if there
// is none. A socket of both families gives it in the IPv6 form for IPv4 packets too
// (ipv6/datagram.c, ip6_datagram_recv_common_ctl); it is returned as an IPv4 address.
func Local(control []byte) netip.Addr {
	local, _ := Arrival(control)
	return local
}

// Arrival returns what Local does, and the index of the link by which the packet came.
func Arrival(control []byte) (local netip.Addr, link int) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return netip.Addr{}, 0
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			// ipi6_addr, then ipi6_ifindex
			return netip.AddrFrom16([16]byte(m.Data)).Unmap(), int(binary.NativeEndian.Uint32(m.Data[16:]))
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			// ipi_ifindex, then ipi_spec_dst
			return netip.AddrFrom4([4]byte(m.Data[4:])), int(binary.NativeEndian.Uint32(m.Data))
		}
	}
	return netip.Addr{}, 0
}

// Source returns the control message that sets the source of a packet. A socket of AF_INET6
// takes an IPv4 address in its mapped form (ip_cmsg_send in ip_sockglue.c).
//
// Only the address is set, not the link: the host's rules for this source address then
// choose the card. Setting the link would bypass its routes, and an answer to a router
// behind that card would be lost if there is no route back on the same card.
func Source(from netip.Addr, six bool) []byte {
	if six {
		return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: from.As16()})
	}
	return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: from.As4()})
}

// TTL returns the control message that sets the TTL of a packet, for IPv6 its hop limit.
// ControlMessage of x/net/ipv4 has a TTL for received packets only.
func TTL(ttl int, six bool) []byte {
	const size = 4 // an int
	b := make([]byte, unix.CmsgSpace(size))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = unix.IPPROTO_IP, unix.IP_TTL
	if six {
		h.Level, h.Type = unix.IPPROTO_IPV6, unix.IPV6_HOPLIMIT
	}
	h.SetLen(unix.CmsgLen(size))
	binary.NativeEndian.PutUint32(b[unix.CmsgLen(0):], uint32(ttl))
	return b
}

// Fragments sets whether packets of a socket may be cut into fragments. If so, which is the
// system's default, those that are longer than the MTU of the path, as far as this host has been
// told, are cut here. If not, they go as they are, unless they are longer than the MTU of the link:
// then sending fails with EMSGSIZE. No router cuts the others in either case.
func Fragments(socket syscall.RawConn, six, allowed bool) error {
	level, option, mode := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE
	if allowed {
		mode = unix.IP_PMTUDISC_WANT
	}
	if six {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER // its modes have the same numbers
	}
	var err error
	if e := socket.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, mode) }); e != nil {
		return e
	}
	if err != nil {
		return fmt.Errorf("set whether packets are cut into fragments: %w", err)
	}
	return nil
}
