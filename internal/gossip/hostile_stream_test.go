// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/mesh"
)

// silentFlood opens streams that send nothing, at full speed and from as many addresses
// of 127.0.0.0/8 as there are, until stop is called. An address of the n-th worker is
// 127.N.x.y, so that there are as many prefixes as workers.
func silentFlood(t *testing.T, at string, workers int) (stop func()) {
	t.Helper()
	const held = 256 // of each worker; more are closed, the oldest first
	ctx, cancel := context.WithCancel(context.Background())
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
					old.Close()
				}
				conns[n%held] = conn
			}
			for _, conn := range conns {
				if conn != nil {
					conn.Close()
				}
			}
		})
	}
	return sync.OnceFunc(func() { cancel(); wg.Wait() })
}

// prepareFlood has a node meet another one, and leaves it few places for strangers, as a low file limit
// does: a flood takes them all even on a slow machine. nothingIsLeft asserts, once the flood has stopped,
// that the node has freed all that the flood took.
func prepareFlood(t *testing.T, seed *testNode) (known *testNode, few *places, nothingIsLeft func()) {
	t.Helper()
	seed.publish(1)
	known = startNode(t, 1, joining(seed))
	known.publish(1)
	eventually(t, "both see both", []*testNode{seed, known}, func(v mesh.View) bool { return len(v.Records) == 2 && !v.Alone })
	files, before := openFiles(t), heap()
	seed.transport.mu.Lock()
	few = newPlaces(256, maxPendingPerSource)
	seed.transport.places.strangers = few
	seed.transport.mu.Unlock()
	return known, few, func() {
		t.Helper()
		eventually(t, "nothing is left", []*testNode{seed}, func(mesh.View) bool {
			seed.transport.mu.Lock()
			defer seed.transport.mu.Unlock()
			return len(few.sources) == 0 && openFiles(t) <= files
		})
		if grown := int64(heap()) - int64(before); grown > 8<<20 {
			t.Errorf("the heap has grown by %d bytes", grown)
		}
	}
}

// While unknown hosts open silent streams at full speed from thousands of addresses, a
// new node joins, and a known node returns. Afterwards nothing is left.
func TestHostileSilentStreams(t *testing.T) { // not parallel: it counts files and measures the heap
	seed := startNode(t, 0, nil)
	known, few, nothingIsLeft := prepareFlood(t, seed)
	stop := silentFlood(t, seed.Addr().String(), 16)
	defer stop()
	eventually(t, "places are taken from others", []*testNode{seed}, func(v mesh.View) bool {
		return v.Counters["stream-limit"] > uint64(few.most)
	})
	newcomer := startNode(t, 2, joining(seed))
	newcomer.publish(1)
	eventually(t, "the newcomer is in", []*testNode{newcomer}, func(v mesh.View) bool { return v.Merged && len(v.Records) == 3 })
	eventually(t, "the known node gets in again", []*testNode{known}, func(mesh.View) bool {
		s, err := known.transport.dial(context.Background(), seed.Addr())
		if err != nil {
			return false // it retries, as on a busy machine
		}
		s.Close()
		return true
	})
	seed.transport.mu.Lock()
	strangers := len(few.sources)
	seed.transport.mu.Unlock()
	if strangers > few.most {
		t.Errorf("%d unknown peers are waiting, want at most %d", strangers, few.most)
	}
	stop()
	newcomer.stop()
	nothingIsLeft()
}

// fakeConn is a connection that places can hold.
type fakeConn struct{ net.Conn }

func (*fakeConn) Close() error { return nil }

// However the places were taken, an honest stream keeps its place until as many others
// have come as there are prefixes, and the number of places is never exceeded.
func TestHostilePrefixesTakeFromThemselves(t *testing.T) {
	const most = 512
	floods := map[string]func(n int) netip.Addr{
		"one address": func(int) netip.Addr { return netip.MustParseAddr("192.0.2.1") },
		"a /24":       func(n int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}) },
		"a /16":       func(n int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, byte(n >> 8), byte(n)}) },
		"a /64":       func(n int) netip.Addr { return six(0x20010db8_00000001, uint64(n)) },
		"a /48":       func(n int) netip.Addr { return six(0x20010db8_00000000|uint64(n%65536), 1) },
		"a /32":       func(n int) netip.Addr { return six(0x20010db8_00000000|uint64(n), 1) },
		"both families": func(n int) netip.Addr {
			if n%2 == 0 {
				return six(0x20010db8_00000000|uint64(n), 1)
			}
			return netip.AddrFrom4([4]byte{192, 0, byte(n >> 8), byte(n)})
		},
		"200 prefixes": func(n int) netip.Addr { return netip.AddrFrom4([4]byte{11, byte(n % 200), byte(n >> 8), byte(n)}) },
	}
	for name, source := range floods {
		t.Run(name, func(t *testing.T) {
			p := newPlaces(most, maxPendingPerSource)
			for n := range 2 * most {
				p.add(&fakeConn{}, source(n))
			}
			honest := []net.Conn{&fakeConn{}, &fakeConn{}}
			p.add(honest[0], netip.MustParseAddr("203.0.113.7"))
			p.add(honest[1], netip.MustParseAddr("2a00:1::7"))
			for n := range 6 * most {
				if replaced := p.add(&fakeConn{}, source(n)); replaced == honest[0] || replaced == honest[1] {
					t.Fatalf("after %d more streams an honest one has lost its place", n)
				}
				if len(p.sources) > most {
					t.Fatalf("%d places are taken, there are %d", len(p.sources), most)
				}
			}
			for conn := range p.sources {
				p.remove(conn)
			}
			if p.all.count != 0 || len(p.all.parts) != 0 {
				t.Errorf("all have left: got %d streams in %d prefixes", p.all.count, len(p.all.parts))
			}
		})
	}
}

func six(high, low uint64) netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], high)
	binary.BigEndian.PutUint64(b[8:], low)
	return netip.AddrFrom16(b)
}

// Unknown hosts from countless prefixes take no places from peers at addresses of known
// nodes.
func TestHostileFloodLeavesKnownNodes(t *testing.T) {
	now := time.Unix(1700000000, 0)
	tr := idle(t, &now).transport
	tr.places, tr.streamsOf = newStreamPlaces(1<<20), make(map[mesh.ID]int)
	home := netip.MustParseAddr("203.0.113.7")
	tr.addresses.set(map[mesh.ID][]netip.AddrPort{{1}: {netip.AddrPortFrom(home, 7946)}})
	known := &fakeConn{}
	tr.admitStream(known, home)
	for n := range 2 * maxPendingStreams {
		tr.admitStream(&fakeConn{}, six(uint64(n)<<32, 1))
	}
	if !tr.removePending(known) {
		t.Error("the known node has lost its place")
	}
}

// The number of places depends on the file limit, and most files are left for everything
// else.
func TestHostileFloodLeavesDescriptors(t *testing.T) {
	for _, files := range []uint64{64, 256, 1024, 8192, 1 << 20} {
		p := newStreamPlaces(files)
		sum := uint64(p.strangers.most + p.known.most + p.proved.most)
		if sum > files/2 || p.strangers.most < 1 {
			t.Errorf("with %d descriptors: %d are for streams", files, sum)
		}
	}
}

// One node has no more than its share of the streams of proved identity, and other nodes
// can still connect.
func TestHostileNodeTakesItsShare(t *testing.T) {
	t.Parallel()
	n := startNode(t, 0, nil)
	a := newAttacker(t, n, testSecret)
	for range maxStreams {
		conn, err := net.Dial("tcp", n.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		_, _ = testHandshaker(a.ring, 99).initiate(conn, testHello(99))
	}
	eventually(t, "turned away", []*testNode{n}, func(v mesh.View) bool { return v.Counters["stream-limit"] > 0 })
	n.transport.mu.Lock()
	if got := n.transport.streamsOf[testHello(99).id]; got > maxStreamsPerNode {
		t.Errorf("%d streams of one node, at most %d", got, maxStreamsPerNode)
	}
	n.transport.mu.Unlock()
	other := startNode(t, 1, joining(n))
	eventually(t, "joined", []*testNode{n, other}, func(v mesh.View) bool { return !v.Alone })
}

// A host with the secret that claims to be us, or another node, and can't prove it, is
// not reported as a duplicate, and gets no stream.
func TestHostileNameWithoutProof(t *testing.T) {
	t.Parallel()
	n := startNode(t, 0, nil)
	ring := testRing(t, testSecret)
	for _, claimed := range []mesh.ID{n.self, idOf(1)} {
		conn, err := net.Dial("tcp", n.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		h := testHello(0)
		h.id, h.instance = claimed, 77
		if _, err := testHandshaker(ring, 66).initiate(conn, h); err != nil {
			t.Errorf("greet: %v", err) // the victim proves its identity
		}
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Error("the stream goes on")
		}
		conn.Close()
	}
	eventually(t, "counted", []*testNode{n}, func(v mesh.View) bool { return v.Counters["stream-proof"] == 2 })
	if v := n.View(); hasProblem(v, mesh.ProblemDuplicate, "") || len(v.MetAt) > 0 {
		t.Errorf("problems %v, met %v: want none", v.Problems, v.MetAt)
	}

	// The other way round: a dialled peer can't prove it either.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if conn, err := l.Accept(); err == nil {
			h := testHello(0)
			h.instance = 77
			_, _ = testHandshaker(ring, 66).respond(conn, h)
			conn.Close()
		}
	}()
	if _, err := n.transport.dial(context.Background(), netip.MustParseAddrPort(l.Addr().String())); !errors.Is(err, errProof) {
		t.Errorf("dial: got %v, want %v", err, errProof)
	}
	if v := n.View(); hasProblem(v, mesh.ProblemDuplicate, "") {
		t.Errorf("problems %v", v.Problems)
	}
}

// A proof that was made for another stream, or by the other side, is invalid.
func TestHostileProofOfAnotherStream(t *testing.T) {
	ring := testRing(t, testSecret)
	g := testHandshaker(ring, 0)
	id := testHello(0).id
	one, two := [32]byte{1}, [32]byte{2}
	for name, frame := range map[string][]byte{
		"another stream":   g.proof(two, asDialer),
		"the other side":   g.proof(one, asAcceptor),
		"another identity": testHandshaker(ring, 1).proof(one, asDialer),
		"another's key":    append(bytes.Clone(identity(1).Public().(ed25519.PublicKey)), g.proof(one, asDialer)[ed25519.PublicKeySize:]...),
		"none":             nil,
	} {
		near, far := net.Pipe()
		keys := ring[0]
		from, err := newStream(near, keys, hello{random: one}, hello{random: two})
		if err != nil {
			t.Fatal(err)
		}
		to, err := newStream(far, keys, hello{random: one}, hello{random: two})
		if err != nil {
			t.Fatal(err)
		}
		to.opener, to.peer.id = from.sealer, id
		go func() { _ = from.writeFrame(frame) }()
		if err := to.readProof(one, asDialer); !errors.Is(err, errProof) {
			t.Errorf("%s: got %v, want %v", name, err, errProof)
		}
		near.Close()
		far.Close()
	}
}

// forgedState returns as many different objects with a wrong signature as fit into a
// state of 4 MiB.
func forgedState(t testing.TB) [][]byte {
	t.Helper()
	var raws [][]byte
	raw := signRecord(t, 1, testRecord(1, 9))
	for size := 0; size+len(raw) <= 4<<20; size += len(raw) {
		forged := bytes.Clone(raw)
		binary.BigEndian.PutUint32(forged[1:], uint32(len(raws)))
		raws = append(raws, forged)
	}
	return raws
}

// Only a few signatures of a push of forged objects are checked.
func TestHostilePushOfForgeries(t *testing.T) {
	now := time.Unix(1700000000, 0)
	g := idle(t, &now)
	raws := forgedState(t)
	state, rest := packObjects([]byte{formatVersion}, raws, maxState)
	if len(rest) > 0 {
		t.Fatal("the state is too small for them")
	}
	delegate{g}.MergeRemoteState(state, true)
	v := g.View()
	if got := v.Counters["object-signature"]; got == 0 || got > maxForged+1 {
		t.Errorf("%d of %d signatures were checked, want some, at most %d", got, len(raws), maxForged+1)
	}
	if len(v.Records) > 0 || v.Counters["object-unread"] == 0 {
		t.Errorf("records %v, counters %v", v.Records, v.Counters)
	}
	// An honest record that comes with them is accepted.
	g.acceptObjects([][]byte{signRecord(t, 1, testRecord(1, 9))}, fromSync)
	if v := g.View(); len(v.Records) != 1 {
		t.Errorf("the honest record: got %v", v.Records)
	}
	// Old objects are not checked again.
	old := forgedState(t)[:100]
	for _, raw := range old {
		copy(raw, signRecord(t, 1, testRecord(1, 3)))
		raw[1]++
	}
	before := g.View().Counters["object-signature"]
	g.acceptObjects(old, fromSync)
	if got := g.View().Counters; got["object-signature"] != before || got["object-stale"] == 0 {
		t.Errorf("old objects: counters %v", got)
	}
}

// With a list of trusted nodes, an untrusted node's objects are not even decoded.
func TestHostileStrangersCostALook(t *testing.T) {
	now := time.Unix(1700000000, 0)
	g := idle(t, &now)
	g.mu.Lock()
	c := g.cluster
	c.Trust = mesh.TrustList
	g.setTrust(c, []mesh.ID{idOf(1)})
	g.mu.Unlock()
	// These can't be decoded beyond the author, and have no valid signature.
	garbage := append([]byte{objectVersion<<4 | byte(kindVerdict)}, make([]byte, ed25519.SignatureSize)...)
	garbage = append(append(garbage, 0xa3), identityField...)
	garbage = append(append(garbage, identity(2).Public().(ed25519.PublicKey)...), bytes.Repeat([]byte{0x9f}, 300)...)
	raws := [][]byte{garbage}
	for range 100 {
		raws = append(raws, garbage)
	}
	g.acceptObjects(raws, fromGossip)
	want := map[string]uint64{"object-untrusted": 101}
	if diff := cmp.Diff(want, g.View().Counters); diff != "" {
		t.Errorf("counters (-want +got):\n%s", diff)
	}
	// An untrusted node's genuine record is reported, a forged one is not.
	forged := signRecord(t, 3, testRecord(3, 1))
	forged[5]++
	g.acceptObjects([][]byte{signRecord(t, 2, testRecord(2, 1)), forged}, fromGossip)
	if v := g.View(); !hasProblem(v, ProblemUntrusted, "node-2") || hasProblem(v, ProblemUntrusted, "node-3") || len(v.Records) > 0 {
		t.Errorf("problems %v, records %v", v.Problems, v.Records)
	}
}

// BenchmarkPush compares the cost of states of 4 MiB: of honest records that are new, and
// of forged ones.
func BenchmarkPush(b *testing.B) {
	now := time.Unix(1700000000, 0)
	var honest [][]byte
	for n := 0; len(honest) < 4096; n++ {
		honest = append(honest, signRecord(b, n, testRecord(n, 1)))
	}
	for name, raws := range map[string][][]byte{"honest": honest, "forged": forgedState(b)} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				idle(b, &now).acceptObjects(raws, fromSync)
			}
		})
	}
}
