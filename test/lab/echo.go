// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// Place runs a function in the namespaces of a host or a pod: [Host.Do] or [Pod.Do].
type Place func(f func() error) error

// ListenEcho serves TCP on a port of the place, until it is closed. It sends each client
// the source address that it sees.
func ListenEcho(at Place, port uint16) (io.Closer, error) {
	// Package net checks only once whether there is IPv6, in the namespace where the
	// process is then. A host has both families, whatever the result was.
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return setsockopt(c, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0)
	}}
	var l net.Listener
	if err := at(func() (err error) {
		l, err = config.Listen(context.Background(), "tcp6", fmt.Sprintf("[::]:%d", port))
		return err
	}); err != nil {
		return nil, fmt.Errorf("listen for echo: %w", err)
	}
	e := &echo{listener: l, done: make(chan struct{})}
	go e.serve()
	return e, nil
}

type echo struct {
	listener net.Listener
	done     chan struct{}
}

func (e *echo) serve() {
	defer close(e.done)
	for {
		conn, err := e.listener.Accept()
		if err != nil {
			return
		}
		_, _ = io.WriteString(conn, conn.RemoteAddr().String()) // an error means that the client has gone
		_ = conn.Close()
	}
}

// Close stops serving. The port is free then, even if a child process that has not
// executed its program yet still has the listener's descriptor.
func (e *echo) Close() error {
	conn, err := e.listener.(*net.TCPListener).SyscallConn()
	if err != nil {
		return fmt.Errorf("close echo: %w", err)
	}
	var shut error
	if err := conn.Control(func(fd uintptr) { shut = unix.Shutdown(int(fd), unix.SHUT_RD) }); err != nil {
		return fmt.Errorf("close echo: %w", err)
	}
	err = errors.Join(shut, e.listener.Close())
	<-e.done
	return err
}

// SourceSeen connects from the place to an echo server and returns the address
// that the server saw.
func SourceSeen(ctx context.Context, from Place, server netip.AddrPort) (netip.Addr, error) {
	var seen []byte
	err := from(func() error {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", server.String())
		if err != nil {
			return err
		}
		defer conn.Close()
		defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
		seen, err = io.ReadAll(conn)
		return err
	})
	if err != nil {
		return netip.Addr{}, fmt.Errorf("ask echo server: %w", err)
	}
	ap, err := netip.ParseAddrPort(string(seen))
	if err != nil {
		return netip.Addr{}, fmt.Errorf("read echo server's answer: %w", err)
	}
	return ap.Addr().Unmap(), nil
}
