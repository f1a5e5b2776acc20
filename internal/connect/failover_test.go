// SPDX-License-Identifier: Apache-2.0

package connect

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os/exec"
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

var (
	services = netip.MustParsePrefix("10.43.0.0/16")
	spare    = netip.MustParseAddr("10.4.0.3") // overlay address of the standby
)

// testClient is a client with a fake kernel, resolver and nodes. Its clock advances by a
// second each turn.
type testClient struct {
	*client
	t           *testing.T
	now         time.Time
	log         bytes.Buffer
	facts       netcfg.Facts          // of the fake kernel
	state       netcfg.State          // of the fake kernel
	desired     netcfg.State          // as last passed to Observe
	handshakes  []netip.Addr          // as passed to InitiateHandshake
	names       map[string]netip.Addr // the names that resolve
	lookups     []string              // the names that were looked up
	resolvConfs []string              // the texts passed to resolvconf
	silentNodes map[netip.Addr]bool   // by overlay address
	removed     bool                  // the nodes refuse the client
	exits       bool                  // the default routes move away from a silent node 0
	normal      control.ClientConfig  // the answer while all nodes answer
}

func newTestClient(t *testing.T) *testClient {
	t.Helper()
	file, err := ParseFile(fileText(t))
	if err != nil {
		t.Fatal(err)
	}
	for i := range file.Config.Peers {
		file.Config.Peers[i].ID = idOf(signer(byte(i + 1)))
	}
	c := &testClient{
		t: t, now: time.Unix(1700000000, 0), silentNodes: make(map[netip.Addr]bool), normal: answerFor(t, file),
		names: map[string]netip.Addr{"aws.example.com": netip.MustParseAddr("192.0.2.1")},
	}
	c.normal.Peers[0].ServiceGateway = true
	c.normal.Standbys = []control.ClientPeer{{
		ID: idOf(signer(3)), Name: "spare", PublicKey: wgtypes.Key{3}.String(), Endpoint: "192.0.2.3:51820",
		Overlay: spare, AllowedIPs: []netip.Prefix{netip.PrefixFrom(spare, 32)},
	}}
	c.client = newClient(Options{
		Interface: "mesh0", File: file, Logger: slog.New(slog.NewTextHandler(&c.log, nil)), Resolver: c,
		Now: func() time.Time { return c.now },
	}, c, 51820)
	c.client.http.Transport = c
	c.client.resolvconf = func(_ context.Context, text string) error {
		c.resolvConfs = append(c.resolvConfs, text)
		return nil
	}
	return c
}

func (c *testClient) Networks(context.Context) (netcfg.Facts, error) { return c.facts, nil }

func (c *testClient) Observe(_ context.Context, desired netcfg.State) (netcfg.State, error) {
	c.desired = desired
	return c.state, nil
}

func (c *testClient) Apply(context.Context, netcfg.Plan) error {
	c.state = c.desired
	return nil
}

func (c *testClient) InitiateHandshake(_ context.Context, to netip.Addr) error {
	c.handshakes = append(c.handshakes, to)
	return nil
}

func (c *testClient) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	c.lookups = append(c.lookups, host)
	if a, ok := c.names[host]; ok {
		return []netip.Addr{a}, nil
	}
	return nil, errors.New("no such host")
}

// RoundTrip answers like the node at the request's address.
func (c *testClient) RoundTrip(r *http.Request) (*http.Response, error) {
	at := netip.MustParseAddrPort(r.URL.Host).Addr()
	nodes := map[string]byte{"10.4.0.1": 1, "10.4.0.2": 2, spare.String(): 3}
	if c.silentNodes[at] {
		return nil, errors.New("no route to host")
	}
	r.RemoteAddr = "10.4.128.1:1024"
	w := httptest.NewRecorder()
	ServerOptions{Cluster: "default", Identity: signer(nodes[at.String()]), Source: c.configure}.handler().ServeHTTP(w, r)
	return w.Result(), nil
}

// configure moves Services from node 0 to node 1 if the client reports node 0 as silent,
// and to the standby when both are down.
func (c *testClient) configure(a Requester) (control.ClientConfig, bool) {
	answer := c.normal
	answer.Peers = slices.Clone(answer.Peers)
	switch {
	case c.exits && slices.Contains(a.Silent, answer.Peers[0].PublicKey):
		answer.Peers[0].AllowedIPs = slices.DeleteFunc(slices.Clone(answer.Peers[0].AllowedIPs), mesh.IsDefaultRoute)
		answer.Peers[1].AllowedIPs = append([]netip.Prefix{all4, all6}, answer.Peers[1].AllowedIPs...)
	case c.silentNodes[answer.Peers[0].Overlay] && c.silentNodes[answer.Peers[1].Overlay]:
		answer.Peers, answer.Standbys = slices.Clone(answer.Standbys), nil
		answer.Peers[0].ServiceGateway = true
		answer.Peers[0].AllowedIPs = append(slices.Clone(answer.Peers[0].AllowedIPs), services)
	case slices.Contains(a.Silent, answer.Peers[0].PublicKey):
		answer.Peers[0].ServiceGateway, answer.Peers[1].ServiceGateway = false, true
		answer.Peers[0].AllowedIPs = slices.DeleteFunc(slices.Clone(answer.Peers[0].AllowedIPs), func(p netip.Prefix) bool { return p == services })
		answer.Peers[1].AllowedIPs = append(slices.Clone(answer.Peers[1].AllowedIPs), services)
	}
	return answer, !c.removed
}

// runTurns runs a number of turns, a second apart.
func (c *testClient) runTurns(turns int) {
	for range turns {
		c.turn(c.t.Context())
		c.now = c.now.Add(askEvery)
	}
}

// peerFor returns the name of the kernel's peer that an address is routed to.
func (c *testClient) peerFor(to netip.Addr) string {
	for _, p := range c.state.Peers {
		if slices.ContainsFunc(p.AllowedIPs, func(n netip.Prefix) bool { return n.Contains(to) }) {
			return p.Name
		}
	}
	return "none"
}

// Services move to another node after two unanswered requests to the one that carries
// them, and back when it answers again.
func TestServicesFailOver(t *testing.T) {
	c := newTestClient(t)
	c.runTurns(1)
	if got := c.peerFor(services.Addr()); got != "node-0" {
		t.Fatalf("Services go through %s, want node-0", got)
	}
	c.silentNodes[c.normal.Peers[0].Overlay] = true
	c.runTurns(1)
	if got := c.peerFor(services.Addr()); got != "node-0" {
		t.Errorf("after one unanswered request Services go through %s, want node-0", got)
	}
	c.runTurns(2)
	if got := c.peerFor(services.Addr()); got != "node-1" {
		t.Errorf("Services go through %s, want node-1", got)
	}
	if n := strings.Count(c.log.String(), `msg="services go through another node now" from=node-0 to=node-1`); n != 1 {
		t.Errorf("logged %d times, want once:\n%s", n, &c.log)
	}
	delete(c.silentNodes, c.normal.Peers[0].Overlay)
	c.runTurns(int(retryEvery/askEvery) + 1)
	if got := c.peerFor(services.Addr()); got != "node-0" {
		t.Errorf("when node-0 answers again, Services go through %s, want node-0", got)
	}
}

// When no node answers, the standbys get tunnels, and the system's own resolver is
// restored, because names of endpoints must still resolve.
func TestAllNodesFallSilent(t *testing.T) {
	c := newTestClient(t)
	c.runTurns(1)
	for _, p := range c.normal.Peers {
		c.silentNodes[p.Overlay] = true
	}
	c.silentNodes[spare] = true
	c.runTurns(4)
	if got := c.peerFor(spare); got != "spare" {
		t.Errorf("the standby is routed to %s, want spare", got)
	}
	delete(c.silentNodes, spare)
	c.runTurns(2)
	if got := c.peerFor(services.Addr()); got != "spare" {
		t.Errorf("Services go through %s, want spare", got)
	}
	ours := "nameserver 10.43.0.10\nsearch default.svc.cluster.local svc.cluster.local cluster.local\n"
	if len(c.resolvConfs) < 2 || c.resolvConfs[0] != ours || c.resolvConfs[1] != "" {
		t.Errorf("resolvconf got %q, want the cluster's resolver and then nothing", c.resolvConfs)
	}
	for _, msg := range []string{`msg="nodes answer"`, `msg="no node answers;`} {
		if !strings.Contains(c.log.String(), msg) {
			t.Errorf("not logged: %s\n%s", msg, &c.log)
		}
	}
}

// That the nodes refuse a removed client is logged once, and its tunnels stay.
func TestRemovedClient(t *testing.T) {
	c := newTestClient(t)
	c.removed = true
	c.runTurns(3)
	if n := strings.Count(c.log.String(), "don't know this client any more"); n != 1 {
		t.Errorf("logged %d times, want once:\n%s", n, &c.log)
	}
	if got := c.peerFor(services.Addr()); got == "none" {
		t.Error("its tunnels are gone")
	}
}

// An endpoint's name is looked up once a minute. If the lookup fails, its last address
// stays in use.
func TestNamesOfEndpoints(t *testing.T) {
	c := newTestClient(t)
	endpoint := func() netip.Addr { return c.state.Peers[0].Endpoint.Addr() }
	c.runTurns(10)
	if len(c.lookups) != 1 || endpoint() != c.names["aws.example.com"] {
		t.Errorf("lookups %v, endpoint %v", c.lookups, endpoint())
	}
	c.names["aws.example.com"] = netip.MustParseAddr("192.0.2.9")
	c.runTurns(int(resolveEvery / askEvery))
	if len(c.lookups) != 2 || endpoint() != c.names["aws.example.com"] {
		t.Errorf("a minute later: lookups %v, endpoint %v", c.lookups, endpoint())
	}
	delete(c.names, "aws.example.com")
	c.runTurns(int(resolveEvery / askEvery))
	if want := netip.MustParseAddr("192.0.2.9"); len(c.lookups) != 3 || endpoint() != want {
		t.Errorf("when the lookup fails: lookups %v, endpoint %v, want %v", c.lookups, endpoint(), want)
	}
}

// The client starts handshakes with nodes that have no session, every few seconds.
func TestStartHandshakes(t *testing.T) {
	c := newTestClient(t)
	c.runTurns(1)
	if diff := cmp.Diff([]string{"10.4.0.1", "10.4.0.2"}, texts(c.handshakes)); diff != "" {
		t.Errorf("handshakes started with (-want +got):\n%s", diff)
	}
	c.state.Peers[0].LastHandshake = c.now
	c.handshakes = nil
	c.runTurns(int(retryEvery / askEvery))
	if diff := cmp.Diff([]string{"10.4.0.2"}, texts(c.handshakes)); diff != "" {
		t.Errorf("handshakes started with (-want +got):\n%s", diff)
	}
}

func texts(addrs []netip.Addr) (out []string) {
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return out
}

// Prefixes that overlap this host's own networks are left out, which is logged once.
func TestAttachedNetworksAreLogged(t *testing.T) {
	c := newTestClient(t)
	c.facts.Nearby.Attached = attached("10.42.0.0/25")
	c.runTurns(3)
	if got := c.peerFor(netip.MustParseAddr("10.42.0.7")); got != "none" {
		t.Errorf("this host's own network is routed to %s, want none", got)
	}
	if n := strings.Count(c.log.String(), "left out"); n != 1 {
		t.Errorf("logged %d times, want once:\n%s", n, &c.log)
	}
}

// A missing resolvconf is logged once and is not an error; any other error is returned.
func TestResolvconf(t *testing.T) {
	c := newTestClient(t)
	c.client.resolvconf = func(context.Context, string) error { return &exec.Error{Name: "resolvconf", Err: exec.ErrNotFound} }
	c.runTurns(2)
	if n := strings.Count(c.log.String(), "resolvconf is not installed"); n != 1 {
		t.Errorf("logged %d times, want once:\n%s", n, &c.log)
	}
	broken := errors.New("broken")
	c.client.resolvconf = func(context.Context, string) error { return broken }
	if err := c.setResolver(t.Context(), control.ClientConfig{}); !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
}

// attached returns networks of the host's own links.
func attached(prefixes ...string) (out []mesh.AttachedNetwork) {
	for _, p := range prefixes {
		out = append(out, mesh.AttachedNetwork{Prefix: netip.MustParsePrefix(p), Link: "eth0"})
	}
	return out
}
