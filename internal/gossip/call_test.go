// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/meshd/meshd/internal/mesh"
)

// callMessage returns the packet of a sender with a call of one node to another.
func callMessage(sender, from, to mesh.ID, sealed []byte) message {
	return message{sender, kindCall, slices.Concat(from[:], to[:], sealed)}
}

// withMembers returns an idle node 0 that has the records of nodes 1 to 4. All but 4 are
// alive, and so is node 5, which has no record.
func withMembers(t *testing.T, now *time.Time) *Gossip {
	g := idle(t, now)
	l := g.members.listen(nodeName(g.self, 0))
	for n := 1; n <= 5; n++ {
		if n != 4 {
			l.NotifyJoin(&memberlist.Node{Name: nodeName(idOf(n), 0)})
		}
		if n != 5 {
			g.acceptObjects([][]byte{signRecord(t, n, testRecord(n, 1))}, fromSync)
		}
	}
	return g
}

// sent is the counter of packets to nodes of which no address is known: an idle node knows
// none, so these are the packets that it would have sent.
const sent = "packet-no-path"

func TestHostileCalls(t *testing.T) {
	self, sealed := idOf(0), []byte("sealed")
	tests := []struct {
		name    string
		m       message
		counter string // that has counted it; "" if the call is delivered
	}{
		{"for us", callMessage(idOf(1), idOf(1), self, sealed), ""},
		{"for us, sent on", callMessage(idOf(2), idOf(1), self, sealed), ""},
		{"for us, longest", callMessage(idOf(1), idOf(1), self, make([]byte, maxCall)), ""},
		{"for us, too long", callMessage(idOf(1), idOf(1), self, make([]byte, maxCall+1)), "packet-content"},
		{"empty", callMessage(idOf(1), idOf(1), self, nil), "packet-content"},
		{"cut off", message{idOf(1), kindCall, self[:]}, "packet-content"},
		{"to send on", callMessage(idOf(1), idOf(1), idOf(2), sealed), sent},
		{"to send on a second time", callMessage(idOf(3), idOf(1), idOf(2), sealed), "call-stray"},
		{"for its author", callMessage(idOf(3), idOf(1), idOf(1), sealed), "call-stray"},
		{"for a dead node", callMessage(idOf(1), idOf(1), idOf(4), sealed), "call-stray"},
		{"for a node without a record", callMessage(idOf(1), idOf(1), idOf(5), sealed), "call-stray"},
		{"for an unknown node", callMessage(idOf(1), idOf(1), idOf(9), sealed), "call-stray"},
		{"of a node that we take for dead", callMessage(idOf(1), idOf(4), self, sealed), ""},
		{"of an unknown node", callMessage(idOf(1), idOf(9), self, sealed), "call-stranger"},
		{"of a node without a record", callMessage(idOf(5), idOf(5), self, sealed), "call-stranger"},
		{"through a node without a record", callMessage(idOf(5), idOf(1), self, sealed), "call-stranger"},
		{"of ourselves", callMessage(idOf(1), self, idOf(2), sealed), "call-stranger"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			now := time.Unix(1700000000, 0)
			g := withMembers(t, &now)
			g.handle(tt.m)
			want := map[string]uint64{}
			if tt.counter != "" {
				want[tt.counter] = 1
			}
			if got := g.counters.snapshot(); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("counters %v, want %v", got, want)
			}
			order := tt.m
			order.kind = kindOrder
			now = now.Add(time.Second)
			g.handle(order)
			if got := g.counters.snapshot()[tt.counter]; tt.counter != "" && got != 2 {
				t.Errorf("as an order: it is counted %d times, want 2", got)
			}
			if tt.counter != "" {
				return
			}
			for _, letters := range []<-chan Call{g.Calls(), g.Orders()} {
				select {
				case c := <-letters:
					if c.From != mesh.ID(tt.m.payload) || !bytes.Equal(c.Sealed, tt.m.payload[letterHeader:]) {
						t.Errorf("got %v", c)
					}
				default:
					t.Error("it is not delivered")
				}
				if len(letters) > 0 {
					t.Error("it is delivered as both kinds")
				}
			}
		})
	}
}

// Neither the calls of one sender nor those of many are sent on without a limit, nor for a
// forgotten node, and each second is a new one.
func TestHostileCallFlood(t *testing.T) {
	now := time.Unix(1700000000, 0)
	g := withMembers(t, &now)
	flood := func(senders ...int) uint64 {
		before := g.counters.snapshot()[sent]
		for _, n := range senders {
			m := callMessage(idOf(n), idOf(n), idOf(3), []byte("sealed"))
			for range 2 * callsPerSender {
				g.handle(m)
			}
		}
		return g.counters.snapshot()[sent] - before
	}
	if got := flood(1); got != callsPerSender {
		t.Errorf("one sender: %d calls are sent on, want %d", got, callsPerSender)
	}
	if got := flood(1, 2); got != callsPerSender {
		t.Errorf("another one: %d calls are sent on, want %d", got, callsPerSender)
	}
	now = now.Add(time.Second)
	if got := flood(1); got != callsPerSender {
		t.Errorf("a second later: %d calls are sent on, want %d", got, callsPerSender)
	}
	now = now.Add(time.Second)
	if err := g.Forget(idOf(3), 1); err != nil {
		t.Fatal(err)
	}
	if got := flood(1); got != 0 {
		t.Errorf("for a forgotten node: %d calls are sent on", got)
	}

	var pace callPace
	allowed := 0
	for n := range 2 * callsPerSecond {
		if pace.allow(invented(n), now) {
			allowed++
		}
	}
	if allowed != callsPerSecond {
		t.Errorf("many senders: %d calls, want %d", allowed, callsPerSecond)
	}

	// A node counts as present, although memberlist takes it for dead, if it was just heard.
	now = now.Add(time.Second)
	g.transport.addresses.node(idOf(4)).heardAt = now.Add(-natMemory)
	for n, want := range []uint64{1, 0} {
		before := g.counters.snapshot()[sent]
		g.handle(callMessage(idOf(1), idOf(1), idOf(4), []byte("sealed")))
		if got := g.counters.snapshot()[sent] - before; got != want {
			t.Errorf("for a dead node, heard %v ago: %d calls are sent on, want %d", natMemory+time.Duration(n), got, want)
		}
		now = now.Add(1)
	}

	// Nobody reads: what is dropped is the new, and nothing blocks.
	m := callMessage(idOf(1), idOf(1), g.self, []byte("sealed"))
	for range 2 * maxCalls / callsPerSender {
		now = now.Add(time.Second)
		for range callsPerSender {
			g.handle(m)
		}
	}
	if got := g.counters.snapshot()["call-overload"]; got != maxCalls || len(g.Calls()) != maxCalls {
		t.Errorf("%d calls are dropped and %d wait, want %d each", got, len(g.Calls()), maxCalls)
	}
}

func TestSendCall(t *testing.T) {
	now := time.Unix(1700000000, 0)
	g := withMembers(t, &now)
	for _, tt := range []struct {
		to     mesh.ID
		length int
	}{{idOf(1), 0}, {idOf(1), maxCall + 1}, {idOf(5), 1}, {idOf(9), 1}, {g.self, 1}} {
		if err := g.SendCall(tt.to, make([]byte, tt.length)); err == nil {
			t.Errorf("%d bytes to %v are sent", tt.length, tt.to)
		}
		if err := g.SendOrder(tt.to, make([]byte, tt.length)); err == nil {
			t.Errorf("an order of %d bytes to %v is sent", tt.length, tt.to)
		}
	}
	if got := g.counters.snapshot()[sent]; got != 0 {
		t.Errorf("%d packets are sent", got)
	}
	if err := g.SendCall(idOf(1), []byte("sealed")); err != nil {
		t.Fatal(err)
	}
	const others = 2 // live nodes with a record
	if got := g.counters.snapshot()[sent]; got != 1+others {
		t.Errorf("%d packets are sent, want one to the node and %d to others", got, others)
	}
	if err := g.SendOrder(idOf(1), []byte("sealed")); err != nil {
		t.Fatal(err)
	}
	if got := g.counters.snapshot()[sent]; got != 2*(1+others) {
		t.Errorf("%d packets are sent with the order, want %d", got, 2*(1+others))
	}
}

func TestForwarders(t *testing.T) {
	now := time.Unix(1700000000, 0)
	g := idle(t, &now)
	l := g.members.listen(nodeName(g.self, 0))
	const called, relay, reached, public, natReached, nat = 1, 2, 3, 4, 5, 6
	for n := called; n <= nat; n++ {
		l.NotifyJoin(&memberlist.Node{Name: nodeName(idOf(n), 0)})
		r := testRecord(n, 1)
		r.NAT = n == relay || n == natReached || n == nat
		g.acceptObjects([][]byte{signRecord(t, n, r)}, fromSync)
	}
	for _, n := range []int{reached, natReached} {
		node := g.transport.addresses.node(idOf(n))
		node.works, node.worksAt = netip.MustParseAddrPort("192.0.2.1:7946"), now
	}
	b := testPath(called, 1)
	b.Relays = []mesh.ID{idOf(relay)}
	g.acceptObjects([][]byte{signPath(t, called, b)}, fromSync)
	for range 20 { // the order of nodes that are alive is random
		want := []mesh.ID{idOf(relay), idOf(reached), idOf(public)}
		if got := g.forwarders(idOf(called)); !slices.Equal(got, want) {
			t.Fatalf("got %v, want the relay, then those outside of NATs, the one that answers first: %v", got, want)
		}
		if got := g.forwarders(idOf(public)); got[0] != idOf(reached) || len(got) != callForwarders {
			t.Fatalf("got %v, want %v first", got, idOf(reached))
		}
	}
}

// natNetwork lets packets to a node behind NAT pass only from ports to which that node has
// sent something a short while ago, and streams only if that node has dialled them. Between
// two nodes behind NAT nothing passes, as if both NATs used another port for each receiver.
type natNetwork struct {
	lifetime time.Duration

	mu     sync.Mutex
	behind map[uint16]bool
	sent   map[flow]time.Time
}

type flow struct {
	network  string
	from, to uint16
}

// passes is a filter. It is asked for both directions of a stream.
func (n *natNetwork) passes(network string, from, to uint16) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	back := flow{network, to, from}
	switch {
	case !n.behind[to]:
		n.sent[flow{network, from, to}] = time.Now()
		return true
	case n.behind[from]:
		return false
	case network == "tcp":
		defer delete(n.sent, back)
	}
	return time.Since(n.sent[back]) < n.lifetime
}

// start starts a node, behind NAT if it is not one of the first ones.
func (n *natNetwork) start(t *testing.T, number, public int, change func(*Options)) *testNode {
	var port atomic.Uint32
	node := startNode(t, number, func(o *Options) {
		change(o)
		o.filter = func(network string, to netip.AddrPort) bool { return n.passes(network, uint16(port.Load()), to.Port()) }
	})
	port.Store(uint32(node.Addr().Port()))
	n.mu.Lock()
	n.behind[node.Addr().Port()] = number >= public
	n.mu.Unlock()
	r := testRecord(number, 1)
	r.GossipPort, r.NAT = node.Addr().Port(), number >= public
	if err := node.Publish(r); err != nil {
		t.Fatal(err)
	}
	return node
}

// Nodes behind NATs that let in only answers call each other.
func TestCallsBetweenNATs(t *testing.T) {
	t.Parallel()
	count, public := 40, 3
	if testing.Short() {
		count, public = 6, 2
	}
	network := &natNetwork{lifetime: 30 * time.Second, behind: make(map[uint16]bool), sent: make(map[flow]time.Time)}
	nodes := []*testNode{network.start(t, 0, public, func(*Options) {})}
	for n := 1; n < count; n++ {
		nodes = append(nodes, network.start(t, n, public, joining(nodes[0])))
	}
	eventually(t, "all know all", nodes, func(v mesh.View) bool { return len(v.Records) == count })

	var calls, again, copies int
	var slowest time.Duration
	for i, from := range nodes {
		for _, to := range nodes[max(public, i+1):] {
			sealed := fmt.Appendf(nil, "%d to %d", from.n, to.n)
			began := time.Now()
			for deadline := began.Add(patience); ; again++ {
				if err := from.SendCall(to.self, sealed); err != nil {
					t.Fatal(err)
				}
				if n := received(to, from.self, sealed, time.Second); n > 0 {
					calls, copies = calls+1, copies+n
					slowest = max(slowest, time.Since(began))
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("no call of %d gets to %d", from.n, to.n)
				}
			}
		}
	}
	t.Logf("%d calls, %d sent again after a second, %d copies, the slowest took %v", calls, again, copies, slowest)
}

// received waits for a call, and returns how many copies of it there are at that moment.
func received(n *testNode, from mesh.ID, sealed []byte, within time.Duration) (copies int) {
	timeout := time.After(within)
	for copies == 0 || len(n.Calls()) > 0 {
		select {
		case c := <-n.Calls():
			if c.From == from && bytes.Equal(c.Sealed, sealed) {
				copies++
			}
		case <-timeout:
			return copies
		}
	}
	return copies
}
