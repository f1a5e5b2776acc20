// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"bytes"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/meshd/meshd/internal/mesh"
)

// FuzzInboundPacket feeds decrypted packets to the parser, to memberlist's checks, and to
// the store.
func FuzzInboundPacket(f *testing.F) {
	now := time.Unix(1700000000, 0)
	record := signRecord(f, 1, testRecord(1, 1))
	objects, _ := packObjects([]byte{byte(fromGossip)}, [][]byte{record, signVerdict(f, 1, verdict{testVerdict(1, 0, mesh.HealthDown, 1), 1, 1})}, maxPayload)
	s := newStore()
	s.put(mustDecode(f, record))
	steps, _, err := newStore().answer(s.rootMessage())
	if err != nil {
		f.Fatal(err)
	}
	for _, p := range []packet{
		{kind: kindObjects, payload: objects},
		{kind: kindSync, payload: s.rootMessage()},
		{kind: kindSync, payload: steps[0], want: true},
		{kind: kindSync, payload: s.listDifferences(make([]byte, 8*buckets))[0]},
		{kind: kindHere, payload: make([]byte, 8)},
		{kind: kindCall, payload: make([]byte, letterHeader+maxCall)},
		{kind: kindOrder, payload: make([]byte, letterHeader+maxCall)},
		{kind: kindQuestion, payload: make([]byte, letterHeader+questionLen)},
		{kind: kindAnswer, payload: make([]byte, letterHeader+answerHeader)},
		{kind: kindMemberlist, payload: accusation("a", "b", 7)},
		{kind: kindMemberlist, payload: append([]byte{memberlistCRC, 0, 0, 0, 0, memberlistCompound, 1, 0, 2}, memberlistPing, 0x80)},
	} {
		f.Add(p.append(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parsePacket(b)
		if err != nil {
			return
		}
		again, err := parsePacket(p.append(nil))
		if diff := cmp.Diff(p, again, cmp.AllowUnexported(packet{}), cmpopts.EquateEmpty()); err != nil || diff != "" {
			t.Fatalf("packet (-first +second, %v):\n%s", err, diff)
		}
		g := idle(t, &now)
		switch p.kind {
		case kindMemberlist:
			_ = eachMessage(p.payload, func(kind byte, _ []byte) {
				if kind == memberlistCompress || kind == memberlistCompound {
					t.Errorf("kind %d is accepted", kind)
				}
			})
			isEvicted(p.payload, "a")
		case kindObjects:
			if raws, err := unpackObjects(p.payload[min(1, len(p.payload)):]); err == nil {
				g.acceptObjects(raws, fromSync)
			}
		case kindCall, kindQuestion, kindAnswer, kindOrder:
			g.handleLetter(message{p.from, p.kind, p.payload})
			if len(g.calls)+len(g.orders) > 0 {
				t.Error("a stranger's call is delivered")
			}
		case kindSync:
			steps, objects, _ := g.store.answer(p.payload)
			if len(steps) > maxListPackets || len(objects) > 0 {
				t.Errorf("%d steps and %d objects from an empty store", len(steps), len(objects))
			}
		}
		if got := len(g.View().Records); got > 1 {
			t.Errorf("%d records", got)
		}
	})
}

// tape is a connection that returns fixed bytes.
type tape struct {
	net.Conn
	bytes.Reader
}

func (t *tape) Read(b []byte) (int, error) { return t.Reader.Read(b) }
func (*tape) Write(b []byte) (int, error)  { return len(b), nil }

// FuzzInboundStream feeds the raw bytes of a stream, its decrypted hello and first frame,
// and the state of a push/pull.
func FuzzInboundStream(f *testing.F) {
	now := time.Unix(1700000000, 0)
	ring := testRing(f, testSecret)
	h, err := testHello(0).marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(h)
	var raw bytes.Buffer
	if _, err := testHandshaker(ring, 0).writeHello(&raw, ring[0], testHello(0), asDialer); err != nil {
		f.Fatal(err)
	}
	f.Add(raw.Bytes())
	f.Add(shortFrame(29))
	f.Add(msgpack(f, memberlistPushPull, map[string]any{"Nodes": 3, "UserStateLen": 5, "Join": true}))
	state, _ := packObjects([]byte{formatVersion}, [][]byte{signRecord(f, 1, testRecord(1, 1))}, maxState)
	f.Add(state)
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := testHandshaker(ring, 1).respond(&tape{Reader: *bytes.NewReader(b)}, testHello(1)); err == nil {
			t.Error("a stream without a first frame is accepted")
		}
		if h, err := parseHello(b); err == nil {
			_ = differences(testCluster(), h.cluster, "there")
			if again, err := h.marshal(); err == nil {
				if _, err := parseHello(again); err != nil {
					t.Errorf("parse what was written: %v", err)
				}
			}
		}
		if len(b) > 0 {
			_ = checkOpening(b)
		}
		g := idle(t, &now)
		delegate{g}.MergeRemoteState(b, true)
		if got := len(g.View().Records); got > 1 {
			t.Errorf("%d records", got)
		}
	})
}

func FuzzDecodeSettings(f *testing.F) {
	f.Add(signSettings(f, 0, 1, settingsOf(testCluster()))[objectHeader:])
	f.Fuzz(func(t *testing.T, payload []byte) {
		b, err := decodeSettings(payload)
		if err != nil {
			return
		}
		again, err := encodeSettings(b.(settingsBody))
		if err != nil {
			t.Fatal(err)
		}
		if c, err := decodeSettings(again); err != nil || !cmp.Equal(b, c, cmp.AllowUnexported(settingsBody{})) {
			t.Errorf("settings %+v became %+v, %v", b, c, err)
		}
	})
}
