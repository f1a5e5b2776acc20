// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"bytes"
	"crypto/rand"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/meshd/meshd/internal/mesh"
)

func testRing(t testing.TB, secrets ...[32]byte) keyring {
	t.Helper()
	ring, err := newKeyring(secrets)
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

func TestPacketIsSealedForOneReceiver(t *testing.T) {
	to, other := mesh.ID{1}, mesh.ID{2}
	ring := testRing(t, testSecret)
	p := packet{
		kind: kindSync, want: true, label: label{1}, from: mesh.ID{9}, boot: 3, counter: 4,
		payload: make([]byte, maxPayload),
	}
	sealed, err := ring.sealPacket(rand.Reader, p, to)
	if err != nil {
		t.Fatal(err)
	}
	if len(sealed) != maxPacket {
		t.Errorf("the largest packet has %d bytes, want %d", len(sealed), maxPacket)
	}
	got, err := ring.openPacket(sealed, to)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p, got, cmp.AllowUnexported(packet{})); diff != "" {
		t.Errorf("packet (-want +got):\n%s", diff)
	}

	flipped := bytes.Clone(sealed)
	flipped[len(flipped)/2] ^= 1
	tests := []struct {
		name string
		ring keyring
		b    []byte
		to   mesh.ID
		err  error
	}{
		{"other receiver", ring, sealed, other, errSealed},
		{"other secret", testRing(t, [32]byte{8}), sealed, to, errSealed},
		{"second secret", testRing(t, [32]byte{8}, testSecret), sealed, to, nil},
		{"a bit flipped", ring, flipped, to, errSealed},
		{"cut off", ring, sealed[:40], to, errSealed},
		{"nothing", ring, nil, to, errSealed},
		{"other version", ring, append([]byte{9}, sealed[1:]...), to, errSealed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := tt.ring.openPacket(tt.b, tt.to); !errors.Is(err, tt.err) {
				t.Errorf("got %v, want %v", err, tt.err)
			}
		})
	}
}

func FuzzParsePacket(f *testing.F) {
	f.Add(packet{kind: kindHere}.append(nil))
	f.Add(packet{kind: kindSync, want: true, payload: []byte("x")}.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parsePacket(b)
		if err != nil {
			return
		}
		again, err := parsePacket(p.append(nil))
		if err != nil || !bytes.Equal(again.payload, p.payload) || again.from != p.from {
			t.Errorf("%+v became %+v, %v", p, again, err)
		}
	})
}

func FuzzOpenPacket(f *testing.F) {
	f.Add([]byte{formatVersion})
	f.Add(make([]byte, 100))
	ring := testRing(f, testSecret)
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := ring.openPacket(b, mesh.ID{}); err == nil {
			t.Error("garbage is decrypted")
		}
	})
}

type arrival struct {
	boot, counter uint64
	want          bool
}

func TestWindow(t *testing.T) {
	tests := []struct {
		name     string
		arrivals []arrival
	}{
		{"in order", []arrival{{1, 1, true}, {1, 2, true}, {1, 3, true}}},
		{"twice", []arrival{{1, 1, true}, {1, 1, false}, {1, 2, true}, {1, 1, false}, {1, 2, false}}},
		{"out of order", []arrival{{1, 5, true}, {1, 3, true}, {1, 4, true}, {1, 3, false}}},
		{"edge of the window", []arrival{{1, 2000, true}, {1, 2000 - windowSize + 1, true}, {1, 2000 - windowSize, false}}},
		{"jump clears the ring", []arrival{{1, 1, true}, {1, 1 + windowSize, true}, {1, 2 + windowSize, true}, {1, 2, false}, {1, 3, true}, {1, 3, false}}},
		{"far jump", []arrival{{1, 1, true}, {1, 1 << 40, true}, {1, 1<<40 - 5, true}, {1, 1 << 40, false}}},
		{"jump by twice the ring", []arrival{{1, 2, true}, {1, 3 + 2*windowSize, true}, {1, 2 + 2*windowSize, true}}},
		{"restart", []arrival{{1, 100, true}, {2, 1, true}, {1, 101, false}, {2, 1, false}, {2, 2, true}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := replays{windows: make(map[mesh.ID]*window)}
			for i, a := range tt.arrivals {
				if got := r.admit(mesh.ID{1}, a.boot, a.counter); got != a.want {
					t.Errorf("arrival %d (%d, %d): got %v, want %v", i, a.boot, a.counter, got, a.want)
				}
			}
		})
	}
}

// No packet is accepted twice, and a packet that is not too old is accepted once.
func TestWindowAdmitsOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := replays{windows: make(map[mesh.ID]*window)}
		seen := make(map[uint64]bool)
		var top uint64
		for range rapid.IntRange(1, 200).Draw(t, "packets") {
			n := rapid.Uint64Range(1, 3*windowSize).Draw(t, "counter")
			old := top >= windowSize && n <= top-windowSize
			if got, want := r.admit(mesh.ID{1}, 1, n), !old && !seen[n]; got != want {
				t.Fatalf("counter %d after %d: got %v, want %v", n, top, got, want)
			}
			seen[n] = true
			top = max(top, n)
		}
	})
}

func TestReplaysAreBounded(t *testing.T) {
	r := replays{windows: make(map[mesh.ID]*window)}
	for i := range maxSenders + 10 {
		r.admit(mesh.ID{byte(i), byte(i >> 8)}, 1, 1)
	}
	if len(r.windows) != maxSenders {
		t.Errorf("%d senders are remembered, want %d", len(r.windows), maxSenders)
	}
	if r.admit(mesh.ID{byte((maxSenders + 9) & 0xff), byte((maxSenders + 9) >> 8)}, 1, 1) {
		t.Error("the last sender was forgotten before the first")
	}
}

// After a handshake a sender counts from where it says, and no earlier packet of it is
// accepted.
func TestWindowResumes(t *testing.T) {
	from := mesh.ID{1}
	tests := []struct {
		name          string
		boot, counter uint64
		arrivals      []arrival
	}{
		{"lower boot", 3, 40, []arrival{{3, 40, false}, {3, 39, false}, {3, 41, true}, {3, 41, false}}},
		{"lower boot, replay of the higher one", 3, 40, []arrival{{9, 5001, false}, {9, 1, false}, {3, 41, true}}},
		{"lower boot, restart beyond", 3, 40, []arrival{{10, 1, true}, {3, 41, false}}},
		{"same boot, begins again", 9, 7, []arrival{{9, 7, false}, {9, 8, true}}},
		{"same boot, goes on", 9, 4999, []arrival{{9, 5000, false}, {9, 4990, true}, {9, 5001, true}}},
		{"higher boot", 10, 7, []arrival{{10, 7, true}, {9, 5001, false}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := replays{windows: make(map[mesh.ID]*window)}
			r.resume(from, 1, 1) // of an unknown sender
			r.admit(from, 9, 5000)
			r.resume(from, tt.boot, tt.counter)
			for i, a := range tt.arrivals {
				if got := r.admit(from, a.boot, a.counter); got != a.want {
					t.Errorf("arrival %d (%d, %d): got %v, want %v", i, a.boot, a.counter, got, a.want)
				}
			}
		})
	}
}

// A restored node starts again and again until it has reached its earlier number of
// starts.
func TestWindowResumesAtEachStart(t *testing.T) {
	from := mesh.ID{1}
	r := replays{windows: make(map[mesh.ID]*window)}
	r.admit(from, 9, 5000)
	for boot := uint64(3); boot < 12; boot++ {
		r.resume(from, boot, 0)
		for _, a := range []arrival{{boot, 1, true}, {boot, 1, false}, {boot - 1, 2, false}} {
			if got := r.admit(from, a.boot, a.counter); got != a.want {
				t.Errorf("start %d: packet (%d, %d): got %v, want %v", boot, a.boot, a.counter, got, a.want)
			}
		}
	}
}
