// SPDX-License-Identifier: Apache-2.0

package path

import (
	"bytes"
	"crypto/ecdh"
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func messages() *rapid.Generator[Message] {
	return rapid.Custom(func(t *rapid.T) Message {
		m := Message{
			Op:      Op(rapid.IntRange(int(Ping), int(lastOp)).Draw(t, "op")),
			Number:  rapid.Uint32().Draw(t, "number"),
			Look:    Kind(rapid.IntRange(int(None), int(Stream)).Draw(t, "look")),
			Use:     Kind(rapid.IntRange(int(None), int(Stream)).Draw(t, "use")),
			Node:    Short(rapid.SliceOfN(rapid.Byte(), 8, 8).Draw(t, "node")),
			Token:   Token(rapid.SliceOfN(rapid.Byte(), 8, 8).Draw(t, "token")),
			This:    rapid.Bool().Draw(t, "this"),
			Rests:   rapid.Bool().Draw(t, "rests"),
			Open:    rapid.Bool().Draw(t, "open"),
			Silence: time.Duration(rapid.Uint32().Draw(t, "silence")) * time.Millisecond,
		}
		if rapid.Bool().Draw(t, "seen") {
			m.Seen = netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(rapid.IntRange(1, 250).Draw(t, "host"))}), rapid.Uint16Min(1).Draw(t, "port"))
		}
		return m
	})
}

// pair returns the keys of two nodes with each other.
func pair(t rapid.TB, cluster, otherCluster string) (*Keys, *Keys) {
	t.Helper()
	key := func(seed byte) *ecdh.PrivateKey {
		k, err := ecdh.X25519().NewPrivateKey(bytes.Repeat([]byte{seed}, 32))
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	a, b := key(1), key(2)
	ab, err := NewKeys(cluster, Short{1}, Short{2}, a, b.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	ba, err := NewKeys(otherCluster, Short{2}, Short{1}, b, a.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	return ab, ba
}

func TestSeal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := pair(t, "default", "default")
		want := messages().Draw(t, "message")
		counter := rapid.Uint64Min(1).Draw(t, "counter")
		sealed := a.Seal(want, counter)
		got, err := b.Open(sealed)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmp.Comparer(func(x, y netip.AddrPort) bool { return x == y })); diff != "" {
			t.Errorf("message (-sealed +opened):\n%s", diff)
		}
		if _, err := b.Open(sealed); !errors.Is(err, ErrReplayed) {
			t.Errorf("open once more: got %v, want %v", err, ErrReplayed)
		}
	})
}

func TestOpenRefused(t *testing.T) {
	m := Message{Op: Ping, Look: Direct}
	tests := []struct {
		name  string
		other string // cluster of the peer
		make  func(a, b *Keys) []byte
		want  error
	}{
		{"short", "default", func(a, _ *Keys) []byte { return a.Seal(m, 1)[:sealedLen-1] }, ErrNotProbe},
		{"WireGuard", "default", func(*Keys, *Keys) []byte { return append([]byte{4, 0, 0, 0}, make([]byte, sealedLen)...) }, ErrNotProbe},
		{"reflected", "default", func(_, b *Keys) []byte { return b.Seal(m, 1) }, ErrForged},
		{"another cluster", "other", func(a, _ *Keys) []byte { return a.Seal(m, 1) }, ErrForged},
		{"header changed", "default", func(a, _ *Keys) []byte { s := a.Seal(m, 1); s[27]++; return s }, ErrForged},
		{"message changed", "default", func(a, _ *Keys) []byte { s := a.Seal(m, 1); s[headerLen]++; return s }, ErrForged},
		{"of a later version", "default", func(a, _ *Keys) []byte { return a.Seal(Message{Op: 77, Look: Direct}, 1) }, errMessage},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, b := pair(t, "default", tt.other)
			if _, err := b.Open(tt.make(a, b)); !errors.Is(err, tt.want) {
				t.Errorf("open: got %v, want %v", err, tt.want)
			}
		})
	}
}

// TestWindow compares the window with a set of all counters.
func TestWindow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var w Window
		seen, highest := map[uint64]bool{}, uint64(0)
		step := rapid.SampledFrom([]int{3, 100, windowSize, 3 * windowSize})
		for range rapid.IntRange(1, 200).Draw(t, "counters") {
			c := uint64(max(1, int(highest)+rapid.IntRange(-step.Draw(t, "back"), step.Draw(t, "ahead")).Draw(t, "offset")))
			want := !seen[c] && c+windowSize > highest
			if got := w.Accept(c); got != want {
				t.Fatalf("counter %d, highest %d: got new %t, want %t", c, highest, got, want)
			}
			seen[c], highest = true, max(highest, c)
		}
	})
}

func FuzzOpen(f *testing.F) {
	a, b := pair(f, "default", "default")
	f.Add(a.Seal(Message{Op: Pong, Look: LAN, Seen: netip.MustParseAddrPort("[2001:db8::1]:51820")}, 7))
	f.Add([]byte{4, 0, 0, 0})
	f.Fuzz(func(_ *testing.T, datagram []byte) {
		_, _ = b.Open(datagram)
		_, _ = ParseMessage(datagram)
	})
}

func BenchmarkOpen(b *testing.B) {
	x, y := pair(b, "default", "default")
	counter := rand.Uint64() >> 1
	for b.Loop() {
		counter++
		if _, err := y.Open(x.Seal(Message{Op: Ping, Look: Direct}, counter)); err != nil {
			b.Fatal(err)
		}
	}
}
