// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/meshd/meshd/internal/mesh"
)

// errNoAddress: no address of the node is known.
var errNoAddress = errors.New("no address is known")

// dial opens a stream for memberlist to an address and learns which node is there.
func (t *transport) dial(ctx context.Context, addr netip.AddrPort) (*stream, error) {
	return t.dialWith(ctx, addr, t.ourHello())
}

// dialWith opens a stream with a hello of this node.
func (t *transport) dialWith(ctx context.Context, addr netip.AddrPort, ours hello) (*stream, error) {
	if t.filter != nil && !t.filter("tcp", addr) {
		return nil, fmt.Errorf("dial %v: %w", addr, errNoAddress)
	}
	d := net.Dialer{LocalAddr: t.source(addr)}
	conn, err := d.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return nil, err // it names the address
	}
	if !t.register(conn) {
		conn.Close()
		return nil, net.ErrClosed
	}
	s, err := t.dialHandshake(ctx, conn, addr, ours)
	if err != nil {
		conn.Close()
		t.unregister(conn)
		return nil, err
	}
	s.closed = func() { t.unregister(conn) }
	return s, nil
}

// source returns the local address of our streams. A node that is bound to one address
// uses that one, as its packets do, because others learn our address from it.
func (t *transport) source(to netip.AddrPort) net.Addr {
	own := t.bound().Addr()
	if own.IsUnspecified() || own.Is4() != to.Addr().Is4() {
		return nil
	}
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(own, 0))
}

// dialHandshake runs the handshake on a dialled connection and checks the peer.
func (t *transport) dialHandshake(ctx context.Context, conn net.Conn, addr netip.AddrPort, ours hello) (*stream, error) {
	deadline := time.Now().Add(helloTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, fmt.Errorf("greet %v: %w", addr, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	s, err := t.handshaker().initiate(conn, ours)
	if errors.Is(err, errRejected) || errors.Is(err, errSealed) {
		t.counters.add("dial-rejected")
		t.reportProblem(addr.String(), mesh.Problem{
			Kind: ProblemSecret, Node: addr.String(), Text: fmt.Sprintf("%v %v", addr, err),
			Advice: "put the same secret on both nodes, or take the address out of join",
		})
	}
	if err != nil {
		return nil, fmt.Errorf("greet %v: %w", addr, err)
	}
	t.notices.resolve(addr.String(), ProblemSecret)
	if err := t.checkPeer(s.peer, addr.String()); err != nil {
		return nil, fmt.Errorf("greet %v: %w", addr, err)
	}
	t.mu.Lock()
	t.replays.resume(s.peer.id, s.peer.boot, s.peer.counter)
	if !ours.carries { // the port may be one where no packets are received
		t.addresses.sawAt(s.peer.id, addr, t.now())
	}
	t.mu.Unlock()
	t.noteMet(s.peer.id)
	return s, conn.SetDeadline(time.Time{})
}

// checkPeer decides whether to talk to a node that has proved its identity.
func (t *transport) checkPeer(peer hello, place string) error {
	if peer.id == t.self.id {
		if peer.instance != t.self.instance {
			t.reportProblem(place, mesh.Problem{
				Kind: mesh.ProblemDuplicate, Node: place, Text: "a second daemon runs with this node's identity at " + place,
				Advice: "stop one of them and remove its state directory, so that it gets a new identity",
			})
			return fmt.Errorf("a second daemon with our identity: %w", errCluster)
		}
		return errSelf
	}
	all := differences(t.ourHello().cluster, peer.cluster, place)
	fatal := isFatal(all)
	t.notices.resolve(place, ProblemCluster, ProblemSettings)
	for _, d := range all {
		kind, advice := ProblemSettings, "write the same cluster settings on both nodes"
		if d.fatal {
			kind = ProblemCluster
		}
		t.reportProblem(place, mesh.Problem{Kind: kind, Node: place, Text: d.text, Advice: advice})
	}
	if fatal {
		t.counters.add("stream-cluster")
		return fmt.Errorf("%w: %s", errCluster, all[0].text)
	}
	return nil
}

// reportProblem records a problem and logs it once.
func (t *transport) reportProblem(place string, p mesh.Problem) {
	if t.notices.add(place, p) {
		t.log.at(slog.LevelWarn, "gossip problem", "kind", p.Kind, "node", p.Node, "text", p.Text, "advice", p.Advice)
	}
}

// dialNode opens a stream for memberlist to a node, at any address that is known.
func (t *transport) dialNode(ctx context.Context, id mesh.ID) (*stream, error) {
	return t.dialFirst(ctx, id, t.addressesOf(id), t.ourHello())
}

// addressesOf returns all addresses of a node in the order in which to dial them.
func (t *transport) addressesOf(id mesh.ID) []netip.AddrPort {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.addresses.order(id, t.now())
}

// dialFirst opens a stream to a node at the address that answers first. The addresses
// are tried in order, each with a head start over the next.
func (t *transport) dialFirst(ctx context.Context, id mesh.ID, addrs []netip.AddrPort, ours hello) (*stream, error) {
	if len(addrs) == 0 {
		return nil, fmt.Errorf("dial %v: %w", id, errNoAddress)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		s   *stream
		err error
	}
	results := make(chan result, len(addrs))
	for i, addr := range addrs {
		go func() { // waited for below
			select {
			case <-time.After(time.Duration(i) * dialStagger):
			case <-ctx.Done():
				results <- result{nil, ctx.Err()}
				return
			}
			s, err := t.dialWith(ctx, addr, ours)
			if err == nil && s.peer.id != id {
				s.Close()
				s, err = nil, fmt.Errorf("dial %v: %v is there", addr, s.peer.id)
			}
			results <- result{s, err}
		}()
	}
	var winner *stream
	var errs []error
	for range addrs {
		switch r := <-results; {
		case r.err != nil:
			errs = append(errs, r.err)
		case winner == nil:
			winner = r.s
			cancel()
		default:
			r.s.Close()
		}
	}
	if winner == nil {
		return nil, errors.Join(errs...)
	}
	return winner, nil
}

// offerStream stores an open stream for memberlist, and returns the name with which
// memberlist's Join asks for it. Dialling ourselves allows us to dial in parallel, and to
// see errors that memberlist's Join would lose.
func (t *transport) offerStream(s *stream) (target string, withdraw func()) {
	name := "@" + strconv.FormatUint(t.counter.Add(1), 10)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.offers[name] = s
	at := net.JoinHostPort(syntheticIP(s.peer.id).String(), strconv.Itoa(syntheticPort))
	return name + "/" + at, func() {
		if s := t.takeStream(name); s != nil {
			s.Close()
		}
	}
}

// takeStream returns an offered stream, once.
func (t *transport) takeStream(name string) *stream {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.offers[name]
	delete(t.offers, name)
	return s
}

// DialTimeout is not used by memberlist, because all nodes have names.
func (t *transport) DialTimeout(string, time.Duration) (net.Conn, error) {
	return nil, errors.New("dial: the node has no name")
}

// DialAddressTimeout opens a stream to the node with that name, or returns the stream
// that was offered under it.
func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	if s := t.takeStream(a.Name); s != nil {
		return s, nil
	}
	id, err := nodeID(a.Name)
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	ctx, cancel := context.WithTimeout(t.ctx, timeout)
	defer cancel()
	s, err := t.dialNode(ctx, id)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// register records an open connection, to be closed at shutdown. It returns false if the
// transport is shutting down.
func (t *transport) register(conn net.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx.Err() != nil {
		return false
	}
	t.open[conn] = struct{}{}
	return true
}

func (t *transport) unregister(conn net.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, conn)
}
