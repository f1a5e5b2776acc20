// SPDX-License-Identifier: Apache-2.0

package connect

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// answerFor returns a node's answer that repeats the configuration of a file.
func answerFor(t testing.TB, f File) control.ClientConfig {
	t.Helper()
	answer := f.Config
	answer.Peers = slices.Clone(answer.Peers)
	for i := range answer.Peers {
		answer.Peers[i].Name = fmt.Sprintf("node-%d", i)
		answer.Peers[i].AllowedIPs = slices.Clone(answer.Peers[i].AllowedIPs)
	}
	return answer
}

// fileText returns a file that meshd client add has printed.
func fileText(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile("../../cmd/meshd/testdata/client-full.conf")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestParseFile(t *testing.T) {
	f, err := ParseFile(fileText(t))
	if err != nil {
		t.Fatal(err)
	}
	prefixes := func(list ...string) (out []netip.Prefix) {
		for _, s := range list {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	want := control.ClientConfig{
		PresharedKey: true, Overlay: []netip.Addr{netip.MustParseAddr("10.4.128.1"), netip.MustParseAddr("fd04::8000:0:0:1")},
		Cluster: "default", Ranges: prefixes("10.4.0.0/17", "10.42.0.0/16", "10.43.0.0/16", "fd04::/65"),
		Resolver: "10.43.0.10", Search: []string{"default.svc.cluster.local", "svc.cluster.local", "cluster.local"}, MTU: 1420, Keepalive: 25,
		Peers: []control.ClientPeer{
			{ID: mesh.ID{0x9f, 0x86}, Overlay: netip.MustParseAddr("10.4.0.1"), Name: "peer 1", PublicKey: "kdIC9UK1+fCNYgyZJ4YzXCGBEH1FqX2lFr3/Q2NAoho=", Endpoint: "aws.example.com:51820", AllowedIPs: prefixes("10.4.0.1/32", "10.42.0.0/24", "10.43.0.0/16")},
			{ID: mesh.ID{0x60, 0x30}, Overlay: netip.MustParseAddr("10.4.0.2"), Name: "peer 2", PublicKey: "1R1XnZkSqCmzKQv3gk3OCpKTR9zhqnFHMyDNPWDsdSE=", Endpoint: "[2001:db8::2]:51820", AllowedIPs: prefixes("10.4.0.2/32", "10.42.1.0/24", "fd04::2/128")},
		},
	}
	if d := cmp.Diff(want, f.Config, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Errorf("configuration (-want +got):\n%s", d)
	}
	if s := fmt.Sprintf("%v %+v %s", f, f, f); strings.Contains(s, f.PrivateKey.String()) {
		t.Errorf("the private key is printed: %s", s)
	}
}

// TestParseLists: several lines of a key are one list, as for wg-quick(8).
func TestParseLists(t *testing.T) {
	text := fileText(t)
	want, err := ParseFile(text)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"AllowedIPs", "Address", "DNS", "# meshd-ranges"} {
		line := regexp.MustCompile("(?m)^" + key + " = (.*?), ")
		if !line.MatchString(text) {
			t.Fatalf("no list of %s", key)
		}
		got, err := ParseFile(line.ReplaceAllString(text, key+" = $1\n"+key+" = "))
		if err != nil {
			t.Errorf("%s: %v", key, err)
		}
		if got, want := fmt.Sprint(got.Config), fmt.Sprint(want.Config); got != want {
			t.Errorf("%s: got %s, want %s", key, got, want)
		}
	}
}

func TestParseFileErrors(t *testing.T) {
	good := fileText(t)
	for _, tt := range []struct{ old, new, want string }{
		{"gI6EdUSYvn8ugXOt8QQD6Yc+JyiZxIhp3GInSWRfWGE=", "<private key of laptop>", "line 5: PrivateKey is not a WireGuard key"},
		{"MTU = 1420", "MTU = large", `line 8: MTU "large" is not a number`},
		{"MTU = 1420", "Table = off", "line 8: Table is not expected in [Interface]"},
		{"MTU = 1420", "MTU", "line 8: want KEY = VALUE"},
		{"10.42.0.0/24", "10.42.0.0", "line 16"},
		{"Endpoint = aws.example.com:51820\n", "", "peer 1: endpoint"},
		{"10.42.0.0/24", "0.0.0.0/1", "line 16: 0.0.0.0/1 is broader than a /8"},
		{"10.43.0.0/16, fd04::/65", "10.0.0.0/0", "line 4: 10.0.0.0/0 is broader than a /8"},
		{"# meshd-cluster = default\n", "", "meshd client show"},
		{"# meshd-ranges = 10.4.0.0/17, 10.42.0.0/16, 10.43.0.0/16, fd04::/65\n", "", "meshd client show"},
		{"# meshd-node = 60300000000000000000000000000000, 10.4.0.2\n", "", "peer 2: the file lacks some of meshd's comments"},
		{"60300000000000000000000000000000", "6030", "want 32 hexadecimal digits"},
		{"10.42.0.0/24, ", "0.0.0.0/0", "line 16"},
		{"10.4.0.1/32, ", "0.0.0.0/0, ", "10.4.0.1 is not among its allowed IPs"},
		{"10.4.0.1\n", "10.9.0.1\n", "10.9.0.1 is not among its allowed IPs"},
	} {
		if _, err := ParseFile(strings.Replace(good, tt.old, tt.new, 1)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s for %s: got %v, want %q", tt.new, tt.old, err, tt.want)
		}
	}
	for _, text := range []string{"", "[Interface]\n", good[:strings.Index(good, "# aws-1")]} {
		if _, err := ParseFile(text); err == nil {
			t.Errorf("%q: no error", text)
		}
	}
}

func FuzzParseFile(f *testing.F) {
	f.Add(fileText(f))
	f.Fuzz(func(t *testing.T, text string) {
		file, err := ParseFile(text)
		if err == nil && checkConfig(file.Config) != nil {
			t.Errorf("ParseFile accepts an invalid configuration: %+v", file.Config)
		}
	})
}

// signer returns a node's identity, made from a number.
func signer(n byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize))
}

func idOf(key ed25519.PrivateKey) mesh.ID { return mesh.IDOf(key.Public().(ed25519.PublicKey)) }

// The server identifies a client by its address and its key, passes on the list of
// silent nodes, and signs its answer.
func TestHandler(t *testing.T) {
	client := netip.MustParseAddr("10.4.128.1")
	o := ServerOptions{Cluster: "default", Identity: signer(1), Source: func(a Requester) (control.ClientConfig, bool) {
		return control.ClientConfig{Name: strings.Join(a.Silent, ",")}, a.Addr == client && a.Key == wgtypes.Key{7}
	}}
	for from, code := range map[string]int{"10.4.128.1:99": http.StatusOK, "[::ffff:10.4.128.1]:99": http.StatusOK, "10.4.128.2:99": http.StatusForbidden, "x": http.StatusBadRequest} {
		w := httptest.NewRecorder()
		q := newQuestion("default", wgtypes.Key{7})
		r := httptest.NewRequest(http.MethodGet, configPath+"?silent=a&silent=b&"+q.query().Encode(), nil)
		r.RemoteAddr = from
		o.handler().ServeHTTP(w, r)
		var got control.ClientConfig
		if w.Code != code || code == http.StatusOK && (json.Unmarshal(w.Body.Bytes(), &got) != nil || got.Name != "a,b") {
			t.Errorf("%s: got %d %s, want %d", from, w.Code, w.Body, code)
		}
		if err := q.verify(idOf(o.Identity), w.Header(), w.Code, w.Body.Bytes()); (err == nil) != (code != http.StatusBadRequest) {
			t.Errorf("%s: signature: %v", from, err)
		}
	}
	for _, query := range []string{"", "?key=x", "?" + strings.Replace(newQuestion("default", wgtypes.Key{7}).query().Encode(), "nonce=", "nonce=AA", 1)} {
		w := httptest.NewRecorder()
		o.handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, configPath+query, nil))
		if w.Code != http.StatusBadRequest {
			t.Errorf("%q: got status %d, want %d", query, w.Code, http.StatusBadRequest)
		}
	}
}

// While all peers are silent, a client also has tunnels to the standbys, and the overlay
// addresses of the standbys are routed to them.
func TestPeersOfALostClient(t *testing.T) {
	prefixes := func(list ...string) (out []netip.Prefix) {
		for _, s := range list {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	c := &client{missed: map[string]int{}, config: control.ClientConfig{
		Peers:    []control.ClientPeer{{PublicKey: "g", AllowedIPs: prefixes("10.4.0.1/32", "10.4.0.2/32", "10.42.0.0/23")}, {PublicKey: "o", AllowedIPs: prefixes("10.4.0.3/32")}},
		Standbys: []control.ClientPeer{{PublicKey: "s", AllowedIPs: prefixes("10.4.0.2/32")}},
	}}
	c.missed["g"] = missesToSilent
	if got := c.tunnelPeers(); len(got) != 2 {
		t.Errorf("while one peer answers: got %v, want only the peers", got)
	}
	c.missed["o"] = missesToSilent
	want := []control.ClientPeer{
		{PublicKey: "s", AllowedIPs: prefixes("10.4.0.2/32")},
		{PublicKey: "g", AllowedIPs: prefixes("10.4.0.1/32", "10.42.0.0/23")},
		{PublicKey: "o", AllowedIPs: prefixes("10.4.0.3/32")},
	}
	if d := cmp.Diff(want, c.tunnelPeers(), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("while all peers are silent (-want +got):\n%s", d)
	}
	if len(c.config.Peers[0].AllowedIPs) != 3 {
		t.Error("the configuration itself has changed")
	}
}

// A client asks the service gateway. After two requests without an answer it asks another
// node and reports the first as silent. It asks the first again once that answers.
func TestFetchConfig(t *testing.T) {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	file, err := ParseFile(fileText(t))
	if err != nil {
		t.Fatal(err)
	}
	answer := answerFor(t, file)
	var silent []string // as each request that was answered lists them
	server := NewServer(ServerOptions{Cluster: "default", Identity: signer(1), Logger: log, Source: func(a Requester) (control.ClientConfig, bool) {
		silent = append(silent, strings.Join(a.Silent, ","))
		return answer, true
	}})
	defer func() {
		if err := server.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	first, second := netip.MustParseAddr("127.0.77.1"), netip.MustParseAddr("127.0.77.2")
	if err := server.EnsureListening(netip.AddrPortFrom(second, mesh.ClientPort)); err != nil {
		t.Fatal(err)
	}
	c := newClient(Options{Logger: log, File: file, Now: time.Now}, nil, 0)
	c.config.Peers = []control.ClientPeer{
		{ID: idOf(signer(1)), Name: "first", PublicKey: "f", Overlay: first, ServiceGateway: true}, {ID: idOf(signer(1)), Name: "second", PublicKey: "s", Overlay: second},
	}
	for range missesToSilent {
		if len(silent) > 0 {
			t.Fatal("the second node was asked too early")
		}
		_, _ = c.fetchConfig(t.Context())
	}
	if diff := cmp.Diff([]string{"f"}, silent); diff != "" {
		t.Errorf("nodes reported as silent (-want +got):\n%s", diff)
	}
	if err := server.EnsureListening(netip.AddrPortFrom(first, mesh.ClientPort)); err != nil {
		t.Fatal(err)
	}
	c.silentAskedAt = c.silentAskedAt.Add(-retryEvery)
	_, _ = c.fetchConfig(t.Context())
	if c.silent(c.config.Peers[0]) {
		t.Error("the first node has answered, but still counts as silent")
	}
	if _, err := c.request(t.Context(), c.config.Peers[1], nil); err == nil {
		t.Error("the server still listens on the second address")
	}
}
