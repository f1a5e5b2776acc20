// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
)

// TestPathsPage looks for what meshd status and meshd netcheck print in the page about paths.
func TestPathsPage(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	relay, direct := netip.MustParseAddrPort("198.51.100.1:7946"), netip.MustParseAddrPort("198.51.100.1:51820")
	peer := func(name, overlay, pods string, p control.Path) control.Peer {
		p.Proved, p.Since = true, now.Add(-2*time.Minute)
		return control.Peer{
			Name: name, Alive: true, Route: control.Route{Kind: mesh.RouteTunnel}, Path: p, Endpoint: p.Addr, RTT: p.RTT,
			Overlay: []netip.Addr{netip.MustParseAddr(overlay)}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix(pods)},
			LastHandshake: now.Add(-time.Minute), Received: 36 << 10, Sent: 32 << 10,
		}
	}
	relayed := control.Path{
		Kind: control.PathRelayed, Addr: relay, Relay: "aws-1", RTT: control.Milliseconds(38 * time.Millisecond),
		Tried: []control.TriedPath{
			{Kind: control.PathDirect, Addr: netip.MustParseAddrPort("203.0.113.9:51820"), Loss: 1},
			{Kind: control.PathRelayed, Addr: relay, Relay: "aws-1", RTT: control.Milliseconds(38 * time.Millisecond)},
		},
	}
	s := control.Status{
		Version: "0.1.0", Started: now.Add(-40 * time.Minute), Cluster: control.Cluster{Name: "meshd", Mode: mesh.ModeFull, Generation: 1},
		Node: control.Node{
			Name: "home-1", ID: mesh.ID{0x9f, 0x86}, Overlay: []netip.Addr{netip.MustParseAddr("10.4.0.43")},
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.42.0/24")}, NAT: true, Ready: true, Relays: []string{"aws-1", "gcp-1"},
		},
		Device: control.Device{Name: "meshd0", Implementation: "kernel", ListenPort: 51820, MTU: 1420},
		Peers: []control.Peer{
			peer("aws-1", "10.4.0.1", "10.42.0.0/24", control.Path{Kind: control.PathDirect, Addr: direct, RTT: control.Milliseconds(19 * time.Millisecond)}),
			peer("home-2", "10.4.0.52", "10.42.51.0/24", relayed),
			peer("office", "10.4.0.87", "10.42.86.0/24", control.Path{Kind: control.PathTCP, Addr: relay, Relay: "aws-1", RTT: control.Milliseconds(45 * time.Millisecond)}),
		},
	}
	var status strings.Builder
	if err := (view{}).print(&status, s, now); err != nil {
		t.Fatal(err)
	}
	underlay, err := json.MarshalIndent(s.Peers[1].Path, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	const page = "../../docs/paths.md"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	network, err := os.ReadFile("testdata/netcheck-same-port.golden")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"```\n" + string(network) + "```\n", "```\n" + status.String() + "```\n", "```json\n" + string(underlay) + "\n```\n"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%s does not have:\n%s", page, want)
		}
	}
}

// TestStatusOnPages looks for what meshd status prints in the README and in its own page.
func TestStatusOnPages(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	path := func(kind control.PathKind, rtt time.Duration) control.Path {
		return control.Path{Kind: kind, Proved: true, RTT: control.Milliseconds(rtt)}
	}
	tunnel := control.Route{Kind: mesh.RouteTunnel}
	small := control.Status{
		Version: "0.1.0", Started: now.Add(-41 * time.Second), Cluster: control.Cluster{Name: "meshd", Mode: mesh.ModeFull, Generation: 1},
		Node: control.Node{
			Name: "aws-1", ID: mesh.ID{0x9f, 0x86, 0xd0, 0x81, 0x88, 0x4c, 0x7d, 0x65, 0x9a, 0x2f, 0xea, 0xa0, 0xc5, 0x5a, 0xd0, 0x15}, Overlay: []netip.Addr{netip.MustParseAddr("10.4.0.1")},
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/24")}, Endpoints: []string{"198.51.100.1:51820"}, NAT: true, Open: true, Ready: true,
		},
		Peers: []control.Peer{
			{Name: "gcp-1", Alive: true, Route: tunnel, Path: path(control.PathDirect, 1200*time.Microsecond)},
			{Name: "home", Alive: true, Route: tunnel, Path: path(control.PathDirect, 20*time.Millisecond)},
		},
	}
	large := small
	large.Started, large.Cluster.Mode, large.Cluster.Generation = now.Add(-76*time.Hour), mesh.ModeLocation, 3
	large.Node.Location, large.Node.Role = "aws", control.RoleGateway
	relayed := path(control.PathRelayed, 38*time.Millisecond)
	relayed.Relay, relayed.Loss = "aws-1", 1./32
	large.Peers = []control.Peer{
		{Name: "aws-2", Alive: true, Route: control.Route{Kind: mesh.RouteLAN, Health: control.RouteOK, RTT: control.Milliseconds(210 * time.Microsecond)}},
		{Name: "gcp-1", Alive: true, Route: tunnel, Path: path(control.PathDirect, 1200*time.Microsecond)},
		{Name: "home", LastSeen: now.Add(-150 * time.Minute), Route: tunnel, Path: control.Path{Kind: control.PathNone}},
		{Name: "office-1", Alive: true, Route: tunnel, Path: relayed},
		{Name: "office-2", Alive: true, Route: control.Route{Kind: mesh.RouteLAN, Via: []string{"office-1"}}, RTT: control.Milliseconds(39 * time.Millisecond)},
	}
	large.Problems = []mesh.Problem{{
		Kind: "detour", Node: "office-1", Text: "aws-1 and office-1: these two don't reach each other: UDP between them is dropped; packets go through a relay meanwhile",
		Advice: "let UDP port 51820 pass between their networks",
	}}
	for page, s := range map[string]control.Status{"../../README.md": small, "../../docs/status.md": large} {
		var status strings.Builder
		if err := (view{}).print(&status, s, now); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		if want := "```\n" + status.String() + "```\n"; !strings.Contains(string(text), want) {
			t.Errorf("%s does not have:\n%s", page, want)
		}
	}
}

// TestNarrow: whatever the names, no line of the usual status is longer than 80 columns.
func TestNarrow(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.OneOf(rapid.StringMatching(`[a-z][a-z0-9-]{0,10}[a-z]`), rapid.StringMatching(`[a-z]{63}`))
		var s control.Status
		s.Node.Name, s.Node.Location = name.Draw(t, "name"), name.Draw(t, "location")
		s.Cluster.Name, s.Version = name.Draw(t, "cluster"), "0.1.0"
		s.Node.Relays = rapid.SliceOfN(name, 0, 2).Draw(t, "relays")
		for range rapid.IntRange(0, 8).Draw(t, "peers") {
			p := control.Peer{
				Name: name.Draw(t, "peer"), Alive: rapid.Bool().Draw(t, "alive"), LastSeen: now.Add(-time.Duration(rapid.Int64Range(0, 1e17).Draw(t, "absent"))),
				Route: control.Route{Kind: rapid.SampledFrom([]mesh.RouteKind{mesh.RouteLAN, mesh.RouteTunnel, mesh.RouteNone}).Draw(t, "route"), Via: rapid.SliceOfN(name, 0, 2).Draw(t, "via"), Health: "silent"},
				Path:  control.Path{Kind: rapid.SampledFrom([]control.PathKind{"", "none", "relayed", "direct"}).Draw(t, "path"), Relay: name.Draw(t, "relay"), Proved: rapid.Bool().Draw(t, "proved"), Loss: rapid.Float64Range(0, 1).Draw(t, "loss")},
				RTT:   control.Milliseconds(rapid.Int64Range(0, 1e11).Draw(t, "rtt")),
			}
			s.Peers = append(s.Peers, p)
			s.Problems = append(s.Problems, mesh.Problem{Kind: "slot-conflict", Node: p.Name, Text: "two nodes have claimed " + p.Name, Advice: "run: meshd renumber"})
			s.Clients = append(s.Clients, control.ClientStatus{Name: p.Name, Access: p.Route.Via})
			s.Clusters = append(s.Clusters, control.LinkedCluster{Name: p.Name, Through: []control.ClusterLink{{Name: p.Name, State: control.LinkNotHeardHere}}})
		}
		var b strings.Builder
		if err := (view{colors: rapid.Bool().Draw(t, "colors")}).print(&b, s, now); err != nil {
			t.Fatal(err)
		}
		color := regexp.MustCompile("\x1b\\[[0-9]*m")
		for line := range strings.Lines(b.String()) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(color.ReplaceAllString(line, ""), "\n")); n > columns {
				t.Fatalf("%d columns: %q", n, line)
			}
		}
	})
}
