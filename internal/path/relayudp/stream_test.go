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
		o.Stream = func(to netip.AddrPort, datagrams [][]byte) int {
			if to != want {
				t.Errorf("sent by the stream to %v, want %v", to, want)
			}
			if broken.Load() {
				return 0
			}
			for _, d := range datagrams {
				arrived <- slices.Clone(d)
			}
			return len(datagrams)
		}
	})
	c := newNode(t, 3, netip.MustParseAddrPort("127.0.0.1:9")) // sends nothing by UDP
	if err := r.SetNodes([]Node{a.Node, b.Node, c.Node}); err != nil {
		t.Fatal(err)
	}
	ask := func(m path.Message) path.Message {
		t.Helper()
		r.Receive([][]byte{c.seal(c.keys, m)}, want)
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
		r.Receive([][]byte{n.initiation(30)}, want)
		if got := n.read(t); !bytes.Equal(got, n.initiation(30)) {
			t.Errorf("got %x, want the initiation", got)
		}
		n.write(t, data(30, 1400))
		if got := <-arrived; !bytes.Equal(got, data(30, 1400)) {
			t.Errorf("got %x, want the data", got)
		}
	}

	forward := func(from netip.AddrPort, want recorder, payloads ...[]byte) (out outgoing) {
		t.Helper()
		r.handleStream(payloads, from, &out)
		var got recorder
		out.udp.Send(&got)
		if r.merges && !slices.Equal(got, want) {
			t.Errorf("got messages of %v datagrams, want %v", got, want)
		}
		return out
	}
	long, short := data(31, 1452), data(31, 96)
	r.Receive([][]byte{c.seal(c.keys, path.Message{Op: path.Row, Number: 31, Node: path.ShortOf(a.ID)})}, want)
	forward(want, recorder{3, 2}, long, long, short, long, long)
	out := forward(a.addr(), nil, data(30, 1000), data(30, 100), data(30, 1000))
	if len(out.streams) != 1 || out.streams[0].to != want || len(out.streams[0].datagrams) != 3 {
		t.Errorf("for streams: got %v, want three datagrams at once for %v", out.streams, want)
	}

	broken.Store(true)
	a.write(t, data(30, 100))
	eventually(t, "what the stream doesn't take is counted", func() bool {
		return r.Status().Dropped[dropReason(dropUnsent)] == 1
	})
}
