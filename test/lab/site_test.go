// SPDX-License-Identifier: Apache-2.0

//go:build !kernel

package lab_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/meshd/meshd/test/lab"
)

func newSite(ctx context.Context, t *testing.T, l *lab.Lab, name string, o lab.SiteOptions) *lab.Site {
	t.Helper()
	s, err := l.Site(ctx, name, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func siteHost(ctx context.Context, t *testing.T, s *lab.Site, name string) *lab.Host {
	t.Helper()
	h, err := s.Host(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// reach fails the test unless each first host of a pair gets answers from the second
// one's address, or gets none if want is false.
func reach(ctx context.Context, t *testing.T, want bool, from *lab.Host, addrs ...netip.Addr) {
	t.Helper()
	for _, a := range addrs {
		seconds := 1
		if want {
			seconds = 20
		}
		if err := answers(ctx, from, a, seconds); (err == nil) != want {
			t.Errorf("%s to %s: got %v, want an answer: %t", from.Name, a, err, want)
		}
	}
}

func TestSiteHasLANAndWayOut(t *testing.T) {
	t.Parallel()
	ctx, l := newLab(t)
	same := []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24")}
	cloud := newSite(ctx, t, l, "cloud", lab.SiteOptions{Underlay: lab.NAT, Subnets: same, ULA: true, GUA: true})
	colo := newSite(ctx, t, l, "colo", lab.SiteOptions{Underlay: lab.Routed, GUA: true})
	home := newSite(ctx, t, l, "home", lab.SiteOptions{Underlay: lab.Home, Subnets: same})
	c1, c2 := siteHost(ctx, t, cloud, "c1"), siteHost(ctx, t, cloud, "c2")
	r1, r2 := siteHost(ctx, t, colo, "r1"), siteHost(ctx, t, colo, "r2")
	h1, h2 := siteHost(ctx, t, home, "h1"), siteHost(ctx, t, home, "h2")
	lone := newHost(ctx, t, l, "lone", lab.NAT)

	for _, pair := range [][2]*lab.Host{{c1, c2}, {r1, r2}, {h1, h2}} {
		reach(ctx, t, true, pair[0], pair[1].Address())
		reach(ctx, t, true, pair[1], pair[0].Address())
	}
	if c1.Address() != h1.Address() || h1.Public() != h2.Public() {
		t.Errorf("addresses: got %s and %s inside, %s and %s outside, want two equal pairs", c1.Address(), h1.Address(), h1.Public(), h2.Public())
	}
	for _, from := range []*lab.Host{c1, r1, h1, h2, lone} {
		reach(ctx, t, true, from, c1.Public(), c2.Public(), r1.Public(), r2.Public(), lone.Public(), lab.OutsideAddr)
	}
	reach(ctx, t, false, lone, c1.Address(), r1.Address())
	reach(ctx, t, true, c1, c2.ULA(), c2.Public6(), r2.Public6())
	reach(ctx, t, true, r1, c2.Public6())
	for _, h := range []*lab.Host{c1, r1, h2, lone} {
		if got := seenOutside(ctx, t, l, h); got != h.Public() {
			t.Errorf("%s: source seen: got %s, want %s", h.Name, got, h.Public())
		}
	}
}

func seenOutside(ctx context.Context, t *testing.T, l *lab.Lab, h *lab.Host) netip.Addr {
	t.Helper()
	echo, err := lab.ListenEcho(l.Outside().Do, 7000)
	if err != nil {
		t.Fatal(err)
	}
	got, err := lab.SourceSeen(ctx, h.Do, netip.AddrPortFrom(lab.OutsideAddr, 7000))
	if err := errors.Join(err, echo.Close()); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestSubnetsOfASite(t *testing.T) {
	t.Parallel()
	ctx, l := newLab(t)
	s := newSite(ctx, t, l, "cloud", lab.SiteOptions{Underlay: lab.NAT, AntiSpoofing: true, Subnets: []netip.Prefix{
		netip.MustParsePrefix("172.20.1.0/25"), netip.MustParsePrefix("172.20.1.128/25"),
	}})
	a := siteHost(ctx, t, s, "a")
	b, err := s.HostIn(ctx, 1, "b")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := b.Prefix(), netip.MustParsePrefix("172.20.1.129/25"); got != want {
		t.Errorf("address in the second subnet: got %s, want %s", got, want)
	}
	reach(ctx, t, true, a, b.Address(), b.Public(), lab.OutsideAddr)
	if got := run(ctx, t, a, "ip", "-o", "route", "get", b.Address().String()); got == "" {
		t.Error("no route to the other subnet")
	}
}

func TestAntiSpoofing(t *testing.T) {
	t.Parallel()
	for _, drops := range []bool{false, true} {
		t.Run(fmt.Sprint(drops), func(t *testing.T) {
			t.Parallel()
			ctx, l := newLab(t)
			s := newSite(ctx, t, l, "cloud", lab.SiteOptions{Underlay: lab.NAT, AntiSpoofing: drops, ULA: true})
			a, b := siteHost(ctx, t, s, "a"), siteHost(ctx, t, s, "b")
			const foreign, foreign6 = "10.42.7.1", "fd00:42::7:1"
			for _, f := range []string{foreign, foreign6} {
				run(ctx, t, a, "ip", "address", "add", f, "dev", "lo")
			}
			run(ctx, t, b, "ip", "route", "add", foreign, "via", a.Address().String())
			run(ctx, t, b, "ip", "route", "add", foreign6, "via", a.ULA().String())
			reach(ctx, t, true, b, a.Address(), a.ULA())
			reach(ctx, t, !drops, b, netip.MustParseAddr(foreign), netip.MustParseAddr(foreign6))
		})
	}
}

func TestCutsOfASite(t *testing.T) {
	t.Parallel()
	ctx, l := newLab(t)
	s := newSite(ctx, t, l, "cloud", lab.SiteOptions{Underlay: lab.NAT})
	a, b, c := siteHost(ctx, t, s, "a"), siteHost(ctx, t, s, "b"), siteHost(ctx, t, s, "c")
	far := newHost(ctx, t, l, "far", lab.NAT)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(a.CutLAN(ctx))
	reach(ctx, t, false, a, b.Address())
	reach(ctx, t, false, b, a.Address())
	reach(ctx, t, true, a, far.Public())
	must(a.CutWAN(ctx))
	reach(ctx, t, false, a, far.Public(), b.Address())
	must(a.Restore(ctx))
	must(a.CutWAN(ctx))
	reach(ctx, t, false, a, far.Public())
	reach(ctx, t, false, far, a.Public())
	reach(ctx, t, true, a, b.Address())
	must(a.Restore(ctx))
	must(a.Cut(ctx))
	reach(ctx, t, false, b, a.Address())
	must(a.Restore(ctx))
	reach(ctx, t, true, a, b.Address(), far.Public())

	must(l.Partition(ctx, []*lab.Host{a}, []*lab.Host{b}))
	reach(ctx, t, false, a, b.Address())
	reach(ctx, t, true, a, c.Address(), far.Public())
	must(l.Partition(ctx, []*lab.Host{c}, []*lab.Host{far}))
	reach(ctx, t, false, a, far.Public()) // it shares the link with c
	must(l.Heal(ctx))
	reach(ctx, t, true, a, b.Address(), far.Public())
}

// TestMovedHost moves a host to another site and back.
func TestMovedHost(t *testing.T) {
	t.Parallel()
	ctx, l := newLab(t)
	sites := []*lab.Site{
		newSite(ctx, t, l, "old", lab.SiteOptions{Underlay: lab.NAT, ULA: true, GUA: true}),
		newSite(ctx, t, l, "new", lab.SiteOptions{Underlay: lab.NAT, ULA: true, GUA: true}),
	}
	beside := []*lab.Host{siteHost(ctx, t, sites[0], "stays"), siteHost(ctx, t, sites[1], "there")}
	far := newHost(ctx, t, l, "far", lab.NAT)
	h := siteHost(ctx, t, sites[0], "moved")
	for i := range 2 {
		from, to := beside[i], beside[1-i]
		before := []netip.Addr{h.Address(), h.Public(), h.ULA(), h.Public6()}
		reach(ctx, t, true, from, before...)
		if err := h.Move(ctx, sites[1-i], func() error { return nil }); err != nil {
			t.Fatal(err)
		}
		if h.Location() != sites[1-i].Name || !h.Prefix().Contains(to.Address()) {
			t.Errorf("after the move: got %s and %s, want to be on %s, beside %s", h.Location(), h.Prefix(), sites[1-i].Name, to.Address())
		}
		reach(ctx, t, false, from, before...)
		reach(ctx, t, true, h, to.Address(), to.ULA(), from.Public(), far.Public(), lab.OutsideAddr)
		reach(ctx, t, true, to, h.Address(), h.ULA(), h.Public())
		reach(ctx, t, true, far, h.Public())
	}
}

// TestPlainText sends packets that must be counted, and packets that must not.
func TestPlainText(t *testing.T) {
	t.Parallel()
	ctx, l := newLab(t)
	s := newSite(ctx, t, l, "home", lab.SiteOptions{Underlay: lab.Home, ULA: true})
	a, b, lone := siteHost(ctx, t, s, "a"), siteHost(ctx, t, s, "b"), newHost(ctx, t, l, "lone", lab.Routed)
	count := func() uint64 {
		t.Helper()
		n, err := l.PlainText(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	run(ctx, t, a, "ip", "address", "add", "10.42.7.1/32", "dev", "lo")
	run(ctx, t, b, "ip", "route", "add", "10.42.7.1", "via", a.Address().String())
	reach(ctx, t, true, b, netip.MustParseAddr("10.42.7.1"), lone.Public())
	if got := count(); got != 0 {
		t.Errorf("on the LAN: got %d packets, want none", got)
	}
	run(ctx, t, a, "ip", "link", "add", "tunnel", "type", "vxlan", "id", "1", "remote", lone.Public().String(), "dstport", "4000", "dev", lab.HostLink)
	run(ctx, t, a, "ip", "address", "add", "10.5.0.1/24", "dev", "tunnel")
	run(ctx, t, a, "ip", "link", "set", "tunnel", "address", "02:00:00:00:00:01", "up")
	run(ctx, t, a, "ip", "neighbor", "add", "10.5.0.2", "lladdr", "02:00:00:00:00:02", "dev", "tunnel")
	for name, send := range map[string]struct {
		from   *lab.Host
		source string
		to     string
	}{
		"overlay address, from a site": {a, a.Address().String(), "10.4.0.9"},
		"pod, from a site":             {a, "10.42.7.1", lone.Public().String()},
		"pod, from a lone host":        {lone, lone.Public().String(), "10.42.7.1"},
		"pod of IPv6":                  {lone, lone.Public6().String(), "fd00:42::1"},
		"inside vxlan":                 {a, "10.5.0.1", "10.5.0.2"},
	} {
		before := count()
		if _, err := send.from.Run(ctx, "ping", "-q", "-c", "1", "-w", "1", "-I", send.source, send.to); err == nil {
			t.Errorf("%s: got an answer", name)
		}
		if got := count(); got == before {
			t.Errorf("%s: was not counted", name)
		}
	}
}
