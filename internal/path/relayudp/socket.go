// SPDX-License-Identifier: Apache-2.0

package relayudp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/pktinfo"
)

// socketBuffer is what the socket may hold of datagrams, in bytes: as WireGuard's, see
// package host.
const socketBuffer = 7 << 20

// The sockets of a port, in the order in which they were bound.
const (
	gossipSocket = 0
	relaySocket  = 1
)

// share opens a second socket on the port of another one, and has the kernel give it what
// is for a relay. It reports whether the socket is one of AF_INET6, also if it serves both
// families.
//
// The first socket was bound without SO_REUSEPORT, and the kernel compares that option of
// both sockets when the second is bound (inet_rcv_saddr_equal and udp_lib_lport_inuse in
// net/ipv4/udp.c). So it can be set only now, and whoever binds the port without it is
// still refused. Closing the second socket leaves all to the first.
func share(ctx context.Context, first *net.UDPConn) (conn *net.UDPConn, six bool, err error) {
	raw, err := first.SyscallConn()
	if err != nil {
		return nil, false, err
	}
	if err := control(raw, func(fd int) error {
		domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		six = domain == unix.AF_INET6
		return errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	}); err != nil {
		return nil, false, fmt.Errorf("set SO_REUSEPORT: %w", err)
	}
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		return control(raw, func(fd int) error { return prepare(fd, six) })
	}}
	p, err := lc.ListenPacket(ctx, "udp", first.LocalAddr().String())
	if err != nil {
		return nil, false, err
	}
	conn = p.(*net.UDPConn)
	if err := control(raw, selectSocket); err != nil {
		return nil, false, errors.Join(fmt.Errorf("select sockets: %w", err), conn.Close())
	}
	return conn, six, nil
}

// control calls f with the file descriptor of a socket.
func control(raw syscall.RawConn, f func(fd int) error) error {
	var err error
	return errors.Join(raw.Control(func(fd uintptr) { err = f(int(fd)) }), err)
}

// prepare sets options before the socket is bound: to an address that the host may not have
// yet, as gossip's. Without the capability for more, the system's limit is the room.
func prepare(fd int, six bool) error {
	for _, option := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF, unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, socketBuffer)
	}
	return errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_FREEBIND, 1),
		pktinfo.Enable(fd, six),
	)
}

// selectSocket has the kernel choose between the sockets of a port by the first four bytes
// of a datagram, see SO_ATTACH_REUSEPORT_CBPF in socket(7). WireGuard's messages begin with
// 1 to 4 and three zero bytes. A datagram that is too short is gossip's: the program of one
// ends with 0.
func selectSocket(fd int) error {
	magic := path.Magic()
	program, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 0, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(magic[:]), SkipTrue: 3},
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 1<<24 - 1, SkipTrue: 3},
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: 1 << 24, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: 4 << 24, SkipTrue: 1},
		bpf.RetConstant{Val: relaySocket},
		bpf.RetConstant{Val: gossipSocket},
	})
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(program))
	for i, p := range program {
		filter[i] = unix.SockFilter{Code: p.Op, Jt: p.Jt, Jf: p.Jf, K: p.K}
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
}
