// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"log/slog"
	"maps"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-msgpack/v2/codec"

	"github.com/meshd/meshd/internal/mesh"
)

// attacker sends what no honest node sends. Everything is drawn from a fixed seed.
type attacker struct {
	t      *testing.T
	victim *testNode
	conn   net.Conn
	ring   keyring // of the secret, or of another one
	chance *mathrand.Rand
	sent   uint64
}

// attackerID is the identity that it uses.
var attackerID = mesh.ID{0xee}

func newAttacker(t *testing.T, victim *testNode, secret [32]byte) *attacker {
	t.Helper()
	conn, err := net.Dial("udp", victim.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &attacker{t: t, victim: victim, conn: conn, ring: testRing(t, secret), chance: mathrand.New(mathrand.NewPCG(1, 2))}
}

func (a *attacker) bytes(most int) []byte {
	b := make([]byte, a.chance.IntN(most+1))
	for i := range b {
		b[i] = byte(a.chance.Uint32())
	}
	return b
}

// seal returns a packet that is encrypted with the attacker's secret.
func (a *attacker) seal(kind packetKind, payload []byte) []byte {
	a.t.Helper()
	a.sent++
	p := packet{kind: kind, label: labelOf(testCluster()), from: attackerID, boot: 1, counter: a.sent, payload: payload}
	b, err := a.ring.sealPacket(rand.Reader, p, a.victim.self)
	if err != nil {
		a.t.Fatal(err)
	}
	return b
}

func (a *attacker) send(b []byte) {
	// The receive buffer must not overflow, so that each packet is checked.
	if a.sent++; a.sent%64 == 0 {
		time.Sleep(time.Millisecond)
	}
	_, _ = a.conn.Write(b)
}

// badPadding returns a packet that crashes memberlist 0.7: encryption version 0, and a
// padding that is longer than the text. It needs no valid key there.
func badPadding() []byte { return append([]byte{0}, bytes.Repeat([]byte{0xff}, 44)...) }

// shortFrame returns a stream that crashes memberlist 0.7: an encrypted message that is
// too short for its own header.
func shortFrame(size int) []byte {
	const encryptMsg = 10
	return append(binary.BigEndian.AppendUint32([]byte{encryptMsg}, uint32(size)), make([]byte, size)...)
}

func msgpack(t testing.TB, kind byte, v any) []byte {
	t.Helper()
	var b bytes.Buffer
	b.WriteByte(kind)
	if err := codec.NewEncoder(&b, &codec.MsgpackHandle{}).Encode(v); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// stream opens a connection, writes to it and waits until it is closed.
func (a *attacker) stream(content []byte) {
	conn, err := net.Dial("tcp", a.victim.Addr().String())
	if err != nil {
		return // refused at the limit
	}
	defer conn.Close()
	_, _ = conn.Write(content)
	_ = conn.(*net.TCPConn).CloseWrite()
	_ = conn.SetReadDeadline(time.Now().Add(helloTimeout))
	_, _ = conn.Read(make([]byte, 1))
}

// insiderStream does the same after a handshake.
func (a *attacker) insiderStream(content []byte) {
	conn, err := net.Dial("tcp", a.victim.Addr().String())
	if err != nil {
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(helloTimeout))
	h := testHello(99)
	s, err := testHandshaker(a.ring, 99).initiate(conn, h)
	if err != nil {
		return
	}
	_, _ = s.Write(content)
	_ = conn.(*net.TCPConn).CloseWrite()
	_, _ = s.Conn.Read(make([]byte, 1))
}

func heap() uint64 {
	runtime.GC()
	runtime.GC() // finalizers of the first
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// overheard returns what an observer on the network sees of a valid stream of an insider.
func (a *attacker) overheard() []byte {
	a.t.Helper()
	conn, err := net.Dial("tcp", a.victim.Addr().String())
	if err != nil {
		a.t.Fatal(err)
	}
	defer conn.Close()
	tap := &tappedConn{Conn: conn}
	s, err := testHandshaker(a.ring, 99).initiate(tap, testHello(99))
	if err == nil {
		_, err = s.Write(msgpack(a.t, memberlistPushPull, map[string]any{"Nodes": 0, "UserStateLen": 0, "Join": true}))
	}
	if err != nil {
		a.t.Fatal(err)
	}
	return tap.written
}

type tappedConn struct {
	net.Conn
	written []byte
}

func (c *tappedConn) Write(b []byte) (int, error) {
	c.written = append(c.written, b...)
	return c.Conn.Write(b)
}

// outsiders sends what an attacker without the secret can send, as the n-th of a series.
// It has captured a packet and a stream.
func (a *attacker) outsiders(n int, honest, stream []byte) {
	switch n % 8 {
	case 0:
		a.send(a.bytes(2 * maxPacket))
	case 1:
		a.send(append([]byte{formatVersion}, a.bytes(maxPacket)...))
	case 2:
		a.send(honest[:a.chance.IntN(len(honest))])
	case 3:
		b := bytes.Clone(honest)
		b[a.chance.IntN(len(b))] ^= 1 << a.chance.IntN(8)
		a.send(b)
	case 4:
		a.send(honest)
	case 5:
		a.send(badPadding())
	case 6:
		a.send(a.seal(kindMemberlist, a.bytes(100))) // with another secret
	case 7:
		a.stream([][]byte{
			shortFrame(a.chance.IntN(30)), a.bytes(5000), {formatVersion, 0xff, 0xff}, {}, {formatVersion, 0x01, 0x00, 9}, stream,
		}[a.chance.IntN(6)])
	}
}

// insiders sends what an attacker with the secret can send.
func (a *attacker) insiders(n int, record []byte) {
	switch n % 8 {
	case 0:
		a.send(a.seal(kindMemberlist, a.bytes(maxPayload)))
	case 1:
		a.send(a.seal(kindMemberlist, badPadding()))
	case 2:
		bomb := msgpack(a.t, memberlistCompress, map[string]any{"Algo": 0, "Buf": a.bytes(900)})
		a.send(a.seal(kindMemberlist, append([]byte{memberlistCompound, 1, byte(len(bomb) >> 8), byte(len(bomb))}, bomb...)))
	case 3:
		forged := bytes.Clone(record)
		forged[a.chance.IntN(len(forged))] ^= 1 << a.chance.IntN(8)
		if n%80 == 3 {
			forged[0] = objectVersion<<4 | 0x0f // a kind that does not exist
		}
		packed, _ := packObjects([]byte{byte(fromGossip)}, [][]byte{forged}, maxPayload)
		a.send(a.seal(kindObjects, packed))
	case 4:
		a.send(a.seal(kindObjects, a.bytes(maxPayload)))
	case 5:
		a.send(a.seal(kindSync, a.bytes(maxPayload)))
	case 6:
		b := a.seal(packetKind(6+a.chance.IntN(100)), nil)
		a.send(b)
		a.send(b)
	case 7:
		a.insiderStream([][]byte{
			shortFrame(a.chance.IntN(30)),
			msgpack(a.t, memberlistCompress, map[string]any{"Algo": 0, "Buf": a.bytes(900)}),
			msgpack(a.t, memberlistPushPull, map[string]any{"Nodes": 1 << 20, "UserStateLen": 20 << 20, "Join": true}),
			msgpack(a.t, memberlistUser, map[string]any{"UserMsgLen": 20 << 20}),
			append([]byte{memberlistPushPull}, a.bytes(2000)...),
			a.bytes(5000),
		}[a.chance.IntN(6)])
	}
}

// Ten thousand packets and streams of each kind (with -short a thousand) change nothing:
// no node is learned, the members stay, the memory does not grow, and there are few lines
// in the log.
func TestHostileFlood(t *testing.T) { // not parallel: it measures the heap
	var lines atomic.Int64
	victim := startNode(t, 0, func(o *Options) {
		o.Logger = slog.New(countingHandler{slog.DiscardHandler, &lines})
	})
	friend := startNode(t, 1, joining(victim))
	both := []*testNode{victim, friend}
	victim.publish(1)
	friend.publish(1)
	whole := func(v mesh.View) bool { return len(v.Alive) == 2 && len(v.Records) == 2 && len(v.Verdicts) == 0 }
	eventually(t, "both see both", both, whole)
	before, began, quiet := heap(), time.Now(), lines.Load()

	flood := 10000
	if testing.Short() {
		flood = 1000
	}
	outside, inside := newAttacker(t, victim, [32]byte{9}), newAttacker(t, victim, testSecret)
	honest, stream := inside.seal(kindSync, newStore().rootMessage()), inside.overheard()
	inside.send(honest)
	// A node whose packets can be decrypted is seen as an address, and nothing more.
	addrs := map[mesh.ID]netip.AddrPort{friend.self: friend.Addr(), attackerID: netip.MustParseAddrPort(inside.conn.LocalAddr().String())}
	eventually(t, "the packet has arrived", both[:1], func(mesh.View) bool { return maps.Equal(victim.seen(), addrs) })
	unmoved := func(by string) {
		t.Helper()
		v, seen := victim.View(), victim.seen()
		if !whole(v) || !maps.Equal(seen, addrs) {
			t.Errorf("%s changed something: alive %v, %d records, seen %v", by, v.Alive, len(v.Records), seen)
		}
	}
	for n := range flood {
		outside.outsiders(n, honest, stream)
	}
	unmoved("outsiders")
	for n := range flood {
		inside.insiders(n, signRecord(t, 7, testRecord(7, 1)))
	}

	unmoved("insiders")
	victim.publish(2)
	friend.publish(2)
	eventually(t, "all is as it was", both, func(v mesh.View) bool {
		return whole(v) && sequenceOf(v, victim.self) == 2 && sequenceOf(v, friend.self) == 2
	})
	v := victim.View()
	for _, reason := range []string{
		"packet-sealed", "packet-replayed", "stream-sealed", "stream-broken",
		"packet-refused", "packet-kind", "packet-content", "object-signature", "object-content", "object-kind", "object-version",
	} {
		if v.Counters[reason] == 0 {
			t.Errorf("nothing is counted as %s: %v", reason, v.Counters)
		}
	}
	if !hasProblem(v, ProblemForged, "signature") {
		t.Errorf("problems %v, want %s", v.Problems, ProblemForged)
	}
	if grown := int64(heap()) - int64(before); grown > 32<<20 {
		t.Errorf("the heap has grown by %d bytes", grown)
	}
	// Each kind of line has its burst, and then one line per second.
	kinds := int64(len(victim.log.limiters))
	if got, most := lines.Load()-quiet, kinds*(logBurst+int64(time.Since(began)/time.Second)+1); got > most || kinds > 20 {
		t.Errorf("%d lines of %d kinds are logged, at most %d", got, kinds, most)
	}
	t.Logf("%d lines, %v", lines.Load()-quiet, v.Counters)
}

// An attacker with the secret can send objects in the name of others. They don't count,
// and are reported.
func TestForgeriesAreShown(t *testing.T) {
	now := time.Unix(1700000000, 0)
	other := testCluster().Hash() + 1
	outside := testRecord(2, 1)
	outside.Settings = other
	tests := []struct {
		name    string
		raw     func() []byte
		reason  string
		problem mesh.ProblemKind
	}{
		{"record signed by another", func() []byte {
			raw, err := signObject(identity(2), "default", kindRecord, signRecord(t, 1, testRecord(1, 9))[objectHeader:])
			if err != nil {
				t.Fatal(err)
			}
			return raw
		}, "object-signature", ProblemForged},
		{"absurd sequence", func() []byte {
			payload, err := encoding.Marshal(map[int]any{1: identity(2).Public(), 2: uint64(1 << 63), 4: "a", 5: make([]byte, 32)})
			if err != nil {
				t.Fatal(err)
			}
			raw, err := signObject(identity(2), "default", kindRecord, payload)
			if err != nil {
				t.Fatal(err)
			}
			return raw
		}, "object-content", ProblemForged},
		{"record outside the ranges", func() []byte { return signRecord(t, 2, outside) }, "", ProblemSettings},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := idle(t, &now)
			g.acceptObjects([][]byte{signRecord(t, 1, testRecord(1, 3))}, fromSync)
			g.acceptObjects([][]byte{tt.raw()}, fromGossip)
			v := g.View()
			if len(v.Records) != 1 || sequenceOf(v, idOf(1)) != 3 {
				t.Errorf("records %v, want the one of before", v.Records)
			}
			if tt.reason != "" && v.Counters[tt.reason] != 1 || !hasProblem(v, tt.problem, "") {
				t.Errorf("counters %v, problems %v; want %s, %s", v.Counters, v.Problems, tt.reason, tt.problem)
			}
		})
	}
}

// An old record is also refused by a node that was restarted meanwhile.
func TestOldRecordIsRefusedAfterRestart(t *testing.T) {
	now := time.Unix(1700000000, 0)
	g := idle(t, &now)
	old := signRecord(t, 1, testRecord(1, 3))
	g.acceptObjects([][]byte{old}, fromSync)
	g.acceptObjects([][]byte{signRecord(t, 1, testRecord(1, 4))}, fromSync)
	remembered := g.Remember()
	remembered.Objects = nil // so that it is the sequence alone which refuses it
	g = idle(t, &now)
	g.restore(remembered)
	g.acceptObjects([][]byte{old}, fromGossip)
	if v := g.View(); len(v.Records) > 0 || v.Counters["object-stale"] != 1 {
		t.Errorf("records %v, counters %v; want none, and one counted", v.Records, v.Counters)
	}
}

// More nodes behind one address than may run handshakes at the same time get through
// anyway: those that are refused retry.
func TestManyNodesBehindOneAddress(t *testing.T) {
	t.Parallel()
	const places = 8
	seed := startNode(t, 0, nil)
	seed.transport.mu.Lock()
	seed.transport.places.strangers = newPlaces(maxPendingStreams, places)
	seed.transport.places.known = newPlaces(maxPendingKnown, places)
	seed.transport.mu.Unlock()
	nodes := []*testNode{seed}
	for n := 1; n <= 3*places; n++ {
		nodes = append(nodes, startNode(t, n, joining(seed)))
	}
	for _, n := range nodes {
		n.publish(1)
	}
	eventually(t, "all are in", nodes, func(v mesh.View) bool { return len(v.Alive) == len(nodes) })

	// Also if another host there holds all places as long as it can.
	for range places {
		if conn, err := net.Dial("tcp", seed.Addr().String()); err == nil { // else it is over the limit
			t.Cleanup(func() { conn.Close() })
		}
	}
	late := startNode(t, len(nodes), joining(seed))
	late.publish(1)
	eventually(t, "the late one is in", []*testNode{late}, func(v mesh.View) bool { return len(v.Alive) == len(nodes)+1 })
}
