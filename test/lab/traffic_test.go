// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/meshd/meshd/test/lab"
)

func party(h *lab.Host) lab.Party { return lab.Party{At: h.Do, Addr: h.Public()} }

// exchange lets two hosts talk until each has heard twenty datagrams, and then
// until during has returned and so many more were sent.
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

// TestBlockedPathMTU sends what is too big for the far link, with and without
// the permission to make fragments of it.
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
		t.Errorf("before: got %q, want that somebody names the MTU", out)
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
