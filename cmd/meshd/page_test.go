// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

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
		Kind: control.PathRelayed, Addr: relay, Relay: "aws-1", RTT: 38 * time.Millisecond,
		Tried: []control.TriedPath{
			{Kind: control.PathDirect, Addr: netip.MustParseAddrPort("203.0.113.9:51820"), Loss: 1},
			{Kind: control.PathRelayed, Addr: relay, Relay: "aws-1", RTT: 38 * time.Millisecond},
		},
	}
	s := control.Status{
		Node: control.Node{
			Name: "home-1", ID: mesh.ID{0x9f, 0x86}, Overlay: []netip.Addr{netip.MustParseAddr("10.4.0.43")},
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.42.0/24")}, NAT: true, Ready: true, Relays: []string{"aws-1", "gcp-1"},
		},
		Device: control.Device{Name: "meshd0", Implementation: "kernel", ListenPort: 51820, MTU: 1420},
		Peers: []control.Peer{
			peer("aws-1", "10.4.0.1", "10.42.0.0/24", control.Path{Kind: control.PathDirect, Addr: direct, RTT: 19 * time.Millisecond}),
			peer("home-2", "10.4.0.52", "10.42.51.0/24", relayed),
			peer("office", "10.4.0.87", "10.42.86.0/24", control.Path{Kind: control.PathTCP, Addr: relay, Relay: "aws-1", RTT: 45 * time.Millisecond}),
		},
	}
	var status strings.Builder
	if err := printStatus(&status, s, now); err != nil {
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
