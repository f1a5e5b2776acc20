// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Stream is one TCP connection over which bytes flow steadily, one way. It shows
// what a user's download goes through.
type Stream struct {
	cancel   context.CancelFunc
	stop     chan struct{}
	work     sync.WaitGroup
	sent     atomic.Uint64
	received atomic.Uint64

	mu  sync.Mutex
	err error
}

// A chunk each chunkPeriod makes 400 kB/s, which the slowest lab can carry.
const (
	chunkSize   = 4 << 10
	chunkPeriod = 10 * time.Millisecond
)

// StartStream connects the two and begins to send.
func StartStream(ctx context.Context, from Place, to Party) (*Stream, error) {
	sender, receiver, err := Connect(ctx, from, to)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &Stream{cancel: cancel, stop: make(chan struct{})}
	for _, conn := range []net.Conn{sender, receiver} {
		context.AfterFunc(ctx, func() { _ = conn.Close() })
	}
	s.work.Go(func() { s.failed(s.send(sender)) })
	s.work.Go(func() { s.failed(s.receive(receiver)) })
	return s, nil
}

// Connect makes a TCP connection to the party, and returns both its ends.
func Connect(ctx context.Context, from Place, to Party) (sender, receiver net.Conn, err error) {
	listener, err := listenTransfer(to)
	if err != nil {
		return nil, nil, err
	}
	defer listener.Close()
	if err := from(func() (err error) {
		sender, err = new(net.Dialer).DialContext(ctx, "tcp", listener.Addr().String())
		return err
	}); err != nil {
		return nil, nil, fmt.Errorf("connect to %s: %w", to.Addr, err)
	}
	if receiver, err = listener.Accept(); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("accept at %s: %w", to.Addr, err), sender.Close())
	}
	return sender, receiver, nil
}

func (s *Stream) failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = errors.Join(s.err, err)
}

func (s *Stream) send(conn net.Conn) error {
	defer conn.Close()
	tick := time.NewTicker(chunkPeriod)
	defer tick.Stop()
	chunk := make([]byte, chunkSize)
	for {
		select {
		case <-s.stop:
			return nil
		case <-tick.C:
		}
		for i := range chunk {
			chunk[i] = streamByte(s.sent.Load() + uint64(i))
		}
		n, err := conn.Write(chunk)
		s.sent.Add(uint64(n))
		if err != nil {
			return fmt.Errorf("send over stream: %w", err)
		}
	}
}

// streamByte is what the stream has at a place. 251 is a prime, so that a missing
// packet shows.
func streamByte(place uint64) byte { return byte(place % 251) }

func (s *Stream) receive(conn net.Conn) error {
	defer conn.Close()
	buf := make([]byte, 16*chunkSize)
	for {
		n, err := conn.Read(buf)
		for i, b := range buf[:n] {
			if b != streamByte(s.received.Load()+uint64(i)) {
				return fmt.Errorf("receive from stream: a wrong byte at %d", s.received.Load()+uint64(i))
			}
		}
		s.received.Add(uint64(n))
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("receive from stream: %w", err)
		}
	}
}

// Received returns how many bytes have arrived so far.
func (s *Stream) Received() uint64 { return s.received.Load() }

// streamEnd is how long the last bytes may take.
const streamEnd = time.Minute

// Stop ends the stream, and fails unless every byte has arrived, in order, over
// the one connection.
func (s *Stream) Stop() error {
	close(s.stop)
	end := time.AfterFunc(streamEnd, s.cancel)
	s.work.Wait()
	end.Stop()
	s.cancel()
	if s.err == nil && s.sent.Load() != s.received.Load() {
		return fmt.Errorf("stream: %d bytes of %d arrived", s.received.Load(), s.sent.Load())
	}
	return s.err
}
