// SPDX-License-Identifier: Apache-2.0

package ping

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/meshd/meshd/internal/probe"
)

// socket sends echo requests and receives replies of one family (RFC 792, RFC 4443). It
// is a raw socket, which needs CAP_NET_RAW: ping sockets can't be used, because most
// hosts allow them to no group (net.ipv4.ping_group_range, icmp(7)).
type socket struct {
	conn *icmp.PacketConn
	v4   bool
}

// Protocol numbers, as icmp.ParseMessage takes them.
const (
	protocolICMP   = 1
	protocolICMPv6 = 58
)

func openSocket(v4 bool) (*socket, error) {
	network, address := "ip6:ipv6-icmp", "::"
	if v4 {
		network, address = "ip4:icmp", "0.0.0.0"
	}
	conn, err := icmp.ListenPacket(network, address)
	if err != nil {
		return nil, fmt.Errorf("open ICMP socket: %w", err)
	}
	// A raw socket gets a copy of every ICMP packet of the host. Only replies are needed.
	if v4 {
		var f ipv4.ICMPFilter
		f.SetAll(true)
		f.Accept(ipv4.ICMPTypeEchoReply)
		err = conn.IPv4PacketConn().SetICMPFilter(&f)
	} else {
		var f ipv6.ICMPFilter
		f.SetAll(true)
		f.Accept(ipv6.ICMPTypeEchoReply)
		err = conn.IPv6PacketConn().SetICMPFilter(&f)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("filter ICMP socket: %w", err), conn.Close())
	}
	return &socket{conn, v4}, nil
}

// send sends an echo request. An error, for example without a route to the target, has
// the same effect as a lost packet.
func (s *socket) send(t probe.Target, e icmp.Echo) error {
	m := icmp.Message{Type: ipv6.ICMPTypeEchoRequest, Body: &e}
	if s.v4 {
		m.Type = ipv4.ICMPTypeEcho
	}
	b, err := m.Marshal(nil) // the kernel computes ICMPv6's checksum
	if err != nil {
		return fmt.Errorf("make echo request: %w", err)
	}
	to := &net.IPAddr{IP: t.Addr.AsSlice()}
	var source net.IP
	if t.Source.IsValid() {
		source = t.Source.AsSlice()
	}
	if s.v4 {
		_, err = s.conn.IPv4PacketConn().WriteTo(b, &ipv4.ControlMessage{Src: source}, to)
	} else {
		_, err = s.conn.IPv6PacketConn().WriteTo(b, &ipv6.ControlMessage{Src: source}, to)
	}
	if err != nil {
		return fmt.Errorf("send echo request to %s: %w", t.Addr, err)
	}
	return nil
}

// receive waits for the next echo reply and ignores all other packets.
func (s *socket) receive(buf []byte) (from netip.Addr, e icmp.Echo, err error) {
	protocol := protocolICMPv6
	if s.v4 {
		protocol = protocolICMP
	}
	for {
		n, addr, err := s.conn.ReadFrom(buf)
		if err != nil {
			return netip.Addr{}, icmp.Echo{}, fmt.Errorf("read ICMP socket: %w", err)
		}
		ip, ok := addr.(*net.IPAddr)
		if !ok {
			continue
		}
		from, ok := netip.AddrFromSlice(ip.IP)
		if !ok {
			continue
		}
		if e, ok := parseReply(protocol, buf[:n]); ok {
			return from.Unmap(), e, nil
		}
	}
}

// parseReply parses an echo reply; ok is false for other messages.
func parseReply(protocol int, b []byte) (e icmp.Echo, ok bool) {
	m, err := icmp.ParseMessage(protocol, b)
	if err != nil || m.Type != ipv4.ICMPTypeEchoReply && m.Type != ipv6.ICMPTypeEchoReply {
		return icmp.Echo{}, false
	}
	echo, ok := m.Body.(*icmp.Echo)
	if !ok {
		return icmp.Echo{}, false
	}
	return *echo, true
}

func (s *socket) close() error { return s.conn.Close() }
