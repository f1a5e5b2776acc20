// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/control"
)

func TestExplainRoute(t *testing.T) {
	addr := netip.MustParseAddrPort("198.51.100.7:51820")
	path := control.Path{Kind: control.PathDirect, Addr: addr, Proved: true}
	back := control.PeerView{Alive: true, Route: "tunnel", Path: "direct", Addr: addr, Proved: true, Answered: true, RTT: 12}
	const ms = control.Milliseconds(time.Millisecond)
	// good is a node that is reached.
	good := func() (control.Status, control.Ping) {
		view := back
		return control.Status{
			Node:   control.Node{Name: "here", Overlay: []netip.Addr{netip.MustParseAddr("10.4.0.1")}},
			Device: control.Device{ListenPort: 51820},
			Peers: []control.Peer{
				{Name: "gw", Alive: true, Overlay: []netip.Addr{netip.MustParseAddr("10.4.0.3")}, Path: path, Route: control.Route{Kind: "tunnel"}},
				{Name: "there", Alive: true, Overlay: []netip.Addr{netip.MustParseAddr("10.4.0.2")}, Path: path, Route: control.Route{Kind: "tunnel"}},
			},
		}, control.Ping{Node: "there", Sent: 3, Hops: []control.Hop{{Name: "there", Answered: 3, RTT: 12 * ms}}, Back: &view}
	}
	for _, tt := range []struct {
		name         string
		change       func(s *control.Status, there *control.Peer, p *control.Ping)
		ok           bool
		text, advice string // a part of each
	}{
		{"all is well", func(*control.Status, *control.Peer, *control.Ping) {}, true, "there answers in 12ms by the route tunnel; there has an answer from here in 12ms, direct at 198.51.100.7:51820.", "networkpolicy"},
		{"an older node", func(_ *control.Status, _ *control.Peer, p *control.Ping) {
			p.Back, p.NoBack = nil, "no answer"
		}, true, "there did not say how it sees this node: no answer", ""},
		{"dead", func(_ *control.Status, there *control.Peer, p *control.Ping) {
			there.Alive, there.LastSeen, p.Back, p.Hops[0] = false, time.Date(2026, 7, 1, 8, 0, 0, 0, time.UTC), nil, control.Hop{Name: "there"}
		}, false, "there is not alive: no node has heard it since 2026-07-01 08:00:00 UTC.", "meshd forget there"},
		{"a problem that is known", func(s *control.Status, _ *control.Peer, _ *control.Ping) {
			s.Problems = []control.Problem{{Node: "gw", Text: "not this"}, {Node: "there", Text: "its slot is taken", Advice: "renumber it"}}
		}, false, "its slot is taken.", "renumber it"},
		{"without a route", func(_ *control.Status, there *control.Peer, p *control.Ping) {
			there.Overlay, p.Hops[0].Answered = nil, 0
		}, false, "There is no route to there now.", "status"},
		{"this node without an address", func(s *control.Status, _ *control.Peer, _ *control.Ping) { s.Node.Overlay = nil }, false, "This node has no overlay address yet.", "status"},
		{"no path", func(_ *control.Status, there *control.Peer, p *control.Ping) {
			there.Path = control.Path{Kind: control.PathNone, Tried: []control.TriedPath{{Kind: control.PathDirect, Addr: addr}, {Kind: control.PathRelayed, Addr: addr, Relay: "gw"}}}
			p.Hops[0].Answered, p.Back.Proved, p.Back.Answered = 0, false, false
		}, false, "No packets pass between this node and there; tried: direct at 198.51.100.7:51820, relayed through gw.", "UDP port 51820"},
		{"no path on this side", func(_ *control.Status, there *control.Peer, p *control.Ping) {
			there.Path, p.Hops[0].Answered, p.Back.Answered = control.Path{Kind: control.PathDirect, Addr: addr}, 0, false
		}, false, "for there its path works, so what it sends gets lost on the way here", "UDP port"},
		{"a firewall there", func(_ *control.Status, _ *control.Peer, p *control.Ping) { p.Hops[0].Answered = 0 }, false, "a firewall there drops what others begin", "on there: sudo meshd check"},
		{"a firewall somewhere", func(_ *control.Status, _ *control.Peer, p *control.Ping) {
			p.Hops[0].Answered, p.Back.Answered = 0, false
		}, false, "The tunnel to there works, but it does not answer through it.", "meshd check on both"},
		{"a private network that is cut", func(_ *control.Status, there *control.Peer, p *control.Ping) {
			there.Route, there.Path, p.Hops[0].Answered, p.Back.Answered = control.Route{Kind: "lan"}, control.Path{}, 0, false
		}, false, "there does not answer over the private network.", "meshd check"},
		{"behind a gateway", func(_ *control.Status, there *control.Peer, p *control.Ping) {
			there.Route.Via, there.Path = []string{"gw"}, control.Path{}
			p.Hops = []control.Hop{{Name: "gw", Answered: 3}, {Name: "there"}}
			p.Back.Answered, p.Back.Path, p.Back.Route = false, "", "lan via gw"
		}, false, "gw answers, and there behind it does not; there has no answer from here by the route lan via gw.", "on gw: sudo meshd why there"},
		{"a gateway that is silent", func(_ *control.Status, there *control.Peer, p *control.Ping) {
			there.Route.Via, there.Path = []string{"gw"}, control.Path{}
			p.Hops = []control.Hop{{Name: "gw"}, {Name: "there"}}
			p.Back.Answered = true // by whatever way: it says nothing of the gateway
		}, false, "The tunnel to gw works, but it does not answer through it.", "meshd check on both"},
		{"a problem there", func(_ *control.Status, _ *control.Peer, p *control.Ping) {
			p.Back.Problems = []control.Problem{{Text: "two nodes are named here", Advice: "rename one"}}
		}, false, "there answers, and reports of this node: two nodes are named here.", "rename one"},
		{"loss", func(_ *control.Status, _ *control.Peer, p *control.Ping) { p.Hops[0].Answered = 1 }, false, "there answers 1 of 3 echo requests", "LOSS"},
		{"through a relay", func(_ *control.Status, there *control.Peer, _ *control.Ping) {
			there.Path.Kind, there.Path.Relay = control.PathRelayed, "gw"
		}, true, "there answers in 12ms, relayed through gw, since no straight path works", "open UDP port 51820"},
		{"taken for dead there", func(_ *control.Status, _ *control.Peer, p *control.Ping) { p.Back.Alive = false }, true, "takes this node for dead", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, p := good()
			tt.change(&s, &s.Peers[1], &p)
			f := explainRoute(s, p)
			if f.OK != tt.ok || !strings.Contains(f.Text, tt.text) || !strings.Contains(f.Advice, tt.advice) || f.Node != "there" {
				t.Errorf("got %+v,\nwant ok %v, %q and %q", f, tt.ok, tt.text, tt.advice)
			}
		})
	}
}

// What has an address may be no other node.
func TestExplainOwner(t *testing.T) {
	s := control.Status{
		Node:    control.Node{Name: "here", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/24")}},
		Cluster: control.Cluster{Services: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")}, Pods: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}},
		Clients: []control.ClientStatus{{Name: "laptop", Overlay: []netip.Addr{netip.MustParseAddr("10.4.255.1")}}},
	}
	for addr, want := range map[string]struct {
		ok     bool
		advice string
	}{
		"10.42.0.7":  {true, "it is on this node"},
		"10.43.0.1":  {true, "kubectl get endpoints"},
		"10.4.255.1": {true, "meshd client list"},
		"10.42.9.7":  {false, "meshd status"},
		"192.0.2.1":  {false, "ip route get 192.0.2.1"},
	} {
		f := explainOwner(s, s.WhoIs(netip.MustParseAddr(addr)))
		if f.OK != want.ok || !strings.Contains(f.Advice, want.advice) || !strings.Contains(f.Text, addr) {
			t.Errorf("%s: got %+v, want ok %v and %q", addr, f, want.ok, want.advice)
		}
	}
}
