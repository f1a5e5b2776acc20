// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"net"
	"net/netip"

	"github.com/meshd/meshd/internal/mesh"
)

// tunnelled is how many bytes went to a node and came from it through a tunnel, as WireGuard counts them.
type tunnelled struct{ sent, received uint64 }

// Tunnelled returns how many bytes gossip has sent to a node, and received from it, at addresses inside the
// mesh, as WireGuard counts them: with all that is around them in the tunnel. What goes by stream is counted
// a little too high, since only TCP knows into how many packets it divides that. What is sent is
// counted before WireGuard counts it.
func (g *Gossip) Tunnelled(id mesh.ID) (sent, received uint64) {
	t := g.transport
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.addresses.nodes[id]; n != nil {
		return n.tunnelled.sent, n.tunnelled.received
	}
	return 0, 0
}

// countTunnelled counts what is exchanged with a node at an address, if that is inside the mesh.
func (p *addressTable) countTunnelled(id mesh.ID, at netip.Addr, sent, received int) {
	if !p.inside(at) {
		return
	}
	n := p.node(id)
	n.tunnelled.sent += uint64(sent)
	n.tunnelled.received += uint64(received)
}

// inTunnel returns how long WireGuard's message for a UDP packet is: with headers of IP and UDP, padded to 16
// bytes, with WireGuard's own header and tag.
func inTunnel(payload int, to netip.Addr) int {
	const header4, header6, udp, wireGuard = 20, 40, 8, 32
	n := udp + payload + header6
	if to.Unmap().Is4() {
		n += header4 - header6
	}
	return (n+15)/16*16 + wireGuard
}

// countedConn counts what goes over a stream through a tunnel.
type countedConn struct {
	net.Conn
	count func(sent, received int)
}

// What is around the bytes of a stream, at most: segments carry 1200 bytes or more, with 104 bytes
// around them, and each second one is acknowledged by one of 104 bytes.
const (
	streamPacket  = 104
	streamOpening = 2048 // the TCP handshake, hello and proof, and the end
	streamSegment = 1200
)

func (c countedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.count(acknowledging(n), inSegments(n))
	return n, err
}

func (c countedConn) Write(b []byte) (int, error) {
	c.count(inSegments(len(b)), acknowledging(len(b)))
	return c.Conn.Write(b)
}

func inSegments(n int) int { return n + (n/streamSegment+1)*streamPacket }

func acknowledging(n int) int { return (n/(2*streamSegment) + 1) * streamPacket }

// countOpening counts what opens a stream with a node at an address, and what ends it, if that is inside the
// mesh. It counts nothing for the zero ID: it is not known who is there.
func (t *transport) countOpening(id mesh.ID, at netip.Addr) {
	if id == (mesh.ID{}) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.addresses.countTunnelled(id, at, streamOpening, streamOpening)
}

// countStream counts what goes over a stream from now on, if its other end is inside the mesh.
func (t *transport) countStream(s *stream) {
	at := remote(s.Conn).Addr()
	if !t.addresses.inside(at) {
		return
	}
	conn := countedConn{s.Conn, func(sent, received int) {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.addresses.countTunnelled(s.peer.id, at, sent, received)
	}}
	s.Conn, s.in = conn, conn
}
