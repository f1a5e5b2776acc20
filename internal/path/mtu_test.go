// SPDX-License-Identifier: Apache-2.0

package path

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// tunnelMTU is that of two hosts on Ethernet.
const tunnelMTU = 1420

// fitters are two hosts that talk while busy holds, and a relay.
func fitters(seed uint64, busy *bool) (n *internet, a, b *box) {
	n = newInternet(seed)
	n.host(public, false, 0).relay = true
	a, b = n.host(public, false, 0), n.host(restricted, false, 2)
	n.bind(a)
	n.bind(b)
	n.connect(a, b, func() bool { return *busy })
	a.machine[b.num].SetMTU(tunnelMTU)
	b.machine[a.num].SetMTU(tunnelMTU)
	return n, a, b
}

// mtu asserts what is known of the path from one host to another.
func (n *internet) mtu(t rapid.TB, from, to *box, want int) {
	t.Helper()
	if got := from.machine[to.num].MTU(); got != want {
		use, proved := from.machine[to.num].InUse()
		t.Fatalf("MTU from %d to %d: got %d, want %d, over %v, proved %t", from.num, to.num, got, want, use, proved)
	}
}

// searchLimit is how long it may take until an MTU is known: mtuTries of mtuTryEvery for each of
// some seven lengths that don't pass, and what the path needs.
const searchLimit = 45 * time.Second

func TestMTU(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		busy := true
		n, a, b := fitters(rapid.Uint64().Draw(t, "seed"), &busy)
		there := rapid.IntRange(600, 1500).Draw(t, "length from the first host")
		back := rapid.IntRange(600, 1500).Draw(t, "length from the second host")
		n.narrow[[2]int{a.num, b.num}], n.narrow[[2]int{b.num, a.num}] = there, back
		n.loss = rapid.SampledFrom([]float64{0, 0.01}).Draw(t, "loss")
		n.run(15*time.Second + searchLimit)
		carried := func(datagram int) int {
			if datagram-dataOverhead >= tunnelMTU {
				return tunnelMTU
			}
			return (datagram - dataOverhead) / mtuUnit * mtuUnit
		}
		n.mtu(t, a, b, carried(there))
		n.mtu(t, b, a, carried(back))
	})
}

// TestMTUPerPath has a straight path that carries less than the relay, and leaves and comes back.
func TestMTUPerPath(t *testing.T) {
	busy := true
	n, a, b := fitters(1, &busy)
	n.narrow[[2]int{a.num, b.num}] = 1352 // what is left of 1380
	n.run(time.Minute)
	n.mtu(t, a, b, 1312)
	undo := n.cutBoth(a, b)
	n.run(time.Minute)
	if use, _ := a.machine[b.num].InUse(); use.Kind != Relayed {
		t.Fatalf("got path %v, want a relay", use)
	}
	n.mtu(t, a, b, tunnelMTU)
	undo()
	n.run(3 * time.Minute)
	if use, _ := a.machine[b.num].InUse(); use.Kind != Direct {
		t.Fatalf("got path %v, want a direct one", use)
	}
	n.mtu(t, a, b, 1312)
}

// TestMTUFollows has a path and a tunnel change their MTU.
func TestMTUFollows(t *testing.T) {
	busy := true
	n, a, b := fitters(1, &busy)
	way := [2]int{a.num, b.num}
	n.run(time.Minute)
	n.mtu(t, a, b, tunnelMTU)
	n.narrow[way] = 1352
	n.run(mtuEvery + searchLimit)
	n.mtu(t, a, b, 1312)
	a.machine[b.num].SetMTU(1312) // as the problem says
	n.mtu(t, a, b, 0)
	n.run(10 * time.Second)
	n.mtu(t, a, b, 1312)
	a.machine[b.num].SetMTU(tunnelMTU)
	delete(n.narrow, way)
	n.run(10 * time.Second)
	n.mtu(t, a, b, tunnelMTU)
	a.machine[b.num].SetMTU(9000) // longer than any relay passes on, and all that is tried passes
	n.run(10 * time.Second)
	n.mtu(t, a, b, 9000)
	a.machine[b.num].SetMTU(0)
	n.run(10 * time.Second)
	n.mtu(t, a, b, 0)
}

// TestMTUCost counts the bytes of long probes: none without traffic but at first.
func TestMTUCost(t *testing.T) {
	busy := false
	n, a, b := fitters(1, &busy)
	way := [2]int{a.num, b.num}
	n.run(time.Hour)
	n.mtu(t, a, b, tunnelMTU)
	if got, want := n.long[way], tunnelMTU+dataOverhead; got != want {
		t.Errorf("got %d bytes of long probes while idle, want %d", got, want)
	}
	busy, n.narrow[way], n.long[way] = true, 1352, 0
	n.run(time.Hour)
	n.mtu(t, a, b, 1312)
	if got, most := n.long[way], 50*int(time.Hour.Seconds()); got == 0 || got > most {
		t.Errorf("got %d bytes of long probes in an hour, want at most %d", got, most)
	}
}

// TestMTUOfDeadPath has nothing pass: that says nothing of lengths.
func TestMTUOfDeadPath(t *testing.T) {
	busy := true
	n, a, b := fitters(1, &busy)
	n.run(time.Minute)
	n.mtu(t, a, b, tunnelMTU)
	n.up(false, n.boxes[0], b)
	n.run(mtuEvery + time.Minute)
	n.mtu(t, a, b, tunnelMTU)
}

func (n *internet) up(up bool, boxes ...*box) {
	for _, b := range boxes {
		b.up = up
	}
}

// TestLongMessage seals a long probe, which opens as a short one does.
func TestLongMessage(t *testing.T) {
	a, b := pair(t, "prod", "prod")
	want := Message{Op: Ping, Number: 7}
	long := want
	long.Size = 1452
	sealed := a.Seal(long, 1)
	if len(sealed) != long.Size {
		t.Errorf("got %d bytes, want %d", len(sealed), long.Size)
	}
	if got, err := b.Open(sealed); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}
