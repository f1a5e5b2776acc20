// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/path"
)

// streamWorld is a node among others, of which it knows how they answer.
type streamWorld struct {
	t  *testing.T
	m  Memory
	in Input
}

// newStreamWorld makes a node with so many living peers, the first of which has the number 1.
func newStreamWorld(t *testing.T, peers int) *streamWorld {
	w := &streamWorld{t: t, in: Input{Now: time.Unix(1e9, 0), Config: config()}}
	w.in.View.Alive = make(map[mesh.ID]bool)
	w.in.Paths.InUse, w.in.Paths.Proved = make(map[mesh.ID]path.Path), make(map[mesh.ID]netip.AddrPort)
	for i := range peers {
		w.in.View.Alive[peerID(i+1)] = true
		w.answer(i+1, path.None, "")
	}
	return w
}

func peerID(i int) mesh.ID { return mesh.ID{0: byte(i)} }

// answer has a peer answer on a path; on none if there is no address.
func (w *streamWorld) answer(peer int, kind path.Kind, addr string) {
	id := peerID(peer)
	delete(w.in.Paths.Proved, id)
	p := path.Path{Kind: kind}
	if addr != "" {
		p.Addr = netip.MustParseAddrPort(addr)
		w.in.Paths.Proved[id] = p.Addr
	}
	w.in.Paths.InUse[id] = p
}

// says sets what a peer says of its paths.
func (w *streamWorld) says(peer int, open bool, relays ...int) {
	p := mesh.PathRecord{Author: peerID(peer)}
	if open {
		p.Candidates = []mesh.PathCandidate{candidate(mesh.CandidatePublic, "203.0.113.9:51820", true)}
	}
	for _, r := range relays {
		p.Relays = append(p.Relays, peerID(r))
	}
	w.in.View.Paths = append(w.in.View.Paths, p)
}

// after lets time pass, and opens the streams that are wanted then, which must be those to the
// given peers.
func (w *streamWorld) after(d time.Duration, want ...int) {
	w.t.Helper()
	w.in.Now = w.in.Now.Add(d)
	nodes, _ := w.m.WantedStreams(w.in, nil)
	var got []int
	var streams []Stream
	for _, id := range nodes {
		got = append(got, int(id[0]))
		streams = append(streams, Stream{
			Node: id, Dialled: true, Since: w.in.Now,
			Own: loopback(1000 + int(id[0])), Relay: loopback(2000 + int(id[0])),
		})
	}
	w.in.Paths.Streams = streams
	if !slices.Equal(got, want) {
		w.t.Errorf("streams to %v, want %v", got, want)
	}
}

func loopback(port int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port))
}

func (w *streamWorld) problem(want string) {
	w.t.Helper()
	var text string
	for _, p := range w.m.UDPProblems(w.in) {
		text += p.Text
	}
	if want == "" && text != "" || !strings.Contains(text, want) {
		w.t.Errorf("got problem %q, want %q", text, want)
	}
}

func TestStreamInPlaceOfUDP(t *testing.T) {
	w := newStreamWorld(t, 2)
	w.after(0)
	w.after(udpPatience - time.Second)
	w.problem("")
	w.after(time.Second, 1, 2)
	w.problem("over TCP to ")
	w.in.Paths.Streams[1].Proxy = "proxy.example.com:3128"
	w.problem(" through the proxy proxy.example.com:3128 meanwhile")
	w.answer(2, path.Stream, "127.0.0.1:1002")
	w.answer(1, path.Stream, "127.0.0.1:1001")
	w.after(time.Hour, 1, 2)
	w.answer(1, path.Direct, "203.0.113.1:51820")
	w.after(time.Minute, 2) // is still in use
	w.problem("")
	w.answer(2, path.Relayed, "203.0.113.1:7946")
	w.after(time.Second)
}

// In a mesh of two it need not be this node's UDP that is blocked, so the other one is named.
func TestUDPProblemOfTwo(t *testing.T) {
	w := newStreamWorld(t, 1)
	w.after(0)
	w.after(udpPatience, 1)
	w.problem("(there is only " + peerID(1).String() + ")")
}

// Whether UDP is blocked is found out from nodes that live, and not from those of a private
// network.
func TestUDPEvidence(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*streamWorld)
		want   []int
	}{
		{"all are silent", func(*streamWorld) {}, []int{1, 2}},
		{"one answers", func(w *streamWorld) { w.answer(1, path.Direct, "203.0.113.1:51820") }, nil},
		{"one answers through a relay", func(w *streamWorld) { w.answer(1, path.Relayed, "203.0.113.1:7946") }, nil},
		{"one answers on the LAN", func(w *streamWorld) { w.answer(1, path.LAN, "192.168.1.1:51820") }, []int{2}},
		{"one is dead", func(w *streamWorld) { delete(w.in.View.Alive, peerID(1)) }, []int{2}},
		{"all are dead", func(w *streamWorld) { clear(w.in.View.Alive) }, nil},
		{"one has an endpoint that does not answer", func(w *streamWorld) {
			w.in.Paths.InUse[peerID(1)] = path.Path{Kind: path.Direct, Addr: netip.MustParseAddrPort("203.0.113.1:51820")}
		}, []int{1, 2}},
		{"nobody is probed", func(w *streamWorld) { clear(w.in.Paths.InUse) }, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newStreamWorld(t, 2)
			tt.change(w)
			w.after(0)
			w.after(udpPatience, tt.want...)
		})
	}
}

// A node that is silent now and then has not been silent all the time.
func TestUDPPatienceBeginsAnew(t *testing.T) {
	w := newStreamWorld(t, 1)
	for range 10 {
		w.answer(1, path.None, "")
		w.after(time.Second)
		w.after(udpPatience - 2*time.Second)
		w.answer(1, path.Direct, "203.0.113.1:51820")
		w.after(time.Second)
	}
}

// After a restart WireGuard still has the endpoint of a stream that is gone.
func TestStreamsAfterRestart(t *testing.T) {
	w := newStreamWorld(t, 1)
	w.in.Paths.InUse[peerID(1)] = path.At(loopback(999))
	w.after(0)
	w.after(udpPatienceAgain, 1)
}

// A stream that breaks may be all that gossip has: while nobody lives, it is kept, so that it is
// opened again.
func TestStreamsKeptWhileNobodyLives(t *testing.T) {
	w := newStreamWorld(t, 2)
	w.after(0)
	w.after(udpPatience, 1, 2)
	clear(w.in.View.Alive)
	w.after(time.Hour, 1, 2)
	w.in.View.Alive[peerID(2)] = true
	w.after(time.Second, 2)
}

// With relays there are streams to two of them, and to those through which silent nodes are
// reached; to such a node itself if all of that does not help.
func TestStreamsToRelays(t *testing.T) {
	w := newStreamWorld(t, 7)
	w.says(5, false, 1, 2)
	w.says(6, false, 3, 4)
	relays := []Relay{{ID: peerID(4)}, {ID: peerID(3)}, {ID: peerID(2)}, {ID: peerID(1)}}
	w.says(7, true)
	w.after(0)
	nodes, _ := w.m.WantedStreams(w.at(udpPatience), relays)
	if len(nodes) != 4 {
		t.Errorf("streams to %v, want to relays 1 to 4", nodes)
	}
	for i := range 4 {
		if !slices.Contains(nodes, peerID(i+1)) {
			t.Errorf("streams to %v, want one to relay %d", nodes, i+1)
		}
	}
	w.answer(5, path.Stream, "127.0.0.1:2001")
	w.answer(6, path.Stream, "127.0.0.1:2003")
	for i := range 4 {
		w.answer(i+1, path.Stream, "127.0.0.1:"+[]string{"1001", "1002", "1003", "1004"}[i])
	}
	nodes, _ = w.m.WantedStreams(w.at(udpPatience), relays)
	if !slices.Contains(nodes, peerID(7)) {
		t.Errorf("streams to %v, want one to node 7, which is not reached through any relay", nodes)
	}
}

func (w *streamWorld) at(d time.Duration) Input {
	w.in.Now = w.in.Now.Add(d)
	return w.in
}

// Of many nodes those get streams that strangers reach.
func TestStreamsAreBounded(t *testing.T) {
	w := newStreamWorld(t, 200)
	w.says(1, false)
	w.says(200, true)
	w.after(0)
	nodes, _ := w.m.WantedStreams(w.at(udpPatience), nil)
	if len(nodes) != maxStreams || !slices.Contains(nodes, peerID(200)) {
		t.Errorf("streams to %v, want %d, one of them to node 200", nodes, maxStreams)
	}
}

// A relay is tried over the stream to it, and this node stays bound there, as long as UDP is blocked.
func TestRelaysByStream(t *testing.T) {
	m, in, peer := meshOfTwo()
	in.View.Paths = []mesh.PathRecord{{
		Author: peer.ID(), Key: [32]byte{9}, Relay: mesh.RelayAuto, Candidates: []mesh.PathCandidate{candidate(mesh.CandidatePublic, "203.0.113.2:51820", true)},
	}}
	in.View.Records[1].GossipPort = 7946
	in.Paths.Streams = []Stream{{Node: peer.ID(), Dialled: true, Own: loopback(2), Relay: loopback(3)}}
	tried := func() string {
		relays, keep := m.Relays(in, m.Configure(in))
		if len(relays) != 1 {
			t.Fatalf("got relays %v, want the peer", relays)
		}
		return fmt.Sprint(relays[0].Addrs, keep)
	}
	if got, want := tried(), "[203.0.113.2:7946] 0"; got != want {
		t.Errorf("with UDP: got %s, want %s", got, want)
	}
	m.udp.blocked = in.Now.Add(1)
	if got, want := tried(), "[127.0.0.1:3] 2"; got != want {
		t.Errorf("without UDP: got %s, want %s", got, want)
	}
}

// A stream is a path to the node at its other end, whoever has opened it.
func TestStreamCandidates(t *testing.T) {
	m, in, peer := meshOfTwo()
	in.Paths.Streams = []Stream{
		{Node: peer.ID(), Own: loopback(1)}, {Node: peer.ID(), Dialled: true, Own: loopback(2), Relay: loopback(3)}, {Node: peerID(9), Own: loopback(4)},
	}
	var got []netip.AddrPort
	for _, c := range m.PathPeers(in, m.Configure(in), nil)[0].Candidates {
		if c.Path.Kind == path.Stream && c.Open {
			got = append(got, c.Path.Addr)
		}
	}
	if want := []netip.AddrPort{loopback(1), loopback(2)}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
