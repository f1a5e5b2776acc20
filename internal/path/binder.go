// SPDX-License-Identifier: Apache-2.0

package path

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// The pace at which a node binds to relays.
const (
	// renewEvery leaves time to repeat a Bind before a NAT forgets the mapping: after 30 s
	// at the earliest, as holdPace has it.
	renewEvery = holdPace
	bindEvery  = time.Second // until there is an answer
	bindTries  = 4           // at one address
	// retryAfter is when a relay that did not answer is tried again, if another one has not
	// taken its place.
	retryAfter = 5 * time.Second
	// wantFor is for how long a node stays bound to a relay after it wanted that last.
	wantFor = 3 * time.Minute
)

// How a node finds the nearest relays. Of a few round trips the lowest one counts: others have
// waited somewhere.
const (
	measureEvery = 30 * time.Minute // to each relay to which the node is not bound
	roundTrips   = 3
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

	preferred bool
	rtts      []time.Duration // the last roundTrips
	measured  time.Time       // when the last try to measure it ended; zero for never

	sent   time.Time // when the last Bind was sent
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
	relays    []*relayState
	keep      int
	number    uint32
	measuring *relayState // to which a round trip is measured, nil for none
	moved     time.Time   // when a relay was replaced by a nearer one, last
}

// CountFrom sets what the numbers of Binds follow: none of a Binder before is to be used again, since
// somebody may have recorded the answers.
func (b *Binder) CountFrom(number uint32) { b.number = number }

// SetRelays sets the relays there are, in the order in which they are tried until their round trips
// are known, and to how many of them this node stays bound whether or not it has anything to send: 0
// if strangers reach it. Then the nearest ones count, but the preferred ones before all others. The
// addresses of one relay are tried in the order in which they are given.
func (b *Binder) SetRelays(all []RelayAddr, keep int, preferred ...Short) {
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
	for _, r := range relays {
		r.preferred = slices.Contains(preferred, r.id)
	}
	b.relays = relays
	if !slices.Contains(relays, b.measuring) {
		b.measuring = nil
	}
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
		r.sample(now.Sub(r.sent))
		switch {
		case m.Token == Token{}:
			r.token, r.seen, r.boundUntil = Token{}, m.Seen, now.Add(boundFor)
			r.tries, r.failed, r.silent = 0, 0, false
			r.due = now.Add(renewEvery)
		case r.active(now):
			r.token, r.due = m.Token, now
		default: // it is only to be measured
			r.tries, r.due = 0, now
		}
	case m.Op == Who && r.active(now) && now.Sub(r.asked) >= bindEvery:
		// Any node can make a Who. All that it leads to is one Bind to the relay's own address.
		r.asked, r.token, r.due = now, m.Token, now
	}
}

// active reports whether the node is to be bound to the relay.
func (r *relayState) active(now time.Time) bool { return r.kept || now.Before(r.wanted) }

// sample notes a round trip.
func (r *relayState) sample(rtt time.Duration) {
	r.rtts = append(r.rtts, rtt)
	r.rtts = r.rtts[max(0, len(r.rtts)-roundTrips):]
}

// rtt returns the round trip to the relay, 0 while it is unknown.
func (r *relayState) rtt() time.Duration {
	if len(r.rtts) == 0 {
		return 0
	}
	return slices.Min(r.rtts)
}

// Step returns what is to be sent now. It is called whenever something has happened, and at
// the time that Next returns.
func (b *Binder) Step(now time.Time) []BindRequest {
	for _, r := range b.relays {
		if b.speaks(r, now) && r.tries >= bindTries && !now.Before(r.due) {
			r.giveUp(now)
			if r.silent && r == b.measuring {
				r.measured, b.measuring = now, nil
			}
		}
	}
	b.choose(now)
	b.move(now)
	b.measure(now)
	var requests []BindRequest
	for _, r := range b.relays {
		if !b.speaks(r, now) || now.Before(r.due) {
			continue
		}
		b.number++
		r.number = b.number
		r.tries++
		r.sent, r.due = now, now.Add(bindEvery)
		requests = append(requests, BindRequest{RelayAddr{r.id, r.addrs[r.current]}, Message{Op: Bind, Number: r.number, Token: r.token}})
	}
	return requests
}

// speaks reports whether Binds are sent to the relay.
func (b *Binder) speaks(r *relayState, now time.Time) bool { return r.active(now) || r == b.measuring }

// measure goes on to the next relay once the round trip to one is known. Where the node is bound,
// each Bind measures it. To the others, Binds without a token are all that is sent.
func (b *Binder) measure(now time.Time) {
	if r := b.measuring; r != nil {
		if len(r.rtts) < roundTrips && !r.active(now) && b.keep > 0 {
			return
		}
		r.measured, r.silent, b.measuring = now, r.silent && len(r.rtts) == 0, nil
	}
	for _, r := range b.relays {
		if due, ok := b.measureDue(r, now); ok && !now.Before(due) && (b.measuring == nil || r.measured.Before(b.measuring.measured)) {
			b.measuring = r
		}
	}
	if r := b.measuring; r != nil {
		r.rtts, r.token, r.tries, r.due = nil, Token{}, 0, now
	}
}

// measureDue returns when to measure a relay next, and whether at all.
func (b *Binder) measureDue(r *relayState, now time.Time) (time.Time, bool) {
	if r.measured.IsZero() {
		return now, b.keep > 0 && !r.active(now)
	}
	return r.measured.Add(measureEvery), b.keep > 0 && !r.active(now)
}

// compare orders relays, the best first: those that are preferred, then the nearest.
func (r *relayState) compare(o *relayState) int {
	rank := func(r *relayState) (n int) {
		if !r.preferred {
			n = 2
		}
		if r.rtt() == 0 {
			n++
		}
		return n
	}
	return cmp.Or(cmp.Compare(rank(r), rank(o)), cmp.Compare(r.rtt(), o.rtt()))
}

// isBetter reports whether a relay is so much better than another one that it is worth telling all
// nodes.
func (r *relayState) isBetter(than *relayState) bool {
	if r.preferred != than.preferred {
		return r.preferred
	}
	return r.rtt()+max(than.rtt()/5, sameKindGain) < than.rtt()
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
	for _, r := range slices.SortedStableFunc(slices.Values(b.relays), (*relayState).compare) {
		if kept < b.keep && !r.kept && (!r.silent || !now.Before(r.due)) {
			r.kept = true
			kept++
		}
	}
}

// move replaces relays to which this node stays bound by better ones, all at once: each change is
// told to all nodes. It does so when all relays have been measured, and the new ones are bound. Who
// knows only of the old ones reaches the node there for a while.
func (b *Binder) move(now time.Time) {
	if now.Sub(b.moved) < sameKindHold {
		return
	}
	var kept, others []*relayState // the worst first, and the best first
	for _, r := range slices.SortedStableFunc(slices.Values(b.relays), (*relayState).compare) {
		switch {
		case r.kept && r.rtt() > 0:
			kept = slices.Insert(kept, 0, r)
		case r.kept || r.silent:
		case r.rtt() > 0:
			others = append(others, r)
		}
		if r.measured.IsZero() && !r.kept && !r.active(now) {
			return
		}
	}
	n, ready := 0, true
	for ; n < min(len(kept), len(others)) && others[n].isBetter(kept[n]); n++ {
		if !now.Before(others[n].boundUntil) {
			ready = false
			if !others[n].active(now) {
				others[n].tries, others[n].due = 0, now
			}
			others[n].wanted = now.Add(bindTries * bindEvery)
		}
	}
	if n == 0 || !ready {
		return
	}
	for i := range n {
		kept[i].kept, others[i].kept = false, true
		kept[i].wanted = now.Add(wantFor)
	}
	b.moved = now
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

// Addrs returns the address of each relay: the one at which this node is
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
		if (b.speaks(r, now) || kept < b.keep) && r.due.Before(next) {
			next = r.due
		}
		if due, ok := b.measureDue(r, now); ok && b.measuring == nil && due.Before(next) {
			next = due
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
