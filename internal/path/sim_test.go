// SPDX-License-Identifier: Apache-2.0

package path

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// best is the best kind of path that can work between two hosts.
func (n *internet) bestKind(a, b *box) Kind {
	both := func(m map[[2]int]bool, x, y int) bool { return m[[2]int{x, y}] || m[[2]int{y, x}] }
	if a.sharesLAN(b) && !both(n.lanCut, a.num, b.num) {
		return LAN
	}
	kind := func(b *box) natKind {
		if b.router == nil {
			return public
		}
		return b.router.kind
	}
	open := func(k natKind) bool { return k == public || k == fullCone }
	punched := kind(a) != symmetric && kind(b) != symmetric && n.hears(a) && n.hears(b)
	direct := open(kind(a)) || open(kind(b)) || punched
	if direct && !both(n.cut, a.num, b.num) {
		return Direct
	}
	if n.meetAtRelay(a, b) {
		return Relayed
	}
	return None
}

// meetAtRelay reports whether both hosts reach a relay.
func (n *internet) meetAtRelay(a, b *box) bool {
	reaches := func(b, r *box) bool { return !n.cut[[2]int{b.num, r.num}] && !n.cut[[2]int{r.num, b.num}] }
	return slices.ContainsFunc(n.boxes, func(r *box) bool { return r.relay && r.up && r != a && r != b && reaches(a, r) && reaches(b, r) })
}

// isShut reports whether a host's router takes for its own what another host sends, so that the first one is
// seen elsewhere. That lasts for natTimeout after the last packet.
func (n *internet) isShut(b, from *box) bool {
	if b.router == nil {
		return false
	}
	for f, last := range b.router.own {
		if n.now.Sub(last) < natTimeout && f.remote.Addr() == from.outside() {
			return true
		}
	}
	return false
}

// calm asserts the law of this package: 15 s after the last fault packets pass both ways, unless all that is
// left is a way through a router that is shut for now; 75 s later over the best kind of path that works, and
// it stays.
func (n *internet) calm(t rapid.TB, a, b *box) {
	t.Helper()
	want := n.bestKind(a, b)
	if want == None {
		n.run(15 * time.Second)
		return
	}
	fail := func(format string, args ...any) {
		t.Helper()
		t.Fatalf("%s\n%s", fmt.Sprintf(format, args...), strings.Join(n.log[max(0, len(n.log)-60):], "\n"))
	}
	passes := func(within time.Duration) bool {
		ab, ba := b.got[a.num], a.got[b.num]
		n.run(within)
		return b.got[a.num] > ab && a.got[b.num] > ba
	}
	n.run(15 * time.Second)
	shut := (n.isShut(a, b) || n.isShut(b, a)) && !n.meetAtRelay(a, b)
	if !passes(time.Second) && !shut {
		fail("after 15 s no packets pass, best is %v", want)
	}
	n.run(74 * time.Second)
	for _, e := range [][2]*box{{a, b}, {b, a}} {
		if got, proved := e[0].machine[e[1].num].InUse(); got.Kind > want || !proved {
			fail("after 90 s: %d uses %v to %d (proved %t), want %v", e[0].num, got, e[1].num, proved, want)
		}
	}
	before, _ := a.machine[b.num].InUse()
	for range 30 {
		if !passes(time.Second) {
			fail("packets don't pass on the best path")
		}
	}
	if after, _ := a.machine[b.num].InUse(); after != before && after.Kind >= before.Kind { // two may meet by luck
		fail("the path does not stay: %v, then %v", before, after)
	}
}

// wantKind asserts that both hosts use a path of a kind to each other, and that it is proved.
func (n *internet) wantKind(t *testing.T, when string, a, b *box, want Kind) {
	t.Helper()
	for _, e := range [][2]*box{{a, b}, {b, a}} {
		if got, proved := e[0].machine[e[1].num].InUse(); got.Kind != want || !proved {
			t.Errorf("%s: %d uses %v to %d (proved %t), want %v\n%s", when, e[0].num, got, e[1].num, proved, want, n.last(20))
		}
	}
}

// TestKindsMeet has hosts behind each pair of kinds of routers meet.
func TestKindsMeet(t *testing.T) {
	for x := range natKinds {
		for y := range natKinds {
			for accept := range 4 {
				t.Run(fmt.Sprintf("%v and %v, accept %d", x, y, accept), func(t *testing.T) {
					n := newInternet(uint64(x*100 + y*10 + natKind(accept)))
					r := n.host(public, false, 0)
					r.relay = true
					a, b := n.host(x, accept&1 != 0, 1), n.host(y, accept&2 != 0, 2)
					n.bind(a)
					n.bind(b)
					n.connect(a, b, func() bool { return true })
					n.calm(t, a, b)
				})
			}
		}
	}
}

// faults are what happens between two calms. Each returns its undoing, nil if it stays.
var faults = []struct {
	name string
	do   func(n *internet, a, b *box) func()
}{
	{"link cut", func(n *internet, a, b *box) func() { return n.cutBoth(a, b) }},
	{"link cut one way", func(n *internet, a, b *box) func() { return n.cutOne(a, b) }},
	{"link cut the other way", func(n *internet, a, b *box) func() { return n.cutOne(b, a) }},
	{"first end cut from a relay", func(n *internet, a, _ *box) func() { return n.cutBoth(a, n.boxes[0]) }},
	{"second end cut from the other relay", func(n *internet, _, b *box) func() { return n.cutBoth(n.boxes[1], b) }},
	{"LAN cut", func(n *internet, a, b *box) func() {
		n.lanCut[[2]int{a.num, b.num}], n.lanCut[[2]int{b.num, a.num}] = true, true
		return func() { clear(n.lanCut) }
	}},
	{"relay down", func(n *internet, _, _ *box) func() {
		r := n.boxes[n.rand.IntN(2)]
		r.up = false
		return func() { r.up, r.table = true, NewRelay([32]byte{byte(r.num), 1}) }
	}},
	{"router of the first end forgets", func(n *internet, a, _ *box) func() { a.forget(); return nil }},
	{"router of the second end forgets", func(n *internet, _, b *box) func() { b.forget(); return nil }},
	{"daemon restarts", func(n *internet, a, b *box) func() { n.restart(a, b); return nil }},
	{"other daemon restarts", func(n *internet, a, b *box) func() { n.restart(b, a); return nil }},
	{"daemon away", func(n *internet, a, b *box) func() {
		a.up = false
		return func() { a.up = true; n.restart(a, b) }
	}},
	{"address changes", func(n *internet, a, _ *box) func() { a.move(); return nil }},
	{"loss", func(n *internet, _, _ *box) func() { n.loss = 0.2; return func() { n.loss = 0 } }},
}

func (n *internet) cutOne(a, b *box) func() {
	n.cut[[2]int{a.num, b.num}] = true
	return func() { delete(n.cut, [2]int{a.num, b.num}) }
}

func (n *internet) cutBoth(a, b *box) func() {
	x, y := n.cutOne(a, b), n.cutOne(b, a)
	return func() { x(); y() }
}

func (b *box) forget() {
	if b.router != nil {
		b.router.forget()
	}
}

// move gives a host, or its router, another address.
func (b *box) move() {
	next := func(a netip.Addr) netip.Addr {
		as4 := a.As4()
		as4[3] += 50
		return netip.AddrFrom4(as4)
	}
	if b.router != nil {
		b.router.addr = next(b.router.addr)
		b.router.forget()
		if b.router.kind != firewall {
			return
		}
	}
	b.addr = netip.AddrPortFrom(next(b.addr.Addr()), b.addr.Port())
}

// restart gives a host a new machine for a peer, which begins with the kernel's endpoint.
func (n *internet) restart(b, peer *box) {
	b.binder = &Binder{}
	n.setRelays(b)
	b.machine[peer.num] = NewMachine(b.num < peer.num, *b.wg[peer.num], n.now)
}

// TestFaults has two hosts with two relays suffer faults at random, and asserts the law
// after each calm.
func TestFaults(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := newInternet(rapid.Uint64().Draw(t, "seed"))
		for range 2 {
			n.host(public, false, 0).relay = true
		}
		kind := rapid.IntRange(0, int(natKinds)-1)
		a := n.host(natKind(kind.Draw(t, "kind")), rapid.Bool().Draw(t, "accept"), rapid.IntRange(1, 2).Draw(t, "site"))
		b := n.host(natKind(kind.Draw(t, "other kind")), rapid.Bool().Draw(t, "other accept"), 2)
		a.rests, b.rests = rapid.Bool().Draw(t, "rests"), rapid.Bool().Draw(t, "other rests")
		n.bind(a)
		n.bind(b)
		busy := true
		n.connect(a, b, func() bool { return busy })
		n.calm(t, a, b)
		for range rapid.IntRange(1, 4).Draw(t, "rounds") {
			busy = rapid.Bool().Draw(t, "busy")
			if !busy {
				n.run(time.Duration(rapid.IntRange(0, 1000).Draw(t, "idle seconds")) * time.Second)
			}
			var undo []func()
			for range rapid.IntRange(1, 3).Draw(t, "faults") {
				f := rapid.SampledFrom(faults).Draw(t, "fault")
				n.note("fault: %s", f.name)
				if u := f.do(n, a, b); u != nil {
					undo = append(undo, u)
				}
				n.run(time.Duration(rapid.IntRange(0, 20000).Draw(t, "ms")) * time.Millisecond)
			}
			if rapid.Bool().Draw(t, "calm before the end of faults") && n.loss == 0 && a.up && b.up {
				busy = true
				n.calm(t, a, b)
			}
			for _, u := range undo {
				u()
			}
			if !busy {
				n.run(time.Duration(rapid.IntRange(0, 1000).Draw(t, "idle seconds afterwards")) * time.Second)
			}
			n.note("faults are over")
			busy = true
			n.calm(t, a, b)
		}
	})
}

// TestGap cuts the link of two hosts that talk, one way and both, and asserts for how
// long nothing arrives at an end: less than 1.5 s.
func TestGap(t *testing.T) {
	cuts := map[string]func(n *internet, a, b *box) func(){
		"both ways":       (*internet).cutBoth,
		"from the leader": (*internet).cutOne,
		"to the leader":   func(n *internet, a, b *box) func() { return n.cutOne(b, a) },
	}
	for name, cut := range cuts {
		for _, jitter := range []time.Duration{2 * time.Millisecond, 50 * time.Millisecond} {
			t.Run(fmt.Sprintf("%s, jitter %v", name, jitter), func(t *testing.T) {
				for seed := range uint64(20) {
					n := newInternet(seed)
					n.jitter = jitter
					n.host(public, false, 0).relay = true
					a, b := n.host(restricted, false, 1), n.host(preserving, false, 2)
					n.bind(a)
					n.bind(b)
					n.connect(a, b, func() bool { return true })
					n.calm(t, a, b)
					n.run(time.Duration(n.rand.Int64N(int64(steadyPace)))) // at any time between two probes
					a.gap, b.gap = 0, 0
					cut(n, a, b)
					n.run(5 * time.Second)
					if gap := max(a.gap, b.gap); gap > 1500*time.Millisecond {
						t.Errorf("seed %d: gap of %v\n%s", seed, gap, n.last(20))
					}
				}
			})
		}
	}
}

// TestDirectIsBackSoon cuts the link of two hosts for a while. They are direct again before as much time has
// passed once more, and ten seconds.
func TestDirectIsBackSoon(t *testing.T) {
	for _, length := range []time.Duration{2 * time.Second, 5 * time.Second, 20 * time.Second, 50 * time.Second} {
		t.Run(length.String(), func(t *testing.T) {
			n := newInternet(1)
			n.host(public, false, 0).relay = true
			a, b := n.host(public, false, 0), n.host(public, false, 0)
			n.bind(a)
			n.bind(b)
			n.connect(a, b, func() bool { return true })
			n.calm(t, a, b)
			heal := n.cutBoth(a, b)
			n.run(length)
			heal()
			n.run(length + 10*time.Second)
			n.wantKind(t, "after the fault", a, b, Direct)
		})
	}
}
