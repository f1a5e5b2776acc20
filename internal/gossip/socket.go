// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/pktinfo"
)

// udpSocket is a UDP socket that can tell at which address of this host a packet arrived,
// and can send from a certain address. On a host with two cards, the kernel would
// otherwise take the source of an answer from the route to the peer, which may lead out
// of the other card: a NAT or a firewall in front of the peer then drops the answer,
// because it comes from an address that the peer has not asked. TCP and WireGuard in the
// kernel do the same by themselves.
type udpSocket struct {
	*net.UDPConn
	six bool // AF_INET6, also if it serves both families
}

func newUDPSocket(c *net.UDPConn) (udpSocket, error) {
	s := udpSocket{UDPConn: c}
	raw, err := c.SyscallConn()
	if err != nil {
		return s, fmt.Errorf("ask for addresses of packets: %w", err)
	}
	var optionErr error
	err = raw.Control(func(fd uintptr) {
		var domain int
		if domain, optionErr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN); optionErr != nil {
			return
		}
		s.six = domain == unix.AF_INET6
		optionErr = pktinfo.Enable(int(fd), s.six)
	})
	if err := errors.Join(err, optionErr); err != nil {
		return s, fmt.Errorf("ask for addresses of packets: %w", err)
	}
	return s, nil
}

// receive reads one packet. It also returns the address of this host at which the packet
// arrived, or the zero Addr if the kernel does not tell.
func (s udpSocket) receive(b []byte) (n int, from netip.AddrPort, at netip.Addr, err error) {
	control := make([]byte, pktinfo.Room)
	n, length, _, from, err := s.ReadMsgUDPAddrPort(b, control)
	if err != nil {
		return 0, netip.AddrPort{}, netip.Addr{}, err
	}
	return n, unmapped(from), pktinfo.Local(control[:length]), nil
}

// send sends a packet from an address of this host, or from the one that the kernel
// chooses if that is the zero Addr, or is not possible any more.
func (s udpSocket) send(b []byte, to netip.AddrPort, from netip.Addr) error {
	if from.IsValid() && from.Is4() == to.Addr().Unmap().Is4() {
		if _, _, err := s.WriteMsgUDPAddrPort(b, pktinfo.Source(from, s.six), to); err == nil {
			return nil
		}
	}
	_, err := s.WriteToUDPAddrPort(b, to)
	return err
}

// arrivals remembers at which address of this host packets of each peer arrived last. What
// is sent to the peer comes from the same address.
type arrivals map[netip.AddrPort]lastArrival

type lastArrival struct {
	here netip.Addr
	at   time.Time
}

// note records that a packet from a peer's address arrived at an address of this host.
func (a arrivals) note(peer netip.AddrPort, here netip.Addr, now time.Time) {
	if _, known := a[peer]; !known && len(a) >= maxSenders {
		maps.DeleteFunc(a, func(_ netip.AddrPort, last lastArrival) bool { return now.Sub(last.at) > freshAddress })
		if len(a) >= maxSenders {
			return
		}
	}
	a[peer] = lastArrival{here, now}
}

// source returns the address from which to send to a peer's address, or the zero Addr to
// let the kernel choose. If the peer was silent for a while, one packet more is sent from
// the old address: it may have lost its way out since.
func (a arrivals) source(peer netip.AddrPort, now time.Time) netip.Addr {
	last := a[peer]
	if now.Sub(last.at) > freshAddress {
		delete(a, peer)
	}
	return last.here
}
