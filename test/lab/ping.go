// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sync/errgroup"
)

// pingPeriod is the first [Pause] between two echo requests to one address. A pause
// is at least pingShare times as long as sending took, so that requests don't take all
// the time of a slow machine.
const (
	pingPeriod = 10 * time.Millisecond
	pingShare  = 5
)

// AwaitPings sends echo requests from the host to every address, repeatedly, until each
// has answered at least once. If ctx ends first, the error names those that did not. It
// starts no process, so the time of its return is a measurement.
func (h *Host) AwaitPings(ctx context.Context, addrs []netip.Addr) error {
	return awaitPings(ctx, h.Name, h.Do, addrs)
}

// AwaitPings does the same from the pod.
func (p *Pod) AwaitPings(ctx context.Context, addrs []netip.Addr) error {
	return awaitPings(ctx, p.Host.Name+"/"+p.Name, p.Do, addrs)
}

// Pinger is a node or a pod.
type Pinger interface {
	comparable
	AwaitPings(ctx context.Context, addrs []netip.Addr) error
}

// AwaitEachOther has every one ping the addresses of every other.
func AwaitEachOther[P Pinger](ctx context.Context, all []P, addrs func(P) []netip.Addr) error {
	var g errgroup.Group
	for _, from := range all {
		var others []netip.Addr
		for _, to := range all {
			if to != from {
				others = append(others, addrs(to)...)
			}
		}
		g.Go(func() error { return from.AwaitPings(ctx, others) })
	}
	return g.Wait()
}

func awaitPings(ctx context.Context, name string, from Place, addrs []netip.Addr) error {
	p := &pings{silent: slices.Clone(addrs), done: make(chan struct{}), broken: make(chan error, 2)}
	if len(addrs) == 0 {
		return nil
	}
	var readers sync.WaitGroup
	defer readers.Wait()
	for _, f := range []family{family4, family6} {
		if !slices.ContainsFunc(addrs, f.has) {
			continue
		}
		var conn *icmp.PacketConn
		if err := from(func() (err error) {
			conn, err = icmp.ListenPacket(f.network, f.any)
			return err
		}); err != nil {
			return fmt.Errorf("open ping socket on %s: %w", name, err)
		}
		defer conn.Close()
		p.conns = append(p.conns, echoConn{f, conn})
		readers.Go(func() { p.read(f, conn) })
	}
	if err := p.send(ctx); err != nil {
		return fmt.Errorf("ping from %s: %w", name, err)
	}
	return nil
}

// family holds the differences between ICMP and ICMPv6.
type family struct {
	network, any   string
	protocol       int
	request, reply icmp.Type
	has            func(netip.Addr) bool
}

var (
	family4 = family{"ip4:icmp", "0.0.0.0", 1, ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply, netip.Addr.Is4}
	family6 = family{"ip6:ipv6-icmp", "::", 58, ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply, netip.Addr.Is6}
)

type echoConn struct {
	family
	*icmp.PacketConn
}

type pings struct {
	conns  []echoConn
	done   chan struct{} // closed when all have answered
	broken chan error    // why a socket can't be read any more

	mu     sync.Mutex
	silent []netip.Addr
}

// send sends to all addresses that have not answered, until all have.
func (p *pings) send(ctx context.Context) error {
	began := time.Now()
	for {
		p.mu.Lock()
		silent := slices.Clone(p.silent)
		p.mu.Unlock()
		round := time.Now()
		for _, c := range p.conns {
			if err := c.requestOnce(silent); err != nil {
				return err
			}
		}
		select {
		case <-p.done:
			return nil
		case err := <-p.broken:
			return err
		case <-ctx.Done():
			return fmt.Errorf("no answer from %v: %w", silent, ctx.Err())
		case <-time.After(max(Pause(pingPeriod, began), pingShare*time.Since(round))):
		}
	}
}

// requestOnce sends one request to each address of its family.
func (c echoConn) requestOnce(addrs []netip.Addr) error {
	request, err := (&icmp.Message{Type: c.request, Body: &icmp.Echo{ID: 1, Seq: 1}}).Marshal(nil)
	if err != nil {
		return fmt.Errorf("make echo request: %w", err)
	}
	for _, a := range addrs {
		if c.has(a) {
			// There may be no route yet: then the request counts as lost.
			_, _ = c.WriteTo(request, &net.IPAddr{IP: a.AsSlice()})
		}
	}
	return nil
}

// read removes addresses that answer, until the socket is closed.
func (p *pings) read(f family, conn *icmp.PacketConn) {
	buf := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			p.broken <- err // ignored once the socket is closed
			return
		}
		m, err := icmp.ParseMessage(f.protocol, buf[:n])
		if err != nil || m.Type != f.reply {
			continue
		}
		a, _ := netip.AddrFromSlice(from.(*net.IPAddr).IP)
		if p.strike(a.Unmap()) {
			close(p.done)
			return
		}
	}
}

// strike removes an address and reports whether it was the last one.
func (p *pings) strike(a netip.Addr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := len(p.silent)
	p.silent = slices.DeleteFunc(p.silent, func(b netip.Addr) bool { return a == b })
	return before > 0 && len(p.silent) == 0
}
