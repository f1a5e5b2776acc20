// SPDX-License-Identifier: Apache-2.0

package connect

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

// laptop returns a client that has only the configuration of its file.
func laptop(t testing.TB) *client {
	t.Helper()
	file, err := ParseFile(fileText(t))
	if err != nil {
		t.Fatal(err)
	}
	return newClient(Options{Interface: "mesh0", File: file, Logger: slog.New(slog.DiscardHandler), Now: time.Now}, nil, 51820)
}

// An answer is accepted only if the node that was asked has signed it for this client and
// this question.
func TestHostileAnswer(t *testing.T) {
	c := laptop(t)
	node, other := signer(1), signer(2)
	asked := newQuestion("default", c.File.PrivateKey.PublicKey())
	body, err := json.Marshal(answerFor(t, c.File))
	if err != nil {
		t.Fatal(err)
	}
	otherCluster, otherClient := asked, newQuestion("default", wgtypes.Key{9})
	otherCluster.cluster = "other"
	for _, tt := range []struct {
		name   string
		signed question
		by     ed25519.PrivateKey
		change func(r *http.Response)
		want   string // "" if the answer is accepted
	}{
		{"honest", asked, node, func(*http.Response) {}, ""},
		{"unsigned", asked, node, func(r *http.Response) { r.Header = http.Header{} }, "not signed"},
		{"signed by another node", asked, other, func(*http.Response) {}, "the answer is from node"},
		{"signed by another node in this one's name", asked, other, func(r *http.Response) {
			honest := http.Header{}
			asked.sign(honest, node, http.StatusOK, nil)
			r.Header.Set(headerIdentity, honest.Get(headerIdentity))
		}, "signature is not valid"},
		{"to an earlier question", newQuestion("default", asked.client), node, func(*http.Response) {}, "signature is not valid"},
		{"to another client", otherClient, node, func(*http.Response) {}, "signature is not valid"},
		{"of another cluster", otherCluster, node, func(*http.Response) {}, "signature is not valid"},
		{"changed", asked, node, func(r *http.Response) { r.Body = io.NopCloser(strings.NewReader(string(body) + " ")) }, "signature is not valid"},
		{"turned into a refusal", asked, node, func(r *http.Response) { r.StatusCode = http.StatusForbidden }, "signature is not valid"},
		{"endless", asked, node, func(r *http.Response) { r.Body = io.NopCloser(zeros{}) }, "bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body))}
			tt.signed.sign(r.Header, tt.by, http.StatusOK, body)
			tt.change(r)
			_, err := c.readAnswer(asked, idOf(node), r)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

// Whatever a node signs, the client accepts no prefix outside the ranges of its file.
func TestHostileNodeAnswers(t *testing.T) {
	c := laptop(t)
	peer := func(change func(p *control.ClientPeer)) func(*control.ClientConfig) {
		return func(answer *control.ClientConfig) { change(&answer.Peers[0]) }
	}
	allowed := func(list ...string) func(*control.ClientConfig) {
		return peer(func(p *control.ClientPeer) {
			for _, s := range list {
				p.AllowedIPs = append(p.AllowedIPs, netip.MustParsePrefix(s))
			}
		})
	}
	for _, tt := range []struct {
		name    string
		change  func(answer *control.ClientConfig)
		refused bool
		peers   int // that are accepted
	}{
		{"honest", func(*control.ClientConfig) {}, false, 2},
		{"default route", allowed("0.0.0.0/0", "::/0"), false, 2},
		{"halves of the default route", allowed("0.0.0.0/1", "128.0.0.0/1", "::/1"), false, 2},
		{"a network outside the ranges", allowed("192.168.1.0/24", "8.8.8.8/32", "2001:db8::/32"), false, 2},
		{"broader than a range", allowed("10.0.0.0/8", "10.40.0.0/13", "fd00::/8"), false, 2},
		{"IPv4 in IPv6", allowed("::ffff:10.42.0.0/112"), false, 2},
		{"another node's prefix", func(answer *control.ClientConfig) {
			answer.Peers[1].AllowedIPs = append(answer.Peers[1].AllowedIPs, answer.Peers[0].AllowedIPs...)
		}, false, 2},
		{"resolver outside the ranges", func(answer *control.ClientConfig) { answer.Resolver = "8.8.8.8" }, true, 0},
		{"resolver with a line break", func(answer *control.ClientConfig) { answer.Resolver = "10.43.0.10\noptions x" }, true, 0},
		{"domain with a line break", func(answer *control.ClientConfig) { answer.Search = []string{"a\nnameserver 8.8.8.8"} }, true, 0},
		{"domain with a space", func(answer *control.ClientConfig) { answer.Search = []string{"a b"} }, true, 0},
		{"long domain", func(answer *control.ClientConfig) { answer.Search = []string{strings.Repeat("a", 300)} }, true, 0},
		{"many domains", func(answer *control.ClientConfig) { answer.Search = slices.Repeat([]string{"a"}, 100) }, true, 0},
		{"10,000 peers", func(answer *control.ClientConfig) { answer.Peers = slices.Repeat(answer.Peers, 5000) }, true, 0},
		{"10,000 standbys", func(answer *control.ClientConfig) { answer.Standbys = slices.Repeat(answer.Peers, 5000) }, true, 0},
		{"a million prefixes", func(answer *control.ClientConfig) {
			answer.Peers[0].AllowedIPs = slices.Repeat(answer.Peers[0].AllowedIPs, 1<<18)
		}, true, 0},
		{"no peers", func(answer *control.ClientConfig) { answer.Peers = nil }, true, 0},
		{"MTU", func(answer *control.ClientConfig) { answer.MTU = 68 }, true, 0},
		{"keepalive", func(answer *control.ClientConfig) { answer.Keepalive = -1 }, true, 0},
		{"other addresses", func(answer *control.ClientConfig) { answer.Overlay = []netip.Addr{netip.MustParseAddr("192.168.1.1")} }, false, 2},
		{"peer without fingerprint", peer(func(p *control.ClientPeer) { p.ID = mesh.ID{} }), false, 1},
		{"peer with our own key", peer(func(p *control.ClientPeer) { p.PublicKey = c.File.PrivateKey.PublicKey().String() }), false, 1},
		{"the same peer twice", func(answer *control.ClientConfig) { answer.Peers[1].PublicKey = answer.Peers[0].PublicKey }, false, 1},
		{"peer with an escape sequence in its name", peer(func(p *control.ClientPeer) { p.Name = "\x1b[2J" }), false, 1},
		{"peer with an overlay address outside the ranges", peer(func(p *control.ClientPeer) { p.Overlay = netip.MustParseAddr("192.168.1.1") }), false, 1},
		{"endpoint: multicast", peer(func(p *control.ClientPeer) { p.Endpoint = "224.0.0.1:1" }), false, 1},
		{"endpoint: broadcast", peer(func(p *control.ClientPeer) { p.Endpoint = "255.255.255.255:1" }), false, 1},
		{"endpoint: loopback", peer(func(p *control.ClientPeer) { p.Endpoint = "127.0.0.1:53" }), false, 1},
		{"endpoint: link-local", peer(func(p *control.ClientPeer) { p.Endpoint = "169.254.169.254:80" }), false, 1},
		{"endpoint: port 0", peer(func(p *control.ClientPeer) { p.Endpoint = "192.0.2.1:0" }), false, 1},
		{"endpoint: invalid name", peer(func(p *control.ClientPeer) { p.Endpoint = "a\nb:1" }), false, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			answer := answerFor(t, c.File)
			tt.change(&answer)
			got, _, err := c.File.accept(answer)
			if tt.refused != (err != nil) || len(got.Peers) != tt.peers && !tt.refused {
				t.Fatalf("got %d peers, %v", len(got.Peers), err)
			}
			if err == nil {
				checkAccepted(t, c.File, got)
			}
		})
	}
	if got, _, err := c.File.accept(answerFor(t, c.File)); err != nil || !cmp.Equal(got.Peers[0].AllowedIPs, c.File.Config.Peers[0].AllowedIPs, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })) {
		t.Errorf("an answer equal to the file is not accepted: %v, %v", got.Peers, err)
	}
}

// checkAccepted fails the test if a configuration goes beyond what its file grants.
func checkAccepted(t *testing.T, f File, c control.ClientConfig) {
	t.Helper()
	seen := make(map[netip.Prefix]bool)
	for _, p := range slices.Concat(c.Peers, c.Standbys) {
		if err := checkPeer(p); err != nil || !hostName.MatchString(p.Name) {
			t.Errorf("peer %q: %v", p.Name, err)
		}
	}
	for _, p := range c.Peers {
		for _, a := range p.AllowedIPs {
			if seen[a] || a.Bits() < 8 || !slices.ContainsFunc(f.granted(), func(g netip.Prefix) bool {
				return g.Bits() <= a.Bits() && g.Overlaps(a)
			}) {
				t.Errorf("allowed IP %v is not granted, or occurs twice", a)
			}
			seen[a] = true
		}
	}
	if !slices.Equal(c.Overlay, f.Config.Overlay) || strings.ContainsAny(c.Resolver+strings.Join(c.Search, ""), " \n\t\x1b") {
		t.Errorf("addresses %v, resolver %q, domains %q", c.Overlay, c.Resolver, c.Search)
	}
}

func FuzzAnswer(f *testing.F) {
	c := laptop(f)
	body, err := json.Marshal(answerFor(f, c.File))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Add([]byte(`{"mtu":1420,"peers":[{"allowedIPs":["0.0.0.0/0"]}]}`))
	node := signer(1)
	f.Fuzz(func(t *testing.T, body []byte) {
		q := newQuestion("default", c.File.PrivateKey.PublicKey())
		r := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body))}
		q.sign(r.Header, node, http.StatusOK, body)
		if got, err := c.readAnswer(q, idOf(node), r); err == nil {
			checkAccepted(t, c.File, got)
		}
	})
}

// An impostor on a node's port sends unsigned answers, refusals and redirects. For the
// client that node is silent, and it follows no redirect.
func TestHostileImpostor(t *testing.T) {
	var redirected int
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { redirected++ }))
	defer other.Close()
	c := laptop(t)
	forged := answerFor(t, c.File)
	forged.Peers[0].AllowedIPs = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}
	at := netip.MustParseAddr("127.0.78.1")
	l, err := net.Listen("tcp", netip.AddrPortFrom(at, mesh.ClientPort).String())
	if err != nil {
		t.Fatal(err)
	}
	answers := []http.HandlerFunc{
		func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(forged) },
		func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) },
		func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
		},
		func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X", strings.Repeat("x", 1<<20))
			_ = json.NewEncoder(w).Encode(forged)
		},
	}
	asked := 0
	impostor := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answers[asked](w, r)
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = impostor.Serve(l) }()
	defer func() { _ = impostor.Close(); <-done }()
	node := c.config.Peers[0]
	node.Overlay = at
	for ; asked < len(answers); asked++ {
		if config, err := c.ask(t.Context(), []control.ClientPeer{node}); err == nil {
			t.Errorf("answer %d is accepted: %+v", asked, config)
		}
	}
	if redirected > 0 {
		t.Error("the client followed a redirect")
	}
	if c.missed[node.PublicKey] != len(answers) {
		t.Errorf("%d misses are counted, want %d", c.missed[node.PublicKey], len(answers))
	}
}

// Prefixes that overlap the host's own networks are left out and named.
func TestHostileAttachedNetworks(t *testing.T) {
	c := laptop(t)
	own := attached("10.43.7.0/24", "10.4.0.2/32", "192.168.1.0/24")
	peers, conflicts := withoutAttached(c.config.Peers, netcfg.Facts{Nearby: mesh.Nearby{Attached: own}})
	if got := fmt.Sprint(peers[0].AllowedIPs, peers[1].AllowedIPs, conflicts); got != "[10.4.0.1/32 10.42.0.0/24] [10.42.1.0/24 fd04::2/128] [10.43.0.0/16 overlaps 10.43.7.0/24 10.4.0.2/32 overlaps 10.4.0.2/32]" {
		t.Errorf("got %s", got)
	}
	if len(c.config.Peers[0].AllowedIPs) != 3 {
		t.Error("the configuration itself has changed")
	}
	if routedTo(peers, netip.MustParseAddr(c.config.Resolver)) {
		t.Error("the resolver is used, although its address is in the host's own network")
	}
	wide := netcfg.Facts{Nearby: mesh.Nearby{Attached: attached("10.0.0.0/8", "128.0.0.0/1")}}
	if _, conflicts := withoutAttached(c.config.Peers, wide); len(conflicts) > 0 {
		t.Errorf("wider networks to which another VPN has routes: got %v, want no conflict", conflicts)
	}
	wide.Attached = []netcfg.LAN{{Link: "eth0", Address: netip.MustParsePrefix("10.1.2.3/8")}}
	if _, conflicts := withoutAttached(c.config.Peers, wide); len(conflicts) == 0 {
		t.Error("a wider network in which the host has an address: got no conflict")
	}
	for prefix, want := range map[string]int{"10.43.7.0/24": 0, "10.43.0.0/16": 1, "10.0.0.0/8": 0} {
		routed := attached(prefix)
		routed[0].Routed = true
		if _, conflicts := withoutAttached(c.config.Peers, netcfg.Facts{Nearby: mesh.Nearby{Attached: routed}}); len(conflicts) != want {
			t.Errorf("%s behind a router: got %v, want %d conflicts", prefix, conflicts, want)
		}
	}
}

// An endpoint's name that resolves into the mesh is not used: a tunnel can't run through
// itself.
func TestHostileEndpoint(t *testing.T) {
	c := laptop(t)
	peers := c.config.Peers
	for addr, ok := range map[string]bool{"192.0.2.1": true, "10.42.1.9": false, "127.0.0.1": false, "224.0.0.1": false} {
		c.resolved["aws.example.com"] = resolved{addr: netip.MustParseAddr(addr)}
		if got := c.endpoint(peers[0], peers); got.IsValid() != ok {
			t.Errorf("%s: got %v", addr, got)
		}
	}
}

// Answers with ever new peers don't fill the client's memory, and requests stay short.
func TestHostilePeersAreForgotten(t *testing.T) {
	c := laptop(t)
	for i := range 3000 {
		answer := answerFor(t, c.File)
		answer.Peers[0].PublicKey, answer.Peers[0].Endpoint = wgtypes.Key{1, byte(i), byte(i >> 8)}.String(), fmt.Sprintf("h%d.example.com:1", i)
		c.setConfig(answer)
		c.missed[answer.Peers[0].PublicKey], c.resolved[fmt.Sprintf("h%d.example.com", i)] = missesToSilent, resolved{}
	}
	c.setConfig(c.File.Config)
	if len(c.missed) > 0 || len(c.resolved) > 0 {
		t.Errorf("%d keys and %d host names are kept, want none", len(c.missed), len(c.resolved))
	}
	for i := range 3000 {
		p := c.File.Config.Peers[0]
		p.PublicKey = wgtypes.Key{2, byte(i), byte(i >> 8)}.String()
		c.config.Standbys = append(c.config.Standbys, p)
		c.missed[p.PublicKey] = missesToSilent
	}
	query := maps.Clone(newQuestion("default", wgtypes.Key{}).query())
	query["silent"] = c.silentKeys()
	if got := len(url.Values(query).Encode()); got > 8<<10 {
		t.Errorf("a request's parameters have %d bytes, want at most 8 KiB", got)
	}
}

// A client gets its answer although another host keeps hundreds of connections open.
func TestHostileConnections(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	c := laptop(t)
	server := NewServer(ServerOptions{
		Cluster: "default", Identity: signer(1), Logger: log, IsClient: func(netip.Addr) bool { return true },
		Source: func(Requester) (control.ClientConfig, bool) { return answerFor(t, c.File), true },
	})
	at := netip.MustParseAddr("127.0.79.1")
	if err := server.EnsureListening(netip.AddrPortFrom(at, mesh.ClientPort)); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Close(t.Context()) }()
	var conns []net.Conn
	for range 300 {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 66)}, Timeout: 30 * time.Second}
		conn, err := d.Dial("tcp", netip.AddrPortFrom(at, mesh.ClientPort).String())
		if err != nil {
			continue
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			continue
		}
		if _, err := http.ReadResponse(bufio.NewReader(conn), nil); err == nil {
			conns = append(conns, conn)
		}
	}
	open := 0
	for _, conn := range conns {
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			continue
		}
		if _, err := http.ReadResponse(bufio.NewReader(conn), nil); err == nil {
			open++
		}
	}
	if open != maxPerSource {
		t.Errorf("%d connections of one source are open, want %d", open, maxPerSource)
	}
	node := c.config.Peers[0]
	node.ID, node.Overlay = idOf(signer(1)), at
	if _, err := c.ask(t.Context(), []control.ClientPeer{node}); err != nil {
		t.Errorf("a client gets no answer: %v", err)
	}
}
