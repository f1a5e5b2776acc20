// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/path/rawudp"
	"github.com/meshd/meshd/internal/pktinfo"
)

// socketBuffer is what WireGuard's sockets may hold of packets, in bytes: wireguard-go's own
// figure, for bursts on fast links.
const socketBuffer = 7 << 20

// bind is WireGuard's sockets, one for each family. It sends to a peer from the address of this host at which
// the peer's last packet arrived, as WireGuard in the kernel does: on a host with two
// cards, the route to the peer may lead out of the card that the peer does not know.
//
// wireguard-go's StdNetBind is meant to do the same, but loses the address where the kernel
// merges datagrams (UDP_GRO): splitCoalescedMessages copies them without their control
// messages.
//
// Probes of package path go through the same sockets. WireGuard never sees them. With the
// probes go copies of the messages with which peers begin sessions.
type bind struct {
	probes chan<- rawudp.Datagram // that arrived; when it is full, they are dropped

	mu     sync.Mutex
	v4, v6 *bindSocket
}

// probeMagic begins all probes, and none of WireGuard's messages.
var probeMagic = path.Magic()

// bindSocket is the socket of one family.
type bindSocket struct {
	udp   *net.UDPConn
	batch batchConn
	sends sync.Pool  // of *[]ipv6.Message, for Send
	whole sync.Mutex // held while packets must not be cut into fragments
}

// batchConn reads and writes several datagrams in a call. Messages of both families have
// one type.
type batchConn interface {
	ReadBatch([]ipv6.Message, int) (int, error)
	WriteBatch([]ipv6.Message, int) (int, error)
}

// bindEndpoint is a peer's address, and the one of this host from which to send to it.
// WireGuard clears the latter while others of its goroutines send.
type bindEndpoint struct {
	dst netip.AddrPort
	src atomic.Pointer[bindSource] // nil to let the kernel choose
}

// bindSource is an address of this host, and the control message that sets it.
type bindSource struct {
	addr    netip.Addr
	control []byte
}

func (e *bindEndpoint) ClearSrc()           { e.src.Store(nil) }
func (e *bindEndpoint) SrcToString() string { return e.SrcIP().String() }
func (e *bindEndpoint) DstToString() string { return e.dst.String() }
func (e *bindEndpoint) DstIP() netip.Addr   { return e.dst.Addr() }

func (e *bindEndpoint) SrcIP() netip.Addr {
	if src := e.src.Load(); src != nil {
		return src.addr
	}
	return netip.Addr{}
}

// DstToBytes is what the cookie of WireGuard's mac2 covers.
func (e *bindEndpoint) DstToBytes() []byte {
	b, _ := e.dst.MarshalBinary() // which returns no error
	return b
}

// Open binds the sockets to a port, 0 for any.
func (b *bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.v4 != nil || b.v6 != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	var fns []conn.ReceiveFunc
	for _, family := range []struct {
		network string
		socket  **bindSocket
	}{{"udp4", &b.v4}, {"udp6", &b.v6}} {
		s, err := openSocket(family.network, port)
		if errors.Is(err, unix.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			return nil, 0, errors.Join(err, b.close())
		}
		*family.socket = s
		port = s.udp.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		fns = append(fns, s.receiver(b.probes))
	}
	if len(fns) == 0 {
		return nil, 0, unix.EAFNOSUPPORT
	}
	return fns, port, nil
}

func openSocket(network string, port uint16) (*bindSocket, error) {
	lc := net.ListenConfig{Control: func(network, _ string, raw syscall.RawConn) error {
		var err error
		if e := raw.Control(func(fd uintptr) { err = socketOptions(int(fd), network == "udp6") }); e != nil {
			return e
		}
		return err
	}}
	p, err := lc.ListenPacket(context.Background(), network, fmt.Sprintf(":%d", port))
	if err != nil {
		return nil, err
	}
	s := &bindSocket{udp: p.(*net.UDPConn)}
	if network == "udp6" {
		s.batch = ipv6.NewPacketConn(s.udp)
	} else {
		s.batch = ipv4.NewPacketConn(s.udp)
	}
	s.sends.New = func() any {
		messages := make([]ipv6.Message, conn.IdealBatchSize)
		return &messages
	}
	return s, nil
}

// socketOptions asks for the local addresses of packets, for merged ones, and for room.
// Without the capability for more, the system's limit is the room. A kernel that does not
// merge what it receives passes single packets.
func socketOptions(fd int, six bool) error {
	for _, option := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF, unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, socketBuffer)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO, 1)
	if six {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return err
		}
	}
	return pktinfo.Enable(fd, six)
}

// readBatch is how many messages are read in one call, each of up to maxSegments packets.
const readBatch = 16

// receiver returns the function that reads from the socket. One goroutine calls it. It must
// not wait for who takes the probes: while WireGuard's port is changed, its settings are
// locked until that goroutine has ended.
func (s *bindSocket) receiver(probes chan<- rawudp.Datagram) conn.ReceiveFunc {
	messages := make([]ipv6.Message, readBatch)
	for i := range messages {
		messages[i].Buffers = [][]byte{make([]byte, device.MaxMessageSize)}
		messages[i].OOB = make([]byte, pktinfo.Room+segmentRoom)
	}
	var all, rest []packet // that were read, and that are yet to be returned
	return func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		if len(rest) == 0 {
			n, err := s.batch.ReadBatch(messages, 0)
			if err != nil {
				return 0, err
			}
			all = unmerge(all[:0], messages[:n])
			rest = all
		}
		n := min(len(rest), len(packets))
		for i, p := range rest[:n] {
			if len(p.payload) >= len(probeMagic) && [4]byte(p.payload) == probeMagic {
				passProbe(probes, p.payload, p.message)
				sizes[i] = 0 // WireGuard skips it
				continue
			}
			if _, ok := path.SessionIndex(p.payload); ok {
				passProbe(probes, p.payload, p.message)
			}
			sizes[i], eps[i] = copy(packets[i], p.payload), p.from
		}
		rest = rest[n:]
		return n, nil
	}
}

// passProbe passes a probe on, unless too many wait.
func passProbe(probes chan<- rawudp.Datagram, payload []byte, m *ipv6.Message) {
	from := m.Addr.(*net.UDPAddr).AddrPort()
	to, link := pktinfo.Arrival(m.OOB[:m.NN])
	select {
	case probes <- rawudp.Datagram{
		Payload: bytes.Clone(payload),
		From:    netip.AddrPortFrom(from.Addr().Unmap(), from.Port()),
		To:      to,
		Link:    link,
	}:
	default:
	}
}

// newBindEndpoint returns the endpoint from which a packet came.
func newBindEndpoint(from netip.AddrPort, control []byte) *bindEndpoint {
	e := &bindEndpoint{dst: from}
	if local := pktinfo.Local(control); local.IsValid() {
		e.src.Store(&bindSource{local, pktinfo.Source(local, local.Is6())})
	}
	return e
}

// Send sends packets to a peer. If its source address is not this host's any more, the
// kernel chooses one.
func (b *bind) Send(packets [][]byte, ep conn.Endpoint) error {
	e, ok := ep.(*bindEndpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	s := b.socket(e.dst.Addr())
	if s == nil {
		return unix.EAFNOSUPPORT
	}
	var source []byte
	if src := e.src.Load(); src != nil {
		source = src.control
	}
	var err error
	for _, o := range []sendOptions{
		{source, true},
		{source, false}, // packets longer than the link's MTU, or a card that makes no checksums, see udp(7)
		{nil, false},
	} {
		if packets, err = s.send(packets, e.dst, o); err == nil {
			return nil
		}
	}
	return err
}

// socket returns the socket from which to send to an address, or nil if there is none.
func (b *bind) socket(to netip.Addr) *bindSocket {
	b.mu.Lock()
	defer b.mu.Unlock()
	if to.Is4() {
		return b.v4
	}
	return b.v6
}

// sendProbe sends a packet that is not WireGuard's.
func (b *bind) sendProbe(p rawudp.Packet) error {
	to, from := netip.AddrPortFrom(p.To.Addr().Unmap(), p.To.Port()), p.From.Unmap()
	s := b.socket(to.Addr())
	if s == nil {
		return fmt.Errorf("send to %s: %w", to, ErrNoPort)
	}
	var control []byte
	if from.IsValid() {
		control = pktinfo.Source(from, to.Addr().Is6())
	}
	if p.TTL > 0 {
		control = append(control, pktinfo.TTL(p.TTL, to.Addr().Is6())...)
	}
	send := s.sendOne
	if p.Whole {
		send = s.sendWhole
	}
	if err := send(p.Payload, control, to); err != nil {
		return fmt.Errorf("send to %s: %w", to, err)
	}
	return nil
}

func (s *bindSocket) sendOne(payload, control []byte, to netip.AddrPort) error {
	_, _, err := s.udp.WriteMsgUDPAddrPort(payload, control, to)
	return err
}

// sendWhole sends a packet that must not be cut into fragments. There is no control message for
// that, so it also holds for packets of WireGuard in this moment: of those, only ones that are too
// long for the path are lost.
func (s *bindSocket) sendWhole(payload, control []byte, to netip.AddrPort) error {
	s.whole.Lock()
	defer s.whole.Unlock()
	raw, err := s.udp.SyscallConn()
	if err != nil {
		return err
	}
	if err := pktinfo.Fragments(raw, to.Addr().Is6(), false); err != nil {
		return err
	}
	return errors.Join(s.sendOne(payload, control, to), pktinfo.Fragments(raw, to.Addr().Is6(), true))
}

// sendOptions says how packets leave.
type sendOptions struct {
	source []byte // control message with the address of this host; nil to let the kernel choose
	merged bool   // as few datagrams as possible, which the kernel or the card cuts
}

// send sends packets and returns those that it could not send.
func (s *bindSocket) send(packets [][]byte, to netip.AddrPort, o sendOptions) ([][]byte, error) {
	pooled := s.sends.Get().(*[]ipv6.Message)
	defer s.sends.Put(pooled)
	for messages := merge(*pooled, packets, to, o); len(messages) > 0; {
		n, err := s.batch.WriteBatch(messages, 0)
		if err != nil {
			return packets, err
		}
		for _, m := range messages[:n] {
			packets = packets[len(m.Buffers):]
		}
		messages = messages[n:]
	}
	return nil, nil
}

// ParseEndpoint reads a peer's address.
func (*bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	dst, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, err
	}
	return &bindEndpoint{dst: netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port())}, nil
}

// BatchSize is how many packets are read or written in one call.
func (*bind) BatchSize() int { return conn.IdealBatchSize }

// SetMark sets the mark of all packets.
func (b *bind) SetMark(mark uint32) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var errs []error
	for _, s := range []*bindSocket{b.v4, b.v6} {
		if s == nil {
			continue
		}
		raw, err := s.udp.SyscallConn()
		if err == nil {
			var optionErr error
			err = raw.Control(func(fd uintptr) {
				optionErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark))
			})
			err = errors.Join(err, optionErr)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Close closes the sockets. Open may be called again.
func (b *bind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.close()
}

func (b *bind) close() error {
	var errs []error
	for _, s := range []**bindSocket{&b.v4, &b.v6} {
		if *s != nil {
			errs = append(errs, (*s).udp.Close())
			*s = nil
		}
	}
	return errors.Join(errs...)
}
