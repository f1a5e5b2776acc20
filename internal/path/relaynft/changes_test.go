// SPDX-License-Identifier: Apache-2.0

//go:build !kernel

package relaynft

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/path"
)

// TestChanges has sessions end, nodes move, and routes and links change.
func TestChanges(t *testing.T) {
	if !namespaced(t) {
		return
	}
	b := newBed(t, plain, plain)
	b.forward(t, 0)
	time.Sleep(2 * minPause)
	if got := ownTable(t); got != "" {
		t.Errorf("there is a table although nobody is bound:\n%s", got)
	}
	b.relay.set(b.bound(long())...)
	b.forwards(t, atPeer)

	t.Log("nobody is bound any more")
	b.relay.set()
	b.forwards(t, atUser)
	eventually(t, "the table is empty", func() bool { return !strings.Contains(ownTable(t), "goto") })

	t.Log("sessions end by themselves")
	b.relay.set(b.bound(time.Now().Add(8 * time.Second))...)
	b.forwards(t, atPeer)
	b.stop()
	b.forwards(t, atUser)
	b.forward(t, 0)

	t.Log("they go on when they are known for longer")
	b.relay.set(b.bound(time.Now().Add(6 * time.Second))...)
	b.forwards(t, atPeer)
	b.relay.set(b.bound(long())...)
	time.Sleep(7 * time.Second)
	b.forwards(t, atPeer)

	t.Log("a node moves")
	moved := b.bound(long())
	run(t, "ip -n host2 address add 10.0.3.3/24 dev eth0; ip -n host2 address add fd00:3::3/64 dev eth0 nodad")
	for i, to := range map[int]string{1: "10.0.3.3", 3: "fd00:3::3"} {
		moved[i].Addr = netip.AddrPortFrom(netip.MustParseAddr(to), nodePort)
	}
	b.relay.set(moved...)
	eventually(t, "packets to it go where it is", func() bool {
		return strings.Count(run(t, "nft list table netdev meshd"), "daddr set 10.0.3.3")+
			strings.Count(run(t, "nft list table netdev meshd"), "daddr set fd00:3::3") == 2
	})
	if got, _ := b.send(t, 0, true, data(index(b.hosts[0], true), 64)); got != atPeer {
		t.Errorf("a packet came to %s", got)
	}
	if got, _ := b.send(t, 1, true, data(index(b.hosts[1], true), 64)); got != atUser {
		t.Errorf("a packet of where it was came to %s", got)
	}
	run(t, "ip -n host2 address delete 10.0.3.3/24 dev eth0; ip -n host2 address delete fd00:3::3/64 dev eth0")
	b.relay.set(b.bound(long())...)
	b.forwards(t, atPeer)

	t.Log("another next hop")
	run(t, `
		ip -n next2 address add 10.0.2.7/24 dev eth0
		ip -n next2 address add fd00:2::7/64 dev eth0 nodad
		ip route replace 10.0.3.0/24 via 10.0.2.7
		ip route replace fd00:3::/64 via fd00:2::7
	`)
	eventually(t, "it is the route's", func() bool {
		return strings.Contains(ownTable(t), "fwd ip to 10.0.2.7 device") && strings.Contains(ownTable(t), "fwd ip6 to fd00:2::7 device")
	})
	b.forwards(t, atPeer)

	t.Log("a link that takes less")
	run(t, "ip link set up2 mtu 1300")
	eventually(t, "what is longer goes to user space", func() bool {
		got, _ := b.send(t, 0, true, data(index(b.hosts[0], true), 1300-27))
		return got == atUser
	})
	if got, _ := b.send(t, 0, true, data(index(b.hosts[0], true), 1300-28)); got != atPeer {
		t.Errorf("what is as long as it takes came to %s", got)
	}

	t.Log("the neighbour has to be found again")
	run(t, "ip neighbor flush dev up2")
	b.forwards(t, atPeer)

	t.Log("the link goes and comes")
	run(t, "ip link delete up2")
	run(t, string(plain), 2)
	run(t, `
		ip address add 10.0.2.1/24 dev up2
		ip address add fd00:2::1/64 dev up2 nodad
		ip link set up2 up
		ip -n next2 address add 10.0.2.2/24 dev eth0
		ip -n next2 address add fd00:2::2/64 dev eth0 nodad
		ip -n next2 link set eth0 up
		ip -n next2 route add default via 10.0.2.1
		ip -n next2 route add default via fd00:2::1
		ip route add 10.0.3.0/24 via 10.0.2.2
		ip route add fd00:3::/64 via fd00:2::2
	`)
	b.forwards(t, atPeer)

	t.Log("somebody deletes the table")
	run(t, "nft flush ruleset")
	b.forwards(t, atPeer)

	t.Log("somebody changes it")
	run(t, "nft flush chain netdev meshd $(nft list chains netdev | grep -o 'from_[0-9]*' | head -n 1)")
	b.forwards(t, atPeer)

	t.Log("it is removed")
	b.stop()
	b.forwards(t, atPeer)
	for _, want := range []bool{true, false} {
		if got, err := Remove(); err != nil || got != want {
			t.Errorf("got %t, %v, want %t", got, err, want)
		}
	}
	b.forwards(t, atUser)
}

// TestLastSessions has sessions begin at the moment at which the relay stops: the kernel forwards them all
// the same.
func TestLastSessions(t *testing.T) {
	if !namespaced(t) {
		return
	}
	b := newBed(t, plain, plain)
	for range 5 {
		b.relay.set()
		b.forward(t, 0)
		b.relay.set(b.bound(long())...)
		b.stop()
		b.forwards(t, atPeer)
	}
}

// TestAdopt has a relay be killed before it has written down what it knows.
func TestAdopt(t *testing.T) {
	if !namespaced(t) {
		return
	}
	b := newBed(t, plain, plain)
	if got, err := Adopt(b.bound(long())); err != nil || len(got) != 4 || len(got[0].Rows) != 1 {
		t.Errorf("got %v, %v without a table, want what is known", got, err)
	}
	until := time.Now().Add(3 * time.Minute)
	b.relay.set(b.bound(until)...)
	b.forward(t, 0)
	b.forwards(t, atPeer)
	b.stop()
	written := b.bound(until)
	for i := range written {
		written[i].Rows = nil
	}
	got, err := Adopt(written)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range b.bound(until) {
		if !slices.EqualFunc(got[i].Rows, want.Rows, func(g, w path.KeptRow) bool {
			return g.Index == w.Index && g.To == w.To && !g.Until.After(w.Until.Add(time.Second)) && g.Until.After(w.Until.Add(-patience))
		}) {
			t.Errorf("got %v, want %v", got[i].Rows, want.Rows)
		}
	}
}
