// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Transfer sends size bytes over one TCP connection to the party. It returns an error
// unless all arrive unchanged before ctx ends.
func Transfer(ctx context.Context, from Place, to Party, size int) error {
	sent := make([]byte, size)
	for i := range sent {
		sent[i] = byte(i % 251) // a prime, so a missing packet is noticed
	}
	listener, err := listenTransfer(to)
	if err != nil {
		return err
	}
	defer listener.Close()
	g, ctx := errgroup.WithContext(ctx)
	defer context.AfterFunc(ctx, func() { _ = listener.Close() })()
	g.Go(func() error {
		got, err := receive(ctx, listener)
		if err == nil && !bytes.Equal(got, sent) {
			err = fmt.Errorf("got %d bytes, not the %d that were sent", len(got), size)
		}
		if err != nil {
			return fmt.Errorf("receive at %s: %w", to.Addr, err)
		}
		return nil
	})
	g.Go(func() error {
		if err := from(func() error { return send(ctx, listener.Addr().String(), sent) }); err != nil {
			return fmt.Errorf("send to %s: %w", to.Addr, err)
		}
		return nil
	})
	return g.Wait()
}

func listenTransfer(p Party) (listener *net.TCPListener, err error) {
	err = p.At(func() error {
		listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(p.Addr, 0)))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen for transfer: %w", err)
	}
	return listener, nil
}

func receive(ctx context.Context, l *net.TCPListener) ([]byte, error) {
	conn, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	return io.ReadAll(conn)
}

// dial tries again on "no route" errors: a route that is being moved may be there a
// moment later.
func dial(ctx context.Context, to string) (net.Conn, error) {
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", to)
		if err == nil || ctx.Err() != nil || !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.ENETUNREACH) {
			return conn, err
		}
		time.Sleep(pollPeriod)
	}
}

func send(ctx context.Context, to string, b []byte) error {
	conn, err := dial(ctx, to)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	_, err = conn.Write(b)
	return err
}
