// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Stream is one TCP connection over which bytes flow steadily, one way or both ways, like
// a user's download.
type Stream struct {
	cancel      context.CancelFunc
	period      time.Duration // between chunks
	stop        chan struct{}
	work        sync.WaitGroup
	there, back flow

	mu  sync.Mutex
	err error
}

// flow is one way of a stream.
type flow struct {
	sent     atomic.Uint64
	received atomic.Uint64
}

// A chunk each chunkPeriod makes 400 kB/s, which the slowest lab can carry.
const (
	chunkSize   = 4 << 10
	chunkPeriod = 10 * time.Millisecond
)

// StartStream connects the two parties and begins to send.
func StartStream(ctx context.Context, from Place, to Party) (*Stream, error) {
	s, _, _, err := connectStream(ctx, from, to, chunkPeriod)
	return s, err
}

// StartTwoWayStream does the same in both directions, with a chunk per period.
func StartTwoWayStream(ctx context.Context, from Place, to Party, period time.Duration) (*Stream, error) {
	s, opener, accepter, err := connectStream(ctx, from, to, period)
	if err != nil {
		return nil, err
	}
	s.flow(&s.back, accepter, opener)
	return s, nil
}

func connectStream(ctx context.Context, from Place, to Party, period time.Duration) (s *Stream, opener, accepter net.Conn, err error) {
	opener, accepter, err = Connect(ctx, from, to)
	if err != nil {
		return nil, nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	s = &Stream{cancel: cancel, period: period, stop: make(chan struct{})}
	for _, conn := range []net.Conn{opener, accepter} {
		context.AfterFunc(ctx, func() { _ = conn.Close() })
	}
	s.flow(&s.there, opener, accepter)
	return s, opener, accepter, nil
}

// flow begins to send one way.
func (s *Stream) flow(f *flow, sender, receiver net.Conn) {
	s.work.Go(func() { s.failed(s.send(f, sender)) })
	s.work.Go(func() { s.failed(f.receive(receiver)) })
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

// failed keeps the first error, and ends the stream.
func (s *Stream) failed(err error) {
	if err == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = cmp.Or(s.err, err)
	s.cancel()
}

func (s *Stream) send(f *flow, conn net.Conn) error {
	tick := time.NewTicker(s.period)
	defer tick.Stop()
	chunk := make([]byte, chunkSize)
	for {
		select {
		case <-s.stop:
			return conn.(*net.TCPConn).CloseWrite()
		case <-tick.C:
		}
		for i := range chunk {
			chunk[i] = streamByte(f.sent.Load() + uint64(i))
		}
		n, err := conn.Write(chunk)
		f.sent.Add(uint64(n))
		if err != nil {
			return fmt.Errorf("send over stream: %w", err)
		}
	}
}

// streamByte returns the stream's byte at an offset. 251 is a prime, so a missing packet
// is noticed.
func streamByte(place uint64) byte { return byte(place % 251) }

// StreamText returns some bytes that every packet of a stream has, unless it is a short one.
func StreamText() []byte {
	text := make([]byte, 16)
	for i := range text {
		text[i] = streamByte(100 + uint64(i))
	}
	return text
}

func (f *flow) receive(conn net.Conn) error {
	buf := make([]byte, 16*chunkSize)
	for {
		n, err := conn.Read(buf)
		for i, b := range buf[:n] {
			if b != streamByte(f.received.Load()+uint64(i)) {
				return fmt.Errorf("receive from stream: a wrong byte at %d", f.received.Load()+uint64(i))
			}
		}
		f.received.Add(uint64(n))
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("receive from stream: %w", err)
		}
	}
}

// Received returns how many bytes have arrived so far.
func (s *Stream) Received() uint64 { return s.there.received.Load() }

// ReceivedBack returns how many bytes have arrived so far at the party that opened the
// connection.
func (s *Stream) ReceivedBack() uint64 { return s.back.received.Load() }

// Err returns why the stream has ended, or nil while it goes on.
func (s *Stream) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// streamEnd is how long the last bytes may take to arrive.
const streamEnd = time.Minute

// Stop ends the stream, and fails unless every byte has arrived, in order, over
// the one connection.
func (s *Stream) Stop() error {
	close(s.stop)
	end := time.AfterFunc(streamEnd, s.cancel)
	s.work.Wait()
	end.Stop()
	s.cancel()
	for _, f := range []*flow{&s.there, &s.back} {
		if s.err == nil && f.sent.Load() != f.received.Load() {
			return fmt.Errorf("stream: %d bytes of %d arrived", f.received.Load(), f.sent.Load())
		}
	}
	return s.err
}
