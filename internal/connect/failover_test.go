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
	"github.com/meshd/meshd/internal/netcfg"
)

var (
	services = netip.MustParsePrefix("10.43.0.0/16")
	spare    = netip.MustParseAddr("10.4.0.3") // overlay address of the node that takes over
)

// office is a client before nodes that are silent, or answer; its clock moves by a
// second a turn.
type office struct {
	*client
	t      *testing.T
	now    time.Time
	log    bytes.Buffer
	state  netcfg.State // of the kernel
	wanted netcfg.State // what the kernel was observed for
	spoken []netip.Addr
	names  map[string]netip.Addr // what they resolve to
	asked  []string              // names, in order
	told   []string              // to resolvconf
	silent map[netip.Addr]bool   // nodes, by overlay address
	gone   bool                  // the nodes don't know the client
	first  control.ClientConfig  // what nodes say while all answer
}

func newOffice(t *testing.T) *office {
	t.Helper()
	file, err := ParseFile(printed(t))
	if err != nil {
		t.Fatal(err)
	}
	for i := range file.Config.Peers {
		file.Config.Peers[i].ID = idOf(signer(byte(i + 1)))
	}
	o := &office{
		t: t, now: time.Unix(1700000000, 0), silent: make(map[netip.Addr]bool), first: answered(t, file),
		names: map[string]netip.Addr{"aws.example.com": netip.MustParseAddr("192.0.2.1")},
	}
	o.first.Peers[0].ServiceGateway = true
	o.first.Standbys = []control.ClientPeer{{
		ID: idOf(signer(3)), Name: "spare", PublicKey: wgtypes.Key{3}.String(), Endpoint: "192.0.2.3:51820",
		Overlay: spare, AllowedIPs: []netip.Prefix{netip.PrefixFrom(spare, 32)},
	}}
	o.client = newClient(Options{
		Interface: "mesh0", File: file, Logger: slog.New(slog.NewTextHandler(&o.log, nil)), Resolver: o,
		Now: func() time.Time { return o.now },
	}, o, 51820)
	o.client.http.Transport = o
	o.client.attached = func() ([]netip.Prefix, error) { return nil, nil }
	o.client.resolvconf = func(_ context.Context, text string) error {
		o.told = append(o.told, text)
		return nil
	}
	return o
}

func (o *office) Observe(_ context.Context, desired netcfg.State) (netcfg.State, error) {
	o.wanted = desired
	return o.state, nil
}

func (o *office) Apply(context.Context, netcfg.Plan) error {
	o.state = o.wanted
	return nil
}

func (o *office) Speak(_ context.Context, to netip.Addr) error {
	o.spoken = append(o.spoken, to)
	return nil
}

func (o *office) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	o.asked = append(o.asked, host)
	if a, ok := o.names[host]; ok {
		return []netip.Addr{a}, nil
	}
	return nil, errors.New("no such host")
}

// RoundTrip is the node that is asked.
func (o *office) RoundTrip(r *http.Request) (*http.Response, error) {
	at := netip.MustParseAddrPort(r.URL.Host).Addr()
	nodes := map[string]byte{"10.4.0.1": 1, "10.4.0.2": 2, spare.String(): 3}
	if o.silent[at] {
		return nil, errors.New("no route to host")
	}
	r.RemoteAddr = "10.4.128.1:1024"
	w := httptest.NewRecorder()
	ServerOptions{Cluster: "default", Identity: signer(nodes[at.String()]), Source: o.configure}.handler().ServeHTTP(w, r)
	return w.Result(), nil
}

// configure moves Services to the node that the client does not call silent, or to the
// spare one, which has noticed that both are gone.
func (o *office) configure(a Asker) (control.ClientConfig, bool) {
	told := o.first
	told.Peers = slices.Clone(told.Peers)
	switch {
	case o.silent[told.Peers[0].Overlay] && o.silent[told.Peers[1].Overlay]:
		told.Peers, told.Standbys = slices.Clone(told.Standbys), nil
		told.Peers[0].ServiceGateway = true
		told.Peers[0].AllowedIPs = append(slices.Clone(told.Peers[0].AllowedIPs), services)
	case slices.Contains(a.Silent, told.Peers[0].PublicKey):
		told.Peers[0].ServiceGateway, told.Peers[1].ServiceGateway = false, true
		told.Peers[0].AllowedIPs = slices.DeleteFunc(slices.Clone(told.Peers[0].AllowedIPs), func(p netip.Prefix) bool { return p == services })
		told.Peers[1].AllowedIPs = append(slices.Clone(told.Peers[1].AllowedIPs), services)
	}
	return told, !o.gone
}

// pass lets turns pass, a second each.
func (o *office) pass(turns int) {
	for range turns {
		o.turn(o.t.Context())
		o.now = o.now.Add(askEvery)
	}
}

// routes says which node of the kernel's peers leads to an address.
func (o *office) routes(to netip.Addr) string {
	for _, p := range o.state.Peers {
		if slices.ContainsFunc(p.AllowedIPs, func(n netip.Prefix) bool { return n.Contains(to) }) {
			return p.Name
		}
	}
	return "none"
}

// Services move to another node when the one that carries them has been silent twice,
// and back when it answers.
func TestServicesFailOver(t *testing.T) {
	o := newOffice(t)
	o.pass(1)
	if got := o.routes(services.Addr()); got != "node-0" {
		t.Fatalf("Services go through %s, want node-0", got)
	}
	o.silent[o.first.Peers[0].Overlay] = true
	o.pass(1)
	if got := o.routes(services.Addr()); got != "node-0" {
		t.Errorf("after one answer that did not come, Services go through %s, want node-0", got)
	}
	o.pass(2)
	if got := o.routes(services.Addr()); got != "node-1" {
		t.Errorf("Services go through %s, want node-1", got)
	}
	if n := strings.Count(o.log.String(), `msg="services move" from=node-0 to=node-1`); n != 1 {
		t.Errorf("the user was told %d times, want once:\n%s", n, &o.log)
	}
	delete(o.silent, o.first.Peers[0].Overlay)
	o.pass(int(tryAgain/askEvery) + 1)
	if got := o.routes(services.Addr()); got != "node-0" {
		t.Errorf("when it answers again, Services go through %s, want node-0", got)
	}
}

// When no node answers, those that take over get tunnels, and the system's own resolver
// is back, because names of endpoints have to resolve.
func TestAllNodesFallSilent(t *testing.T) {
	o := newOffice(t)
	o.pass(1)
	for _, p := range o.first.Peers {
		o.silent[p.Overlay] = true
	}
	o.silent[spare] = true
	o.pass(4)
	if got := o.routes(spare); got != "spare" {
		t.Errorf("the way to the node that takes over goes through %s", got)
	}
	delete(o.silent, spare)
	o.pass(2)
	if got := o.routes(services.Addr()); got != "spare" {
		t.Errorf("Services go through %s, want spare", got)
	}
	ours := "nameserver 10.43.0.10\nsearch default.svc.cluster.local svc.cluster.local cluster.local\n"
	if len(o.told) < 2 || o.told[0] != ours || o.told[1] != "" {
		t.Errorf("resolvconf was told %q, want ours and then nothing", o.told)
	}
	for _, said := range []string{`msg="nodes answer"`, `msg="no node answers;`} {
		if !strings.Contains(o.log.String(), said) {
			t.Errorf("the user was not told %s:\n%s", said, &o.log)
		}
	}
}

// A client that was removed is told so, once.
func TestRemovedClient(t *testing.T) {
	o := newOffice(t)
	o.gone = true
	o.pass(3)
	if n := strings.Count(o.log.String(), "don't know this client any more"); n != 1 {
		t.Errorf("the user was told %d times, want once:\n%s", n, &o.log)
	}
	if got := o.routes(services.Addr()); got == "none" {
		t.Error("its tunnels are gone")
	}
}

// An endpoint's name is looked up once a minute, and its last address stays when it does
// not resolve.
func TestNamesOfEndpoints(t *testing.T) {
	o := newOffice(t)
	endpoint := func() netip.Addr { return o.state.Peers[0].Endpoint.Addr() }
	o.pass(10)
	if len(o.asked) != 1 || endpoint() != o.names["aws.example.com"] {
		t.Errorf("asked %v, endpoint %v", o.asked, endpoint())
	}
	o.names["aws.example.com"] = netip.MustParseAddr("192.0.2.9")
	o.pass(int(resolveEvery / askEvery))
	if len(o.asked) != 2 || endpoint() != o.names["aws.example.com"] {
		t.Errorf("a minute later: asked %v, endpoint %v", o.asked, endpoint())
	}
	delete(o.names, "aws.example.com")
	o.pass(int(resolveEvery / askEvery))
	if want := netip.MustParseAddr("192.0.2.9"); len(o.asked) != 3 || endpoint() != want {
		t.Errorf("when it does not resolve: asked %v, endpoint %v, want %v", o.asked, endpoint(), want)
	}
}

// Nodes without a session are spoken to, every few seconds.
func TestSpeaksFirst(t *testing.T) {
	o := newOffice(t)
	o.pass(1)
	if diff := cmp.Diff([]string{"10.4.0.1", "10.4.0.2"}, texts(o.spoken)); diff != "" {
		t.Errorf("spoken to (-want +got):\n%s", diff)
	}
	o.state.Peers[0].LastHandshake = o.now
	o.spoken = nil
	o.pass(int(tryAgain / askEvery))
	if diff := cmp.Diff([]string{"10.4.0.2"}, texts(o.spoken)); diff != "" {
		t.Errorf("spoken to (-want +got):\n%s", diff)
	}
}

func texts(addrs []netip.Addr) (out []string) {
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return out
}

// What this host has attached is left out, and the user is told once.
func TestAttachedNetworksAreNamed(t *testing.T) {
	o := newOffice(t)
	o.client.attached = func() ([]netip.Prefix, error) { return []netip.Prefix{netip.MustParsePrefix("10.42.0.0/25")}, nil }
	o.pass(3)
	if got := o.routes(netip.MustParseAddr("10.42.0.7")); got != "none" {
		t.Errorf("the way into this host's own network goes through %s", got)
	}
	if n := strings.Count(o.log.String(), "left out"); n != 1 {
		t.Errorf("the user was told %d times, want once:\n%s", n, &o.log)
	}
}

// A system without resolvconf goes on, and says so once; another error is passed on.
func TestResolvconf(t *testing.T) {
	o := newOffice(t)
	o.client.resolvconf = func(context.Context, string) error { return &exec.Error{Name: "resolvconf", Err: exec.ErrNotFound} }
	o.pass(2)
	if n := strings.Count(o.log.String(), "resolvconf is not installed"); n != 1 {
		t.Errorf("the user was told %d times, want once:\n%s", n, &o.log)
	}
	broken := errors.New("broken")
	o.client.resolvconf = func(context.Context, string) error { return broken }
	if err := o.setResolver(t.Context(), control.ClientConfig{}); !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
}
