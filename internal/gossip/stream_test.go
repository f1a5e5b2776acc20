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
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/mesh"
)

func testHello(n int) hello {
	return hello{id: testRecord(n, 1).ID(), instance: 5, port: 7946, cluster: testCluster()}
}

// testHandshaker runs handshakes as the n-th identity.
func testHandshaker(ring keyring, n int) handshaker {
	return handshaker{ring, rand.Reader, identity(n)}
}

// half is what one side of a handshake has.
type half struct {
	net.Conn
	ring keyring
	hello
}

// shakeHands runs both halves of a handshake, and closes what an error leaves open.
func shakeHands(dialer, acceptor half) (d, a *stream, dialErr, acceptErr error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		if a, acceptErr = testHandshaker(acceptor.ring, 1).respond(acceptor.Conn, acceptor.hello); acceptErr != nil {
			acceptor.Close()
		}
	}()
	if d, dialErr = testHandshaker(dialer.ring, 0).initiate(dialer.Conn, dialer.hello); dialErr != nil {
		dialer.Close()
	}
	<-done
	return d, a, dialErr, acceptErr
}

// handshake runs both halves over a connection.
func handshake(t *testing.T, dialer, acceptor keyring) (d, a *stream, dialErr, acceptErr error) {
	t.Helper()
	near, far := net.Pipe()
	t.Cleanup(func() { near.Close(); far.Close() })
	return shakeHands(half{near, dialer, testHello(0)}, half{far, acceptor, testHello(1)})
}

func TestHandshake(t *testing.T) {
	other := [32]byte{8}
	tests := []struct {
		name             string
		dialer, acceptor keyring
		dialErr, accept  error
	}{
		{"same secret", testRing(t, testSecret), testRing(t, testSecret), nil, nil},
		{"other secret", testRing(t, other), testRing(t, testSecret), errRejected, errSealed},
		{"dialer is ahead", testRing(t, other, testSecret), testRing(t, testSecret, other), nil, nil},
		{"acceptor has more", testRing(t, testSecret), testRing(t, other, testSecret), nil, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, a, dialErr, acceptErr := handshake(t, tt.dialer, tt.acceptor)
			if !errors.Is(dialErr, tt.dialErr) || !errors.Is(acceptErr, tt.accept) {
				t.Fatalf("got %v and %v, want %v and %v", dialErr, acceptErr, tt.dialErr, tt.accept)
			}
			if dialErr != nil {
				return
			}
			if d.peer.id != testHello(1).id || a.peer.id != testHello(0).id {
				t.Errorf("dialer sees %v, acceptor sees %v", d.peer.id, a.peer.id)
			}
		})
	}
}

func TestStreamCarriesBothWays(t *testing.T) {
	d, a, err, _ := handshake(t, testRing(t, testSecret), testRing(t, testSecret))
	if err != nil {
		t.Fatal(err)
	}
	long := append([]byte{memberlistPing}, bytes.Repeat([]byte("0123456789abcdef"), 3*maxFrame/16)...)
	for _, way := range []struct{ from, to *stream }{{d, a}, {a, d}} {
		sent := make(chan error, 1)
		go func() {
			_, err := way.from.Write(long)
			sent <- err
		}()
		got := make([]byte, len(long))
		if _, err := io.ReadFull(way.to, got); err != nil {
			t.Fatal(err)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, long) {
			t.Error("different bytes arrived")
		}
	}
	go d.Close()
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: got %v, want %v", err, io.EOF)
	}
}

// recorder records what is read from a connection.
type recorder struct {
	net.Conn
	read bytes.Buffer
}

func (r *recorder) Read(b []byte) (int, error) {
	n, err := r.Conn.Read(b)
	r.read.Write(b[:n])
	return n, err
}

// A replayed stream gets an answer to its hello, but everything after that is refused.
func TestReplayedStreamFails(t *testing.T) {
	ring := testRing(t, testSecret)
	near, far := net.Pipe()
	tape := &recorder{Conn: far}
	go func() {
		if s, err := testHandshaker(ring, 0).initiate(near, testHello(0)); err == nil {
			_, _ = s.Write([]byte{memberlistPing})
		}
	}()
	s, err := testHandshaker(ring, 1).respond(tape, testHello(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	near.Close()

	near, far = net.Pipe()
	defer near.Close()
	go func() { _, _ = io.Copy(io.Discard, near) }()
	go func() { _, _ = near.Write(tape.read.Bytes()) }()
	if _, err := testHandshaker(ring, 1).respond(far, testHello(1)); !errors.Is(err, errSealed) {
		t.Errorf("replayed stream: got %v, want %v", err, errSealed)
	}
	far.Close()
}

// A dialer refuses its own hello as an answer.
func TestReflectedHelloFails(t *testing.T) {
	near, far := net.Pipe()
	go func() {
		_, _ = io.Copy(far, far)
		far.Close()
	}()
	defer far.Close()
	if _, err := testHandshaker(testRing(t, testSecret), 0).initiate(near, testHello(0)); !errors.Is(err, errSealed) {
		t.Errorf("got %v, want %v", err, errSealed)
	}
	near.Close()
}

func TestGarbageHelloFails(t *testing.T) {
	for name, b := range map[string][]byte{
		"http":     []byte("GET / HTTP/1.1\r\n\r\n"),
		"too long": {formatVersion, 0xff, 0xff, 0, 0},
		"zeroes":   append([]byte{formatVersion, 0, 100}, make([]byte, 100)...),
	} {
		t.Run(name, func(t *testing.T) {
			near, far := net.Pipe()
			defer near.Close()
			go func() { _, _ = near.Write(b) }()
			if _, err := testHandshaker(testRing(t, testSecret), 0).respond(far, testHello(0)); !errors.Is(err, errSealed) {
				t.Errorf("got %v, want %v", err, errSealed)
			}
			far.Close()
		})
	}
}

func TestStreamBudget(t *testing.T) {
	d, a, err, _ := handshake(t, testRing(t, testSecret), testRing(t, testSecret))
	if err != nil {
		t.Fatal(err)
	}
	a.budget = maxFrame
	go func() { _, _ = d.Write(make([]byte, 3*maxFrame)) }()
	if _, err := io.Copy(io.Discard, a); err == nil {
		t.Error("more than the budget was read")
	}
}

func TestHelloRoundTrip(t *testing.T) {
	want := testHello(0)
	want.cluster.DNS = mesh.DNS{Address: netip.MustParseAddr("10.43.0.10"), Domain: "cluster.local"}
	want.random, want.echo, want.aes = [32]byte{1}, [32]byte{2}, true
	b, err := want.marshal()
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseHello(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(hello{}), comparePrefixes,
		cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("hello (-want +got):\n%s", diff)
	}
	if d := differences(want.cluster, got.cluster, "there"); len(d) > 0 {
		t.Errorf("differences of the same settings: %v", d)
	}
}

func FuzzParseHello(f *testing.F) {
	b, err := testHello(0).marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(_ *testing.T, b []byte) {
		if h, err := parseHello(b); err == nil {
			differences(testCluster(), h.cluster, "there")
		}
	})
}

func FuzzWelcome(f *testing.F) {
	f.Add([]byte{formatVersion, 0, 50})
	ring := testRing(f, testSecret)
	f.Fuzz(func(t *testing.T, b []byte) {
		near, far := net.Pipe()
		defer far.Close()
		go func() {
			_, _ = near.Write(b)
			near.Close()
		}()
		if _, err := testHandshaker(ring, 0).respond(far, testHello(0)); err == nil {
			t.Error("garbage is accepted")
		}
	})
}

// Silent connections take no more than their share, and other nodes get through once
// these are gone.
func TestSilentStreamsAreCapped(t *testing.T) {
	t.Parallel()
	n := startNode(t, 0, nil)
	var silent []net.Conn
	connect := func(count int) {
		for range count {
			conn, err := net.Dial("tcp", n.Addr().String())
			if err != nil {
				continue // reset before the dial returned
			}
			t.Cleanup(func() { conn.Close() })
			silent = append(silent, conn)
		}
	}
	connect(maxPendingPerSource + 3)
	eventually(t, "capped", []*testNode{n}, func(v mesh.View) bool {
		if v.Counters["stream-limit"] >= 3 {
			return true
		}
		connect(8) // on a slow machine the deadline for the hello has freed some places
		return false
	})
	// The deadline for the hello frees their places.
	for _, conn := range silent {
		if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Errorf("silent stream: got %v, want it closed", err)
		}
	}
	other := startNode(t, 1, joining(n))
	eventually(t, "joined", []*testNode{n, other}, func(v mesh.View) bool { return !v.Alone })
}

func TestGarbagePacketsAreDropped(t *testing.T) {
	t.Parallel()
	n := startNode(t, 0, nil)
	conn, err := net.Dial("udp", n.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for size := range 60 {
		if _, err := conn.Write(bytes.Repeat([]byte{formatVersion}, size)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "counted", []*testNode{n}, func(v mesh.View) bool { return v.Counters["packet-sealed"] >= 10 })
	if v := n.View(); len(v.Alive) != 1 || len(n.seen()) > 0 {
		t.Errorf("alive %v, seen %v", v.Alive, n.seen())
	}
}

// streamsTaken returns how many places of inbound streams are taken.
func (t *transport) streamsTaken() int {
	return len(t.places.strangers.sources) + len(t.places.known.sources) + len(t.places.proved.sources)
}

// openFiles counts this process's file descriptors.
func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// A thousand streams, half of them refused, leave nothing behind. TestMain counts the
// goroutines.
func TestDialsLeakNothing(t *testing.T) { // not parallel: it counts files
	a, b := startNode(t, 0, nil), startNode(t, 1, nil)
	stranger := startNode(t, 2, func(o *Options) { o.Secrets = [][32]byte{{9}} })
	before := openFiles(t)
	for range 500 {
		s, err := a.transport.dial(context.Background(), b.Addr())
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		if s, err := stranger.transport.dial(context.Background(), b.Addr()); err == nil {
			s.Close()
			t.Fatal("an unknown peer was accepted")
		}
	}
	nodes := []*testNode{a, b, stranger}
	eventually(t, "all closed", nodes, func(mesh.View) bool {
		for _, n := range nodes {
			n.transport.mu.Lock()
			left := len(n.transport.open) + n.transport.streamsTaken()
			n.transport.mu.Unlock()
			if left > 0 {
				return false
			}
		}
		return openFiles(t) <= before
	})
}
