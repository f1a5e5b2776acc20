// SPDX-License-Identifier: Apache-2.0

//go:build !kernel

package lab_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/test/lab"
)

// nodePort is WireGuard's, which a port-preserving router keeps.
const nodePort = 51820

// home makes a site behind a router with one host, which has a socket there.
func home(ctx context.Context, t *testing.T, l *lab.Lab, name string, r lab.Router) (*lab.Host, socket) {
	t.Helper()
	h := siteHost(ctx, t, newSite(ctx, t, l, name, lab.SiteOptions{Underlay: lab.Home, Router: r}), name)
	return h, datagrams(t, h, nodePort)
}

// server makes a host that everybody reaches, with a socket.
func server(ctx context.Context, t *testing.T, l *lab.Lab, name string) (*lab.Host, socket) {
	t.Helper()
	h := newHost(ctx, t, l, name, lab.Routed)
	return h, datagrams(t, h, 7000)
}

func at(h *lab.Host, port uint16) netip.AddrPort { return netip.AddrPortFrom(h.Public(), port) }

// hears fails the test unless the datagram that say sends arrives, or, if want is false,
// nothing does.
func (s socket) hears(t *testing.T, want bool, what string, say func()) {
	t.Helper()
	wait := limit
	if !want {
		wait = 200 * time.Millisecond
	}
	if err := s.conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
		t.Fatal(err)
	}
	say()
	if from, err := s.read(); (err == nil) != want {
		t.Errorf("%s: got a datagram from %s (%v), want one: %t", what, from, err, want)
	}
}

// TestRouterMapping has two hosts behind each router send from the same port, to two ports
// of one server and to another server.
func TestRouterMapping(t *testing.T) {
	t.Parallel()
	ctx, l := newLab(t)
	near, first := server(ctx, t, l, "near")
	far, third := server(ctx, t, l, "far")
	second := datagrams(t, near, 7001)
	for name, tt := range map[string]struct {
		router      lab.Router
		keeps, same bool // the socket's port; one port for all destinations
	}{
		"endpoint-independent":             {lab.Router{}, false, true},
		"endpoint-independent, full cone":  {lab.Router{FullCone: true}, false, true},
		"port-preserving":                  {lab.Router{Mapping: lab.PortPreserving}, true, true},
		"port-dependent":                   {lab.Router{Mapping: lab.PortDependent}, false, false},
		"port-dependent, behind a carrier": {lab.Router{Mapping: lab.PortDependent, Carrier: &lab.Router{Mapping: lab.PortPreserving}}, false, false},
		"behind a port-dependent carrier":  {lab.Router{Carrier: &lab.Router{Mapping: lab.PortDependent}}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(ctx, t, l, "home", lab.SiteOptions{Underlay: lab.Home, Router: tt.router})
			h1, h2 := siteHost(ctx, t, s, "h1"), siteHost(ctx, t, s, "h2")
			one, two := datagrams(t, h1, nodePort), datagrams(t, h2, nodePort)
			a := first.hear(t, func() { one.send(t, at(near, 7000)) })
			b := second.hear(t, func() { one.send(t, at(near, 7001)) })
			c := third.hear(t, func() { one.send(t, at(far, 7000)) })
			if a.Addr() != h1.Public() || (a.Port() == nodePort) != tt.keeps || (a == b && b == c) != tt.same {
				t.Errorf("got %s, %s and %s, want %s, port %d kept: %t, all the same: %t", a, b, c, h1.Public(), nodePort, tt.keeps, tt.same)
			}
			if d := first.hear(t, func() { two.send(t, at(near, 7000)) }); d.Addr() != a.Addr() || d.Port() == a.Port() {
				t.Errorf("second host: got %s, want another port of %s", d, a.Addr())
			}
		})
	}
}

// TestRouterFiltering has those send to a mapping to which the host has sent, and others.
func TestRouterFiltering(t *testing.T) {
	t.Parallel()
	ctx, l := newLab(t)
	near, asked := server(ctx, t, l, "near")
	_, stranger := server(ctx, t, l, "stranger")
	other := datagrams(t, near, 7001)
	for name, tt := range map[string]struct {
		router  lab.Router
		anybody bool
	}{
		"port-restricted":            {lab.Router{}, false},
		"port-preserving":            {lab.Router{Mapping: lab.PortPreserving}, false},
		"open input":                 {lab.Router{OpenInput: true}, false},
		"full cone":                  {lab.Router{FullCone: true}, true},
		"port-preserving full cone":  {lab.Router{Mapping: lab.PortPreserving, FullCone: true}, true},
		"full cone, behind a strict": {lab.Router{FullCone: true, Carrier: &lab.Router{}}, false},
		"both full cone":             {lab.Router{FullCone: true, Carrier: &lab.Router{FullCone: true}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			_, inside := home(ctx, t, l, "home", tt.router)
			mapping := asked.hear(t, func() { inside.send(t, at(near, 7000)) })
			inside.hears(t, true, "who was asked", func() { asked.send(t, mapping) })
			inside.hears(t, tt.anybody, "another port of who was asked", func() { other.send(t, mapping) })
			inside.hears(t, tt.anybody, "a stranger", func() { stranger.send(t, mapping) })
			if again := other.hear(t, func() { inside.send(t, at(near, 7001)) }); again != mapping && !tt.router.OpenInput {
				t.Errorf("to the other port: got %s, want %s as before", again, mapping)
			}
		})
	}
}

// TestRouterWithOpenInput has somebody outside send first. The router's connection
// tracking remembers that, or does not.
func TestRouterWithOpenInput(t *testing.T) {
	t.Parallel()
	ctx, l := newLab(t)
	for name, open := range map[string]bool{"open": true, "closed": false} {
		t.Run(name, func(t *testing.T) {
			h, inside := home(ctx, t, l, "home", lab.Router{Mapping: lab.PortPreserving, OpenInput: open})
			near := newHost(ctx, t, l, "near "+name, lab.Routed)
			far, other := server(ctx, t, l, "far "+name)
			asked := datagrams(t, near, 7000)
			asked.sendsEarly(t, at(h, nodePort), open)
			mapping := asked.hear(t, func() { inside.send(t, at(near, 7000)) })
			if (mapping.Port() != nodePort) != open {
				t.Errorf("got %s, want another port than %d: %t", mapping, nodePort, open)
			}
			if got := other.hear(t, func() { inside.send(t, at(far, 7000)) }); got != mapping {
				t.Errorf("to another host: got %s, want %s as before", got, mapping)
			}
			inside.hears(t, true, "who was asked", func() { asked.send(t, mapping) })
		})
	}
}

// sendsEarly sends a datagram before the other end does. A router that takes it for its own
// says that nothing listens there.
func (s socket) sendsEarly(t *testing.T, to netip.AddrPort, refused bool) {
	t.Helper()
	// Without this the kernel tells of a refusal only to a socket that is connected.
	raw, err := s.conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	tell := func(on int) {
		if e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_RECVERR, on) }); e != nil || err != nil {
			t.Fatal(e, err)
		}
	}
	tell(1)
	defer tell(0)
	wait := limit
	if !refused {
		wait = 200 * time.Millisecond
	}
	if err := s.conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
		t.Fatal(err)
	}
	s.send(t, to)
	if _, err := s.read(); errors.Is(err, unix.ECONNREFUSED) != refused {
		t.Errorf("a datagram to the router: got %v, want that it is refused: %t", err, refused)
	}
}

// TestRouterOpenedByLowTTL has a host send packets that expire on the way. They open the
// routers that they pass, and no others.
func TestRouterOpenedByLowTTL(t *testing.T) {
	t.Parallel()
	ctx, l := newLab(t)
	near, known := server(ctx, t, l, "near")
	far, peer := server(ctx, t, l, "far")
	for name, tt := range map[string]struct {
		router lab.Router
		ttl    int
		opens  bool
	}{
		"one router":                        {lab.Router{}, 2, true},
		"one router, TTL for a carrier":     {lab.Router{}, 5, true},
		"carrier":                           {lab.Router{Carrier: &lab.Router{}}, 2, false},
		"carrier, TTL for a carrier":        {lab.Router{Carrier: &lab.Router{}}, 5, true},
		"one router that does not let pass": {lab.Router{}, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			_, inside := home(ctx, t, l, "home", tt.router)
			mapping := known.hear(t, func() { inside.send(t, at(near, 7000)) })
			if err := ipv4.NewConn(inside.conn).SetTTL(tt.ttl); err != nil {
				t.Fatal(err)
			}
			peer.hears(t, false, "packet with a low TTL", func() { inside.send(t, at(far, 7000)) })
			inside.hears(t, tt.opens, "packet of the peer", func() { peer.send(t, mapping) })
		})
	}
}

func TestRouterHairpin(t *testing.T) {
	t.Parallel()
	ctx, l := newLab(t)
	near, asked := server(ctx, t, l, "near")
	for name, router := range map[string]lab.Router{
		"none": {}, "hairpin": {Hairpin: true}, "port-preserving": {Hairpin: true, Mapping: lab.PortPreserving}, "full cone": {Hairpin: true, FullCone: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(ctx, t, l, "home", lab.SiteOptions{Underlay: lab.Home, Router: router})
			h1, h2 := siteHost(ctx, t, s, "h1"), siteHost(ctx, t, s, "h2")
			one, two := datagrams(t, h1, 5001), datagrams(t, h2, 5002)
			first := asked.hear(t, func() { one.send(t, at(near, 7000)) })
			second := asked.hear(t, func() { two.send(t, at(near, 7000)) })
			if !router.Hairpin {
				two.hears(t, false, "from the same site", func() { one.send(t, second) })
				return
			}
			if from := two.hear(t, func() { one.send(t, second) }); from != first {
				t.Errorf("source: got %s, want %s as outside", from, first)
			}
			one.hears(t, true, "the answer", func() { two.send(t, first) })
		})
	}
}

func TestRouterTimeout(t *testing.T) {
	t.Parallel()
	ctx, l := newLab(t)
	near, asked := server(ctx, t, l, "near")
	const timeout = 4 * time.Second
	var late []func()
	for name, tt := range map[string]struct {
		router lab.Router
		stays  bool
	}{
		"short":                  {lab.Router{Timeout: timeout}, false},
		"short, full cone":       {lab.Router{Timeout: timeout, FullCone: true}, false},
		"short at the carrier's": {lab.Router{Carrier: &lab.Router{Timeout: timeout}}, false},
		"the kernel's":           {lab.Router{}, true},
	} {
		_, inside := home(ctx, t, l, "home", tt.router)
		mapping := asked.hear(t, func() { inside.send(t, at(near, 7000)) })
		inside.hears(t, true, name+", in time", func() { asked.send(t, mapping) })
		late = append(late, func() {
			inside.hears(t, tt.stays, name+", late", func() { asked.send(t, mapping) })
		})
	}
	time.Sleep(timeout + time.Second)
	for _, check := range late {
		check()
	}
}

func TestRouterBlocksUDP(t *testing.T) {
	t.Parallel()
	ctx, l := newLab(t)
	h, inside := home(ctx, t, l, "home", lab.Router{FullCone: true, BlockUDP: true})
	near, asked := server(ctx, t, l, "near")
	asked.hears(t, false, "UDP", func() { inside.send(t, at(near, 7000)) })
	if got := seenOutside(ctx, t, l, h); got != h.Public() {
		t.Errorf("source of TCP: got %s, want %s", got, h.Public())
	}
	reach(ctx, t, true, h, near.Public())
}

func TestRouterFirewall(t *testing.T) {
	t.Parallel()
	ctx, l := newLab(t)
	near := newHost(ctx, t, l, "near", lab.Routed)
	for name, tt := range map[string]struct {
		site      lab.SiteOptions
		four, six bool // whether strangers get in
	}{
		"home":          {lab.SiteOptions{Underlay: lab.Home, GUA: true}, false, true},
		"home, both":    {lab.SiteOptions{Underlay: lab.Home, GUA: true, Router: lab.Router{Firewall6: true}}, false, false},
		"home, carrier": {lab.SiteOptions{Underlay: lab.Home, GUA: true, Router: lab.Router{Carrier: &lab.Router{Firewall6: true}}}, false, false},
		"routed":        {lab.SiteOptions{Underlay: lab.Routed, GUA: true}, true, true},
		"routed, IPv4":  {lab.SiteOptions{Underlay: lab.Routed, GUA: true, Router: lab.Router{Firewall4: true}}, false, true},
		"routed, IPv6":  {lab.SiteOptions{Underlay: lab.Routed, GUA: true, Router: lab.Router{Firewall6: true}}, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			h := siteHost(ctx, t, newSite(ctx, t, l, name, tt.site), "h")
			reach(ctx, t, true, h, near.Public(), near.Public6())
			if tt.site.Underlay == lab.Routed { // a home's router answers itself
				reach(ctx, t, tt.four, near, h.Public())
			}
			reach(ctx, t, tt.six, near, h.Public6())
		})
	}
}

func TestSiteRefusesOptions(t *testing.T) {
	t.Parallel()
	ctx, l := newLab(t)
	for name, o := range map[string]lab.SiteOptions{
		"router of a cloud":         {Underlay: lab.NAT, Router: lab.Router{BlockUDP: true}},
		"carrier of a server":       {Underlay: lab.Routed, Router: lab.Router{Carrier: &lab.Router{}}},
		"mappings of a cloud":       {Underlay: lab.Routed, Router: lab.Router{Maps: lab.PCP}},
		"mappings behind a carrier": {Underlay: lab.Home, Router: lab.Router{Maps: lab.PCP, Carrier: &lab.Router{}}},
		"half a second":             {Underlay: lab.Home, Router: lab.Router{Timeout: 1500 * time.Millisecond}},
	} {
		if _, err := l.Site(ctx, "site", o); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
}
