// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"github.com/meshd/meshd/internal/https"
	"github.com/meshd/meshd/internal/mesh"
)

// Carrier keeps streams that carry datagrams for nodes whose UDP is blocked, see package
// path/stream. Its methods must not block.
type Carrier interface {
	// Accept takes over a stream that a trusted node, which has proved its identity, has
	// opened for datagrams.
	Accept(node mesh.ID, conn net.Conn)
	// Carry sends a packet to a node over a stream, to be given to Carried there. It returns
	// false if there is no stream to the node.
	Carry(to mesh.ID, packet []byte) bool
}

// SetCarrier sets who takes streams for datagrams. Without a carrier they are refused.
func (g *Gossip) SetCarrier(c Carrier) { g.transport.carrier.Store(&c) }

// DialCarrier opens a stream for datagrams to a node, at the address that answers first: of
// the given ones, at which it accepts TLS, and of all where gossip may reach the node, except
// through the mesh.
func (g *Gossip) DialCarrier(ctx context.Context, to mesh.ID, at ...netip.AddrPort) (net.Conn, error) {
	t := g.transport
	var targets []target
	for _, a := range at {
		targets = append(targets, target{addr: a, port: a.Port(), node: to, tls: true})
	}
	for _, o := range t.targetsOf(to) {
		switch i := slices.Index(at, o.addr); {
		case i >= 0: // once is enough
			targets[i].name = o.name
		case !t.addresses.inside(o.addr.Addr()):
			targets = append(targets, o)
		}
	}
	// A proxy that allows no connections to addresses may allow those to names.
	slices.SortStableFunc(targets, func(a, b target) int { return cmp.Compare(b.name, a.name) })
	ours := t.ourHello()
	ours.carries = true
	s, err := t.dialFirst(ctx, to, targets, ours)
	if err != nil {
		return nil, fmt.Errorf("open stream for datagrams: %w", err)
	}
	s.carry()
	return s, nil
}

// Carried takes a packet that a node has sent with its carrier.
func (g *Gossip) Carried(from mesh.ID, packet []byte) { g.transport.receiveCarried(from, packet) }

// receiveCarried checks a packet that came by stream, and passes its payload on. Nothing
// follows from it for the addresses of its sender.
func (t *transport) receiveCarried(from mesh.ID, b []byte) {
	ip, _ := netip.AddrFromSlice(syntheticIP(from))
	place := netip.AddrPortFrom(ip, syntheticPort)
	p, ok := t.openPacket(b, place)
	if !ok {
		return
	}
	if p.from != from {
		t.counters.add("packet-carried")
		return
	}
	t.mu.Lock()
	admitted := t.replays.admit(p.from, p.boot, p.counter)
	if admitted {
		t.addresses.noteCarried(from, t.now())
	}
	t.mu.Unlock()
	if !admitted {
		t.counters.add("packet-replayed")
		return
	}
	t.deliver(p, place)
}

// carry sends a packet by stream, if there is one to the node.
func (t *transport) carry(to mesh.ID, p packet) {
	c := t.carrier.Load()
	if c == nil {
		return
	}
	b, err := t.keys().sealPacket(t.random, t.numbered(p), to)
	if err != nil {
		t.log.at(slog.LevelError, "seal packet", "err", err)
		return
	}
	(*c).Carry(to, b)
}

// acceptCarrier hands a stream to the carrier.
func (t *transport) acceptCarrier(conn *net.TCPConn, s *stream) {
	s.closed = func() {
		t.unregister(conn)
		t.mu.Lock()
		defer t.mu.Unlock()
		t.removePending(conn)
		t.places.carriers.remove(conn)
	}
	c := t.carrier.Load()
	if c == nil || !t.trusts(s.peer.id) {
		t.counters.add("stream-carrier")
		s.Close()
		return
	}
	t.mu.Lock()
	pending := t.removePending(conn)
	if pending {
		t.closeReplaced(t.places.carriers.add(conn, remote(conn).Addr()))
	}
	t.mu.Unlock()
	if !pending { // another stream has taken its place
		s.Close()
		return
	}
	s.carry()
	(*c).Accept(s.peer.id, s)
}

// carry prepares a stream for datagrams: it is as long as the carrier wants, and nothing of
// it gets to memberlist.
func (s *stream) carry() {
	s.buffer = bufio.NewReaderSize(s.Conn, maxWrite)
	s.in = s.buffer
	s.begun, s.budget = true, math.MaxInt
}

// Proxy names the proxy through which the stream goes, "" for none.
func (s *stream) Proxy() string { return s.proxy }

// SyscallConn gives access to the socket, for its options.
func (s *stream) SyscallConn() (syscall.RawConn, error) { return syscallConn(s.Conn) }

// syscallConn gives access to the socket of a connection.
func syscallConn(conn net.Conn) (syscall.RawConn, error) {
	if c, ok := conn.(syscall.Conn); ok {
		return c.SyscallConn()
	}
	return nil, errors.New("not a socket")
}

// listenAt opens further listeners, for TLS.
func (t *transport) listenAt(ctx context.Context, addrs []string) (err error) {
	if t.tls, err = https.Server(t.identity); err != nil {
		return err
	}
	lc := net.ListenConfig{Control: allowMissingAddress}
	for _, addr := range addrs {
		l, err := lc.Listen(ctx, "tcp", addr)
		if err != nil {
			return fmt.Errorf("accept streams at %s: %w", addr, err)
		}
		t.tcp = append(t.tcp, l.(*net.TCPListener))
	}
	return nil
}

func (t *transport) closeListeners() error {
	var errs []error
	for _, l := range t.tcp {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}
