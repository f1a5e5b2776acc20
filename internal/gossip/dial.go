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

// errNoPath: nothing is known about where a node may be.
var errNoPath = errors.New("no address is known")

// dial opens a stream to an address and learns who is there.
func (t *transport) dial(ctx context.Context, addr netip.AddrPort) (*stream, error) {
	if t.filter != nil && !t.filter("tcp", addr) {
		return nil, fmt.Errorf("dial %v: %w", addr, errNoPath)
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
	s, err := t.greet(ctx, conn, addr)
	if err != nil {
		conn.Close()
		t.forget(conn)
		return nil, err
	}
	s.closed = func() { t.forget(conn) }
	return s, nil
}

// source is where our streams come from. A node that is bound to one address
// speaks from there, as its packets do: others learn from it where we are.
func (t *transport) source(to netip.AddrPort) net.Addr {
	own := t.bound().Addr()
	if own.IsUnspecified() || own.Is4() != to.Addr().Is4() {
		return nil
	}
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(own, 0))
}

// greet shakes hands on a dialled connection and judges the answer.
func (t *transport) greet(ctx context.Context, conn net.Conn, addr netip.AddrPort) (*stream, error) {
	deadline := time.Now().Add(helloTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, fmt.Errorf("greet %v: %w", addr, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	ours := t.ourHello()
	ours.you = addr
	s, err := t.greeter().greet(conn, ours)
	if errors.Is(err, errRejected) || errors.Is(err, errSealed) {
		t.counters.add("dial-rejected")
		t.meet(addr.String(), mesh.Problem{
			Kind: ProblemSecret, Node: addr.String(), Text: fmt.Sprintf("%v %v", addr, err),
			Advice: "put the same secret on both nodes, or take the address out of join",
		})
	}
	if err != nil {
		return nil, fmt.Errorf("greet %v: %w", addr, err)
	}
	t.notices.settle(addr.String(), ProblemSecret)
	if err := t.judge(s.peer, addr.String()); err != nil {
		return nil, fmt.Errorf("greet %v: %w", addr, err)
	}
	t.mu.Lock()
	t.replays.resume(s.peer.id, s.peer.boot, s.peer.counter)
	t.paths.meet(s.peer.id, addr, t.now())
	t.mu.Unlock()
	t.hearVoice(s, false)
	return s, conn.SetDeadline(time.Time{})
}

// judge decides whether to talk to a node that has proved to be there now.
func (t *transport) judge(peer hello, place string) error {
	if peer.id == t.self.id {
		if peer.instance != t.self.instance {
			t.meet(place, mesh.Problem{
				Kind: ProblemTwin, Node: place, Text: "a second daemon runs with this node's identity at " + place,
				Advice: "stop one of them and remove its state directory, so that it makes an identity of its own",
			})
			return fmt.Errorf("a second daemon with our identity: %w", errCluster)
		}
		return errSelf
	}
	all := differences(t.ourHello().cluster, peer.cluster, place)
	fatal := isFatal(all)
	t.notices.settle(place, ProblemCluster, ProblemSettings)
	for _, d := range all {
		kind, advice := ProblemSettings, "write the same cluster settings on both nodes"
		if d.fatal {
			kind = ProblemCluster
		}
		t.meet(place, mesh.Problem{Kind: kind, Node: place, Text: d.text, Advice: advice})
	}
	if fatal {
		t.counters.add("stream-cluster")
		return fmt.Errorf("%w: %s", errCluster, all[0].text)
	}
	return nil
}

// meet notes a problem and logs it once.
func (t *transport) meet(place string, p mesh.Problem) {
	if t.notices.meet(place, p) {
		t.log.at(slog.LevelWarn, "problem met", "kind", p.Kind, "node", p.Node, "text", p.Text, "advice", p.Advice)
	}
}

// dialNode opens a stream to a node over whichever of its paths answers first.
// Each has a head start over the next.
func (t *transport) dialNode(ctx context.Context, id mesh.ID) (*stream, error) {
	t.mu.Lock()
	addrs := t.paths.order(id, t.now())
	t.mu.Unlock()
	if len(addrs) == 0 {
		return nil, fmt.Errorf("dial %v: %w", id, errNoPath)
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
			s, err := t.dial(ctx, addr)
			if err == nil && s.peer.id != id {
				s.Close()
				s, err = nil, fmt.Errorf("dial %v: %v lives there", addr, s.peer.id)
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

// offer keeps an open stream for memberlist to take, and returns the name by
// which its Join is to ask for it. Joining by a name of ours lets us dial by
// ourselves, in parallel and with errors that say what happened; memberlist's
// own lose theirs.
func (t *transport) offer(s *stream) (target string, withdraw func()) {
	name := "@" + strconv.FormatUint(t.counter.Add(1), 10)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.offers[name] = s
	at := net.JoinHostPort(syntheticIP(s.peer.id).String(), strconv.Itoa(syntheticPort))
	return name + "/" + at, func() {
		if s := t.take(name); s != nil {
			s.Close()
		}
	}
}

// take returns an offered stream, once.
func (t *transport) take(name string) *stream {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.offers[name]
	delete(t.offers, name)
	return s
}

// DialTimeout is not used by memberlist where nodes have names.
func (t *transport) DialTimeout(string, time.Duration) (net.Conn, error) {
	return nil, errors.New("dial: the node has no name")
}

// DialAddressTimeout opens a stream to the node of that name, or hands over
// one that was offered under it.
func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	if s := t.take(a.Name); s != nil {
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

// register notes an open connection, to be closed at the end. It says no if
// the end has come.
func (t *transport) register(conn net.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx.Err() != nil {
		return false
	}
	t.open[conn] = struct{}{}
	return true
}

func (t *transport) forget(conn net.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, conn)
}
