// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/udpbatch"
)

// local is a socket that WireGuard has as an endpoint. It is connected to WireGuard's port, so
// the kernel drops what comes from elsewhere.
type local struct {
	addr  netip.AddrPort
	udp   *net.UDPConn
	batch interface { // of one family, with messages of one type for both
		ReadBatch([]ipv6.Message, int) (int, error)
		WriteBatch([]ipv6.Message, int) (int, error)
	}
	merges bool           // datagrams for WireGuard may be sent as one
	out    udpbatch.Batch // for WireGuard, see add
}

// openLocal opens a socket for WireGuard's port, on ::1 if there is no IPv4.
func openLocal(wireguard uint16) (*local, error) {
	var errs []error
	for _, loopback := range []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()} {
		udp, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, 0)),
			net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, wireguard)))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		makeRoom(udp)
		l := &local{addr: udp.LocalAddr().(*net.UDPAddr).AddrPort(), udp: udp, batch: ipv6.NewPacketConn(udp), merges: udpbatch.CanMerge(udp)}
		if loopback.Is4() {
			l.addr = netip.AddrPortFrom(loopback, l.addr.Port())
			l.batch = ipv4.NewPacketConn(udp)
		}
		return l, nil
	}
	return nil, fmt.Errorf("open a socket on the loopback: %w", errors.Join(errs...))
}

// makeRoom has the kernel hold more datagrams than by default. Without the capability for it,
// the system's limit is the room.
func makeRoom(udp *net.UDPConn) {
	raw, err := udp.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		for _, option := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF, unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, option, socketBuffer)
		}
	})
}

// readAll calls got with the datagrams that WireGuard sends, until the socket is closed. It must
// not keep them.
func (l *local) readAll(got func(datagrams ...[]byte)) {
	messages := make([]ipv6.Message, batch)
	datagrams := make([][]byte, 0, batch)
	for i := range messages {
		messages[i].Buffers = [][]byte{make([]byte, maxDatagram)}
	}
	for {
		n, err := l.batch.ReadBatch(messages, 0)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // of what was written before, such as ECONNREFUSED; each is reported once
		}
		datagrams = datagrams[:0]
		for i := range messages[:n] {
			if m := &messages[i]; m.Flags&unix.MSG_TRUNC == 0 {
				datagrams = append(datagrams, m.Buffers[0][:m.N])
			}
		}
		got(datagrams...)
	}
}

// add adds a datagram for WireGuard, whose bytes must stay until flush. Probes and handshakes are not merged, because
// raw sockets take them in, see package rawudp.
func (l *local) add(datagram []byte) {
	l.out.Add(udpbatch.Datagram{Payload: datagram, Merge: l.merges && path.IsData(datagram)})
}

// flush writes what was added. Errors count as loss: WireGuard's device may be away.
func (l *local) flush() { l.out.Send(l.batch) }
