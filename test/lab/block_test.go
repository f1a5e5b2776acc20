// SPDX-License-Identifier: Apache-2.0

//go:build !kernel

package lab_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/meshd/meshd/test/lab"
)

// TestBlock blocks some packets from one host to another one, and looks at which ones
// still pass: two lone hosts, and two on the LAN of a site.
func TestBlock(t *testing.T) {
	t.Parallel()
	ctx, l := newLab(t)
	s := newSite(ctx, t, l, "site", lab.SiteOptions{Underlay: lab.Routed, GUA: true})
	for place, hosts := range map[string][2]*lab.Host{
		"internet": {newHost(ctx, t, l, "a", lab.Routed), newHost(ctx, t, l, "b", lab.Routed)},
		"LAN":      {siteHost(ctx, t, s, "c"), siteHost(ctx, t, s, "d")},
	} {
		a, b := hosts[0], hosts[1]
		if place == "LAN" { // where ARP is blocked, too: nobody has to ask
			for _, h := range hosts {
				other := hosts[0]
				if h == other {
					other = hosts[1]
				}
				mac := strings.TrimSpace(run(ctx, t, other, "cat", "/sys/class/net/"+lab.HostLink+"/address"))
				run(ctx, t, h, "ip", "neighbor", "replace", other.Address().String(), "lladdr", mac, "dev", lab.HostLink, "nud", "permanent")
			}
		}
		from, back, one, two := datagrams(t, a, 5000), datagrams(t, b, 5000), datagrams(t, b, 7000), datagrams(t, b, 7001)
		there := func(h *lab.Host, port uint16) netip.AddrPort {
			if place == "LAN" {
				return netip.AddrPortFrom(h.Address(), port)
			}
			return at(h, port)
		}
		for name, tt := range map[string]struct {
			block                lab.Packets
			port, udp, four, six bool // what passes: to the port, to another one, pings
		}{
			"all":      {lab.Packets{}, false, false, false, false},
			"one port": {lab.Packets{Protocol: "udp", Port: 7000}, false, true, true, true},
			"all UDP":  {lab.Packets{Protocol: "udp"}, false, false, true, true},
			"TCP":      {lab.Packets{Protocol: "tcp"}, true, true, true, true},
			"IPv4":     {lab.Packets{Family: 4}, false, false, false, true},
			"IPv6":     {lab.Packets{Family: 6}, true, true, true, false},
			"IPv6 UDP": {lab.Packets{Family: 6, Protocol: "udp"}, true, true, true, true},
		} {
			name = place + ", " + name
			if err := l.Block(ctx, []*lab.Host{a}, []*lab.Host{b}, tt.block); err != nil {
				t.Fatal(err)
			}
			one.hears(t, tt.port, name+": to the port", func() { from.send(t, there(b, 7000)) })
			two.hears(t, tt.udp, name+": to another port", func() { from.send(t, there(b, 7001)) })
			from.hears(t, true, name+": back", func() { back.send(t, there(a, 5000)) })
			reach(ctx, t, tt.four, a, there(b, 0).Addr())
			reach(ctx, t, tt.six, a, b.Public6())
			if err := l.Heal(ctx); err != nil {
				t.Fatal(err)
			}
		}
		one.hears(t, true, place+", healed", func() { from.send(t, there(b, 7000)) })
	}
	if err := l.Block(ctx, nil, nil, lab.Packets{Port: 7000}); err == nil {
		t.Error("a port without protocol: got no error")
	}
}

// TestBlockFromAnywhere has a provider close a port of a host.
func TestBlockFromAnywhere(t *testing.T) {
	t.Parallel()
	ctx, l := newLab(t)
	h, closed := server(ctx, t, l, "closed")
	inside := datagrams(t, h, 7001)
	far, other := server(ctx, t, l, "other")
	_, third := home(ctx, t, l, "third", lab.Router{})
	if err := l.Block(ctx, nil, []*lab.Host{h}, lab.Packets{Protocol: "udp", Port: 7000}); err != nil {
		t.Fatal(err)
	}
	for _, from := range []socket{other, third} {
		closed.hears(t, false, "closed port", func() { from.send(t, at(h, 7000)) })
		inside.hears(t, true, "another port", func() { from.send(t, at(h, 7001)) })
	}
	other.hears(t, true, "from the closed port", func() { closed.send(t, at(far, 7000)) })
}
