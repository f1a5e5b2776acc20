// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// testCarrier keeps the streams that were opened to its node.
type testCarrier struct {
	mu       sync.Mutex
	accepted map[mesh.ID]net.Conn
	carry    func(to mesh.ID, packet []byte) bool
}

func (c *testCarrier) Accept(node mesh.ID, conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.accepted == nil {
		c.accepted = make(map[mesh.ID]net.Conn)
	}
	c.accepted[node] = conn
}

func (c *testCarrier) Carry(to mesh.ID, packet []byte) bool {
	return c.carry != nil && c.carry(to, packet)
}

// stream waits for the stream of a node.
func (c *testCarrier) stream(t *testing.T, of *testNode) net.Conn {
	t.Helper()
	var conn net.Conn
	eventually(t, "a stream has come", []*testNode{of}, func(mesh.View) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		conn = c.accepted[of.self]
		return conn != nil
	})
	t.Cleanup(func() { conn.Close() })
	return conn
}

// A stream for datagrams carries any bytes, as many as there are, both ways.
func TestCarrierStream(t *testing.T) {
	t.Parallel()
	a := startNode(t, 0, nil)
	b := startNode(t, 1, listening)
	carrier := &testCarrier{}
	b.SetCarrier(carrier)
	further := b.overTLS().addr
	conn, err := a.DialCarrier(context.Background(), b.self, further)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := remote(conn); got != further {
		t.Errorf("opened to %s, want %s", got, further)
	}
	other := carrier.stream(t, a)
	long := bytes.Repeat([]byte{0xff}, maxState+1)
	for _, way := range []struct{ from, to net.Conn }{{conn, other}, {other, conn}} {
		sent := make(chan error, 1)
		go func() {
			_, err := way.from.Write(long)
			sent <- err
		}()
		got := make([]byte, len(long))
		if _, err := io.ReadFull(way.to, got); err != nil || !bytes.Equal(got, long) {
			t.Errorf("read: %v, or other bytes", err)
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
	}
	// Its address says nothing of where packets are received.
	a.transport.mu.Lock()
	defer a.transport.mu.Unlock()
	if addrs := a.transport.addresses.order(b.self, a.now()); slices.Contains(addrs, further) {
		t.Errorf("addresses of the node: %v, want them without %v", addrs, further)
	}
}

func remoteOf(t *testing.T, l net.Listener) netip.AddrPort {
	t.Helper()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func TestCarrierStreamsRefused(t *testing.T) {
	t.Parallel()
	trusting := func(o *Options) {
		o.Cluster.Trust = mesh.TrustList
		o.Trusted = []mesh.ID{idOf(2)}
	}
	tests := []struct {
		name    string
		change  func(*Options)
		carrier bool
	}{
		{"no carrier", nil, false},
		{"not trusted", trusting, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := startNode(t, 0, nil)
			b := startNode(t, 1, func(o *Options) {
				listening(o)
				if tt.change != nil {
					tt.change(o)
				}
			})
			if tt.carrier {
				b.SetCarrier(&testCarrier{})
			}
			conn, err := a.DialCarrier(context.Background(), b.self, b.overTLS().addr)
			if err == nil {
				defer conn.Close()
				if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
					t.Fatal(err)
				}
				_, err = conn.Read(make([]byte, 1))
			}
			var timeout net.Error
			if err == nil || errors.As(err, &timeout) && timeout.Timeout() {
				t.Errorf("got %v, want the stream closed", err)
			}
			eventually(t, "counted", []*testNode{b}, func(v mesh.View) bool { return v.Counters["stream-carrier"] == 1 })
		})
	}
	a, b, c := startNode(t, 0, nil), startNode(t, 1, listening), startNode(t, 2, nil)
	if _, err := a.DialCarrier(context.Background(), c.self, b.overTLS().addr); err == nil {
		t.Error("a stream to another node than wanted was opened")
	}
	if _, err := a.DialCarrier(context.Background(), c.self); !errors.Is(err, errNoAddress) {
		t.Errorf("without an address: got %v, want %v", err, errNoAddress)
	}
}

// A flood of streams for datagrams takes places from its own source only.
func TestHostileCarriers(t *testing.T) {
	t.Parallel()
	a, b := startNode(t, 0, nil), startNode(t, 1, listening)
	b.SetCarrier(&testCarrier{})
	for range maxCarriersPerSource + 10 {
		conn, err := a.DialCarrier(context.Background(), b.self, b.overTLS().addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	eventually(t, "the oldest are reset", []*testNode{b}, func(v mesh.View) bool { return v.Counters["stream-limit"] == 10 })
	b.transport.mu.Lock()
	defer b.transport.mu.Unlock()
	if n := len(b.transport.places.carriers.sources); n != maxCarriersPerSource {
		t.Errorf("%d places are taken, want %d", n, maxCarriersPerSource)
	}
}

// Nodes between which UDP is blocked stay alive through their carriers.
func TestCarriedPacketsKeepNodesAlive(t *testing.T) {
	t.Parallel()
	var noUDP, noTCP atomic.Bool
	filtered := func(o *Options) {
		o.filter = func(network string, _ netip.AddrPort) bool {
			return network == "udp" && !noUDP.Load() || network == "tcp" && !noTCP.Load()
		}
	}
	a := startNode(t, 0, filtered)
	b := startNode(t, 1, func(o *Options) { filtered(o); joining(a)(o) })
	both := []*testNode{a, b}
	eventually(t, "joined", both, func(v mesh.View) bool { return len(v.Alive) == 2 })
	var carried [2]atomic.Int64
	for i, n := range both {
		other := both[1-i]
		n.SetCarrier(&testCarrier{carry: func(to mesh.ID, packet []byte) bool {
			if to != other.self {
				t.Errorf("a packet for %v, want %v", to, other.self)
			}
			carried[i].Add(1)
			go other.Carried(n.self, packet)
			return true
		}})
	}
	if carried[0].Load()+carried[1].Load() > 0 {
		t.Error("packets are carried though UDP works")
	}
	noUDP.Store(true)
	eventually(t, "packets are carried", both, func(v mesh.View) bool {
		return len(v.Alive) == 2 && carried[0].Load() > 20 && carried[1].Load() > 20
	})
	noTCP.Store(true) // a node that is found dead on a slow machine before packets are carried comes back by it
	a.publish(7)
	eventually(t, "a record spreads", both, func(v mesh.View) bool { return len(v.Alive) == 2 && len(v.Records) == 1 })
	noUDP.Store(false)
	noTCP.Store(false)
	eventually(t, "UDP is used again", both, func(mesh.View) bool {
		before := carried[0].Load() + carried[1].Load()
		time.Sleep(time.Second)
		return carried[0].Load()+carried[1].Load() == before
	})
}

// A node that makes a claim tells it over a stream at once, since the others may not hear of it by
// UDP; one that only says it again doesn't.
func TestClaimIsToldByStream(t *testing.T) {
	t.Parallel()
	noUDP := func(o *Options) {
		o.filter = func(network string, _ netip.AddrPort) bool { return network != "udp" }
	}
	a := startNode(t, 0, noUDP)
	b := startNode(t, 1, func(o *Options) { noUDP(o); joining(a)(o) })
	eventually(t, "merged", []*testNode{b}, func(v mesh.View) bool { return v.Merged })
	for _, n := range []*testNode{a, b} { // nothing but memberlist and the stream tells of the claim
		n.cancel()
		n.tasks.Wait()
	}
	b.publish(1)
	if len(b.claimed) != 1 {
		t.Fatal("a claim is not to be told")
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { b.claimLoop(ctx) })
	eventually(t, "the claim is known", []*testNode{a}, func(v mesh.View) bool { return sequenceOf(v, b.self) == 1 })
	b.publish(2)
	if len(b.claimed) != 0 {
		t.Error("a claim that has been told is told again")
	}
}

// What comes by stream is believed only of the node at its other end, and once.
func TestCarriedPacketsThatAreDropped(t *testing.T) {
	t.Parallel()
	n := startNode(t, 0, nil)
	p := packet{kind: kindAsk, label: labelOf(testCluster()), from: mesh.ID{9}, boot: 1, counter: 1}
	b, err := testRing(t, testSecret).sealPacket(rand.Reader, p, n.self)
	if err != nil {
		t.Fatal(err)
	}
	n.Carried(mesh.ID{8}, b)
	n.Carried(mesh.ID{9}, b)
	n.Carried(mesh.ID{9}, b)
	n.Carried(mesh.ID{9}, []byte("garbage"))
	got := n.View().Counters
	for _, reason := range []string{"packet-carried", "packet-replayed", "packet-sealed"} {
		if got[reason] != 1 {
			t.Errorf("%s: counted %d times, want once", reason, got[reason])
		}
	}
	n.transport.mu.Lock()
	defer n.transport.mu.Unlock()
	if addrs := n.transport.addresses.order(mesh.ID{9}, n.now()); len(addrs) > 0 {
		t.Errorf("addresses of the node: %v", addrs)
	}
}
