// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"go.uber.org/goleak"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// get sends a request to the handler and returns the answer's code and text.
func get(t *testing.T, m *Metrics, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	handler(m).ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w.Code, w.Body.String()
}

// own returns meshd's own samples, without those that depend on the time.
func own(t *testing.T, m *Metrics) []string {
	t.Helper()
	code, text := get(t, m, "/metrics")
	if code != http.StatusOK {
		t.Fatalf("got %d, want 200:\n%s", code, text)
	}
	var out []string
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "meshd_") && !strings.Contains(line, "_bucket{") && !strings.Contains(line, "_seconds_sum") && !strings.Contains(line, "_duration_") {
			out = append(out, strings.TrimSuffix(line, "\n"))
		}
	}
	return out
}

// fullStatus returns a status from which every metric has a sample.
func fullStatus() control.Status {
	direct := control.Route{Kind: "direct"}
	return control.Status{
		Node: control.Node{Ready: true, Role: control.RoleGateway},
		Peers: []control.Peer{
			{ID: mesh.ID{1}, Name: "a", Alive: true, Route: direct, Endpoint: netip.MustParseAddrPort("192.0.2.1:51820"), Received: 10, Sent: 20, LastHandshake: time.UnixMilli(1700000000500), RTT: control.Milliseconds(1500 * time.Microsecond), Path: control.Path{Kind: control.PathDirect, Proved: true}},
			{ID: mesh.ID{2}, Name: "a", Route: direct, Path: control.Path{Kind: control.PathLAN}},
			{ID: mesh.ID{3}, Name: "c", Alive: true, Route: direct},
		},
		Clients:   []control.ClientStatus{{Name: "laptop"}},
		Problems:  []mesh.Problem{{Kind: mesh.ProblemAddress}, {Kind: mesh.ProblemAddress}},
		Reconcile: control.Reconcile{Writes: 7, Error: "no"},
		Counters:  []control.Counter{{Reason: "replayed", Count: 3}},
		Relay:     &control.Relay{Nodes: 4, Bytes: 1500, Dropped: map[string]uint64{"rate limit": 2}},
	}
}

func TestMetrics(t *testing.T) {
	m := New("1.0", time.Now)
	if diff := cmp.Diff([]string{
		`meshd_build_info{version="1.0"} 1`,
		`meshd_path_changes_total 0`,
		`meshd_reconciles_total{result="error"} 0`,
		`meshd_reconciles_total{result="ok"} 0`,
		`meshd_route_changes_total 0`,
		`meshd_time_to_direct_seconds_count 0`,
	}, own(t, m)); diff != "" {
		t.Errorf("before the first turn (-want +got):\n%s", diff)
	}
	s := fullStatus()
	m.Turn(s, time.Millisecond)
	s.Reconcile.Error = ""
	s.Peers = append([]control.Peer{}, s.Peers...)
	s.Peers[1].Route.Via, s.Peers[2].ID = []string{"b"}, mesh.ID{4} // one route changes, one node is new
	m.Turn(s, time.Second)
	if diff := cmp.Diff([]string{
		`meshd_build_info{version="1.0"} 1`,
		`meshd_clients 1`,
		`meshd_dropped_total{reason="replayed"} 3`,
		`meshd_gossip_round_trip_seconds{peer="a"} 0.0015`,
		`meshd_host_writes_total 7`,
		`meshd_node_ready 1`,
		`meshd_node_role{role="gateway"} 1`,
		`meshd_path_changes_total 0`,
		`meshd_paths{kind="direct"} 1`,
		`meshd_paths{kind="lan"} 0`,
		`meshd_paths{kind="none"} 1`,
		`meshd_paths{kind="relayed"} 0`,
		`meshd_paths{kind="tcp"} 0`,
		`meshd_peer_alive{peer="a"} 1`,
		`meshd_peer_alive{peer="a ` + mesh.ID{2}.String() + `"} 0`,
		`meshd_peer_alive{peer="c"} 1`,
		`meshd_peer_last_handshake_timestamp_seconds{peer="a"} 1.7000000005e+09`,
		`meshd_peer_received_bytes_total{peer="a"} 10`,
		`meshd_peer_sent_bytes_total{peer="a"} 20`,
		`meshd_peers{state="absent"} 1`,
		`meshd_peers{state="alive"} 2`,
		`meshd_problems{kind="` + string(mesh.ProblemAddress) + `"} 2`,
		`meshd_reconciles_total{result="error"} 1`,
		`meshd_reconciles_total{result="ok"} 1`,
		`meshd_relay_dropped_total{reason="rate limit"} 2`,
		`meshd_relay_nodes 4`,
		`meshd_relayed_bytes_total 1500`,
		`meshd_route_changes_total 1`,
		`meshd_time_to_direct_seconds_count 1`,
	}, own(t, m)); diff != "" {
		t.Errorf("after two turns (-want +got):\n%s", diff)
	}
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// TestPaths has a peer appear, be reached through a relay, then directly, die, and come back.
func TestPaths(t *testing.T) {
	now := time.Now()
	m := New("1.0", func() time.Time { return now })
	peer := control.Peer{ID: mesh.ID{1}, Name: "a", Alive: true, Path: control.Path{Kind: control.PathNone}}
	pass := func(d time.Duration) {
		now = now.Add(d)
		m.Paths([]control.Peer{peer})
	}
	answers := func(kind control.PathKind, addr string) {
		peer.Path = control.Path{Kind: kind, Addr: netip.MustParseAddrPort(addr), Proved: true}
	}
	check := func(when string, changes int, direct ...string) {
		t.Helper()
		_, text := get(t, m, "/metrics")
		for _, line := range append(direct, fmt.Sprintf("meshd_path_changes_total %d", changes)) {
			if !strings.Contains(text, line+"\n") {
				t.Errorf("%s: no line %q", when, line)
			}
		}
	}
	pass(0)
	pass(time.Second)
	answers(control.PathRelayed, "203.0.113.2:7946")
	pass(0)
	check("relayed", 0, "meshd_time_to_direct_seconds_count 0")
	answers(control.PathDirect, "203.0.113.1:51820")
	pass(2 * time.Second)
	check("direct", 1, "meshd_time_to_direct_seconds_sum 3", "meshd_time_to_direct_seconds_count 1")
	answers(control.PathDirect, "203.0.113.1:51821")
	pass(time.Minute)
	check("direct elsewhere", 2, "meshd_time_to_direct_seconds_count 1")
	peer.Alive = false
	pass(time.Minute)
	peer.Alive = true
	pass(time.Minute)
	check("taken for dead", 2, "meshd_time_to_direct_seconds_count 1")
	peer.Alive, peer.Path.Proved = false, false
	pass(time.Minute)
	peer.Alive = true
	pass(0)
	check("alive again", 2, "meshd_time_to_direct_seconds_count 1")
	peer.Path.Proved = true
	pass(4 * time.Second)
	check("direct again", 2, "meshd_time_to_direct_seconds_sum 7", "meshd_time_to_direct_seconds_count 2")
	m.Turn(control.Status{Peers: []control.Peer{peer}}, 0)
	check("after a turn", 2, `meshd_paths{kind="direct"} 1`, `meshd_paths{kind="none"} 0`)
}

func TestHealth(t *testing.T) {
	now := time.Now()
	m := New("1.0", func() time.Time { return now })
	check := func(path string, code int, text string) {
		t.Helper()
		if gotCode, got := get(t, m, path); gotCode != code || !strings.Contains(got, text) {
			t.Errorf("%s: got %d %q, want %d %q", path, gotCode, got, code, text)
		}
	}
	check("/healthz", http.StatusServiceUnavailable, "no turn")
	check("/readyz", http.StatusServiceUnavailable, "no turn")
	m.Turn(control.Status{}, 0)
	check("/healthz", http.StatusOK, "ok")
	check("/readyz", http.StatusServiceUnavailable, "not ready")
	ready := control.Status{Node: control.Node{Ready: true}}
	m.Turn(ready, 0)
	check("/readyz", http.StatusOK, "ok")
	failing := ready
	failing.Reconcile.Error = "the disk is full"
	m.Turn(failing, 0)
	check("/healthz", http.StatusOK, "ok")
	check("/readyz", http.StatusServiceUnavailable, "the disk is full")
	now = now.Add(2 * stale)
	check("/healthz", http.StatusServiceUnavailable, "ago")
	check("/readyz", http.StatusServiceUnavailable, "ago")
	check("/", http.StatusNotFound, "")
}

// TestServer changes the address of a server several times, also to one that is in use.
func TestServer(t *testing.T) {
	m := New("1.0", time.Now)
	m.Turn(control.Status{}, 0)
	s := NewServer(m, slog.New(slog.DiscardHandler))
	one, two, taken := free(t), free(t), free(t)
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(taken))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, step := range []struct {
		keep   netip.AddrPort
		fails  bool
		serves []netip.AddrPort
	}{
		{netip.AddrPort{}, false, nil},
		{one, false, []netip.AddrPort{one}},
		{one, false, []netip.AddrPort{one}},
		{two, false, []netip.AddrPort{two}},
		{taken, true, nil},
		{taken, true, nil},
		{one, false, []netip.AddrPort{one}},
		{netip.AddrPort{}, false, nil},
		{two, false, []netip.AddrPort{two}},
	} {
		if err := s.EnsureListening(step.keep); (err != nil) != step.fails {
			t.Errorf("EnsureListening(%v): got %v, want an error: %t", step.keep, err, step.fails)
		}
		var serves []netip.AddrPort
		for _, a := range []netip.AddrPort{one, two} {
			if answers(a) {
				serves = append(serves, a)
			}
		}
		if diff := cmp.Diff(step.serves, serves, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
			t.Errorf("addresses that answer after EnsureListening(%v) (-want +got):\n%s", step.keep, diff)
		}
	}
	if err := s.Close(t.Context()); err != nil {
		t.Errorf("close: %v", err)
	}
	if answers(two) {
		t.Error("a closed server answers")
	}
}

// free returns an address that no process listens on.
func free(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func answers(a netip.AddrPort) bool {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := client.Get("http://" + a.String() + "/healthz")
	if err != nil {
		return false
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	return err == nil && r.StatusCode == http.StatusOK && string(text) == "ok\n"
}

// A scraper gets an answer although another host keeps hundreds of connections open.
func TestHostileScrapers(t *testing.T) {
	s := NewServer(New("1.0", time.Now), slog.New(slog.DiscardHandler))
	at := free(t)
	if err := s.EnsureListening(at); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close(t.Context()) }()
	scrape := func(source string) bool {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}, Timeout: 30 * time.Second}
		c, err := d.Dial("tcp", at.String())
		if err != nil {
			return false
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := io.WriteString(c, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			return false
		}
		n, _ := c.Read(make([]byte, 1))
		return n == 1
	}
	for range 300 {
		scrape("127.0.0.66")
	}
	for _, source := range []string{"127.0.0.66", "127.0.0.2"} {
		if !scrape(source) {
			t.Errorf("a scraper at %s gets no answer", source)
		}
	}
}

// The number of node names that become labels is limited, because nodes choose their
// names. Alive nodes are preferred.
func TestHostileLabels(t *testing.T) {
	var peers []control.Peer
	for i := range 8000 {
		peers = append(peers, control.Peer{Name: fmt.Sprintf("n%d", i), Alive: i == 7000})
	}
	got := byName(labelled(peers))
	if _, ok := got["n7000"]; len(got) != maxLabelled || !ok {
		t.Errorf("got %d names, with n7000: %t; want %d with it", len(got), ok, maxLabelled)
	}
}
