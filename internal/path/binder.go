// SPDX-License-Identifier: Apache-2.0

package path

import (
	"net/netip"
	"slices"
	"time"
)

// The pace at which a node binds to relays.
const (
	// renewEvery leaves time to repeat a Bind before a NAT forgets the mapping: after 30 s
	// at the earliest, as idlePace has it.
	renewEvery = 20 * time.Second
	bindEvery  = time.Second // until there is an answer
	bindTries  = 4           // at one address
	// retryAfter is when a relay that did not answer is tried again, if another one has not
	// taken its place.
	retryAfter = 5 * time.Second
	// wantFor is for how long a node stays bound to a relay after it wanted that last.
	wantFor = 3 * time.Minute
)

// RelayAddr is an address of a relay.
type RelayAddr struct {
	Relay Short
	Addr  netip.AddrPort
}

// BindRequest is a Bind to send, from WireGuard's port.
type BindRequest struct {
	RelayAddr
	Message Message
}

// BoundRelay is a relay to which this node is bound.
type BoundRelay struct {
	RelayAddr
	Seen netip.AddrPort // where the relay sees this node
	Kept bool           // this node stays bound to it
}

// relayState is what a Binder knows of one relay.
type relayState struct {
	id      Short
	addrs   []netip.AddrPort
	current int // of addrs, the one to use
	kept    bool
	wanted  time.Time // until when

	due    time.Time // when to send the next Bind
	tries  int       // how many Binds were sent to the current address without success
	failed int       // how many of addrs in a row have not answered
	silent bool      // none of addrs has answered
	number uint32    // of the last Bind
	token  Token
	asked  time.Time // when a Who was obeyed last

	boundUntil time.Time
	seen       netip.AddrPort
}

// Binder keeps this node bound to some relays, so that others reach it there, and to others
// while it wants to reach somebody there. It is not safe for concurrent use.
type Binder struct {
	relays []*relayState // the best first
	keep   int
	number uint32
}

// CountFrom sets what the numbers of Binds follow: none of a Binder before is to be used again, since
// somebody may have recorded the answers.
func (b *Binder) CountFrom(number uint32) { b.number = number }

// SetRelays sets the relays there are, the best first, and to how many of them this node
// stays bound whether or not it has anything to send: 0 if strangers reach it. The addresses
// of one relay are tried in the order in which they are given. A relay to which the node
// is bound is not replaced by a better one.
func (b *Binder) SetRelays(all []RelayAddr, keep int) {
	b.keep = keep
	var relays []*relayState
	for _, a := range all {
		i := slices.IndexFunc(relays, func(r *relayState) bool { return r.id == a.Relay })
		if i < 0 {
			relays = append(relays, &relayState{id: a.Relay})
			i = len(relays) - 1
		}
		relays[i].addrs = append(relays[i].addrs, a.Addr)
	}
	for i, r := range relays {
		old := b.find(r.id)
		if old == nil {
			continue
		}
		if current := slices.Index(r.addrs, old.addrs[old.current]); current >= 0 {
			old.current = current
		} else {
			old.current, old.tries, old.failed, old.due, old.boundUntil = 0, 0, 0, time.Time{}, time.Time{}
		}
		old.addrs = r.addrs
		relays[i] = old
	}
	b.relays = relays
}

func (b *Binder) find(id Short) *relayState {
	i := slices.IndexFunc(b.relays, func(r *relayState) bool { return r.id == id })
	if i < 0 {
		return nil
	}
	return b.relays[i]
}

// Want has this node bound to a relay for a while: it has something to send to somebody
// there, or somebody has sent something to it.
func (b *Binder) Want(now time.Time, relay Short) {
	if r := b.find(relay); r != nil {
		r.wanted = now.Add(wantFor)
	}
}

// Receive takes a Bound or a Who that a relay has sealed.
func (b *Binder) Receive(now time.Time, relay Short, m Message) {
	r := b.find(relay)
	switch {
	case r == nil:
	case m.Op == Bound && m.Number == r.number && r.tries > 0:
		if m.Token != (Token{}) {
			r.token, r.due = m.Token, now
			return
		}
		r.token, r.seen, r.boundUntil = Token{}, m.Seen, now.Add(boundFor)
		r.tries, r.failed, r.silent = 0, 0, false
		r.due = now.Add(renewEvery)
	case m.Op == Who && r.active(now) && now.Sub(r.asked) >= bindEvery:
		// Any node can make a Who. All that it leads to is one Bind to the relay's own address.
		r.asked, r.token, r.due = now, m.Token, now
	}
}

// active reports whether the node is to be bound to the relay.
func (r *relayState) active(now time.Time) bool { return r.kept || now.Before(r.wanted) }

// Step returns what is to be sent now. It is called whenever something has happened, and at
// the time that Next returns.
func (b *Binder) Step(now time.Time) []BindRequest {
	for _, r := range b.relays {
		if r.active(now) && r.tries >= bindTries && !now.Before(r.due) {
			r.giveUp(now)
		}
	}
	b.choose(now)
	var requests []BindRequest
	for _, r := range b.relays {
		if !r.active(now) || now.Before(r.due) {
			continue
		}
		b.number++
		r.number = b.number
		r.tries++
		r.due = now.Add(bindEvery)
		requests = append(requests, BindRequest{RelayAddr{r.id, r.addrs[r.current]}, Message{Op: Bind, Number: r.number, Token: r.token}})
	}
	return requests
}

// choose fills the places of the relays to which this node stays bound.
func (b *Binder) choose(now time.Time) {
	kept := 0
	for _, r := range b.relays {
		r.kept = r.kept && kept < b.keep
		if r.kept {
			kept++
		}
	}
	for _, r := range b.relays {
		if kept < b.keep && !r.kept && (!r.silent || !now.Before(r.due)) {
			r.kept = true
			kept++
		}
	}
}

// giveUp turns to the relay's next address. After the last one, another relay takes its
// place.
func (r *relayState) giveUp(now time.Time) {
	r.current = (r.current + 1) % len(r.addrs)
	r.tries, r.token, r.boundUntil = 0, Token{}, time.Time{}
	r.due = now
	r.failed++
	if r.failed >= len(r.addrs) {
		r.silent, r.kept, r.failed, r.due = true, false, 0, now.Add(retryAfter)
	}
}

// Addrs returns the address of each relay, the best relay first: the one at which this node is
// bound, or would try to be.
func (b *Binder) Addrs() []RelayAddr {
	all := make([]RelayAddr, 0, len(b.relays))
	for _, r := range b.relays {
		all = append(all, RelayAddr{r.id, r.addrs[r.current]})
	}
	return all
}

// Next returns when to call Step again, if nothing happens before.
func (b *Binder) Next(now time.Time) time.Time {
	next := now.Add(renewEvery)
	kept := 0
	for _, r := range b.relays {
		if r.kept {
			kept++
		}
	}
	for _, r := range b.relays {
		if (r.active(now) || kept < b.keep) && r.due.Before(next) {
			next = r.due
		}
	}
	return next
}

// Bound returns the relays to which this node is bound, by name.
func (b *Binder) Bound(now time.Time) []BoundRelay {
	var all []BoundRelay
	for _, r := range b.relays {
		if now.Before(r.boundUntil) {
			all = append(all, BoundRelay{RelayAddr{r.id, r.addrs[r.current]}, r.seen, r.kept})
		}
	}
	slices.SortFunc(all, func(a, b BoundRelay) int { return slices.Compare(a.Relay[:], b.Relay[:]) })
	return all
}
