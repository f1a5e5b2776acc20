// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
)

// pingPeriod is the time between two echo requests to one address, and so the
// precision of what [Host.AwaitPings] finds.
const pingPeriod = 10 * time.Millisecond

// AwaitPings sends IPv4 echo requests from the host to every address, each
// pingPeriod, until each has answered at least once. If ctx ends first, the error
// names those that did not. No process is started for it, so that the moment of
// its return is a measurement.
func (h *Host) AwaitPings(ctx context.Context, addrs []netip.Addr) error {
	var conn *icmp.PacketConn
	if err := h.Do(func() (err error) {
		conn, err = icmp.ListenPacket("ip4:icmp", "0.0.0.0")
		return err
	}); err != nil {
		return fmt.Errorf("open ping socket on %s: %w", h.Name, err)
	}
	p := &pings{conn: conn, silent: slices.Clone(addrs), done: make(chan struct{})}
	var reader sync.WaitGroup
	reader.Go(p.read)
	err := p.send(ctx)
	err = errors.Join(err, conn.Close())
	reader.Wait()
	if err != nil {
		return fmt.Errorf("ping from %s: %w", h.Name, err)
	}
	return nil
}

type pings struct {
	conn *icmp.PacketConn
	done chan struct{} // closed when all have answered

	mu     sync.Mutex
	silent []netip.Addr
}

// send sends to all that have not answered, until there are none.
func (p *pings) send(ctx context.Context) error {
	request, err := (&icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: 1, Seq: 1}}).Marshal(nil)
	if err != nil {
		return fmt.Errorf("make echo request: %w", err)
	}
	tick := time.NewTicker(pingPeriod)
	defer tick.Stop()
	for {
		p.mu.Lock()
		silent := slices.Clone(p.silent)
		p.mu.Unlock()
		for _, a := range silent {
			// There may be no route yet: then this request is one that was lost.
			_, _ = p.conn.WriteTo(request, &net.IPAddr{IP: a.AsSlice()})
		}
		select {
		case <-p.done:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("no answer from %v: %w", silent, ctx.Err())
		case <-tick.C:
		}
	}
}

// read strikes out who answers, until the socket is closed.
func (p *pings) read() {
	if len(p.silent) == 0 {
		close(p.done)
		return
	}
	buf := make([]byte, 1500)
	for {
		n, from, err := p.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		m, err := icmp.ParseMessage(1, buf[:n]) // 1 is ICMP for IPv4
		if err != nil || m.Type != ipv4.ICMPTypeEchoReply {
			continue
		}
		a, _ := netip.AddrFromSlice(from.(*net.IPAddr).IP)
		if p.strike(a.Unmap()) {
			close(p.done)
			return
		}
	}
}

// strike reports whether a was the last one silent.
func (p *pings) strike(a netip.Addr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := len(p.silent)
	p.silent = slices.DeleteFunc(p.silent, func(b netip.Addr) bool { return a == b })
	return before > 0 && len(p.silent) == 0
}
