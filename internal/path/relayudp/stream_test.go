// SPDX-License-Identifier: Apache-2.0

package relayudp

import (
	"bytes"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/meshd/meshd/internal/path"
)

// TestStream has a node come by stream: it binds and is reached like one that comes by UDP.
func TestStream(t *testing.T) {
	arrived := make(chan []byte, 1)
	var broken atomic.Bool
	want := path.StreamAddr(newNode(t, 3, netip.MustParseAddrPort("127.0.0.1:9")).ID)
	r, _, a, b := relayed(t, func(o *Options) {
		o.Stream = func(to netip.AddrPort, datagram []byte) bool {
			if to != want {
				t.Errorf("sent by the stream to %v, want %v", to, want)
			}
			if broken.Load() {
				return false
			}
			arrived <- slices.Clone(datagram)
			return true
		}
	})
	c := newNode(t, 3, netip.MustParseAddrPort("127.0.0.1:9")) // sends nothing by UDP
	if err := r.SetNodes([]Node{a.Node, b.Node, c.Node}); err != nil {
		t.Fatal(err)
	}
	ask := func(m path.Message) path.Message {
		t.Helper()
		r.Receive(c.seal(c.keys, m), want)
		answer, err := c.keys.Open(<-arrived)
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	first := ask(path.Message{Op: path.Bind, Number: 1})
	if first.Op != path.Bound || first.Token == (path.Token{}) {
		t.Fatalf("got %+v, want a token", first)
	}
	if second := ask(path.Message{Op: path.Bind, Number: 2, Token: first.Token}); second.Token != (path.Token{}) {
		t.Fatalf("got %+v, want that it is done", second)
	}

	for _, n := range []*node{a, b} { // IPv4 and IPv6
		r.Receive(n.initiation(30), want)
		if got := n.read(t); !bytes.Equal(got, n.initiation(30)) {
			t.Errorf("got %x, want the initiation", got)
		}
		n.write(t, data(30, 1400))
		if got := <-arrived; !bytes.Equal(got, data(30, 1400)) {
			t.Errorf("got %x, want the data", got)
		}
	}

	broken.Store(true)
	a.write(t, data(30, 100))
	eventually(t, "what the stream doesn't take is counted", func() bool {
		return r.Status().Dropped[dropReason(dropUnsent)] == 1
	})
}
