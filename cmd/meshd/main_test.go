// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"flag"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/meshd/meshd/internal/check"
	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/rogpeppe/go-internal/testscript"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"meshd": main})
}

// TestScripts runs the command as a person would, its failures above all.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		// exit runs a command and checks its exit code.
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"mode": func(ts *testscript.TestScript, _ bool, args []string) {
				info, err := os.Stat(ts.MkAbs(args[1]))
				ts.Check(err)
				if got := info.Mode().Perm().String(); got != args[0] {
					ts.Fatalf("mode of %s: got %s, want %s", args[1], got, args[0])
				}
			},
		},
		UpdateScripts: *update,
	})
}

func TestPrintStatus(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	addrs := func(s ...string) (as []netip.Addr) {
		for _, a := range s {
			as = append(as, netip.MustParseAddr(a))
		}
		return as
	}
	full := control.Status{
		Version: "0.1.0", Started: now.Add(-76 * time.Hour), Cluster: control.Cluster{Name: "meshd", Mode: mesh.ModeLocation, Generation: 3},
		Node: control.Node{
			Name: "aws-1", Location: "aws", Role: control.RoleDraining, Overlay: addrs("10.4.0.1", "fd04::1"), PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/24")}, Endpoints: []string{"198.51.100.1:51820"}, NAT: true, Ready: true, Relays: []string{"gcp-1", "gcp-2"},
			Secrets: []mesh.SecretHash{{0xa1, 0xb2, 0xc3, 0xd4}, {0xc3, 0xd4, 0xe5, 0xf6}},
			PortMappings: []control.PortMapping{
				{Protocol: "UPnP", Router: netip.MustParseAddr("192.168.1.1"), Port: 51820, External: netip.MustParseAddrPort("198.51.100.1:40001"), Public: true},
				{Protocol: "UPnP", Router: netip.MustParseAddr("192.168.1.1"), Port: 7946, External: netip.MustParseAddrPort("100.64.1.2:7946")},
			},
			InternalIPs:  []netcfg.InternalIP{{Link: "eth0", Address: netip.MustParsePrefix("192.168.1.1/24"), Reason: "the default route leaves by its link"}},
			OtherPrivate: []netcfg.InternalIP{{Link: "wg0", Address: netip.MustParsePrefix("10.8.0.2/24"), Reason: "its link is a tunnel"}, {Link: "eth1", Address: netip.MustParsePrefix("10.0.0.1/16"), Reason: "node.internal-ip can name it"}},
			Networks:     []control.SharedNetwork{{Network: netip.MustParsePrefix("10.77.0.0/16"), Through: "aws-1"}, {Network: netip.MustParsePrefix("fd77::/48"), Through: "aws-2"}},
		},
		Device: control.Device{Name: "meshd0", Implementation: "kernel", ListenPort: 51820, MTU: 1420},
		Relay:  &control.Relay{Nodes: 3, Bytes: 5 << 20},
		Peers: []control.Peer{
			{Name: "aws-2", Location: "aws", Role: control.RoleGateway, Alive: true, Secrets: []mesh.SecretHash{{0xa1, 0xb2, 0xc3, 0xd4}}, Route: control.Route{Kind: mesh.RouteLAN, Health: control.RouteOK, RTT: control.Milliseconds(210 * time.Microsecond)}},
			{Name: "far-2", Location: "far", Role: control.RoleMember, Alive: true, Route: control.Route{Kind: mesh.RouteLAN, Via: []string{"aws-2", "far-1"}, Health: control.RouteSilent}, Path: control.Path{Kind: control.PathNone}},
			{Name: "gcp-1", Alive: true, Route: control.Route{Kind: mesh.RouteTunnel}, Overlay: addrs("10.4.0.2"), PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.1.0/24")}, InternalIPs: addrs("192.168.2.1"), Path: control.Path{Kind: control.PathDirect, Proved: true, Since: now.Add(-200 * time.Second), RTT: control.Milliseconds(1200 * time.Microsecond)}, Endpoint: netip.MustParseAddrPort("198.51.100.2:51820"), LastHandshake: now.Add(-65 * time.Second), Received: 1023, Sent: 5 << 30, RTT: control.Milliseconds(1500 * time.Microsecond)},
			{Name: "gcp-2", Alive: true, Route: control.Route{Kind: mesh.RouteTunnel}, Path: control.Path{Kind: control.PathRelayed, Relay: "gcp-1", Proved: true, Since: now.Add(-time.Minute), RTT: control.Milliseconds(31 * time.Millisecond), Loss: 1. / 32}, Endpoint: netip.MustParseAddrPort("198.51.100.2:7946")},
			{Name: "home", Location: "attic", Role: control.RoleDown, Route: control.Route{Kind: mesh.RouteNone}, Path: control.Path{Kind: control.PathLAN}},
		},
		Clients: []control.ClientStatus{
			{Name: "laptop", Overlay: addrs("10.4.128.1", "fd04:0:0:0:8000::1"), Access: []string{"pods", "tcp/443@services"}, AddedBy: "gcp-1", Endpoint: netip.MustParseAddrPort("203.0.113.9:1234"), LastHandshake: now.Add(-65 * time.Second), Received: 1023, Sent: 5 << 30},
			{Name: "phone", Overlay: addrs("10.4.200.7"), Access: []string{"pods", "services", "nodes"}, AddedBy: "aws-1"},
		},
		Problems:  []mesh.Problem{{Kind: mesh.ProblemName, Node: "home", Text: "two nodes are named home", Advice: "set another node.name"}},
		Notes:     []mesh.Problem{{Kind: mesh.ProblemNote, Node: "home", Text: "internal IP 192.168.1.7/32 of node home is not reachable through the mesh", Advice: "set node.internal-ip to none there"}},
		Counters:  []control.Counter{{Reason: "packet-sealed", Count: 4711, Meaning: "another secret, or none"}, {Reason: "stream-limit", Count: 2, Meaning: "too many at once"}},
		Reconcile: control.Reconcile{Error: "apply plan: add route 10.42.1.0/24: no\nadd address: no"},
	}
	tests := []struct {
		name   string
		status control.Status
	}{
		{"full", full},
		{"alone", control.Status{Node: control.Node{
			Name: "aws-1", Overlay: addrs("10.4.0.1"), PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/24")}, Ready: true,
			Alone: true, JoinAt: []string{"198.51.100.1:7946", "[2001:db8::1]:7946"},
		}}},
		{"joined", control.Status{
			Node: control.Node{Name: "aws-1", Overlay: addrs("10.4.0.1"), Ready: true},
			Clients: []control.ClientStatus{
				{Name: "east-1", Overlay: addrs("10.4.128.1"), Networks: []netip.Prefix{netip.MustParsePrefix("10.61.0.0/16")}, Cluster: "east", AddedBy: "aws-1", LastHandshake: now.Add(-time.Second)},
				{Name: "east-2", Overlay: addrs("10.4.128.2"), Networks: []netip.Prefix{netip.MustParsePrefix("10.61.0.0/16")}, Cluster: "east", AddedBy: "aws-1"},
			},
			Clusters: []control.LinkedCluster{
				{Name: "east", Networks: []netip.Prefix{netip.MustParsePrefix("10.61.0.0/16")}, Through: []control.ClusterLink{{Name: "east-1", State: control.LinkConnected}, {Name: "east-2", State: control.LinkNotHeardHere}}},
				{Name: "west", Networks: []netip.Prefix{netip.MustParsePrefix("10.52.0.0/16"), netip.MustParsePrefix("10.53.0.0/16")}, Through: []control.ClusterLink{
					{Name: "b1", State: control.LinkServes}, {Name: "b2", State: control.LinkStandsBy}, {Name: "b3", State: control.LinkLost}, {Name: "b4", State: control.LinkDead},
				}},
				{Name: "north"},
			},
		}},
		{"starting", control.Status{Node: control.Node{Name: "aws-1", Slot: mesh.None}}},
		{"no-slot", control.Status{
			Node: control.Node{Name: "aws-1", Slot: mesh.None}, Peers: []control.Peer{{Name: "aws-2", Alive: true, Route: control.Route{Kind: mesh.RouteNone}}},
			Problems: []mesh.Problem{{Kind: mesh.ProblemExhausted, Node: "aws-1", Text: "all 256 slots of the cluster are taken", Advice: "run meshd forget for nodes that are gone"}},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for name, v := range map[string]view{"status-" + tt.name: {}, "status-wide-" + tt.name: {wide: true}} {
				var got bytes.Buffer
				if err := v.print(&got, tt.status, now); err != nil {
					t.Fatal(err)
				}
				golden(t, name, got.String())
			}
		})
	}
}

// golden compares what was printed with a file, or writes that.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

func TestPrintAnswers(t *testing.T) {
	slot := func(n int, overlay, pods string) control.Slot {
		return control.Slot{Slot: n, Overlay: []netip.Addr{netip.MustParseAddr(overlay)}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix(pods)}}
	}
	renumbered := control.Renumbered{Former: slot(3, "10.4.0.4", "10.42.3.0/24"), Now: slot(12, "10.4.0.13", "10.42.12.0/24")}
	tests := []struct {
		name  string
		print func(io.Writer) error
		want  string
	}{
		{"revoked", func(w io.Writer) error { return printRevoked(w, control.Revoked{ID: mesh.ID{0xab}, Name: "home"}) }, "Identity ab000000000000000000000000000000, of home, is revoked."},
		{"revoked unseen", func(w io.Writer) error { return printRevoked(w, control.Revoked{ID: mesh.ID{0xab}}) }, "Identity ab000000000000000000000000000000 is revoked."},
		{"rotated, accept", func(w io.Writer) error {
			return printRotated(w, control.Rotated{Round: "accept", Old: mesh.SecretHash{1}, New: mesh.SecretHash{2}, Nodes: 3})
		}, "accept: all nodes (3) accept the new secret 02000000\n"},
		{"rotated, use", func(w io.Writer) error { return printRotated(w, control.Rotated{Round: "use", Nodes: 3}) }, "use: all nodes (3) use it\n"},
		{"rotated, drop", func(w io.Writer) error {
			return printRotated(w, control.Rotated{Round: "drop", Old: mesh.SecretHash{1}, New: mesh.SecretHash{2}, Nodes: 3, Finished: true})
		}, "drop: all nodes (3) have dropped the old secret 01000000\n"},
		{"rotated, with open trust", func(w io.Writer) error { return printAfterRotation(w, control.Rotated{Trust: mesh.TrustOpen}) }, "" +
			"Tokens and copies of the old secret are worth nothing now; make new tokens with meshd token.\n" +
			"With cluster.trust: open, whoever held the old secret may have joined"},
		{"renumbered", func(w io.Writer) error { return printRenumbered(w, renumbered) }, "" +
			"        SLOT  OVERLAY    PODS\n" +
			"former  3     10.4.0.4   10.42.3.0/24\n" +
			"now     12    10.4.0.13  10.42.12.0/24\n" +
			"\nPods that ran here"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got strings.Builder
			if err := tt.print(&got); err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(got.String(), tt.want) {
				t.Errorf("got:\n%s\nwant it to begin:\n%s", got.String(), tt.want)
			}
		})
	}
}

func TestPrintReport(t *testing.T) {
	r := report{[]check.Finding{
		{Level: check.OK, What: "clock", Text: "synchronised"},
		{Level: check.Error, What: "nftables", Text: "no rule is taken\nnot one", Advice: "run: apt install nftables"},
	}}
	const want = "ok     clock     synchronised\n" +
		"error  nftables  no rule is taken; not one\n" +
		"                 → run: apt install nftables\n"
	var got bytes.Buffer
	if err := r.print(&got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
	if err := r.err(); err == nil || err.Error() != "one error was found" {
		t.Errorf("error: got %v, want that one was found", err)
	}
}
