// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/https"
	"github.com/meshd/meshd/internal/mesh"
)

// listening has a node accept TLS.
func listening(o *Options) { o.Listen = []string{"127.0.0.1:0"} }

// overTLS returns where a node accepts TLS.
func (n *testNode) overTLS() target {
	to := targetAt(remoteOf(n.t, n.transport.tcp[1]))
	to.tls = true
	return to
}

// hasNoStreams reports whether all places of inbound streams are free.
func (n *testNode) hasNoStreams() bool {
	n.transport.mu.Lock()
	defer n.transport.mu.Unlock()
	return n.transport.streamsTaken() == 0
}

// Where a node accepts TLS it takes nothing else.
func TestStreamOverTLS(t *testing.T) {
	t.Parallel()
	a, b := startNode(t, 0, nil), startNode(t, 1, listening)
	named, plain := b.overTLS(), b.overTLS()
	named.name, plain.tls = "aws.example.com", false
	for _, to := range []target{b.overTLS(), named} {
		s, err := a.transport.dialWith(t.Context(), to, a.transport.ourHello())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.SyscallConn(); err != nil {
			t.Error(err)
		}
		if err := a.join(s); err != nil {
			t.Error(err)
		}
	}
	if _, err := a.transport.dialWith(t.Context(), plain, a.transport.ourHello()); err == nil {
		t.Error("a stream without TLS is taken")
	}
	other := b.overTLS()
	other.node = idOf(2)
	if s, err := a.transport.dialWith(t.Context(), other, a.transport.ourHello()); err == nil || !strings.Contains(err.Error(), b.self.String()+" is there") {
		t.Errorf("another node: got %v, %v", s, err)
	}
	eventually(t, "nothing is left", []*testNode{b}, func(mesh.View) bool { return b.hasNoStreams() })
}

// A host that gets out by TLS alone finds a remembered node after a restart, without a join list.
func TestRememberedNodeIsReachedOverTLS(t *testing.T) {
	t.Parallel()
	b := startNode(t, 1, listening)
	b.publish(1)
	a := startNode(t, 0, func(o *Options) {
		o.Remembered = b.Remember()
		o.filter = func(network string, to netip.AddrPort) bool {
			return network == "tcp" && to.Port() == b.overTLS().port
		}
	})
	eventually(t, "joined", []*testNode{a}, func(v mesh.View) bool { return v.Merged && !v.Alone })
	eventually(t, "joined", []*testNode{b}, func(v mesh.View) bool { return !v.Alone })
}

// Where a node accepts streams over TLS is dialled after its other addresses, once each, and gets
// no packets. A name is dialled only through a proxy.
func TestTargetsOverTLS(t *testing.T) {
	addr := func(s string) target { return targetAt(netip.MustParseAddrPort(s)) }
	tls := func(to target) target { to.tls = true; return to }
	gossip, other := addr("192.0.2.1:7946"), tls(addr("192.0.2.1:443"))
	named := tls(target{name: "aws.example.com", port: 443})
	streams := map[mesh.ID][]mesh.Endpoint{{1}: {
		{Host: "192.0.2.1", Port: 443}, {Host: "aws.example.com", Port: 443}, {Host: "::ffff:192.0.2.1", Port: 443},
	}}
	for _, tt := range []struct {
		name   string
		proxy  Proxy
		met    target
		wanted []target
	}{
		{"without a proxy", nil, target{}, []target{gossip, other}},
		{"with a proxy", &testProxy{}, target{}, []target{gossip, other, named}},
		{"met there", nil, addr("192.0.2.1:443"), []target{other, gossip}},
		{"met under its name", &testProxy{}, target{name: named.name, port: 443}, []target{named, gossip, other}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			now := time.Unix(1700000000, 0)
			g := idle(t, &now)
			g.transport.proxy = tt.proxy
			g.SetAddresses(map[mesh.ID][]netip.AddrPort{{1}: {gossip.addr}}, streams)
			if tt.met.addr.IsValid() {
				g.transport.addresses.sawAt(mesh.ID{1}, tt.met.addr, now)
			} else if tt.met.name != "" {
				g.transport.addresses.setNamed(mesh.ID{1}, tt.met)
			}
			want := slices.Clone(tt.wanted)
			for i := range want {
				want[i].node = mesh.ID{1}
			}
			if got := g.transport.targetsOf(mesh.ID{1}); !slices.Equal(got, want) {
				t.Errorf("got %+v, want %+v", got, want)
			}
			if got := g.transport.addresses.order(mesh.ID{1}, now); !tt.met.addr.IsValid() && !slices.Equal(got, []netip.AddrPort{gossip.addr}) {
				t.Errorf("packets go to %v, want %v", got, gossip)
			}
			g.SetAddresses(nil, nil)
			if got := g.transport.addresses.streams(mesh.ID{1}); len(got) > 0 {
				t.Errorf("got %v after the record is gone", got)
			}
		})
	}
}

// testProxy leads to the node's TLS, whatever it is asked for at port 443.
type testProxy struct {
	to    func() netip.AddrPort
	asked sync.Map
}

func (p *testProxy) Covers(hostport string) bool { return strings.HasSuffix(hostport, ":443") }
func (p *testProxy) String() string              { return "proxy.example.com:3128" }
func (p *testProxy) Dial(ctx context.Context, hostport string) (net.Conn, error) {
	p.asked.Store(hostport, true)
	return new(net.Dialer).DialContext(ctx, "tcp", p.to().String())
}

// A host that can look up no name and reach nothing but a proxy joins, and opens streams for
// datagrams, also when it knows an address to which the proxy does not lead.
func TestJoinThroughProxy(t *testing.T) {
	t.Parallel()
	b := startNode(t, 1, listening)
	carrier := &testCarrier{}
	b.SetCarrier(carrier)
	proxy := &testProxy{to: func() netip.AddrPort { return b.overTLS().addr }}
	a := startNode(t, 0, func(o *Options) {
		o.Proxy, o.Join = proxy, []string{"aws.example.com:443"}
		o.Resolver = fakeResolver{}
		o.filter = func(_ string, to netip.AddrPort) bool { return to == netip.AddrPort{} }
	})
	eventually(t, "joined", []*testNode{a}, func(v mesh.View) bool { return v.Merged && len(v.Problems) == 0 })
	conn, err := a.DialCarrier(t.Context(), b.self, netip.MustParseAddrPort("192.0.2.1:443"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := conn.(*stream).Proxy(); got != proxy.String() {
		t.Errorf("proxy: got %q, want %q", got, proxy)
	}
	carrier.stream(t, a)
	for hostport := range map[string]bool{"aws.example.com:443": true} {
		if _, ok := proxy.asked.Load(hostport); !ok {
			t.Errorf("the proxy was not asked for %s", hostport)
		}
	}
}

// certificateOf returns a certificate as web servers have them.
func certificateOf(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// startServer runs a server of TLS until the test ends, and returns where it is.
func startServer(t *testing.T, serve func(conn net.Conn)) target {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificateOf(t, "www.example.com")}})
	if err != nil {
		t.Fatal(err)
	}
	var tasks sync.WaitGroup
	tasks.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			tasks.Go(func() {
				defer conn.Close()
				serve(conn)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		tasks.Wait()
	})
	to := targetAt(netip.MustParseAddrPort(l.Addr().String()))
	to.tls = true
	return to
}

// A load balancer may end TLS, with a certificate of its own.
func TestTLSEndsOnTheWay(t *testing.T) {
	t.Parallel()
	a, b := startNode(t, 0, nil), startNode(t, 1, nil)
	to := startServer(t, func(conn net.Conn) {
		further, err := net.Dial("tcp", b.Addr().String())
		if err != nil {
			t.Error(err)
			return
		}
		defer further.Close()
		go func() {
			_, _ = io.Copy(further, conn)
			further.Close()
		}()
		_, _ = io.Copy(conn, further)
	})
	to.node = b.self
	s, err := a.transport.dialWith(t.Context(), to, a.transport.ourHello())
	if err != nil {
		t.Fatal(err)
	}
	if err := a.join(s); err != nil {
		t.Error(err)
	}
}

// Whatever else is at a port of HTTPS is named, and not taken for a node with another secret.
func TestTLSOfOthers(t *testing.T) {
	t.Parallel()
	web := startServer(t, func(conn net.Conn) {
		_, _ = conn.Read(make([]byte, 1))
		_, _ = io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\n\r\n")
	})
	closing := startServer(t, func(conn net.Conn) { _, _ = conn.Read(make([]byte, 1)) })
	plain := targetAt(startNode(t, 1, nil).Addr())
	plain.tls = true
	rolled := startNode(t, 3, func(o *Options) { listening(o); o.Secrets = [][32]byte{{9}} }).overTLS()
	tests := []struct {
		name   string
		to     target
		want   error // nil for any
		secret bool  // the problem is the secret
	}{
		{"a web server", web, errNotNode, false},
		{"one that closes", closing, errNotNode, false},
		{"a node that does not speak TLS there", plain, nil, false},
		{"a node with another secret", rolled, errRejected, true},
	}
	for _, tt := range tests {
		n := startNode(t, 0, nil)
		if _, err := n.transport.dialWith(t.Context(), tt.to, n.transport.ourHello()); err == nil || tt.want != nil && !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
		if got := hasProblem(n.View(), ProblemSecret, ""); got != tt.secret {
			t.Errorf("%s: problems %v", tt.name, n.View().Problems)
		}
		n.stop()
	}
}

// clientHello returns the first message of a client of TLS.
func clientHello(t testing.TB) []byte {
	t.Helper()
	near, far := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = tls.Client(near, https.Client("aws.example.com")).Handshake()
	}()
	b := make([]byte, 4096)
	n, err := far.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	far.Close()
	near.Close()
	<-done
	return b[:n]
}

// Whatever a stranger sends where TLS is accepted, he gets an answer of TLS or none, and no
// others wait for him.
func TestHostileTLS(t *testing.T) {
	t.Parallel()
	hello := clientHello(t)
	record := func(kind byte, n int) []byte {
		return append([]byte{kind, 3, 1, byte(n >> 8), byte(n)}, make([]byte, n)...)
	}
	long := append([]byte{0x16, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff, 3, 3}, make([]byte, 16<<10)...)
	tests := []struct {
		name    string
		sends   []byte
		holds   bool // the stranger then waits instead of closing
		answers bool // by TLS
	}{
		{"HTTP", []byte("GET / HTTP/1.1\r\n\r\n"), false, false},
		{"nothing", nil, true, false},
		{"a first byte", hello[:1], true, false},
		{"half a hello", hello[:len(hello)/2], true, false},
		{"a hello and no more", hello, true, true},
		{"a hello, and garbage", append(hello[:len(hello):len(hello)], record(0x17, 100)...), false, true},
		{"garbage", record(0x16, 100), false, true},
		{"a hello that is too long", long, false, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n := startNode(t, 0, listening)
			conn, err := net.Dial("tcp", n.overTLS().addr.String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := conn.Write(tt.sends); err != nil {
				t.Fatal(err)
			}
			if tt.holds { // somebody else is let in meanwhile
				s, err := startNode(t, 1, nil).transport.dialWith(t.Context(), n.overTLS(), testHello(1))
				if err != nil {
					t.Fatal(err)
				}
				s.Close()
			}
			_ = conn.SetReadDeadline(time.Now().Add(patience))
			answer, err := io.ReadAll(conn)
			if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
				t.Error("the connection is kept")
			}
			if got := len(answer) > 0 && (answer[0] == 0x15 || answer[0] == 0x16); got != tt.answers || !got && len(answer) > 0 {
				t.Errorf("answer: got %x, want one of TLS: %v", answer, tt.answers)
			}
			eventually(t, "counted, and nothing is left", []*testNode{n}, func(v mesh.View) bool {
				return v.Counters["stream-tls"] == 1 && n.hasNoStreams() && len(n.transport.turns.strangers) == 0
			})
		})
	}
}

// handshakeFlood begins handshakes at full speed, from as many addresses as silentFlood, and
// ends none. It counts those that were answered.
func handshakeFlood(t *testing.T, at string, workers int) (answered *atomic.Int64, stop func()) {
	t.Helper()
	const held = 64 // of each worker
	hello := clientHello(t)
	ctx, cancel := context.WithCancel(context.Background())
	answered = new(atomic.Int64)
	var wg sync.WaitGroup
	for worker := range workers {
		wg.Go(func() {
			var conns [held]net.Conn
			for n := 0; ctx.Err() == nil; n++ {
				d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, byte(1+worker), byte(n>>8), byte(n))}, Timeout: time.Second}
				conn, err := d.DialContext(ctx, "tcp", at)
				if err != nil {
					continue
				}
				if old := conns[n%held]; old != nil {
					_ = old.SetReadDeadline(time.Now().Add(time.Millisecond))
					if _, err := old.Read(make([]byte, 1)); err == nil {
						answered.Add(1)
					}
					old.Close()
				}
				conns[n%held] = conn
				_, _ = conn.Write(hello)
			}
			for _, conn := range conns {
				if conn != nil {
					conn.Close()
				}
			}
		})
	}
	return answered, sync.OnceFunc(func() { cancel(); wg.Wait() })
}

// While unknown hosts begin handshakes of TLS at full speed from thousands of addresses, and
// end none, a new node joins by TLS, and a known one returns. One handshake of theirs at a
// time is computed, and afterwards nothing is left.
func TestHostileHandshakes(t *testing.T) { // not parallel: it counts files and measures the heap
	seed := startNode(t, 0, listening)
	known, few, nothingIsLeft := prepareFlood(t, seed)
	answered, stop := handshakeFlood(t, seed.overTLS().addr.String(), 8)
	defer stop()
	eventually(t, "places are taken from others", []*testNode{seed}, func(v mesh.View) bool {
		return v.Counters["stream-limit"] > uint64(few.most) && answered.Load() > 0
	})
	getsIn := func(n *testNode) func(mesh.View) bool {
		return func(mesh.View) bool {
			s, err := n.transport.dialWith(context.Background(), seed.overTLS(), n.transport.ourHello())
			if err != nil {
				return false // it retries, as on a busy machine
			}
			return n.join(s) == nil
		}
	}
	newcomer := startNode(t, 2, nil)
	newcomer.publish(1)
	eventually(t, "the newcomer gets in", []*testNode{newcomer}, getsIn(newcomer))
	eventually(t, "the known node gets in again", []*testNode{known}, getsIn(known))
	stop()
	newcomer.stop()
	nothingIsLeft()
}

// BenchmarkHandshake measures what a handshake costs the node that accepts it.
func BenchmarkHandshake(b *testing.B) {
	server, err := https.Server(identity(1))
	if err != nil {
		b.Fatal(err)
	}
	hello := clientHello(b)
	for b.Loop() {
		near, far := net.Pipe()
		go func() {
			_, _ = near.Write(hello)
			_, _ = io.CopyN(io.Discard, near, 600)
			near.Close()
		}()
		if err := tls.Server(far, server).Handshake(); err == nil {
			b.Fatal(fmt.Errorf("a handshake without an end succeeds"))
		}
		far.Close()
	}
}
