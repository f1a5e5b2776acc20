// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Party is one end of an exchange.
type Party struct {
	At   Place
	Addr netip.Addr // its own, to which the other party sends
}

// Exchange sends numbered UDP datagrams both ways at a steady rate and counts them at
// both ends.
type Exchange struct {
	ends    [2]*exchangeEnd
	stop    chan struct{}
	senders sync.WaitGroup
	readers sync.WaitGroup
}

// StartExchange has both parties send each other one datagram per period, until Stop.
func StartExchange(a, b Party, period time.Duration) (*Exchange, error) {
	e := &Exchange{stop: make(chan struct{})}
	for i, p := range []Party{a, b} {
		conn, err := listenExchange(p)
		if err != nil {
			for _, end := range e.ends[:i] {
				_ = end.conn.Close()
			}
			return nil, err
		}
		e.ends[i] = &exchangeEnd{conn: conn, seen: map[uint64]bool{}}
	}
	e.CountGaps()
	for i, end := range e.ends {
		end.to = e.ends[1-i].conn.LocalAddr().(*net.UDPAddr).AddrPort()
		e.readers.Go(end.read)
		e.senders.Go(func() { end.send(period, e.stop) })
	}
	return e, nil
}

// exchangeBuffer is enough for what arrives in many seconds without CPU time.
const exchangeBuffer = 4 << 20

func listenExchange(p Party) (*net.UDPConn, error) {
	var conn *net.UDPConn
	err := p.At(func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.Addr, 0)))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen for exchange: %w", err)
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		// SO_RCVBUF is bounded by the machine's limit, SO_RCVBUFFORCE is not.
		err = setsockopt(raw, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, exchangeBuffer)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("enlarge receive buffer: %w", err), conn.Close())
	}
	return conn, nil
}

func setsockopt(c syscall.RawConn, level, option, value int) error {
	var optErr error
	err := c.Control(func(fd uintptr) { optErr = unix.SetsockoptInt(int(fd), level, option, value) })
	return errors.Join(err, optErr)
}

type exchangeEnd struct {
	conn     *net.UDPConn
	to       netip.AddrPort
	sent     atomic.Uint64
	received atomic.Uint64
	seen     map[uint64]bool // the reader's own

	mu      sync.Mutex
	last    time.Time     // of the last arrival, or since when gaps count
	longest time.Duration // between two arrivals
}

// arrived notes the time since the last arrival.
func (e *exchangeEnd) arrived() {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	e.longest = max(e.longest, now.Sub(e.last))
	e.last = now
}

func (e *exchangeEnd) send(period time.Duration, stop <-chan struct{}) {
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
			// A datagram that can't be sent counts as lost.
			number := e.sent.Add(1)
			_, _ = e.conn.WriteToUDPAddrPort(binary.BigEndian.AppendUint64(nil, number), e.to)
		}
	}
}

func (e *exchangeEnd) read() {
	buf := make([]byte, 64)
	for {
		n, _, err := e.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		if n != 8 {
			continue
		}
		if number := binary.BigEndian.Uint64(buf); !e.seen[number] {
			e.seen[number] = true
			e.received.Add(1)
			e.arrived()
		}
	}
}

// Received returns how many different datagrams each party has received so far:
// those from the first one, and those from the second one.
func (e *Exchange) Received() (fromFirst, fromSecond uint64) {
	return e.ends[1].received.Load(), e.ends[0].received.Load()
}

// CountGaps resets LongestGap.
func (e *Exchange) CountGaps() {
	for _, end := range e.ends {
		end.mu.Lock()
		end.last, end.longest = time.Now(), 0
		end.mu.Unlock()
	}
}

// LongestGap returns the longest time since CountGaps in which a party received no
// datagram, including the time since its last one. Its precision is the period.
func (e *Exchange) LongestGap() time.Duration {
	var longest time.Duration
	for _, end := range e.ends {
		end.mu.Lock()
		longest = max(longest, end.longest, time.Since(end.last))
		end.mu.Unlock()
	}
	return longest
}

// lastDatagrams is how long the last datagrams may take to arrive. The whole time is
// waited only if some are lost.
const lastDatagrams = 5 * time.Second

// Stop ends the exchange and returns how many datagrams were sent, in both directions
// together, and how many of them were lost.
func (e *Exchange) Stop() (sent, lost uint64) {
	close(e.stop)
	e.senders.Wait()
	sent = e.ends[0].sent.Load() + e.ends[1].sent.Load()
	for end := time.Now().Add(lastDatagrams); ; time.Sleep(10 * time.Millisecond) {
		a, b := e.Received()
		lost = sent - a - b
		if lost == 0 || time.Now().After(end) {
			break
		}
	}
	for _, end := range e.ends {
		_ = end.conn.Close()
	}
	e.readers.Wait()
	return sent, lost
}
