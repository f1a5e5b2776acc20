// SPDX-License-Identifier: Apache-2.0

//go:build !kernel

package lab_test

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/meshd/meshd/test/lab"
)

func party(h *lab.Host) lab.Party { return lab.Party{At: h.Do, Addr: h.Public()} }

// exchange runs an exchange until each host has received twenty datagrams, calls during,
// and goes on until as many more were sent.
func exchange(t *testing.T, a, b *lab.Host, during func()) (sent, lost uint64) {
	t.Helper()
	e, err := lab.StartExchange(party(a), party(b), time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(limit); ; time.Sleep(time.Millisecond) {
		if x, y := e.Received(); x >= 20 && y >= 20 {
			break
		}
		if time.Now().After(end) {
			t.Error("nothing arrives")
			break
		}
	}
	during()
	return e.Stop()
}

func TestExchangeCountsBothWays(t *testing.T) {
	ctx, l := newLab(t)
	a, b := newHost(ctx, t, l, "a", lab.Routed), newHost(ctx, t, l, "b", lab.Routed)
	c, d := newHost(ctx, t, l, "c", lab.Routed6), newHost(ctx, t, l, "d", lab.Routed6)
	for name, pair := range map[string][2]*lab.Host{"IPv4": {a, b}, "IPv6": {c, d}} {
		sent, lost := exchange(t, pair[0], pair[1], func() {})
		if sent < 40 || lost != 0 {
			t.Errorf("%s: got %d sent and %d lost, want at least 40 and none", name, sent, lost)
		}
	}
	sent, lost := exchange(t, a, b, func() {
		if err := l.Partition(ctx, []*lab.Host{a}, []*lab.Host{b}); err != nil {
			t.Error(err)
		}
		time.Sleep(50 * time.Millisecond) // for something to lose
	})
	if lost == 0 || lost > sent-40 {
		t.Errorf("got %d sent and %d lost, want that a partition loses some of those after the first 40", sent, lost)
	}
}

func TestTransfer(t *testing.T) {
	ctx, l := newLab(t)
	a, b := newHost(ctx, t, l, "a", lab.NAT), newHost(ctx, t, l, "b", lab.Routed)
	if err := lab.Transfer(ctx, a.Do, party(b), 1<<20); err != nil {
		t.Error(err)
	}
	if err := l.Partition(ctx, []*lab.Host{a}, []*lab.Host{b}); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	if err := lab.Transfer(short, a.Do, party(b), 1<<20); err == nil {
		t.Error("a transfer crosses a partition")
	}
}

// TestBlockedPathMTU sends packets that are too big for the far link, with and without
// permission to fragment them.
func TestBlockedPathMTU(t *testing.T) {
	ctx, l := newLab(t)
	a, b := newHost(ctx, t, l, "a", lab.Routed), newHost(ctx, t, l, "b", lab.Routed)
	if err := b.SetMTU(ctx, 1280); err != nil {
		t.Fatal(err)
	}
	ping := func(addr netip.Addr, fragments string) (string, error) {
		return a.Run(ctx, "ping", "-n", "-c", "1", "-w", "2", "-s", "1400", "-M", fragments, addr.String())
	}
	if out, _ := ping(b.Public(), "do"); !strings.Contains(out, "mtu = 1280") {
		t.Errorf("before: got %q, want an ICMP error with the MTU", out)
	}
	run(ctx, t, a, "ip", "route", "flush", "cache")
	if err := l.BlockPathMTU(ctx); err != nil {
		t.Fatal(err)
	}
	for _, addr := range []netip.Addr{b.Public(), b.Public6()} {
		for _, fragments := range []string{"do", "dont"} {
			if out, err := ping(addr, fragments); err == nil || strings.Contains(out, "mtu") {
				t.Errorf("%s, fragments: %s: got %q, want silence", addr, fragments, out)
			}
		}
		if err := answers(ctx, a, addr, 20); err != nil {
			t.Errorf("small packets: %v", err)
		}
	}
}

func TestHostWithoutIPv4(t *testing.T) {
	ctx, l := newLab(t)
	a, b := newHost(ctx, t, l, "a", lab.Routed6), newHost(ctx, t, l, "b", lab.Routed6)
	if got := a.Public(); got != a.Public6() || got != a.Address() {
		t.Errorf("addresses: got %s, %s and %s, want one of IPv6", got, a.Public6(), a.Address())
	}
	if err := a.AwaitPings(ctx, []netip.Addr{b.Public()}); err != nil {
		t.Error(err)
	}
	if got := run(ctx, t, a, "ip", "-4", "-o", "address", "show", "scope", "global"); got != "" {
		t.Errorf("addresses of IPv4: got %q, want none", got)
	}
}

// socket is for single datagrams.
type socket struct{ conn *net.UDPConn }

func datagrams(t *testing.T, h *lab.Host, port int) socket {
	t.Helper()
	var s socket
	if err := h.Do(func() (err error) {
		s.conn, err = net.ListenUDP("udp4", &net.UDPAddr{Port: port})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.conn.Close() })
	return s
}

func (s socket) send(t *testing.T, to netip.AddrPort) {
	t.Helper()
	if _, err := s.conn.WriteToUDPAddrPort([]byte("x"), to); err != nil {
		t.Fatal(err)
	}
}

func (s socket) read() (netip.AddrPort, error) {
	_, from, err := s.conn.ReadFromUDPAddrPort(make([]byte, 1))
	return from, err
}

// hear calls ask and waits for a datagram.
func (s socket) hear(t *testing.T, ask func()) netip.AddrPort {
	t.Helper()
	if err := s.conn.SetReadDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	ask()
	from, err := s.read()
	if err != nil {
		t.Fatal(err)
	}
	return from
}

func TestLongestGap(t *testing.T) {
	ctx, l := newLab(t)
	a, b := newHost(ctx, t, l, "a", lab.Routed), newHost(ctx, t, l, "b", lab.Routed)
	e, err := lab.StartExchange(party(a), party(b), time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Stop()
	const cut = 300 * time.Millisecond
	for name, between := range map[string]func() error{
		"both ways": func() error { return l.Partition(ctx, []*lab.Host{a}, []*lab.Host{b}) },
		"one way": func() error {
			_, err := b.Run(ctx, "nft", "table inet deaf { chain in { type filter hook input priority 0; udp dport 1-65535 drop; }; }")
			return err
		},
	} {
		e.CountGaps()
		if err := between(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(cut) // for a gap
		if got := e.LongestGap(); got < cut*9/10 {
			t.Errorf("%s: got %s while it lasts, want %s", name, got, cut)
		}
		if err := l.Heal(ctx); err != nil {
			t.Fatal(err)
		}
		before, beforeToo := e.Received()
		for end := time.Now().Add(limit); name == "both ways" && time.Now().Before(end); time.Sleep(time.Millisecond) {
			if x, y := e.Received(); x > before && y > beforeToo {
				break
			}
		}
		if got := e.LongestGap(); got < cut*9/10 {
			t.Errorf("%s: got %s afterwards, want %s", name, got, cut)
		}
		run(ctx, t, b, "nft", "flush ruleset")
	}
}

// TestStream cuts a connection for a while, which it must survive, and then breaks it.
func TestStream(t *testing.T) {
	ctx, l := newLab(t)
	a, b := newHost(ctx, t, l, "a", lab.Routed), newHost(ctx, t, l, "b", lab.Routed)
	flows := func(s *lab.Stream) {
		t.Helper()
		before := s.Received()
		for end := time.Now().Add(limit); s.Received() == before; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("nothing arrives")
			}
		}
	}
	start := func() *lab.Stream {
		t.Helper()
		s, err := lab.StartStream(ctx, a.Do, party(b))
		if err != nil {
			t.Fatal(err)
		}
		flows(s)
		return s
	}
	s := start()
	if err := l.Partition(ctx, []*lab.Host{a}, []*lab.Host{b}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // for something to be lost
	if err := l.Heal(ctx); err != nil {
		t.Fatal(err)
	}
	flows(s)
	if err := s.Stop(); err != nil {
		t.Error(err)
	}
	s = start()
	run(ctx, t, a, "ss", "--tcp", "--kill", "dst", b.Public().String())
	if err := s.Stop(); err == nil {
		t.Error("a broken connection ends well")
	}
}
