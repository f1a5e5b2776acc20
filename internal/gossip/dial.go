// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/meshd/meshd/internal/mesh"
)

// errNoAddress: no address of the node is known.
var errNoAddress = errors.New("no address is known")

// target is where a stream is opened to.
type target struct {
	addr netip.AddrPort // zero if only a proxy can look up the name
	name string         // of the host, if it was looked up, or is to be by a proxy
	port uint16
	node mesh.ID // who must be there; zero for anybody
	tls  bool    // TLS is spoken there, as a node says
}

// targetAt returns an address at which anybody may be.
func targetAt(addr netip.AddrPort) target { return target{addr: addr, port: addr.Port()} }

// tlsTarget returns an address, or a name, at which a node says that it speaks TLS.
func tlsTarget(e mesh.Endpoint) target {
	to := target{port: e.Port, tls: true}
	if a, err := netip.ParseAddr(e.Host); err == nil {
		to.addr = netip.AddrPortFrom(a.Unmap(), e.Port)
	} else {
		to.name = e.Host
	}
	return to
}

// String returns the address, or the name if there is none.
func (to target) String() string {
	if to.addr.IsValid() {
		return to.addr.String()
	}
	return to.hostPort()
}

// hostPort returns what a proxy is asked for: the name rather than an address, since proxies
// may allow no connections to addresses.
func (to target) hostPort() string {
	host := to.name
	if host == "" {
		host = to.addr.Addr().String()
	}
	return net.JoinHostPort(host, strconv.Itoa(int(to.port)))
}

// isTLS reports whether TLS is spoken there.
func (to target) isTLS() bool { return to.tls || mesh.IsTLSPort(to.port) }

// Proxy opens connections for streams of TLS, see [https.Proxy].
type Proxy interface {
	// Covers reports whether connections to host:port go through the proxy.
	Covers(hostport string) bool
	// Dial opens a connection to host:port.
	Dial(ctx context.Context, hostport string) (net.Conn, error)
	// String names the proxy to a person, without its password.
	String() string
}

// dial opens a stream for memberlist to an address and learns which node is there.
func (t *transport) dial(ctx context.Context, addr netip.AddrPort) (*stream, error) {
	return t.dialWith(ctx, targetAt(addr), t.ourHello())
}

// dialWith opens a stream with a hello of this node.
func (t *transport) dialWith(ctx context.Context, to target, ours hello) (*stream, error) {
	if t.filter != nil && !t.filter("tcp", to.addr) {
		return nil, fmt.Errorf("dial %v: %w", to, errNoAddress)
	}
	t.countOpening(to.node, to.addr.Addr())
	conn, proxy, err := t.connect(ctx, to)
	if err != nil {
		return nil, err // it names the address
	}
	if !t.register(conn) {
		conn.Close()
		return nil, net.ErrClosed
	}
	s, err := t.dialHandshake(ctx, conn, to, ours)
	if err != nil {
		conn.Close()
		t.unregister(conn)
		return nil, err
	}
	if !ours.carries {
		t.countStream(s)
	}
	s.proxy = proxy
	s.closed = func() { t.unregister(conn) }
	return s, nil
}

// connect opens a TCP connection, through the proxy if there is one for the target. It
// returns the proxy's name, "" for none.
func (t *transport) connect(ctx context.Context, to target) (conn net.Conn, proxy string, err error) {
	if t.isProxied(to) {
		conn, err := t.proxy.Dial(ctx, to.hostPort())
		return conn, t.proxy.String(), err
	}
	if !to.addr.IsValid() {
		return nil, "", fmt.Errorf("dial %v: %w", to, errNoAddress)
	}
	d := net.Dialer{LocalAddr: t.source(to.addr)}
	conn, err = d.DialContext(ctx, "tcp", to.addr.String())
	return conn, "", err
}

// isProxied reports whether streams to a target go through the proxy. Proxies seldom allow
// connections to ports other than that of HTTPS, so only TLS does.
func (t *transport) isProxied(to target) bool {
	return to.isTLS() && t.proxy != nil && t.proxy.Covers(to.hostPort())
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
func (t *transport) dialHandshake(ctx context.Context, conn net.Conn, to target, ours hello) (*stream, error) {
	deadline := time.Now().Add(helloTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, fmt.Errorf("greet %v: %w", to, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	s, err := t.greet(conn, to, ours)
	if err != nil {
		return nil, fmt.Errorf("greet %v: %w", to, err)
	}
	if err := t.checkPeer(s.peer, to.String()); err != nil {
		return nil, fmt.Errorf("greet %v: %w", to, err)
	}
	t.mu.Lock()
	t.replays.resume(s.peer.id, s.peer.boot, s.peer.counter)
	if !ours.carries && to.addr.IsValid() { // the port may be one where no packets are received
		t.addresses.sawAt(s.peer.id, to.addr, t.now())
	}
	if to.name != "" {
		t.addresses.setNamed(s.peer.id, to)
	}
	t.mu.Unlock()
	t.noteMet(s.peer.id)
	return s, conn.SetDeadline(time.Time{})
}

// greet begins a stream on a dialled connection. It records a problem if the other side has
// another secret.
func (t *transport) greet(conn net.Conn, to target, ours hello) (*stream, error) {
	isNode := true // as far as is known
	if to.isTLS() {
		var err error
		if conn, isNode, err = startTLS(conn, to); err != nil {
			return nil, err
		}
	}
	s, err := t.handshaker().initiate(conn, ours)
	if errors.Is(err, errRejected) || errors.Is(err, errSealed) {
		if !isNode {
			return nil, errNotNode
		}
		t.counters.add("dial-rejected")
		t.reportProblem(to.String(), mesh.Problem{
			Kind: ProblemSecret, Node: to.String(), Text: fmt.Sprintf("%v %v", to, err),
			Advice: "put the same secret on both nodes, or take the address out of join",
		})
	}
	return s, err
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
	t.notices.resolve(place, ProblemSecret, ProblemCluster, ProblemSettings, mesh.ProblemDuplicate)
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

// reportProblem records a problem. Whoever reads the view logs it.
func (t *transport) reportProblem(place string, p mesh.Problem) { t.notices.add(place, p) }

// dialNode opens a stream for memberlist to a node, at any address that is known.
func (t *transport) dialNode(ctx context.Context, id mesh.ID) (*stream, error) {
	return t.dialFirst(ctx, id, t.targetsOf(id), t.ourHello())
}

// targetsOf returns where to dial a node, in order. Where it accepts streams over TLS comes
// last, because few hosts need it. A name is for a proxy: the daemon has looked it up itself.
func (t *transport) targetsOf(id mesh.ID) []target {
	t.mu.Lock()
	defer t.mu.Unlock()
	named := t.addresses.named(id)
	var all []target
	if named.name != "" && !named.addr.IsValid() {
		all = append(all, named)
	}
	for _, addr := range t.addresses.order(id, t.now()) {
		to := targetAt(addr)
		if addr == named.addr {
			to = named
		}
		all = append(all, to)
	}
	for _, to := range t.addresses.streams(id) {
		isListed := func(listed target) bool {
			return listed.hostPort() == to.hostPort() || listed.addr == to.addr && to.addr.IsValid()
		}
		if i := slices.IndexFunc(all, isListed); i >= 0 {
			all[i].tls = true
		} else if to.addr.IsValid() || t.isProxied(to) {
			all = append(all, to)
		}
	}
	for i := range all {
		all[i].node = id
	}
	return all
}

// dialFirst opens a stream to a node at the target that answers first. The targets are
// tried in order, each with a head start over the next.
func (t *transport) dialFirst(ctx context.Context, id mesh.ID, targets []target, ours hello) (*stream, error) {
	if len(targets) == 0 {
		return nil, fmt.Errorf("dial %v: %w", id, errNoAddress)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		s   *stream
		err error
	}
	results := make(chan result, len(targets))
	for i, to := range targets {
		go func() { // waited for below
			select {
			case <-time.After(time.Duration(i) * dialStagger):
			case <-ctx.Done():
				results <- result{nil, ctx.Err()}
				return
			}
			s, err := t.dialWith(ctx, to, ours)
			if err == nil && s.peer.id != id {
				s.Close()
				s, err = nil, fmt.Errorf("dial %v: %v is there", to, s.peer.id)
			}
			results <- result{s, err}
		}()
	}
	var winner *stream
	var errs []error
	for range targets {
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
