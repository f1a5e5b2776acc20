// SPDX-License-Identifier: Apache-2.0

package path

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

// bindingNode is one node and its relays, on virtual time.
type bindingNode struct {
	Binder
	now    time.Time
	guest  guest
	relays map[netip.AddrPort]*Relay // those that answer
	names  map[netip.AddrPort]Short
	sent   []BindRequest
	times  []time.Time
}

var (
	relayA   = RelayAddr{Short{0xa}, netip.MustParseAddrPort("192.0.2.1:7946")}
	relayB   = RelayAddr{Short{0xb}, netip.MustParseAddrPort("192.0.2.2:7946")}
	relayC   = RelayAddr{Short{0xc}, netip.MustParseAddrPort("192.0.2.3:7946")}
	relayAv6 = RelayAddr{Short{0xa}, netip.MustParseAddrPort("[2001:db8::1]:7946")}
)

func newBindingNode(keep int, relays ...RelayAddr) *bindingNode {
	n := &bindingNode{now: began, guest: guests(1)[0], relays: map[netip.AddrPort]*Relay{}, names: map[netip.AddrPort]Short{}}
	for i, r := range relays {
		n.relays[r.Addr], n.names[r.Addr] = NewRelay([32]byte{byte(i)}), r.Relay
	}
	n.SetRelays(relays, keep)
	return n
}

// step sends what is due; answers come at once.
func (n *bindingNode) step() {
	for range 100 {
		requests := n.Step(n.now)
		for _, r := range requests {
			n.sent, n.times = append(n.sent, r), append(n.times, n.now)
			if table := n.relays[r.Addr]; table != nil {
				n.Receive(n.now, r.Relay, table.Bind(n.now, n.guest.id, n.guest.key, r.Message, n.guest.addr))
			}
		}
		if len(requests) == 0 {
			return
		}
	}
}

// run lets time pass.
func (n *bindingNode) run(d time.Duration) {
	end := n.now.Add(d)
	for {
		n.step()
		next := n.Next(n.now)
		if !next.After(n.now) {
			panic(fmt.Sprintf("after a step at %v the next one is due at %v", n.now, next))
		}
		if next.After(end) {
			n.now = end
			return
		}
		n.now = next
	}
}

// bound returns the addresses at which the node is bound.
func (n *bindingNode) bound() []RelayAddr {
	var all []RelayAddr
	for _, r := range n.Bound(n.now) {
		all = append(all, r.RelayAddr)
	}
	return all
}

func (n *bindingNode) wantBound(t *testing.T, when string, want ...RelayAddr) {
	t.Helper()
	if diff := cmp.Diff(want, n.bound(), cmp.Comparer(func(a, b RelayAddr) bool { return a == b }), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("relays %s (-want +got):\n%s", when, diff)
	}
}

func TestBinderKeeps(t *testing.T) {
	n := newBindingNode(2, relayA, relayB, relayC)
	n.step()
	n.wantBound(t, "at once", relayA, relayB)
	for _, r := range n.Bound(n.now) {
		if r.Seen != n.guest.addr || !r.Kept {
			t.Errorf("got %+v, want that it is kept and sees %s", r, n.guest.addr)
		}
	}
	n.run(10 * time.Minute)
	n.wantBound(t, "after ten minutes", relayA, relayB)
	last := map[RelayAddr]time.Time{}
	for i, r := range n.sent {
		if gap := n.times[i].Sub(last[r.RelayAddr]); i > 10 && gap > 25*time.Second {
			t.Errorf("nothing is sent to %s for %v", r.Addr, gap)
		}
		last[r.RelayAddr] = n.times[i]
	}
	if want := 2*(2+600/20) + roundTrips; len(n.sent) > want {
		t.Errorf("got %d requests in ten minutes, want no more than %d", len(n.sent), want)
	}

	delete(n.relays, relayA.Addr)
	n.run(30 * time.Second)
	n.wantBound(t, "after the first has gone", relayB, relayC)
	n.relays[relayA.Addr] = NewRelay([32]byte{9})
	n.run(time.Minute)
	n.wantBound(t, "after the first has come back", relayB, relayC)
	n.SetRelays([]RelayAddr{relayA, relayC}, 2)
	n.run(time.Second)
	n.wantBound(t, "after another one is no relay any more", relayA, relayC)
	n.SetRelays([]RelayAddr{relayA, relayC}, 1)
	n.run(boundFor + time.Second)
	n.wantBound(t, "when one is enough", relayA)
}

func TestBinderWants(t *testing.T) {
	n := newBindingNode(0, relayA, relayB)
	n.run(time.Minute)
	n.wantBound(t, "without need")
	n.Want(n.now, relayB.Relay)
	n.step()
	n.wantBound(t, "on demand", relayB)
	n.run(wantFor - time.Second)
	n.wantBound(t, "while it is wanted", relayB)
	n.run(boundFor + time.Minute)
	n.wantBound(t, "afterwards")
	if n.Bound(n.now) != nil {
		t.Errorf("got %v", n.Bound(n.now))
	}
}

// A relay that forgot the node asks who it is, and learns it at once.
func TestBinderWho(t *testing.T) {
	n := newBindingNode(1, relayA, relayB)
	n.run(5 * time.Second)
	table := NewRelay([32]byte{9})
	n.relays[relayA.Addr] = table
	sent := len(n.sent)
	who, _ := table.Who(n.now, sealedLen, n.guest.addr)
	n.Receive(n.now, relayA.Relay, who)
	n.step()
	if !table.IsBound(n.now, n.guest.id) || len(n.sent) != sent+1 {
		t.Errorf("after the question: bound %t, with %d requests, want it bound by one", table.IsBound(n.now, n.guest.id), len(n.sent)-sent)
	}
	sent = len(n.sent)
	for range 100 {
		n.Receive(n.now, relayA.Relay, who)
		n.Receive(n.now, relayB.Relay, who)
		n.step()
	}
	if len(n.sent) != sent {
		t.Errorf("questions without end, and of a relay without need, lead to %v", n.sent[sent:])
	}
}

func TestBinderTriesAddresses(t *testing.T) {
	n := newBindingNode(1, relayAv6, relayA)
	delete(n.relays, relayAv6.Addr)
	n.run(10 * time.Second)
	n.wantBound(t, "when one address is silent", relayA)
	n.SetRelays([]RelayAddr{relayAv6}, 1)
	n.wantBound(t, "when the address is gone")
	n.run(time.Hour)
	n.wantBound(t, "when none answers")
	if got := len(n.sent); got > 3600 {
		t.Errorf("got %d requests in an hour, want one a second at most", got)
	}
	n.relays[relayAv6.Addr] = NewRelay([32]byte{9})
	n.run(retryAfter + time.Second)
	n.wantBound(t, "when it answers again", relayAv6)
}

// A relay that asks for its token again and again is left.
func TestBinderLeavesFullRelay(t *testing.T) {
	n := newBindingNode(1, relayA, relayB)
	full := n.relays[relayA.Addr]
	for _, g := range guests(maxBound + 1)[1:] {
		token := full.Bind(n.now, g.id, g.key, Message{Op: Bind}, g.addr).Token
		full.Bind(n.now, g.id, g.key, Message{Op: Bind, Token: token}, g.addr)
	}
	n.run(time.Second)
	n.wantBound(t, "when one is full", relayB)
}

func TestBinderIgnoresOldAnswers(t *testing.T) {
	n := newBindingNode(1, relayA)
	clear(n.relays)
	n.step()
	n.Receive(n.now, relayA.Relay, Message{Op: Bound, Number: 0})
	n.Receive(n.now, relayB.Relay, Message{Op: Bound, Number: 1})
	n.wantBound(t, "after answers to something else")
	n.Receive(n.now, relayA.Relay, Message{Op: Bound, Number: 1})
	n.wantBound(t, "after the answer", relayA)
}

// Whatever is lost, and whatever relays are named, the next step is never due already, and
// the node is bound to as many relays as it should be once nothing is lost.
func TestBinderRecovers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := []RelayAddr{relayA, relayB, relayC, relayAv6}
		n := newBindingNode(2, all...)
		tables := n.relays
		for range rapid.IntRange(1, 20).Draw(t, "rounds") {
			n.relays = map[netip.AddrPort]*Relay{}
			for addr, table := range tables {
				if rapid.Bool().Draw(t, "answers") {
					n.relays[addr] = table
				}
			}
			named := rapid.SliceOfDistinct(rapid.SampledFrom(all), func(a RelayAddr) RelayAddr { return a }).Draw(t, "relays")
			n.SetRelays(named, rapid.IntRange(0, 3).Draw(t, "keep"))
			if rapid.Bool().Draw(t, "wants") {
				n.Want(n.now, rapid.SampledFrom(all).Draw(t, "whom").Relay)
			}
			n.run(time.Duration(rapid.IntRange(0, 60000).Draw(t, "ms")) * time.Millisecond)
		}
		n.relays = tables
		n.SetRelays(all, 2)
		n.run(retryAfter + 2*bindTries*bindEvery)
		kept := slices.DeleteFunc(n.Bound(n.now), func(r BoundRelay) bool { return !r.Kept })
		if len(kept) != 2 {
			t.Errorf("when nothing is lost any more: kept %v, want two", kept)
		}
	})
}
