// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/path/rawudp"
)

// stranger is a socket from which nothing was sent before.
type stranger struct {
	net.Conn // nil: only the methods below are used
	host     *host
	from, to netip.AddrPort
	got      chan []byte
	closed   chan struct{}
	deadline time.Time
}

// dial is the host's Dial.
func (h *host) dial(to netip.AddrPort) (net.Conn, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.noWay != nil {
		return nil, h.noWay
	}
	s := &stranger{
		host: h, to: to, from: netip.AddrPortFrom(h.addrs[0].Addr(), uint16(60000+len(h.tries))),
		got: make(chan []byte, 8), closed: make(chan struct{}),
	}
	h.tries[s.from] = s
	return s, nil
}

func (s *stranger) Write(b []byte) (int, error) {
	s.host.mu.Lock()
	defer s.host.mu.Unlock()
	if to := s.host.at(s.to); to != nil && !s.host.cut[s.to] && to.letsIn(s.from) {
		d := rawudp.Datagram{Payload: bytes.Clone(b), From: s.from, To: s.to.Addr(), Link: to.link}
		time.AfterFunc(travel, func() { to.deliver(d) })
	}
	return len(b), nil
}

func (s *stranger) Read(b []byte) (int, error) {
	select {
	case got := <-s.got:
		return copy(b, got), nil
	case <-time.After(time.Until(s.deadline)):
		return 0, os.ErrDeadlineExceeded
	case <-s.closed:
		return 0, net.ErrClosed
	}
}

func (s *stranger) SetReadDeadline(t time.Time) error { s.deadline = t; return nil }

func (s *stranger) Close() error {
	select {
	case <-s.closed:
	default:
		close(s.closed)
	}
	return nil
}

func (s *stranger) receive(b []byte) {
	select {
	case s.got <- b:
	default:
	}
}

// TestMeets has two nodes meet that have no tunnel to each other, until nothing passes.
func TestMeets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := two(t)
		private := func(h *host) Peer {
			return Peer{ID: h.id, Key: h.key, PathKey: h.pathKey.PublicKey(), NoTunnel: true, Private: h.addrs[:1]}
		}
		a.SetPeers([]Peer{private(b)})
		b.SetPeers([]Peer{private(a)})
		meets := func(want bool) {
			t.Helper()
			for _, e := range [][2]*host{{a, b}, {b, a}} {
				if met := time.Since(e[0].Proofs().Met[e[1].id]); met < time.Minute != want {
					t.Errorf("%v has met %v %v ago, want within a minute: %v", e[0].id, e[1].id, met, want)
				}
			}
		}
		time.Sleep(5 * time.Second)
		meets(true)
		if s := a.Status(); len(s) != 0 {
			t.Errorf("got paths to a node without a tunnel: %v", s)
		}
		time.Sleep(5 * time.Minute)
		meets(true)
		a.mu.Lock()
		a.cut[b.addrs[0]] = true
		a.mu.Unlock()
		time.Sleep(3 * time.Minute)
		meets(false)
	})
}

// TestMeetsOnLANOnly has what arrives by another link, or from another address, say nothing of
// the private network.
func TestMeetsOnLANOnly(t *testing.T) {
	for name, change := range map[string]func(b *host, fromA *Peer){
		"another link":    func(b *host, _ *Peer) { b.link = 3 },
		"another address": func(_ *host, fromA *Peer) { fromA.Private = []netip.AddrPort{netip.MustParseAddrPort(dead)} },
		"elsewhere":       func(_ *host, fromA *Peer) { fromA.Private = nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := two(t)
				toB, fromA := b.peer(), a.peer()
				toB.Private, fromA.Private = b.addrs[:1], a.addrs[:1]
				change(b, &fromA)
				a.SetPeers([]Peer{toB})
				b.SetPeers([]Peer{fromA})
				time.Sleep(time.Minute)
				if met := b.Proofs().Met; len(met) != 0 {
					t.Errorf("got met %v, want none", met)
				}
			})
		})
	}
}

// TestTries has a node find out who answers strangers. That the two talk all the time changes
// nothing, nor does a firewall that lets in answers.
func TestTries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := two(t)
		a.add(b, addrB)
		b.add(a, addrA)
		p := b.peer(direct(addrB))
		p.Try = []netip.AddrPort{netip.MustParseAddrPort(addrB), netip.MustParseAddrPort(dead)}
		slices.SortFunc(p.Try, netip.AddrPort.Compare)
		b.SetPeers([]Peer{a.peer(direct(addrA))})
		a.SetPeers([]Peer{p})
		tried := func(reached bool) {
			t.Helper()
			want := []mesh.Tried{{Subject: b.id, Addr: p.Try[0]}, {Subject: b.id, Addr: p.Try[1]}}
			for i := range want {
				want[i].Reached = reached && want[i].Addr.String() == addrB
			}
			if diff := cmp.Diff(want, a.Proofs().Tried, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
				t.Errorf("tried (-want +got):\n%s", diff)
			}
		}
		a.talk(t, b)
		b.talk(t, a)
		time.Sleep(time.Minute)
		tried(true)
		if got := b.statusOf(t, a).Tried; len(got) != 1 {
			t.Errorf("the node that was tried has learned paths: %v", got)
		}
		b.mu.Lock()
		b.closed = true
		b.mu.Unlock()
		time.Sleep(15 * time.Minute)
		tried(false)
		a.wantPath(t, b, direct(addrB))
		b.mu.Lock()
		b.closed = false
		b.mu.Unlock()
		time.Sleep(30 * time.Minute)
		tried(true)
	})
}

// TestEchoFlood has a peer send Echoes as fast as it can, as if they came from somebody else.
func TestEchoFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := two(t)
		a.SetPeers([]Peer{{ID: b.id, Key: b.key, PathKey: b.pathKey.PublicKey(), NoTunnel: true}})
		keys := b.keysTo(t, a)
		const seconds = 10
		for i := range seconds * 100 {
			for j := range 20 {
				a.deliver(rawudp.Datagram{
					Payload: keys.Seal(path.Message{Op: path.Echo}, uint64(i*20+j+1)),
					From:    netip.MustParseAddrPort(dead), To: a.addrs[0].Addr(), Link: 2,
				})
			}
			time.Sleep(10 * time.Millisecond)
		}
		every, burst := path.EchoPace()
		if limit := int(seconds*time.Second/every) + burst + 1; a.sent > limit || a.sent == 0 {
			t.Errorf("got %d datagrams, want some and no more than %d", a.sent, limit)
		}
	})
}

// TestTryWithoutWay has no way to an address: that says nothing of the node.
func TestTryWithoutWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := two(t)
		a.stop()
		a.noWay = errors.New("network is unreachable")
		a.start(t)
		p := b.peer()
		p.Try = b.addrs
		a.SetPeers([]Peer{p})
		time.Sleep(5 * time.Minute)
		if got := a.Proofs().Tried; len(got) != 0 {
			t.Errorf("got %v, want nothing", got)
		}
	})
}
