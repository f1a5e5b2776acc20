// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/meshd/meshd/internal/https"
	"github.com/meshd/meshd/internal/mesh"
)

var (
	// errNotNode: the other side speaks TLS, but with a certificate that is not a node's.
	errNotNode = errors.New("its certificate is not that of a node: another server is there, or something on the way opens TLS")
	// errOpening: the peer has sent more than any node does.
	errOpening = fmt.Errorf("more than %d bytes before it has proved its identity", maxOpening)
)

// turns bound what handshakes of TLS take of the processors: one is computed at a time for
// strangers, and one for addresses of known nodes. They are granted in the order in which
// they are asked for. Whoever waits has one of streamPlaces, so no more wait than there are
// of these.
type turns struct{ strangers, known chan struct{} }

func newTurns() turns { return turns{make(chan struct{}, 1), make(chan struct{}, 1)} }

// opening is an accepted connection below TLS. Until lift is called, it bounds what its peer
// may send, and what is computed for it.
type opening struct {
	*net.TCPConn
	deadline time.Time
	left     int           // how much may still be read
	turn     chan struct{} // is held while something is computed; nil after the handshake
	holds    bool
	lifted   bool
}

func (t *transport) newOpening(conn *net.TCPConn, deadline time.Time) *opening {
	return &opening{TCPConn: conn, deadline: deadline, left: maxOpening, turn: t.turnOf(remote(conn).Addr())}
}

// Read gives up the turn while it waits for the peer.
func (o *opening) Read(b []byte) (int, error) {
	if o.lifted {
		return o.TCPConn.Read(b)
	}
	if o.left == 0 {
		return 0, errOpening
	}
	o.giveUp()
	n, err := o.TCPConn.Read(b[:min(len(b), o.left)])
	o.left -= n
	if err == nil {
		err = o.take()
	}
	return n, err
}

// take waits for the turn. Nothing is computed for a peer whose time is over by then, or whose
// place another one has taken, which shows as a closed connection.
func (o *opening) take() error {
	if o.turn == nil {
		return nil
	}
	o.turn <- struct{}{}
	o.holds = true
	if time.Now().After(o.deadline) {
		return os.ErrDeadlineExceeded
	}
	return o.SetDeadline(o.deadline)
}

func (o *opening) giveUp() {
	if o.holds {
		<-o.turn
		o.holds = false
	}
}

// lift removes the bounds: the peer has proved its identity, or is gone.
func (o *opening) lift() {
	o.giveUp()
	o.turn, o.lifted = nil, true
}

// acceptTLS runs the handshake of TLS with an unknown peer.
func (o *opening) acceptTLS(c *tls.Config) (net.Conn, error) {
	conn := tls.Server(o, c)
	err := conn.Handshake()
	o.giveUp()
	o.turn = nil
	if err != nil {
		return nil, fmt.Errorf("accept TLS: %w", err)
	}
	return secured{conn, o.TCPConn}, nil
}

// turnOf returns the turn for which a peer waits.
func (t *transport) turnOf(peer netip.Addr) chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.addresses.isKnown(peer) {
		return t.turns.known
	}
	return t.turns.strangers
}

// startTLS runs the handshake of TLS on a dialled connection. It reports whether the other
// side is a node. It need not be the one that the greeting leads to: a load balancer may
// stand before that one.
func startTLS(raw net.Conn, to target) (conn net.Conn, isNode bool, err error) {
	c, id, isNode, err := https.Open(context.Background(), raw, to.name) // the connection has a deadline
	if err != nil {
		return nil, false, err
	}
	if isNode && to.node != (mesh.ID{}) && id != to.node {
		return nil, true, fmt.Errorf("%v is there", id)
	}
	return secured{c, raw}, isNode, nil
}

// secured is a connection of TLS that closes like the one below: at once, where TLS would
// wait up to 5 s until it has said so to the other side. The end of a stream need not be
// authenticated: what it carries says where it ends.
type secured struct {
	*tls.Conn
	raw net.Conn
}

// Close closes the connection.
func (s secured) Close() error { return s.raw.Close() }

// SyscallConn gives access to the socket, for its options.
func (s secured) SyscallConn() (syscall.RawConn, error) { return syscallConn(s.raw) }
