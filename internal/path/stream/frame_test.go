// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

type frame struct {
	Kind    frameKind
	Payload string
}

// readFrames returns the frames of a stream and why it ended.
func readFrames(r io.Reader) (frames []frame, err error) {
	var late []func() // payloads are valid until flush
	err = frameReader{
		got: func(kind frameKind, payload []byte) error {
			late = append(late, func() { frames = append(frames, frame{kind, string(payload)}) })
			return nil
		},
		flush: func() {
			for _, f := range late {
				f()
			}
			late = nil
		},
	}.readAll(r)
	return frames, err
}

func encode(frames ...frame) []byte {
	var b []byte
	for _, f := range frames {
		b = append(appendHeader(b, f.Kind, len(f.Payload)), f.Payload...)
	}
	return b
}

func TestReadFrames(t *testing.T) {
	long := string(bytes.Repeat([]byte("0123456789abcdef"), maxDatagram/16))
	want := []frame{{frameOwn, "a"}, {frameKeepalive, ""}, {frameRelayed, long}, {99, "of a later version"}, {frameGossip, long}}
	for i := range 3 * chunk / maxDatagram {
		want = append(want, frame{frameOwn, long[:maxDatagram-i]})
	}
	b := encode(want...)
	for name, r := range map[string]io.Reader{"at once": bytes.NewReader(b), "byte by byte": iotest.OneByteReader(bytes.NewReader(b))} {
		got, err := readFrames(r)
		if err != io.EOF {
			t.Errorf("%s: got %v, want %v", name, err, io.EOF)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	if _, err := readFrames(bytes.NewReader(b[:len(b)-1])); err != io.ErrUnexpectedEOF {
		t.Errorf("cut off: got %v, want %v", err, io.ErrUnexpectedEOF)
	}
	huge := append(encode(frame{frameOwn, "a"}), 0xff, 0xff, byte(frameOwn))
	if got, err := readFrames(bytes.NewReader(huge)); err == nil || err == io.ErrUnexpectedEOF || len(got) != 1 {
		t.Errorf("a huge frame: got %v after %d frames, want an error at its header after one", err, len(got))
	}
}

// However a stream is divided, the frames in it are the same.
func FuzzReadFrames(f *testing.F) {
	f.Add(encode(frame{frameOwn, "a"}, frame{frameRelayed, "bc"}, frame{frameKeepalive, ""}))
	f.Add([]byte{0xff, 0xff, 1})
	f.Add([]byte{8, 1, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		whole, err := readFrames(bytes.NewReader(b))
		parts, errParts := readFrames(iotest.HalfReader(bytes.NewReader(b)))
		if diff := cmp.Diff(whole, parts); diff != "" || (err == io.EOF) != (errParts == io.EOF) {
			t.Errorf("got %v and %v (-whole +parts):\n%s", err, errParts, diff)
		}
		if again := encode(whole...); !bytes.HasPrefix(b, again) {
			t.Errorf("got the frames of %x, want those of %x", again, b)
		}
	})
}

func TestReadStopsAtErrors(t *testing.T) {
	want := errors.New("stop")
	err := frameReader{got: func(frameKind, []byte) error { return want }, flush: func() {}}.readAll(bytes.NewReader(encode(frame{frameOwn, "a"})))
	if err != want {
		t.Errorf("got %v, want %v", err, want)
	}
}

// A ring holds the newest frames that fit, in order.
func TestRing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const size = 128 // room for the times, too
		r := newRing(size)
		now := time.Unix(1700000000, 0)
		var want [][]byte
		total := func() (n int) {
			for _, b := range want {
				n += stamp + len(b)
			}
			return n
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			if rapid.Bool().Draw(t, "take") {
				b := make([]byte, rapid.IntRange(0, size).Draw(t, "room"))
				n := r.take(b)
				var taken []byte
				for len(want) > 0 && len(taken)+len(want[0]) <= len(b) {
					taken, want = append(taken, want[0]...), want[1:]
				}
				if !bytes.Equal(b[:n], taken) {
					t.Fatalf("took %x, want %x", b[:n], taken)
				}
				continue
			}
			payload := rapid.SliceOfN(rapid.Byte(), 0, size-stamp-frameHeader).Draw(t, "payload")
			want = append(want, encode(frame{frameOwn, string(payload)}))
			var dropped uint64
			for ; total() > size; dropped++ {
				want = want[1:]
			}
			if got := r.push(now, frameOwn, payload); got != dropped {
				t.Fatalf("dropped %d frames, want %d", got, dropped)
			}
		}
	})
}

// What waits for too long is dropped.
func TestQueueAges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		q.put(frameOwn, []byte("old"))
		q.put(frameGossip, []byte("old"))
		time.Sleep(maxAge)
		q.put(frameOwn, []byte("new"))
		b := make([]byte, chunk)
		if got, want := string(b[:q.take(b[:2])]), ""; got != want || q.drops() > 0 {
			t.Errorf("without room: got %q and %d dropped", got, q.drops())
		}
		time.Sleep(time.Nanosecond)
		if got, want := string(b[:q.take(b)]), string(encode(frame{frameOwn, "new"})); got != want || q.drops() != 2 {
			t.Errorf("got %q and %d dropped, want %q and 2", got, q.drops(), want)
		}
	})
}

// Gossip goes first, and neither it nor datagrams take the room of the other.
func TestQueue(t *testing.T) { synctest.Test(t, testQueue) } // where no time passes

func testQueue(t *testing.T) {
	q := newQueue()
	datagram, packet := make([]byte, 1400), make([]byte, 1200)
	for i := range 1000 {
		binary.BigEndian.PutUint32(datagram, uint32(i))
		binary.BigEndian.PutUint32(packet, uint32(i))
		if q.put(frameOwn, datagram)+q.put(frameGossip, packet) != 2 {
			t.Fatal("a frame that fits was refused")
		}
	}
	b := make([]byte, maxQueued+maxQueuedGossip)
	frames, err := readFrames(bytes.NewReader(b[:q.take(b)]))
	if err != io.EOF {
		t.Fatal(err)
	}
	counts := map[frameKind]int{}
	for i, f := range frames {
		counts[f.Kind]++
		last := i == len(frames)-1 || frames[i+1].Kind != f.Kind
		if n := binary.BigEndian.Uint32([]byte(f.Payload)); last && n != 999 {
			t.Errorf("the last of kind %d is %d, want 999", f.Kind, n)
		}
	}
	want := map[frameKind]int{frameGossip: maxQueuedGossip / (1200 + stamp + frameHeader), frameOwn: maxQueued / (1400 + stamp + frameHeader)}
	if diff := cmp.Diff(want, counts); diff != "" || frames[0].Kind != frameGossip {
		t.Errorf("first %d, counts (-want +got):\n%s", frames[0].Kind, diff)
	}
	if got, want := q.drops(), uint64(2000-len(frames)); got != want {
		t.Errorf("dropped %d, want %d", got, want)
	}
	if n := q.put(frameOwn, []byte("a"), make([]byte, maxDatagram+1), []byte("b")); n != 2 {
		t.Errorf("took %d datagrams, want the two that are not too long", n)
	}
	if got, want := string(b[:q.take(b)]), string(encode(frame{frameOwn, "a"}, frame{frameOwn, "b"})); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	q.put(frameOwn, datagram)
	q.clear()
	if n := q.take(b); n > 0 {
		t.Errorf("%d bytes are left after clear", n)
	}
}
