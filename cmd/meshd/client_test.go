// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
)

func TestWGQuick(t *testing.T) {
	prefixes := func(list ...string) (out []netip.Prefix) {
		for _, s := range list {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	full := control.ClientConfig{
		Cluster: "default", Name: "laptop", PresharedKey: true,
		Overlay:  []netip.Addr{netip.MustParseAddr("10.4.128.1"), netip.MustParseAddr("fd04::8000:0:0:1")},
		Resolver: "10.43.0.10", Search: []string{"default.svc.cluster.local", "svc.cluster.local", "cluster.local"},
		MTU: 1420, Keepalive: 25, Ranges: prefixes("10.4.0.0/17", "10.42.0.0/16", "10.43.0.0/16", "fd04::/65"),
		Peers: []control.ClientPeer{
			{ID: mesh.ID{0x9f, 0x86}, Overlay: netip.MustParseAddr("10.4.0.1"), Name: "aws-1", PublicKey: "kdIC9UK1+fCNYgyZJ4YzXCGBEH1FqX2lFr3/Q2NAoho=", Endpoint: "aws.example.com:51820", AllowedIPs: prefixes("10.4.0.1/32", "10.42.0.0/24", "10.43.0.0/16"), ServiceGateway: true},
			{ID: mesh.ID{0x60, 0x30}, Overlay: netip.MustParseAddr("10.4.0.2"), Name: "gcp-1", PublicKey: "1R1XnZkSqCmzKQv3gk3OCpKTR9zhqnFHMyDNPWDsdSE=", Endpoint: "[2001:db8::2]:51820", AllowedIPs: prefixes("10.4.0.2/32", "10.42.1.0/24", "fd04::2/128")},
		},
	}
	restricted := full
	restricted.PresharedKey, restricted.Resolver, restricted.Search = false, "", nil
	router := restricted
	router.Networks, router.ListenPort, router.Keepalive = prefixes("192.168.50.0/24"), 51820, 5
	internet := full
	internet.Ranges = append(prefixes("0.0.0.0/0", "::/0"), full.Ranges...)
	internet.Peers = slices.Clone(full.Peers)
	internet.Peers[0].AllowedIPs = append(prefixes("0.0.0.0/0", "::/0"), full.Peers[0].AllowedIPs...)
	for name, got := range map[string]string{
		"router":      wgQuick(router, "gI6EdUSYvn8ugXOt8QQD6Yc+JyiZxIhp3GInSWRfWGE=", ""),
		"internet":    wgQuick(internet, "gI6EdUSYvn8ugXOt8QQD6Yc+JyiZxIhp3GInSWRfWGE=", "FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE="),
		"full":        wgQuick(full, "gI6EdUSYvn8ugXOt8QQD6Yc+JyiZxIhp3GInSWRfWGE=", "FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE="),
		"placeholder": wgQuick(full, "", ""),
		"restricted":  wgQuick(restricted, "gI6EdUSYvn8ugXOt8QQD6Yc+JyiZxIhp3GInSWRfWGE=", ""),
	} {
		t.Run(name, func(t *testing.T) {
			golden := filepath.Join("testdata", "client-"+name+".conf")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("configuration (-want +got):\n%s", diff)
			}
		})
	}
}

// A QR code has the configuration without what only meshd connect and people read.
func TestWithoutComments(t *testing.T) {
	got := withoutComments("# laptop\n[Interface]\n# meshd-cluster = a\nMTU = 1420\n\n[Peer]\n")
	if want := "[Interface]\nMTU = 1420\n[Peer]\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// An empty list gets to the daemon as one, which refuses it: it is not the default.
func TestHostileEmptyAccess(t *testing.T) {
	for args, want := range map[string]int{"": 3, "--access=": 0, "--access=pods": 1} {
		cmd := newClientAdd(&paths{})
		if err := cmd.ParseFlags(strings.Fields(args)); err != nil {
			t.Fatal(err)
		}
		if got, err := cmd.Flags().GetStringSlice("access"); err != nil || len(got) != want {
			t.Errorf("%q: got %q, %v, want %d", args, got, err, want)
		}
	}
}

// fakeDaemon answers requests on a control socket in the directory that it returns.
func fakeDaemon(t *testing.T, answer http.HandlerFunc) (runDir string) {
	t.Helper()
	runDir = t.TempDir()
	listener, err := net.Listen("unix", control.SocketPath(runDir))
	if err != nil {
		t.Fatal(err)
	}
	daemon := httptest.NewUnstartedServer(answer)
	_ = daemon.Listener.Close()
	daemon.Listener = listener
	daemon.Start()
	t.Cleanup(daemon.Close)
	return runDir
}

// The daemon gets the flags of a link node of another cluster as they were given.
func TestClientAddCluster(t *testing.T) {
	var got control.ClientRequest
	dir := fakeDaemon(t, func(w http.ResponseWriter, r *http.Request) {
		if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
			t.Error(err)
		}
		_, _ = io.WriteString(w, `{"name": "west-1"}`)
	})
	cmd := newClientAdd(&paths{runDir: dir})
	cmd.SetOut(io.Discard)
	cmd.SetArgs([]string{"west-1", "--networks", "10.52.0.0/16,10.53.0.0/16", "--cluster", "west", "--no-internal-ips"})
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	if want := []string{"10.52.0.0/16", "10.53.0.0/16"}; got.Cluster != "west" || !slices.Equal(got.Networks, want) || !got.NoInternalIPs {
		t.Errorf("got networks %q of cluster %q, internal IPs left out: %v; want %q of west, true", got.Networks, got.Cluster, got.NoInternalIPs, want)
	}
}

func TestWarnUnserved(t *testing.T) {
	var b strings.Builder
	warnUnserved(&b, control.ClientConfig{Name: "kiosk", Unserved: []string{"192.168.20.0/24", "tcp/443@internet"}})
	network, internet, _ := strings.Cut(b.String(), "\n")
	if !strings.HasPrefix(network, "warning: kiosk may reach 192.168.20.0/24, but no node routes to that; add it to node.allowed-location-ips") ||
		!strings.HasPrefix(internet, "warning: kiosk may reach tcp/443@internet, but no node offers it now; set node.exit: true") {
		t.Errorf("got %q", b.String())
	}
}
