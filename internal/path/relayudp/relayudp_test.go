// SPDX-License-Identifier: Apache-2.0

package relayudp

import (
	"bytes"
	"crypto/ecdh"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/crypto/blake2s"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/path"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for something.
const patience = 2 * time.Minute

const cluster = "test"

var (
	relayID = mesh.ID{0xff}
	secret  = [32]byte{7}
)

func privateKey(t testing.TB, seed byte) *ecdh.PrivateKey {
	t.Helper()
	k, err := ecdh.X25519().NewPrivateKey(bytes.Repeat([]byte{seed}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// listen binds a socket as gossip does.
func listen(t testing.TB, bind string) *net.UDPConn {
	t.Helper()
	p, err := net.ListenPacket("udp", bind)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	c := p.(*net.UDPConn)
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

// serve opens a relay beside a socket, until the test ends.
func serve(t testing.TB, beside *net.UDPConn, change func(*Options)) *Relay {
	t.Helper()
	var counter atomic.Uint64
	o := Options{
		Cluster: cluster, Self: relayID, PathKey: privateKey(t, 0xff), Secret: secret,
		Counter: func() uint64 { return counter.Add(1) }, Beside: beside,
	}
	if change != nil {
		change(&o)
	}
	r, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- r.Serve() }()
	t.Cleanup(func() {
		if err := r.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r
}

// node is one that talks to the relay.
type node struct {
	Node
	*net.UDPConn // from its WireGuard's port to the relay
	own          *ecdh.PrivateKey
	keys         *path.Keys // with the relay
	counter      uint64
	buf          [4096]byte
}

// port is the address of a socket's port on a loopback address.
func port(c *net.UDPConn, loopback string) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(loopback), c.LocalAddr().(*net.UDPAddr).AddrPort().Port())
}

func newNode(t testing.TB, num byte, relay netip.AddrPort) *node {
	t.Helper()
	n := &node{own: privateKey(t, num)}
	n.Node = Node{ID: mesh.ID{num}, Key: wgtypes.Key{num}, PathKey: n.own.PublicKey()}
	n.keys = n.with(t, Node{ID: relayID, PathKey: privateKey(t, 0xff).PublicKey()})
	n.dial(t, relay)
	return n
}

// dial opens another port.
func (n *node) dial(t testing.TB, relay netip.AddrPort) {
	t.Helper()
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(relay))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	n.UDPConn = c
}

// with returns the keys between the node and another one.
func (n *node) with(t testing.TB, peer Node) *path.Keys {
	t.Helper()
	k, err := path.NewKeys(cluster, path.ShortOf(n.ID), path.ShortOf(peer.ID), n.own, peer.PathKey)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (n *node) addr() netip.AddrPort { return n.LocalAddr().(*net.UDPAddr).AddrPort() }

func (n *node) seal(keys *path.Keys, m path.Message) []byte {
	n.counter++
	return keys.Seal(m, n.counter)
}

func (n *node) write(t testing.TB, b []byte) {
	t.Helper()
	if _, err := n.Write(b); err != nil {
		t.Fatal(err)
	}
}

// read returns the next datagram from the relay.
func (n *node) read(t testing.TB) []byte {
	t.Helper()
	l, err := n.Read(n.buf[:])
	if err != nil {
		t.Fatal(err)
	}
	return n.buf[:l]
}

// ask sends a request to the relay and returns the answer.
func (n *node) ask(t testing.TB, m path.Message) path.Message {
	t.Helper()
	n.write(t, n.seal(n.keys, m))
	answer, err := n.keys.Open(n.read(t))
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// bind binds the node.
func (n *node) bind(t testing.TB) {
	t.Helper()
	first := n.ask(t, path.Message{Op: path.Bind, Number: 1})
	if first.Op != path.Bound || first.Number != 1 || first.Token == (path.Token{}) || first.Seen != n.addr() {
		t.Fatalf("first answer: got %+v, want a token for %s", first, n.addr())
	}
	if second := n.ask(t, path.Message{Op: path.Bind, Number: 2, Token: first.Token}); second.Op != path.Bound || second.Number != 2 || second.Token != (path.Token{}) {
		t.Fatalf("second answer: got %+v, want that it is done", second)
	}
}

// relayed returns a relay on loopback with two nodes, which are bound.
func relayed(t testing.TB, change func(*Options)) (r *Relay, gossip *net.UDPConn, a, b *node) {
	t.Helper()
	gossip = listen(t, ":0")
	r = serve(t, gossip, change)
	a, b = newNode(t, 1, port(gossip, "127.0.0.1")), newNode(t, 2, port(gossip, "::1"))
	if err := r.SetNodes([]Node{a.Node, b.Node}); err != nil {
		t.Fatal(err)
	}
	a.bind(t)
	b.bind(t)
	return r, gossip, a, b
}

// readBegun reads what the relay tells of a session.
func (n *node) readBegun(t testing.TB, index uint32, from *node) {
	t.Helper()
	if m, err := n.keys.Open(n.read(t)); err != nil || m.Op != path.Begun || m.Number != index || m.Node != path.ShortOf(from.ID) {
		t.Errorf("got %+v, %v, want that the session with index %d is of %v", m, err, index, from.ID)
	}
}

// initiation is the first message of a handshake with the node.
func (n *node) initiation(index uint32) []byte {
	b := make([]byte, 148)
	b[0] = 1
	binary.LittleEndian.PutUint32(b[4:], index)
	key := blake2s.Sum256(append([]byte("mac1----"), n.Key[:]...))
	h, err := blake2s.New128(key[:])
	if err != nil {
		panic(err)
	}
	h.Write(b[:116])
	copy(b[116:], h.Sum(nil))
	return b
}

// data is a message of a session.
func data(index uint32, length int) []byte {
	b := make([]byte, length)
	b[0] = 4
	binary.LittleEndian.PutUint32(b[4:], index)
	return b
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not in %v", what, patience)
		}
	}
}

func dropped(r *Relay) (all uint64) {
	for _, n := range r.Status().Dropped {
		all += n
	}
	return all
}

func TestSharesPort(t *testing.T) {
	for _, bind := range []string{":0", "127.0.0.1:0", "[::1]:0"} {
		t.Run(bind, func(t *testing.T) {
			gossip := listen(t, bind)
			at := gossip.LocalAddr().(*net.UDPAddr).AddrPort()
			targets := []netip.AddrPort{at}
			if at.Addr().IsUnspecified() {
				targets = []netip.AddrPort{port(gossip, "127.0.0.1"), port(gossip, "::1")}
			}
			magic := path.Magic()
			forRelay := [][4]byte{{1}, {2}, {3}, {4}, magic}
			forGossip := [][4]byte{{0}, {5}, {2, 1}, {2, 0, 0, 1}, {1, 7, 9, 1}, {'m', 'p', 0, 2}}
			send := func(first [4]byte, length int) {
				for _, to := range targets {
					if _, err := listen(t, ":0").WriteToUDPAddrPort(append(first[:], make([]byte, 96)...)[:length], to); err != nil {
						t.Fatal(err)
					}
				}
			}
			receive := func(want [4]byte) {
				t.Helper()
				buf := make([]byte, 100)
				for range targets {
					n, _, err := gossip.ReadFromUDPAddrPort(buf)
					if err != nil || [4]byte(append(buf[:n], 0, 0, 0, 0)) != want {
						t.Fatalf("gossip's socket got % x, %v, want what begins with % x", buf[:n], err, want)
					}
				}
			}
			refused := func() {
				t.Helper()
				c, err := net.ListenPacket("udp", at.String())
				if !errors.Is(err, unix.EADDRINUSE) {
					t.Errorf("another socket on the port: got error %v, want %v", err, unix.EADDRINUSE)
				}
				if err == nil {
					c.Close()
				}
			}
			for range 2 { // the relay may be opened again
				r := serve(t, gossip, nil)
				refused()
				for _, first := range forRelay {
					before := dropped(r)
					send(first, 100)
					eventually(t, fmt.Sprintf("% x at the relay", first), func() bool { return dropped(r) == before+uint64(len(targets)) })
				}
				for _, first := range forGossip {
					send(first, 100)
					receive(first)
				}
				send([4]byte{4}, 1)
				receive([4]byte{4})
				if err := r.Close(); err != nil {
					t.Fatal(err)
				}
				refused()
				send(magic, 100)
				receive(magic)
			}
		})
	}
}

func TestForwards(t *testing.T) {
	r, _, a, b := relayed(t, nil)
	toB := a.with(t, b.Node)
	steps := []struct {
		name     string
		from, to *node
		datagram []byte
	}{
		{"probe", a, b, a.seal(toB, path.Message{Op: path.Ping})},
		{"initiation", a, b, b.initiation(11)},
		{"data to who began", b, a, data(11, 1452)},
	}
	for _, s := range steps {
		s.from.write(t, s.datagram)
		if got := s.to.read(t); !bytes.Equal(got, s.datagram) {
			t.Errorf("%s: got % x, want it unchanged", s.name, got)
		}
		if s.datagram[0] == 1 {
			s.to.readBegun(t, 11, s.from)
		}
	}
	a.write(t, a.seal(a.keys, path.Message{Op: path.Row, Number: 22, Node: path.ShortOf(b.ID)}))
	a.write(t, data(22, 32))
	if got := b.read(t); !bytes.Equal(got, data(22, 32)) {
		t.Errorf("data of a session that was told: got % x", got)
	}
	if s := r.Status(); s.Bound != 2 || s.Datagrams != 4 || s.Bytes != uint64(len(steps[0].datagram)+148+1452+32) {
		t.Errorf("status: got %+v", s)
	}
}

// What a node sends to one address of the relay is answered, and what is for it is sent,
// from that address.
func TestAnswersFromSameAddress(t *testing.T) {
	r, gossip, a, b := relayed(t, nil)
	c := newNode(t, 3, port(gossip, "127.0.0.2")) // a connected socket receives from there only
	if err := r.SetNodes([]Node{a.Node, b.Node, c.Node}); err != nil {
		t.Fatal(err)
	}
	c.bind(t)
	a.write(t, c.initiation(1))
	if got := c.read(t); !bytes.Equal(got, c.initiation(1)) {
		t.Errorf("got % x", got)
	}
}

// A node whose address has changed is asked to bind again, and does so with one request.
func TestAsksWho(t *testing.T) {
	r, gossip, a, b := relayed(t, nil)
	a.write(t, b.initiation(11))
	b.read(t)
	b.dial(t, port(gossip, "::1"))
	b.write(t, data(11, 100))
	who, err := path.WhoOpener(cluster, secret, path.ShortOf(relayID), privateKey(t, 0xff).PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	m, err := who.Open(b.read(t))
	if err != nil || m.Op != path.Who || m.Seen != b.addr() {
		t.Fatalf("question: got %+v, %v", m, err)
	}
	if answer := b.ask(t, path.Message{Op: path.Bind, Token: m.Token}); answer.Token != (path.Token{}) {
		t.Fatalf("answer: got %+v, want that it is done", answer)
	}
	b.write(t, data(11, 100))
	if got := a.read(t); !bytes.Equal(got, data(11, 100)) {
		t.Errorf("got % x", got)
	}
	if got := r.Status().Dropped["source not bound"]; got != 1 {
		t.Errorf("datagrams of unknown sources: got %d, want 1", got)
	}
}

// TestHostileBinds has others bind in the name of a node, or repeat what it said. What is
// for it still arrives there.
func TestHostileBinds(t *testing.T) {
	r, gossip, a, b := relayed(t, nil)
	attacker := newNode(t, 3, port(gossip, "::1"))
	// From its own keys, in b's name; in its own name, which the relay does not know; what b
	// has sealed, from elsewhere, without a token; and the same once more.
	inName, err := path.NewKeys(cluster, path.ShortOf(b.ID), path.ShortOf(relayID), attacker.own, privateKey(t, 0xff).PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	stolen := b.seal(b.keys, path.Message{Op: path.Bind, Number: 7})
	for _, datagram := range [][]byte{
		inName.Seal(path.Message{Op: path.Bind}, 1000),
		attacker.seal(attacker.keys, path.Message{Op: path.Bind}),
		stolen, stolen,
		b.seal(b.keys, path.Message{Op: path.Bind, Token: path.Token{1}}),
	} {
		attacker.write(t, datagram)
	}
	eventually(t, "forged requests are dropped", func() bool { return r.Status().Dropped["not authentic"] == 3 })
	for range 2 {
		m, err := b.keys.Open(attacker.read(t))
		if err != nil || m.Token == (path.Token{}) {
			t.Fatalf("answer to a request from elsewhere: got %+v, %v, want a token", m, err)
		}
	}
	a.write(t, b.initiation(1))
	if got := b.read(t); !bytes.Equal(got, b.initiation(1)) {
		t.Errorf("got % x", got)
	}
	if s := r.Status(); s.Bound != 2 {
		t.Errorf("got %d nodes, want 2", s.Bound)
	}
}

// TestGoesOn has a relay start again, on a host with several addresses: sessions go on with the
// next datagram, before the nodes have said anything and before their path keys are known.
func TestGoesOn(t *testing.T) {
	r, gossip, a, b := relayed(t, nil)
	c := newNode(t, 3, port(gossip, "127.0.0.9"))
	if err := r.SetNodes([]Node{a.Node, b.Node, c.Node}); err != nil {
		t.Fatal(err)
	}
	c.bind(t)
	a.write(t, c.initiation(11))
	c.read(t)
	c.readBegun(t, 11, a)
	b.write(t, a.initiation(12))
	a.read(t)
	a.readBegun(t, 12, b)
	kept := r.Kept()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	r = serve(t, gossip, func(o *Options) { o.Kept = kept })
	var unknown []Node
	for _, n := range []*node{a, b, c} {
		unknown = append(unknown, Node{ID: n.ID, Key: n.Key})
	}
	if err := r.SetNodes(unknown); err != nil {
		t.Fatal(err)
	}
	for _, s := range []struct {
		from, to *node
		datagram []byte
	}{
		{c, a, data(11, 100)},
		{a, b, data(12, 100)},
		{b, c, c.initiation(13)},
	} {
		s.from.write(t, s.datagram)
		if got := s.to.read(t); !bytes.Equal(got, s.datagram) {
			t.Errorf("got % x, want % x", got, s.datagram)
		}
	}
	if n := dropped(r); n > 0 {
		t.Errorf("%d datagrams were dropped", n)
	}
}

// TestTellsUnknown has a node send what is of no session: it is told so, once its path key is known.
func TestTellsUnknown(t *testing.T) {
	r, _, a, b := relayed(t, nil)
	if err := r.SetNodes([]Node{{ID: a.ID, Key: a.Key}, b.Node}); err != nil {
		t.Fatal(err)
	}
	a.write(t, data(5, 100))
	eventually(t, "dropped", func() bool { return r.Status().Dropped[dropReason(dropSession)] == 1 })
	if err := r.SetNodes([]Node{a.Node, b.Node}); err != nil {
		t.Fatal(err)
	}
	a.write(t, data(6, 100))
	if m, err := a.keys.Open(a.read(t)); err != nil || m.Op != path.Unknown || m.Number != 6 {
		t.Errorf("got %+v, %v, want that index 6 is unknown", m, err)
	}
}

func TestSetNodes(t *testing.T) {
	r, gossip, a, b := relayed(t, nil)
	if err := r.SetNodes([]Node{b.Node}); err != nil {
		t.Fatal(err)
	}
	if s := r.Status(); s.Bound != 1 {
		t.Errorf("after a node was removed: got %d, want 1", s.Bound)
	}
	changed := b.Node
	changed.Key = wgtypes.Key{9}
	if err := r.SetNodes([]Node{a.Node, changed}); err != nil {
		t.Fatal(err)
	}
	if s := r.Status(); s.Bound != 0 {
		t.Errorf("after a node's key has changed: got %d, want none until it binds again", s.Bound)
	}
	same := a.Node
	same.ID[len(same.ID)-1] = 1
	if err := r.SetNodes([]Node{a.Node, same}); err != nil {
		t.Fatal(err)
	}
	a.write(t, a.seal(a.keys, path.Message{Op: path.Bind}))
	eventually(t, "two nodes with one name are refused", func() bool { return r.Status().Dropped["not authentic"] == 1 })

	// Probes reach a node that is not bound, at an address that is proved.
	c := listen(t, "127.0.0.1:0")
	if err := r.SetNodes([]Node{a.Node}); err != nil {
		t.Fatal(err)
	}
	a.bind(t)
	third := newNode(t, 3, port(gossip, "127.0.0.1"))
	r.SetProved(map[path.Short]netip.AddrPort{path.ShortOf(third.ID): port(c, "127.0.0.1")})
	probe := a.seal(a.with(t, third.Node), path.Message{Op: path.Ping})
	a.write(t, probe)
	buf := make([]byte, 200)
	n, from, err := c.ReadFromUDPAddrPort(buf)
	if err != nil || !bytes.Equal(buf[:n], probe) || from.Port() != port(gossip, "127.0.0.1").Port() {
		t.Errorf("got % x from %s, %v, want the probe from the relay", buf[:n], from, err)
	}
}

// A limit holds whatever is sent: at a clock that stands still, what may be sent at once.
func TestHostileRate(t *testing.T) {
	now := time.Now()
	r, _, a, b := relayed(t, func(o *Options) { o.MaxRate, o.Now = 1000, func() time.Time { return now } })
	a.write(t, a.seal(a.keys, path.Message{Op: path.Row, Number: 22, Node: path.ShortOf(b.ID)}))
	const length = 1000
	for sent := 0; r.Status().Dropped["rate limit"] < 10; sent++ {
		a.write(t, data(22, length))
		if sent > 100*minBurst/length {
			t.Fatalf("nothing is dropped after %d datagrams: %+v", sent, r.Status())
		}
	}
	if s := r.Status(); s.Bytes > minBurst || s.Bytes < minBurst-length {
		t.Errorf("got %d bytes, want %d", s.Bytes, minBurst)
	}
}

// TestSetRate has a limit that was reached be raised: as much is forwarded as it allows, and what was
// offered is known.
func TestSetRate(t *testing.T) {
	var elapsed atomic.Int64
	start := time.Now()
	r, _, a, b := relayed(t, func(o *Options) {
		o.MaxRate, o.Now = 1000, func() time.Time { return start.Add(time.Duration(elapsed.Load())) }
	})
	a.write(t, a.seal(a.keys, path.Message{Op: path.Row, Number: 22, Node: path.ShortOf(b.ID)}))
	const length = 1000
	exhaust := func() {
		t.Helper()
		before := r.Status().Dropped[RateLimit]
		for sent := 0; r.Status().Dropped[RateLimit] < before+10; sent++ {
			a.write(t, data(22, length))
			if sent > 100*minBurst/length {
				t.Fatalf("nothing is dropped after %d datagrams: %+v", sent, r.Status())
			}
		}
	}
	exhaust()
	before := r.Status().Bytes
	r.SetRate(10 * length)
	elapsed.Add(int64(time.Second))
	exhaust()
	if got := r.Status().Bytes - before; got < 9*length || got > 10*length {
		t.Errorf("got %d bytes in a second, want %d", got, 10*length)
	}
	if s := r.Status(); r.Offered() < s.Bytes+20*length {
		t.Errorf("got %d bytes offered, want also those that were dropped beside %d", r.Offered(), s.Bytes)
	}
}

// TestHostileFlood has strangers and a bound node send as fast as they can. Packets of gossip
// arrive nevertheless, and strangers get no more than they have sent.
func TestHostileFlood(t *testing.T) {
	r, gossip, a, b := relayed(t, nil)
	a.write(t, a.seal(a.keys, path.Message{Op: path.Row, Number: 22, Node: path.ShortOf(b.ID)}))
	stranger := newNode(t, 3, port(gossip, "127.0.0.1"))
	began := time.Now()
	stop, done := make(chan struct{}), make(chan struct{}, 2)
	for _, f := range []struct {
		from     *node
		datagram []byte
	}{{a, data(22, 1452)}, {stranger, data(22, 100)}} {
		go func() {
			defer func() { done <- struct{}{} }()
			for {
				select {
				case <-stop:
					return
				default:
					_, _ = f.from.Write(f.datagram)
				}
			}
		}()
	}
	eventually(t, "the flood is there", func() bool {
		s := r.Status()
		return s.Datagrams > 100 && s.Dropped["source not bound"] > 100
	})
	peer := newNode(t, 4, port(gossip, "127.0.0.1"))
	buf := make([]byte, 100)
	for i := range byte(200) {
		peer.write(t, []byte{9, i})
		n, _, err := gossip.ReadFromUDPAddrPort(buf)
		if err != nil || !bytes.Equal(buf[:n], []byte{9, i}) {
			t.Errorf("packet %d of gossip: got % x, %v", i, buf[:n], err)
			break
		}
	}
	close(stop)
	<-done
	<-done
	stranger.read(t)
	if err := stranger.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	answers := 1
	for {
		if _, err := stranger.Read(buf); errors.Is(err, os.ErrDeadlineExceeded) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		answers++
	}
	if most := 1 + int(time.Since(began)/time.Second); answers > most {
		t.Errorf("a stranger got %d questions, want no more than %d, one a second", answers, most)
	}
}

// recorder notes how many datagrams each message has.
type recorder []int

func (c *recorder) WriteBatch(all []ipv6.Message, _ int) (int, error) {
	for _, m := range all {
		*c = append(*c, len(m.Buffers))
	}
	return len(all), nil
}

// TestMerges has data packets for one node sent as one, but neither probes nor handshakes, which raw sockets take in.
// Where that has failed, each is sent alone until the node binds again.
func TestMerges(t *testing.T) {
	r, _, from, to := relayed(t, nil)
	if !r.merges {
		t.Skip("this kernel can't send datagrams as one")
	}
	from.write(t, from.seal(from.keys, path.Message{Op: path.Row, Number: 22, Node: path.ShortOf(to.ID)}))
	from.write(t, data(22, 1452))
	to.read(t) // the row is known
	forward := func(want recorder, payloads ...[]byte) {
		t.Helper()
		var in []ipv6.Message
		for _, p := range payloads {
			in = append(in, ipv6.Message{Buffers: [][]byte{p}, N: len(p), Addr: from.LocalAddr()})
		}
		var out outgoing
		r.handle(in, &out)
		var got recorder
		out.udp.Send(&got)
		if !slices.Equal(got, want) {
			t.Errorf("got messages of %v datagrams, want %v", got, want)
		}
	}
	long, short := data(22, 1452), data(22, 96)
	probe := from.seal(from.with(t, to.Node), path.Message{Op: path.Ping})
	forward(recorder{3, 2}, long, long, short, long, short)
	forward(recorder{1, 1, 1}, long, probe, long)
	forward(recorder{1, 1, 1}, long, to.initiation(33)) // the last one tells whose it is
	r.sent(0, []net.Addr{net.UDPAddrFromAddrPort(to.addr())})
	forward(recorder{1, 1}, long, long)
	to.ask(t, path.Message{Op: path.Bind, Number: 3})
	forward(recorder{2}, long, long)
}

// BenchmarkForward forwards datagrams between two nodes on loopback. The sender is part of
// the process; the receiver takes nothing, so the kernel drops what its socket can't hold.
func BenchmarkForward(b *testing.B) {
	r, _, from, to := relayed(b, nil)
	from.write(b, from.seal(from.keys, path.Message{Op: path.Row, Number: 22, Node: path.ShortOf(to.ID)}))
	datagram := data(22, 1452)
	batch := make([]ipv6.Message, 64)
	for i := range batch {
		batch[i].Buffers = [][]byte{datagram}
	}
	sender := ipv6.NewPacketConn(from.UDPConn)
	b.SetBytes(int64(len(datagram)))
	b.ReportAllocs()
	b.ResetTimer()
	for sent := 0; sent < b.N; {
		n, err := sender.WriteBatch(batch[:min(len(batch), b.N-sent)], 0)
		if err != nil {
			b.Fatal(err)
		}
		sent += n
		for sent-int(r.forwarded()) > 1024 { // no more than the relay's socket holds
			runtime.Gosched()
		}
	}
	for r.forwarded() < uint64(b.N) {
		runtime.Gosched()
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "datagrams/s")
}

// BenchmarkReceive forwards datagrams that come by stream, one by one and as many as one read of a stream returns.
func BenchmarkReceive(b *testing.B) {
	r, _, from, to := relayed(b, nil)
	from.write(b, from.seal(from.keys, path.Message{Op: path.Row, Number: 22, Node: path.ShortOf(to.ID)}))
	from.write(b, data(22, 100))
	to.read(b) // the row is known
	datagram := data(22, 1452)
	for _, count := range []int{1, 22} {
		b.Run(strconv.Itoa(count), func(b *testing.B) {
			datagrams := slices.Repeat([][]byte{datagram}, count)
			b.SetBytes(int64(len(datagram) * count))
			b.ReportAllocs()
			for b.Loop() {
				r.Receive(datagrams, from.addr())
			}
		})
	}
}

func (r *Relay) forwarded() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status.Datagrams
}
