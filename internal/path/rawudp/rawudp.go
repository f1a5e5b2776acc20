// SPDX-License-Identifier: Apache-2.0

// Package rawudp sends and receives datagrams through the port of another socket: that
// of WireGuard in the kernel, which nobody else can bind.
//
// The datagrams leave from that port and come in by it, so they open and use the same
// mappings of NATs and the same entries of connection tracking as WireGuard's own. Raw
// sockets see a copy of what arrives (raw(7)); a filter in the kernel passes on only what
// begins with given bytes, so WireGuard's data costs a few comparisons a packet. What
// WireGuard doesn't know it drops in silence.
//
// No datagram is cut into fragments, neither here nor by a router on the way.
package rawudp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/pktinfo"
)

const (
	udpHeaderLen   = 8
	protocolUDP    = 17
	checksumOffset = 6
	maxDatagram    = udpHeaderLen + 2048 // the longest that a relay forwards
)

// Datagram is one that arrived.
type Datagram struct {
	Payload []byte
	From    netip.AddrPort
	To      netip.Addr // the address of this host that it was sent to
	Link    int        // index of the link by which it came
}

// Options says what to listen for.
type Options struct {
	Port  uint16    // of the other socket
	Magic [][4]byte // all datagrams begin with one of these
}

// Conn sends and receives from one port, in both families, in the network namespace in
// which it was opened. Its methods are safe for concurrent use.
type Conn struct {
	port uint16
	v4   *ipv4.PacketConn
	v6   *ipv6.PacketConn // nil on a host without IPv6
}

// Open opens the sockets. It needs CAP_NET_RAW. A host without one of the families has
// none of it.
func Open(o Options) (*Conn, error) {
	c := &Conn{port: o.Port}
	p4, err := listen("ip4", "0.0.0.0", filter(o, true))
	if err != nil {
		return nil, err
	}
	c.v4 = ipv4.NewPacketConn(p4)
	if err := c.v4.SetControlMessage(ipv4.FlagDst|ipv4.FlagInterface, true); err != nil {
		return nil, errors.Join(fmt.Errorf("ask for destinations: %w", err), c.Close())
	}
	p6, err := listen("ip6", "::", filter(o, false))
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL) {
		return c, nil
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	c.v6 = ipv6.NewPacketConn(p6)
	err = errors.Join(
		c.v6.SetControlMessage(ipv6.FlagDst|ipv6.FlagInterface, true),
		c.v6.SetChecksum(true, checksumOffset),
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare IPv6: %w", err), c.Close())
	}
	return c, nil
}

// Close closes the sockets; Receive returns an error that is net.ErrClosed.
func (c *Conn) Close() error {
	err := c.v4.Close()
	if c.v6 != nil {
		err = errors.Join(err, c.v6.Close())
	}
	return err
}

// listen opens a raw socket. It receives as soon as it exists, so it gets a filter that
// drops all before it is bound, and the real one when nothing is left that came before.
func listen(family, address string, program []bpf.RawInstruction) (net.PacketConn, error) {
	drop := []bpf.RawInstruction{{Op: unix.BPF_RET | unix.BPF_K}}
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error { return attach(raw, drop) }}
	p, err := lc.ListenPacket(context.Background(), fmt.Sprintf("%s:%d", family, protocolUDP), address)
	if err != nil {
		return nil, fmt.Errorf("open raw socket: %w", err)
	}
	raw, err := p.(*net.IPConn).SyscallConn()
	if err == nil {
		err = pktinfo.Fragments(raw, family == "ip6", false)
	}
	if err == nil {
		err = drain(p)
	}
	if err == nil {
		err = attach(raw, program)
	}
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

func drain(p net.PacketConn) error {
	if err := p.SetReadDeadline(time.Now()); err != nil {
		return fmt.Errorf("drain raw socket: %w", err)
	}
	buf := make([]byte, 1)
	for {
		if _, _, err := p.ReadFrom(buf); errors.Is(err, os.ErrDeadlineExceeded) {
			break
		} else if err != nil {
			return fmt.Errorf("drain raw socket: %w", err)
		}
	}
	return p.SetReadDeadline(time.Time{})
}

func attach(raw syscall.RawConn, program []bpf.RawInstruction) error {
	f := make([]unix.SockFilter, len(program))
	for i, p := range program {
		f[i] = unix.SockFilter{Code: p.Op, Jt: p.Jt, Jf: p.Jf, K: p.K}
	}
	var err error
	if e := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]})
	}); e != nil {
		return e
	}
	if err != nil {
		return fmt.Errorf("attach filter: %w", err)
	}
	return nil
}

// filter passes on UDP to the port that begins with a magic. The program of an IPv4
// socket sees the IP header, that of an IPv6 one begins with UDP's.
func filter(o Options, v4 bool) []bpf.RawInstruction {
	load := func(off uint32, size int) bpf.Instruction {
		if v4 {
			return bpf.LoadIndirect{Off: off, Size: size}
		}
		return bpf.LoadAbsolute{Off: off, Size: size}
	}
	left := uint8(len(o.Magic)) // comparisons
	program := []bpf.Instruction{
		load(2, 2), // destination port
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(o.Port), SkipTrue: left + 1},
		load(udpHeaderLen, 4),
	}
	for _, magic := range o.Magic {
		program = append(program, bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(magic[:]), SkipTrue: left})
		left--
	}
	program = append(program, bpf.RetConstant{Val: 0}, bpf.RetConstant{Val: 0xffff})
	if v4 {
		program = slices.Insert(program, 0, bpf.Instruction(bpf.LoadMemShift{Off: 0})) // X = length of the IP header
	}
	raw, err := bpf.Assemble(program)
	if err != nil {
		panic(fmt.Sprintf("assemble filter: %v", err)) // the program is a constant but for some numbers
	}
	return raw
}

// Packet is a datagram to send.
type Packet struct {
	Payload []byte
	From    netip.Addr // an address of this host; the zero value for the one that the route says
	To      netip.AddrPort
	TTL     int // 0 for the system's
	// Whole means that it must not be cut into fragments. A Conn cuts none; WireGuard's own sockets,
	// through which a Packet may go as well, may do so with the others.
	Whole bool
}

// ErrNoFamily means that this host has no address family to reach an address.
var ErrNoFamily = errors.New("address family is not available")

// Send sends a datagram from the port.
func (c *Conn) Send(p Packet) error {
	to := netip.AddrPortFrom(p.To.Addr().Unmap(), p.To.Port())
	if to.Addr().Is6() && c.v6 == nil {
		return fmt.Errorf("send to %s: %w", to, ErrNoFamily)
	}
	from := p.From.Unmap()
	if !from.IsValid() {
		// The sum over the datagram contains the source address, so it has to be known.
		var err error
		if from, err = source(to); err != nil {
			return err
		}
	}
	b := binary.BigEndian.AppendUint16(make([]byte, 0, udpHeaderLen+len(p.Payload)), c.port)
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(udpHeaderLen+len(p.Payload)))
	b = append(append(b, 0, 0), p.Payload...)
	control := pktinfo.Source(from, to.Addr().Is6())
	if p.TTL > 0 {
		control = append(control, pktinfo.TTL(p.TTL, to.Addr().Is6())...)
	}
	dst := &net.IPAddr{IP: to.Addr().AsSlice(), Zone: to.Addr().Zone()}
	var err error
	if to.Addr().Is4() {
		binary.BigEndian.PutUint16(b[checksumOffset:], checksum(from, to.Addr(), b))
		_, err = c.v4.WriteBatch([]ipv4.Message{{Buffers: [][]byte{b}, OOB: control, Addr: dst}}, 0)
	} else {
		_, err = c.v6.WriteBatch([]ipv6.Message{{Buffers: [][]byte{b}, OOB: control, Addr: dst}}, 0)
	}
	if err != nil {
		return fmt.Errorf("send to %s from port %d: %w", to, c.port, err)
	}
	return nil
}

// source is the address of this host from which the kernel would send.
func source(to netip.AddrPort) (netip.Addr, error) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to)) // sends nothing
	if err != nil {
		return netip.Addr{}, fmt.Errorf("find the source address: %w", err)
	}
	from := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	if err := c.Close(); err != nil {
		return netip.Addr{}, fmt.Errorf("find the source address: %w", err)
	}
	return from.WithZone(""), nil
}

// checksum is the sum of RFC 768 over an IPv4 datagram in which it is zero.
func checksum(from, to netip.Addr, udp []byte) uint16 {
	var sum uint32
	add := func(b []byte) {
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		if len(b)%2 == 1 {
			sum += uint32(b[len(b)-1]) << 8
		}
	}
	s4, d4 := from.As4(), to.As4()
	add(s4[:])
	add(d4[:])
	sum += protocolUDP + uint32(len(udp))
	add(udp)
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	if sum == 0xffff {
		return 0xffff // zero would mean that there is no sum
	}
	return ^uint16(sum)
}

// Serve calls got with each datagram that arrives, in one goroutine a family, until Close;
// got must not keep the payload.
func (c *Conn) Serve(got func(Datagram)) error {
	var (
		wg   sync.WaitGroup
		errs [2]error
	)
	// If one family fails, the other one ends, too, so that both are opened anew.
	serve := func(i int, one func(func(Datagram)) error) {
		if errs[i] = one(got); errs[i] != nil {
			errs[i] = errors.Join(errs[i], c.Close())
		}
	}
	wg.Go(func() { serve(0, c.serve4) })
	if c.v6 != nil {
		wg.Go(func() { serve(1, c.serve6) })
	}
	wg.Wait()
	return errors.Join(errs[:]...)
}

func (c *Conn) serve4(got func(Datagram)) error {
	buf := make([]byte, maxDatagram)
	for {
		n, cm, from, err := c.v4.ReadFrom(buf)
		if err != nil {
			return received(err)
		}
		if cm != nil {
			pass(got, buf[:n], from, cm.Dst, cm.IfIndex)
		}
	}
}

func (c *Conn) serve6(got func(Datagram)) error {
	buf := make([]byte, maxDatagram)
	for {
		n, cm, from, err := c.v6.ReadFrom(buf)
		if err != nil {
			return received(err)
		}
		if cm != nil {
			pass(got, buf[:n], from, cm.Dst, cm.IfIndex)
		}
	}
}

func received(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return fmt.Errorf("receive from raw socket: %w", err)
}

func pass(got func(Datagram), udp []byte, from net.Addr, dst net.IP, link int) {
	ip, ok := from.(*net.IPAddr)
	if !ok || len(udp) < udpHeaderLen {
		return
	}
	src, ok := netip.AddrFromSlice(ip.IP)
	if !ok {
		return
	}
	to, _ := netip.AddrFromSlice(dst)
	src = src.Unmap().WithZone(ip.Zone)
	got(Datagram{
		Payload: udp[udpHeaderLen:],
		From:    netip.AddrPortFrom(src, binary.BigEndian.Uint16(udp)),
		To:      to.Unmap(),
		Link:    link,
	})
}
