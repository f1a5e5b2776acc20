// SPDX-License-Identifier: Apache-2.0

package path

import (
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// echoed has a host do with an Echo or an Echoed what it does.
func (n *internet) echoed(b *box, source netip.AddrPort, port uint16, d datagram) {
	switch {
	case !b.up:
	case port != b.addr.Port():
		b.reached[port] = true
	default:
		if m := b.meeting[d.author]; m != nil && source.Addr().IsPrivate() {
			m.Receive(n.now, *d.echo)
		}
		if d.echo.Op == Echo {
			answer := *d.echo
			answer.Op = Echoed
			n.send(b, port, source, 0, datagram{author: b.num, to: d.author, echo: &answer})
		}
	}
}

// meet has two hosts try to meet at private addresses.
func (n *internet) meet(a, b *box) {
	for _, e := range [][2]*box{{a, b}, {b, a}} {
		self, peer := e[0], e[1]
		m := NewMeeting(shortOf(self.num), shortOf(peer.num), 0)
		m.SetAddrs([]netip.AddrPort{peer.addr})
		self.meeting[peer.num] = m
		var step func()
		step = func() {
			if to, msg, ok := m.Step(n.now); ok && self.up {
				n.send(self, self.addr.Port(), to, 0, datagram{author: self.num, to: peer.num, echo: &msg})
			}
			wait := time.Second
			if next, ok := m.Next(); ok {
				wait = max(next.Sub(n.now), 5*time.Millisecond)
			}
			n.after(wait, step)
		}
		n.after(time.Duration(n.rand.IntN(int(time.Second))), step)
	}
}

// Two hosts meet, both of them, if and only if packets pass both ways on a network that they
// share, and go on to until that ends.
func TestMeeting(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := newInternet(rapid.Uint64().Draw(t, "seed"))
		n.loss = rapid.SampledFrom([]float64{0, 0.1}).Draw(t, "loss")
		a := n.host(preserving, false, 1)
		b := n.host(preserving, false, rapid.IntRange(1, 2).Draw(t, "site"))
		cut := func(name string) {
			n.lanCut[[2]int{1, 2}] = rapid.Bool().Draw(t, name+" there")
			n.lanCut[[2]int{2, 1}] = rapid.Bool().Draw(t, name+" back")
		}
		passes := func() bool { return a.site == b.site && !n.lanCut[[2]int{1, 2}] && !n.lanCut[[2]int{2, 1}] }
		n.meet(a, b)
		for _, phase := range []string{"first cut", "second cut", "third cut"} {
			cut(phase)
			began := n.now
			n.run(3 * time.Minute)
			for _, m := range []*Meeting{a.meeting[2], b.meeting[1]} {
				if got := n.now.Sub(m.Met()) < time.Minute; got != passes() {
					t.Fatalf("after the %s: met %v ago, want met %v", phase, n.now.Sub(m.Met()), passes())
				}
			}
			if !passes() {
				for _, m := range []*Meeting{a.meeting[2], b.meeting[1]} {
					if m.Met().After(began.Add(meetFresh + meetEvery)) {
						t.Fatalf("after the %s: met %v later", phase, m.Met().Sub(began))
					}
				}
			}
		}
	})
}

// Hosts on one network know of each other in a moment, and then say little.
func TestMeetingPace(t *testing.T) {
	n := newInternet(1)
	a, b := n.host(preserving, false, 1), n.host(preserving, false, 1)
	n.meet(a, b)
	n.run(3 * time.Second)
	if a.meeting[2].Met().IsZero() || b.meeting[1].Met().IsZero() {
		t.Fatal("two hosts on one network don't know of each other")
	}
	before := a.meeting[2].number
	n.run(5 * time.Minute)
	if got, most := a.meeting[2].number-before, uint32(5*time.Minute/meetEvery)+1; got > most {
		t.Errorf("got %d echoes in five minutes, want no more than %d", got, most)
	}
}

// Whoever answers only those to whom it has spoken is not reached from a socket to which it
// never has, although it talks with the same host all the time.
func TestTrial(t *testing.T) {
	for kind := public; kind < natKinds; kind++ {
		n := newInternet(1)
		author, subject := n.host(public, false, 1), n.host(kind, false, 2)
		n.connect(author, subject, func() bool { return true })
		n.run(time.Minute)
		to := subject.addr
		if subject.router != nil && kind != firewall {
			to = netip.AddrPortFrom(subject.router.addr, subject.router.cone)
		}
		const port = 60000
		for range 3 {
			n.send(author, port, to, 0, datagram{author: author.num, to: subject.num, echo: &Message{Op: Echo}})
			n.run(time.Second)
		}
		if got, want := author.reached[port], kind == public || kind == fullCone; got != want {
			t.Errorf("%v: got reached %v, want %v", kind, got, want)
		}
	}
}

// A single lost try says nothing of a node that was reached, and one that was not is tried
// less and less often.
func TestTrialPace(t *testing.T) {
	now := time.Unix(1e9, 0)
	var trial Trial
	done := func(answered, reached, known bool) {
		t.Helper()
		trial.Done(now, answered)
		if r, k := trial.Reached(); r != reached || k != known {
			t.Errorf("got reached %v, known %v; want %v, %v", r, k, reached, known)
		}
		if wait := trial.Due().Sub(now); wait < tryFirst || wait > tryLater {
			t.Errorf("the next try follows after %v", wait)
		}
		now = trial.Due()
	}
	done(false, false, false)
	done(false, false, true)
	done(true, true, true)
	done(false, true, true)
	done(true, true, true)
	done(false, true, true)
	done(false, true, true)
	done(false, false, true)
	for range 100 {
		done(false, false, true)
	}
	done(true, true, true)
}
