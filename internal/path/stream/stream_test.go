// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/wait"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for something; a loaded machine may be slow.
const patience = 2 * time.Minute

// arrival is what a node has got: a datagram for WireGuard from an address, or a packet of gossip
// or a datagram for the relay from a node.
type arrival struct {
	addr netip.AddrPort
	node mesh.ID
	text string
}

// inbox holds what arrives in one place.
type inbox struct {
	t    *testing.T
	c    chan arrival
	seen []string // the texts that next has returned
}

func newInbox(t *testing.T) *inbox { return &inbox{t: t, c: make(chan arrival, 1000)} }

// next sends a text until it arrives: a stream drops what waits for too long, and what came
// before it began. Of what arrives, only texts of earlier calls may be others.
func (i *inbox) next(text string, send func(text string)) arrival {
	i.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); {
		send(text)
		select {
		case a := <-i.c:
			if a.text == text {
				i.seen = append(i.seen, text)
				return a
			}
			if !slices.Contains(i.seen, a.text) {
				i.t.Fatalf("got %q, want %q", a.text, text)
			}
		case <-time.After(100 * time.Millisecond):
		}
	}
	i.t.Fatalf("%q does not arrive", text)
	return arrival{}
}

// testNode is a node with a socket in the place of WireGuard's.
type testNode struct {
	*Carrier
	t         *testing.T
	id        mesh.ID
	socket    *net.UDPConn
	wireguard *inbox // what the socket receives
	gossip    *inbox
	relayed   *inbox

	mu    sync.Mutex
	conns []net.Conn // that it has dialled
}

// startNodes starts nodes that reach each other.
func startNodes(t *testing.T, count int) []*testNode {
	t.Helper()
	nodes := make([]*testNode, count)
	for i := range nodes {
		nodes[i] = startNode(t, mesh.ID{byte(i + 1)}, nodes)
	}
	return nodes
}

func startNode(t *testing.T, id mesh.ID, others []*testNode) *testNode {
	t.Helper()
	wg, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	n := &testNode{t: t, id: id, socket: wg, wireguard: newInbox(t), gossip: newInbox(t), relayed: newInbox(t)}
	n.Carrier = New(Options{
		WireGuard: wg.LocalAddr().(*net.UDPAddr).AddrPort().Port(),
		Dial: func(_ context.Context, to mesh.ID) (net.Conn, error) {
			for _, o := range others {
				if o != nil && o.id == to {
					return n.connect(o)
				}
			}
			return nil, errors.New("no such node")
		},
		Gossip: func(from mesh.ID, b []byte) { n.gossip.c <- arrival{node: from, text: string(b)} },
		Relay: func(datagrams [][]byte, from netip.AddrPort) {
			node, ok := path.StreamNode(from)
			if !ok {
				t.Errorf("a relayed datagram comes from %s", from)
			}
			for _, b := range datagrams {
				n.relayed.c <- arrival{node: node, text: string(b)}
			}
		},
	})
	var reader sync.WaitGroup
	reader.Go(func() {
		b := make([]byte, maxDatagram)
		for {
			l, from, err := wg.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			n.wireguard.c <- arrival{addr: from, text: string(b[:l])}
		}
	})
	t.Cleanup(func() {
		n.Close()
		_ = wg.Close()
		reader.Wait()
	})
	return n
}

// connect opens a stream to another node.
func (n *testNode) connect(to *testNode) (net.Conn, error) {
	near, far, err := tcpPair()
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	n.conns = append(n.conns, near)
	n.mu.Unlock()
	to.Accept(n.id, far)
	return near, nil
}

func (n *testNode) dials() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.conns)
}

func tcpPair() (near, far net.Conn, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	if near, err = net.Dial("tcp", l.Addr().String()); err != nil {
		return nil, nil, err
	}
	if far, err = l.Accept(); err != nil {
		near.Close()
		return nil, nil, err
	}
	return near, far, nil
}

// keep opens streams and waits for them.
func (n *testNode) keep(nodes ...mesh.ID) {
	n.t.Helper()
	if err := n.Keep(nodes); err != nil {
		n.t.Fatal(err)
	}
	eventually(n.t, "streams are open", func() bool {
		for _, s := range n.Status() {
			if s.Dialled && s.Since.IsZero() {
				return false
			}
		}
		return true
	})
}

// sendTo sends datagrams from WireGuard's port to an address.
func (n *testNode) sendTo(to netip.AddrPort) func(text string) {
	return func(text string) {
		n.t.Helper()
		if _, err := n.socket.WriteToUDPAddrPort([]byte(text), to); err != nil {
			n.t.Fatal(err)
		}
	}
}

// carryTo sends packets of gossip to a node.
func (n *testNode) carryTo(to *testNode) func(text string) {
	return func(text string) {
		n.t.Helper()
		if !n.Carry(to.id, []byte(text)) {
			n.t.Fatal("there is no stream for gossip")
		}
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

func TestDatagramsOfWireGuard(t *testing.T) {
	nodes := startNodes(t, 2)
	a, b := nodes[0], nodes[1]
	a.keep(b.id)
	toB, _ := a.Endpoints(b.id)

	// What comes from another port than WireGuard's is not carried.
	other, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(toB))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := other.Write([]byte("forged")); err != nil {
		t.Fatal(err)
	}

	toA := b.wireguard.next("one", a.sendTo(toB)).addr
	if from := a.wireguard.next("two", b.sendTo(toA)).addr; from != toB {
		t.Errorf("the answer comes from %s, want %s", from, toB)
	}
	// A datagram that is too long is lost, those after it are not.
	a.sendTo(toB)(string(make([]byte, maxDatagram+1)))
	b.wireguard.next("three", a.sendTo(toB))
}

func TestDatagramsOfRelay(t *testing.T) {
	nodes := startNodes(t, 2)
	a, relay := nodes[0], nodes[1]
	a.keep(relay.id)
	_, viaRelay := a.Endpoints(relay.id)
	if from := relay.relayed.next("for somebody", a.sendTo(viaRelay)).node; from != a.id {
		t.Errorf("the relay is told that it comes from %v, want %v", from, a.id)
	}
	answer := a.wireguard.next("of somebody", func(text string) {
		if relay.SendRelayed(path.StreamAddr(a.id), [][]byte{[]byte(text)}) != 1 {
			t.Fatal("there is no stream for the answer")
		}
	})
	if answer.addr != viaRelay {
		t.Errorf("the answer comes from %s, want %s", answer.addr, viaRelay)
	}
	for name, to := range map[string]netip.AddrPort{"unknown node": path.StreamAddr(mesh.ID{9}), "address": viaRelay, "none": {}} {
		if relay.SendRelayed(to, [][]byte{[]byte("x")}) > 0 {
			t.Errorf("%s: sent", name)
		}
	}
}

func TestPacketsOfGossip(t *testing.T) {
	nodes := startNodes(t, 2)
	a, b := nodes[0], nodes[1]
	if a.Carry(b.id, []byte("x")) {
		t.Error("carried without a stream")
	}
	a.keep(b.id)
	if from := b.gossip.next("there", a.carryTo(b)).node; from != a.id {
		t.Errorf("it comes from %v, want %v", from, a.id)
	}
	if from := a.gossip.next("back", b.carryTo(a)).node; from != b.id {
		t.Errorf("the answer comes from %v, want %v", from, b.id)
	}
}

// A stream that breaks is opened again, and WireGuard's endpoints stay on both ends.
func TestStreamIsOpenedAgain(t *testing.T) {
	nodes := startNodes(t, 2)
	a, b := nodes[0], nodes[1]
	a.keep(b.id)
	toB, viaB := a.Endpoints(b.id)
	toA := b.wireguard.next("one", a.sendTo(toB)).addr

	a.mu.Lock()
	_ = a.conns[0].Close()
	a.mu.Unlock()
	eventually(t, "dialled again", func() bool { return a.dials() == 2 })
	a.keep(b.id)
	if own, relay := a.Endpoints(b.id); own != toB || relay != viaB {
		t.Errorf("endpoints %s and %s, want %s and %s as before", own, relay, toB, viaB)
	}
	a.wireguard.next("two", b.sendTo(toA)) // before anything came over the new stream

	if err := a.Keep(nil); err != nil {
		t.Fatal(err)
	}
	if own, relay := a.Endpoints(b.id); own.IsValid() || relay.IsValid() {
		t.Errorf("endpoints %s and %s of a node that is not kept", own, relay)
	}
	eventually(t, "the other end notices", func() bool { return b.Status()[0].Since.IsZero() })
}

// Both nodes may open a stream to each other at once.
func TestStreamsOfBothEnds(t *testing.T) {
	nodes := startNodes(t, 2)
	a, b := nodes[0], nodes[1]
	a.keep(b.id)
	b.keep(a.id)
	toB, _ := a.Endpoints(b.id)
	toA, _ := b.Endpoints(a.id)
	b.wireguard.next("one", a.sendTo(toB))
	a.wireguard.next("two", b.sendTo(toA))
	if a.dials() != 1 || b.dials() != 1 {
		t.Errorf("%d and %d streams were opened, want one each", a.dials(), b.dials())
	}
}

func TestNewStreamReplaces(t *testing.T) {
	nodes := startNodes(t, 2)
	a, b := nodes[0], nodes[1]
	var last net.Conn
	for range 20 {
		conn, err := a.connect(b)
		if err != nil {
			t.Fatal(err)
		}
		if last != nil {
			if err := last.SetReadDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, last); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the older stream stays open: %v", err)
			}
		}
		last = conn
	}
	eventually(t, "the last one is in use", func() bool {
		b.Carry(a.id, []byte("x"))
		if err := last.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, _ := last.Read(make([]byte, 1))
		return n == 1
	})
	if n := len(b.Status()); n != 1 {
		t.Errorf("%d links, want 1", n)
	}
}

// A node that does not read makes nobody wait: what does not fit is dropped.
func TestSlowReader(t *testing.T) {
	nodes := startNodes(t, 3)
	slow, b, c := nodes[0], nodes[1], nodes[2]
	if _, err := slow.connect(b); err != nil { // nobody reads from it
		t.Fatal(err)
	}
	eventually(t, "accepted", func() bool { return b.Carry(slow.id, []byte("x")) })
	datagram := make([]byte, maxDatagram)
	eventually(t, "full", func() bool {
		for range 100 {
			b.SendRelayed(path.StreamAddr(slow.id), [][]byte{datagram})
		}
		return b.Status()[0].Dropped > 1000
	})
	c.keep(b.id)
	toB, _ := c.Endpoints(b.id)
	b.wireguard.next("hello", c.sendTo(toB))
}

func TestBrokenFramesEndTheStream(t *testing.T) {
	nodes := startNodes(t, 2)
	a, b := nodes[0], nodes[1]
	conn, err := a.connect(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("GET / HTTP/1.1\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v, want the stream closed", err)
	}
	eventually(t, "the error is shown", func() bool { return b.Status()[0].Err != nil })
}

// However many nodes come, only so many are served, and those whose streams are gone make room.
func TestManyNodes(t *testing.T) {
	b := startNodes(t, 1)[0]
	connect := func(n int) net.Conn {
		near, far := net.Pipe()
		t.Cleanup(func() { _ = near.Close() })
		b.Accept(mesh.ID{1, byte(n >> 8), byte(n)}, far)
		return near
	}
	var first net.Conn
	for n := range 1000 {
		conn := connect(n)
		if n == 0 {
			first = conn
		}
	}
	if n := len(b.Status()); n != maxAccepted {
		t.Fatalf("%d streams, want %d", n, maxAccepted)
	}
	refused := connect(2000)
	if _, err := refused.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("one too many: got %v, want %v", err, io.EOF)
	}
	_ = first.Close()
	eventually(t, "the first is gone", func() bool { return b.Status()[0].Err != nil })
	connect(2001)
	all := b.Status()
	if last := all[len(all)-1].Node; len(all) != maxAccepted || last != (mesh.ID{1, 2001 >> 8, 2001 & 0xff}) {
		t.Errorf("%d streams up to %v, want %d with the newest", len(all), last, maxAccepted)
	}
}

// bare returns a carrier and a link without sockets, for tests of time.
func bare(dialled bool) (*Carrier, *link) {
	c := New(Options{Gossip: func(mesh.ID, []byte) {}})
	return c, &link{out: newQueue(), own: &local{}, relay: &local{}, dialled: dialled}
}

// The relay gets at once what has come at once.
func TestRelayGetsBatches(t *testing.T) {
	c, l := bare(false)
	var got [][]string
	c.o.Relay = func(datagrams [][]byte, _ netip.AddrPort) {
		var batch []string
		for _, d := range datagrams {
			batch = append(batch, string(d))
		}
		got = append(got, batch)
	}
	near, far := net.Pipe()
	defer near.Close()
	go func() {
		_, _ = far.Write(encode(frame{frameRelayed, "a"}, frame{frameGossip, "x"}, frame{frameRelayed, "b"}))
		_, _ = far.Write(encode(frame{frameRelayed, "c"}))
		_ = far.Close()
	}()
	if err := c.read(l, near); err != io.EOF {
		t.Fatal(err)
	}
	if diff := cmp.Diff([][]string{{"a", "b"}, {"c"}}, got); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

func TestKeepalive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, l := bare(true)
		near, far := net.Pipe()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.write(ctx, near) }()
		began := time.Now()
		for i := range 3 {
			if _, err := io.ReadFull(far, make([]byte, frameHeader)); err != nil {
				t.Fatal(err)
			}
			if got, want := time.Since(began), time.Duration(i+1)*keepalive; got != want {
				t.Errorf("keepalive %d comes after %v, want %v", i, got, want)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		near.Close()
		far.Close()
	})
}

// A stream ends if its other side is dead, or does not use it for long.
func TestStreamEnds(t *testing.T) {
	alive := encode(frame{frameKeepalive, ""})
	used := encode(frame{frameGossip, "x"})
	tests := []struct {
		name    string
		dialled bool
		sends   []byte // every keepalive
		after   time.Duration
	}{
		{"silent", true, nil, deadAfter + deadlineStep},
		{"idle, accepted", false, alive, idleAfter + keepalive},
		{"idle, dialled", true, alive, 2 * idleAfter}, // when the test ends it
		{"used", false, used, 2 * idleAfter},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, l := bare(tt.dialled)
				near, far := net.Pipe()
				ctx, cancel := context.WithTimeout(t.Context(), 2*idleAfter)
				defer cancel()
				var other sync.WaitGroup
				other.Go(func() {
					for wait.Sleep(ctx, keepalive) == nil {
						if tt.sends != nil {
							_, _ = far.Write(tt.sends)
						}
					}
					far.Close()
				})
				began := time.Now()
				err := c.read(l, near)
				if got := time.Since(began); err == nil || got != tt.after {
					t.Errorf("got %v after %v, want an error after %v", err, got, tt.after)
				}
				cancel()
				near.Close()
				other.Wait()
			})
		})
	}
}

// A stream ends if its other side takes nothing.
func TestStuckStreamEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, l := bare(true)
		near, far := net.Pipe()
		defer near.Close()
		defer far.Close()
		l.out.put(frameOwn, []byte("x"))
		began := time.Now()
		err := l.write(t.Context(), near)
		if got, want := time.Since(began), ackTimeout+deadlineStep; !errors.Is(err, os.ErrDeadlineExceeded) || got != want {
			t.Errorf("got %v after %v, want %v after %v", err, got, os.ErrDeadlineExceeded, want)
		}
	})
}

// A deadline is far enough all the time, and is seldom changed.
func TestDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at time.Time
		changes := 0
		d := deadline{after: ackTimeout, set: func(to time.Time) error {
			at = to
			changes++
			return nil
		}}
		for range 100 {
			if err := d.extend(); err != nil {
				t.Fatal(err)
			}
			if left := time.Until(at); left < ackTimeout || left > ackTimeout+deadlineStep {
				t.Fatalf("the deadline is in %v, want %v to %v", left, ackTimeout, ackTimeout+deadlineStep)
			}
			time.Sleep(deadlineStep / 10)
		}
		if changes != 10 {
			t.Errorf("changed %d times in %v, want 10 times", changes, 10*deadlineStep)
		}
		time.Sleep(time.Hour)
		if err := d.extend(); err != nil || time.Until(at) < ackTimeout {
			t.Errorf("after a pause the deadline is in %v, %v", time.Until(at), err)
		}
	})
}

// A node that can't be reached is dialled again and again, at growing intervals.
func TestRedial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dials int
		c := New(Options{Dial: func(context.Context, mesh.ID) (net.Conn, error) {
			dials++
			return nil, errors.New("unreachable")
		}})
		_, l := bare(true)
		l.ctx, l.cancel = context.WithTimeout(t.Context(), time.Hour)
		defer l.cancel()
		c.redial(l)
		if least, most := int(time.Hour/redialMax/2), int(2*time.Hour/redialMax)+10; dials < least || dials > most {
			t.Errorf("dialled %d times in an hour, want %d to %d times", dials, least, most)
		}
		if l.status().Err == nil {
			t.Error("the error is not shown")
		}
	})
}
