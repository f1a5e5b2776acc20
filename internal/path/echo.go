// SPDX-License-Identifier: Apache-2.0

package path

import (
	"net/netip"
	"time"
)

// An Echo asks for an Echoed, which goes back from the address and port at which the Echo
// came, to those from which it came. Neither says anything of a path, and a machine does not
// see them. They show two things:
//
//   - that two nodes are on one private network: a Meeting, between WireGuard's ports at the
//     nodes' internal IPs. Package agent checks that all came by a link of that network.
//   - that a node is reached by whoever asks: a Trial, from a socket from which nothing was
//     ever sent to that node. A NAT or firewall that lets in only answers drops it. (One that
//     lets in all that comes from an address of an earlier answer, whatever the port, does
//     not; RFC 4787 calls that address-dependent filtering.)
//
// An Echo may come from a forged source, so a node answers each other node at most once in
// echoEvery, with an Echoed that is not longer. That makes it useless for a flood.
const (
	echoEvery = time.Second / 2
	echoBurst = 4
)

// EchoPace returns how often, and how often at once, a node answers an Echo of another one.
func EchoPace() (every time.Duration, burst int) { return echoEvery, echoBurst }

// The pace of a Meeting. A node that has not answered for a minute is not met any more, so
// there is time for some more Echoes after a lost one.
const (
	meetEvery  = 25 * time.Second
	meetSoon   = time.Second      // as long as the answer is missing
	meetTries  = 30               // at that pace
	meetRarely = 20 * time.Second // after that
	meetFresh  = time.Minute      // for how long an answer is told to the other end
)

// Meeting finds out whether another node is on the same private network. Both ends run one;
// the one with the lower fingerprint asks, and says in each Echo whether it was answered. So
// both know. It is not safe for concurrent use.
type Meeting struct {
	asks     bool
	addrs    []netip.AddrPort // of the other end, on the private network
	current  int              // of addrs, where to ask next
	number   uint32           // of the last Echo
	due      time.Time
	misses   int       // Echoes in a row that were not answered; the last one may still be
	answered time.Time // when the other end answered last
	met      time.Time
}

// NewMeeting returns the meeting of two nodes. The numbers of Echoes follow number: answers to those of
// a meeting before, which somebody may have recorded, must not be taken for answers to those of this one.
func NewMeeting(self, peer Short, number uint32) *Meeting {
	return &Meeting{asks: string(self[:]) < string(peer[:]), number: number}
}

// SetAddrs sets the other end's WireGuard addresses on the private network.
func (m *Meeting) SetAddrs(addrs []netip.AddrPort) {
	m.addrs = addrs
	if m.current >= len(addrs) {
		m.current = 0
	}
}

// Met returns when it was shown last that packets pass both ways; zero for never.
func (m *Meeting) Met() time.Time { return m.met }

// Next returns when to call Step again. It returns false if this end only answers.
func (m *Meeting) Next() (time.Time, bool) { return m.due, m.asks && len(m.addrs) > 0 }

// Step returns the Echo to send now, and where; false for none.
func (m *Meeting) Step(now time.Time) (netip.AddrPort, Message, bool) {
	if due, asks := m.Next(); !asks || now.Before(due) {
		return netip.AddrPort{}, Message{}, false
	}
	if m.misses > 0 {
		m.current = (m.current + 1) % len(m.addrs)
	}
	m.number++
	m.misses++
	wait := meetSoon
	if m.misses > meetTries {
		wait = meetRarely
	}
	m.due = now.Add(wait)
	msg := Message{Op: Echo, Look: LAN, Number: m.number, This: !m.answered.IsZero() && now.Sub(m.answered) < meetFresh}
	return m.addrs[m.current], msg, true
}

// Receive takes an Echo or an Echoed of the other end that came over the private network.
func (m *Meeting) Receive(now time.Time, msg Message) {
	switch {
	case msg.Op == Echo && msg.Look == LAN && msg.This && !m.asks:
		m.met = now
	case msg.Op == Echoed && m.asks && msg.Number == m.number && m.misses > 0:
		first := now.Sub(m.met) >= meetFresh
		m.misses, m.answered, m.met = 0, now, now
		m.due = now.Add(meetEvery)
		if first {
			m.due = now // tell the other end
		}
	}
}

// The pace of a Trial.
const (
	tryAgain  = 10 * time.Minute // of one that was reached
	tryFirst  = 20 * time.Second // after a failure, and doubled after each further one
	tryLater  = 30 * time.Minute
	tryEnough = 3 // failures in a row until a node that was reached is not any more
)

// Trial remembers whether a node was reached at one address by whoever asks.
type Trial struct {
	due     time.Time
	fails   int // in a row
	reached bool
	known   bool
}

// Due returns when to try next.
func (t *Trial) Due() time.Time { return t.due }

// Done takes what has come of a try.
func (t *Trial) Done(now time.Time, answered bool) {
	if answered {
		t.known, t.reached, t.fails, t.due = true, true, 0, now.Add(tryAgain)
		return
	}
	t.due = now.Add(min(tryFirst<<min(t.fails, 10), tryLater))
	t.fails++
	if t.fails >= tryEnough || !t.reached && t.fails >= 2 {
		t.known, t.reached = true, false
	}
}

// Postpone is for a try that could not be made.
func (t *Trial) Postpone(now time.Time) { t.due = now.Add(tryAgain) }

// Reached reports whether the node is reached, and whether that is known.
func (t *Trial) Reached() (reached, known bool) { return t.reached, t.known }
