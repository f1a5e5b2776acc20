// SPDX-License-Identifier: Apache-2.0

package path

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/crypto/blake2s"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// guest is a node of a relay.
type guest struct {
	id   Short
	key  wgtypes.Key
	addr netip.AddrPort
}

func guests(n int) []guest {
	var all []guest
	for i := range n {
		addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}), 51820)
		all = append(all, guest{Short{0, byte(i >> 8), byte(i)}, wgtypes.Key{1, byte(i >> 8), byte(i)}, addr})
	}
	return all
}

var began = time.Unix(1e9, 0)

// bind binds nodes to a new relay.
func bind(t testing.TB, nodes ...guest) *Relay {
	t.Helper()
	r := NewRelay([32]byte{7})
	for _, g := range nodes {
		first := r.Bind(began, g.id, g.key, Message{Op: Bind}, g.addr)
		if first.Token == (Token{}) || first.Seen != g.addr {
			t.Fatalf("first answer: got %+v, want a token and %s", first, g.addr)
		}
		if second := r.Bind(began, g.id, g.key, Message{Op: Bind, Token: first.Token}, g.addr); second.Token != (Token{}) || !r.IsBound(began, g.id) {
			t.Fatalf("second answer: got %+v, want that the node is bound", second)
		}
	}
	return r
}

// handshake is a first message, with mac1 for its receiver.
func handshake(kind byte, length int, sender, receiver uint32, to wgtypes.Key) []byte {
	b := make([]byte, length)
	b[0] = kind
	binary.LittleEndian.PutUint32(b[4:], sender)
	if kind == response {
		binary.LittleEndian.PutUint32(b[8:], receiver)
	}
	key := blake2s.Sum256(append([]byte("mac1----"), to[:]...))
	h, err := blake2s.New128(key[:])
	if err != nil {
		panic(err)
	}
	h.Write(b[:length-32])
	copy(b[length-32:], h.Sum(nil))
	return b
}

// data is a message of a session.
func data(index uint32) []byte {
	b := make([]byte, transportMin)
	b[0] = transport
	binary.LittleEndian.PutUint32(b[4:], index)
	return b
}

func TestForward(t *testing.T) {
	g := guests(4)
	a, b, c, stranger := g[0], g[1], g[2], g[3]
	r := bind(t, a, b, c)
	steps := []struct {
		name string
		from guest
		data []byte
		to   guest // nobody unless the verdict is Pass
		want Verdict
	}{
		{"data of an unknown session", a, data(1), guest{}, NoRow},
		{"initiation", a, handshake(initiation, initiationLen, 11, 0, b.key), b, Pass},
		{"response", b, handshake(response, responseLen, 22, 11, a.key), a, Pass},
		{"data", a, data(22), b, Pass},
		{"data back", b, data(11), a, Pass},
		{"the same index of somebody else", c, data(22), guest{}, NoRow},
		{"initiation for somebody who is not here", a, handshake(initiation, initiationLen, 12, 0, stranger.key), guest{}, NoRow},
		{"from a stranger", stranger, data(22), guest{}, AskWho},
		{"another length", a, handshake(initiation, initiationLen+1, 12, 0, b.key), guest{}, NoRow},
		{"garbage", a, []byte("garbage garbage garbage garbage garbage"), guest{}, Drop},
		{"short", a, []byte{4, 0, 0, 0}, guest{}, Drop},
	}
	for _, s := range steps {
		to, got := r.Forward(began, s.data, s.from.addr)
		if got != s.want || to != s.to.addr {
			t.Errorf("%s: got verdict %d to %s, want %d to %s", s.name, got, to, s.want, s.to.addr)
		}
	}
}

func TestForwardProbes(t *testing.T) {
	g := guests(3)
	r := bind(t, g[0], g[1])
	probe := func(from, to guest) []byte {
		k, _ := pair(t, "default", "default")
		k.self, k.peer = from.id, to.id
		return k.Seal(Message{Op: Ping}, 1)
	}
	if to, got := r.Forward(began, probe(g[0], g[1]), g[0].addr); got != Pass || to != g[1].addr {
		t.Errorf("probe: got verdict %d to %s, want it passed to %s", got, to, g[1].addr)
	}
	if _, got := r.Forward(began, probe(g[0], g[2]), g[0].addr); got != Absent {
		t.Errorf("probe to a node that is not bound: got verdict %d, want that the node is absent", got)
	}
	r.SetProved(map[Short]netip.AddrPort{g[2].id: g[2].addr})
	if to, got := r.Forward(began, probe(g[0], g[2]), g[0].addr); got != Pass || to != g[2].addr {
		t.Errorf("probe to a node at a proved address: got verdict %d to %s, want it passed to %s", got, to, g[2].addr)
	}
	if _, got := r.Forward(began, probe(g[2], g[0]), g[2].addr); got != AskWho {
		t.Errorf("probe from a node at a proved address that is not bound: got verdict %d, want that it is asked", got)
	}
	if _, got := r.Forward(began, probe(g[1], g[0]), g[0].addr); got != AskWho {
		t.Errorf("probe in the name of another node: got verdict %d, want that its sender is asked", got)
	}
}

func TestRowIsTold(t *testing.T) {
	g := guests(2)
	r := bind(t, g...)
	r.Learn(began, g[0].id, 5, g[1].id)
	if to, got := r.Forward(began, data(5), g[0].addr); got != Pass || to != g[1].addr {
		t.Errorf("data of a session that was told: got verdict %d to %s", got, to)
	}
	if _, got := r.Forward(began.Add(rowFor), data(5), g[0].addr); got == Pass {
		t.Error("data of a session that was told long ago is passed on")
	}
}

// TestBegun has sessions begin through a relay: their receivers are told whose they are.
// TestChanges has a number rise with whatever changes where packets go, and with nothing else.
func TestChanges(t *testing.T) {
	g := guests(2)
	a, b := g[0], g[1]
	r := bind(t, a, b)
	moved := a
	moved.addr = netip.MustParseAddrPort("203.0.113.9:7")
	token := r.Bind(began, moved.id, moved.key, Message{Op: Bind}, moved.addr).Token
	steps := []struct {
		name string
		do   func()
		want bool
	}{
		{"a row", func() { r.Learn(began, a.id, 1, b.id) }, true},
		{"the same row", func() { r.Learn(began.Add(time.Second), a.id, 1, b.id) }, false},
		{"a row for somebody else", func() { r.Learn(began, a.id, 1, a.id) }, true},
		{"a handshake that passes", func() { r.Forward(began, handshake(initiation, initiationLen, 11, 0, b.key), a.addr) }, true},
		{"data", func() { r.Forward(began, data(11), b.addr) }, false},
		{"a node that binds again", func() { r.Bind(began.Add(time.Second), a.id, a.key, Message{Op: Bind}, a.addr) }, false},
		{"a node that moves", func() { r.Bind(began, moved.id, moved.key, Message{Op: Bind, Token: token}, moved.addr) }, true},
		{"the same keys", func() { r.SetKeys(map[Short]wgtypes.Key{a.id: a.key, b.id: b.key}) }, false},
		{"a node that has gone", func() { r.SetKeys(map[Short]wgtypes.Key{a.id: a.key}) }, true},
	}
	for _, s := range steps {
		before := r.Changes()
		if s.do(); r.Changes() != before != s.want {
			t.Errorf("%s: the number rises: %t, want %t", s.name, r.Changes() != before, s.want)
		}
	}
}

func TestBegun(t *testing.T) {
	g := guests(2)
	r := bind(t, g...)
	a, b := g[0], g[1]
	steps := []struct {
		name     string
		data     []byte
		from, to guest
		index    uint32 // 0 for nothing told
	}{
		{"initiation", handshake(initiation, initiationLen, 11, 0, b.key), a, b, 11},
		{"response", handshake(response, responseLen, 22, 11, a.key), b, a, 22},
		{"data", data(22), a, b, 0},
	}
	for _, s := range steps {
		to, verdict := r.Forward(began, s.data, s.from.addr)
		if verdict != Pass || to != s.to.addr {
			t.Fatalf("%s: got verdict %d to %s", s.name, verdict, to)
		}
		receiver, m, ok := r.Begun(began, s.data, s.from.addr, to)
		if ok != (s.index != 0) || ok && (receiver != s.to.id || m.Op != Begun || m.Number != s.index || m.Node != s.from.id) {
			t.Errorf("%s: %x is told %+v, %t, want index %d", s.name, receiver, m, ok, s.index)
		}
		if ok && sealedLen > len(s.data) {
			t.Errorf("%s: what is told is longer", s.name)
		}
	}
	told := 0
	for range 10 * handshakeBurst {
		if _, _, ok := r.Begun(began, steps[1].data, b.addr, a.addr); ok {
			told++
		}
	}
	if told > handshakeBurst {
		t.Errorf("responses: %d were told at once, want no more than %d", told, handshakeBurst)
	}
}

func TestUnknown(t *testing.T) {
	g := guests(2)
	r := bind(t, g[0])
	long, short := append(data(5), make([]byte, sealedLen-transportMin)...), append(data(5), make([]byte, sealedLen-transportMin-1)...)
	steps := []struct {
		name string
		at   time.Duration
		data []byte
		from guest
		want bool
	}{
		{"what is shorter than the answer", 0, short, g[0], false},
		{"an initiation", 0, handshake(initiation, initiationLen, 5, 0, g[1].key), g[0], false},
		{"data", 0, long, g[0], true},
		{"soon after", unknownEvery - 1, long, g[0], false},
		{"later", unknownEvery, long, g[0], true},
		{"a stranger's", unknownEvery, long, g[1], false},
	}
	for _, s := range steps {
		to, m, ok := r.Unknown(began.Add(s.at), s.data, s.from.addr)
		if ok != s.want || ok && (to != g[0].id || m.Op != Unknown || m.Number != 5) {
			t.Errorf("%s: %x is told %+v, %t, want %t", s.name, to, m, ok, s.want)
		}
	}
}

func TestBind(t *testing.T) {
	g := guests(2)
	r := bind(t, g[0])
	elsewhere := netip.MustParseAddrPort("198.51.100.9:1234")

	token := r.Bind(began, g[1].id, g[1].key, Message{Op: Bind}, g[1].addr).Token
	if r.Bind(began, g[1].id, g[1].key, Message{Op: Bind, Token: token}, elsewhere); r.IsBound(began, g[1].id) {
		t.Error("a token that was sent elsewhere binds")
	}
	if r.Bind(began, g[0].id, g[0].key, Message{Op: Bind, Token: token}, elsewhere); r.bound[g[0].id].addr != g[0].addr {
		t.Error("a token of somebody else moves a node")
	}
	if r.Bind(began.Add(3*tokenFor), g[1].id, g[1].key, Message{Op: Bind, Token: token}, g[1].addr); r.IsBound(began, g[1].id) {
		t.Error("an old token binds")
	}
	if r.IsBound(began.Add(boundFor), g[0].id) {
		t.Error("a node that did not bind again is bound")
	}
	// Moved, with packets from before under way.
	token = r.Bind(began, g[0].id, g[0].key, Message{Op: Bind}, elsewhere).Token
	r.Bind(began, g[0].id, g[0].key, Message{Op: Bind, Token: token}, elsewhere)
	r.Learn(began, g[0].id, 5, g[0].id)
	if to, got := r.Forward(began, data(5), g[0].addr); got != Pass || to != elsewhere {
		t.Errorf("data from where a node was before: got verdict %d to %s, want it passed to %s", got, to, elsewhere)
	}
	if _, got := r.Forward(began.Add(leftFor), data(5), g[0].addr); got != AskWho {
		t.Errorf("data from there %v later: got verdict %d, want that the node is asked to bind there again", leftFor, got)
	}
	third := netip.MustParseAddrPort("198.51.100.9:1235")
	token = r.Bind(began, g[0].id, g[0].key, Message{Op: Bind}, third).Token
	r.Bind(began, g[0].id, g[0].key, Message{Op: Bind, Token: token}, third)
	if len(r.at) != 2 {
		t.Errorf("addresses after two moves: got %v, want the last two", r.at)
	}
	if want := []Short{g[0].id}; !slices.Equal(r.Nodes(began), want) {
		t.Errorf("nodes: got %v, want %v", r.Nodes(began), want)
	}
}

func TestWho(t *testing.T) {
	g := guests(2)
	r := bind(t, g[0])
	if _, ok := r.Who(began, sealedLen-1, g[1].addr); ok {
		t.Error("the question is longer than what led to it")
	}
	who, ok := r.Who(began, sealedLen, g[1].addr)
	if !ok || who.Op != Who || who.Seen != g[1].addr {
		t.Fatalf("question: got %+v, %t", who, ok)
	}
	if _, ok := r.Who(began.Add(askEvery-1), sealedLen, g[1].addr); ok {
		t.Error("an address is asked twice in a second")
	}
	if _, ok := r.Who(began.Add(askEvery), sealedLen, g[1].addr); !ok {
		t.Error("an address is not asked again after a second")
	}
	again := Message{Op: Bind, Token: who.Token}
	if answer := r.Bind(began, g[1].id, g[1].key, again, netip.MustParseAddrPort("198.51.100.9:1234")); answer.Token == (Token{}) {
		t.Error("the token of a question binds at another address than the one that was asked")
	}
	if answer := r.Bind(began, g[1].id, g[1].key, again, g[1].addr); answer.Token != (Token{}) || !r.IsBound(began, g[1].id) {
		t.Errorf("answer to the question: got %+v, want that the node is bound", answer)
	}
}

// TestHostileBounds has a node tell rows, and nodes bind, without end.
func TestHostileBounds(t *testing.T) {
	g := guests(maxBound + 10)
	r := bind(t, g[:maxBound]...)
	for _, one := range g[maxBound:] {
		token := r.Bind(began, one.id, one.key, Message{Op: Bind}, one.addr).Token
		r.Bind(began, one.id, one.key, Message{Op: Bind, Token: token}, one.addr)
	}
	if len(r.bound) > maxBound {
		t.Errorf("nodes: got %d, want no more than %d", len(r.bound), maxBound)
	}
	last := g[len(g)-1]
	token := r.Bind(began, last.id, last.key, Message{Op: Bind}, last.addr).Token
	if answer := r.Bind(began, last.id, last.key, Message{Op: Bind, Token: token}, last.addr); answer.Token == (Token{}) {
		t.Error("a relay that is full tells a node that it is bound")
	}
	asked := 0
	for _, one := range g {
		if _, ok := r.Who(began, sealedLen, one.addr); ok {
			asked++
		}
	}
	if asked != maxAsked {
		t.Errorf("strangers that were asked at once: got %d, want %d", asked, maxAsked)
	}
	tried := 0
	for i := range uint32(10 * handshakeBurst) {
		if _, v := r.Forward(began, handshake(initiation, initiationLen, i, 0, g[1].key), g[0].addr); v == Pass {
			tried++
		}
	}
	if tried != handshakeBurst {
		t.Errorf("handshakes at once: %d were passed, want %d", tried, handshakeBurst)
	}
	for i := range uint32(maxRows + 10) {
		r.Learn(began, g[1].id, i, g[0].id)
	}
	if rows := len(r.bound[g[1].id].rows); rows > maxRows {
		t.Errorf("rows: got %d, want no more than %d", rows, maxRows)
	}
	for i := range uint32(maxRows) {
		r.Learn(began, g[0].id, i, g[1].id)
	}
	r.Learn(began.Add(2*rowFor), g[0].id, 1<<20, g[1].id)
	if rows := len(r.bound[g[0].id].rows); rows != 1 {
		t.Errorf("rows after a while: got %d, want the new one", rows)
	}
}

func FuzzForward(f *testing.F) {
	g := guests(2)
	r := bind(f, g...)
	f.Add(data(5))
	f.Add(handshake(initiation, initiationLen, 1, 0, g[1].key))
	f.Add(handshake(response, responseLen, 1, 2, g[1].key))
	f.Add(append(data(6), make([]byte, sealedLen)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		to, v := r.Forward(began, b, g[0].addr)
		switch v {
		case Pass:
			receiver, _, begun := r.Begun(began, b, g[0].addr, to)
			if !to.IsValid() || begun && (receiver != g[1].id && receiver != g[0].id || len(b) < sealedLen) {
				t.Errorf("passed to %s, told to %x: %x", to, receiver, b)
			}
		case NoRow:
			r.bound[g[0].id].told = time.Time{}
			if sender, _, ok := r.Unknown(began, b, g[0].addr); ok && (sender != g[0].id || len(b) < sealedLen) {
				t.Errorf("%x is told that it is unknown: %x", sender, b)
			}
		}
	})
}

func BenchmarkForward(b *testing.B) {
	for _, n := range []int{2, 30, 200} {
		g := guests(n)
		r := bind(b, g...)
		r.Learn(began, g[0].id, 5, g[1].id)
		for name, datagram := range map[string][]byte{"data": data(5), "initiation": handshake(initiation, initiationLen, 1, 0, g[1].key)} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				now := began
				for b.Loop() {
					now = now.Add(time.Second / handshakeRate)
					r.bound[g[0].id].until, r.bound[g[1].id].until = now.Add(boundFor), now.Add(boundFor)
					r.Learn(now, g[0].id, 5, g[1].id)
					if _, v := r.Forward(now, datagram, g[0].addr); v != Pass {
						b.Fatalf("got verdict %d", v)
					}
				}
			})
		}
	}
}
