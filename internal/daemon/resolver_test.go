// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestNames(t *testing.T) {
	answers := make(chan []netip.Addr)
	n := newResolver(t.Context())
	n.lookup = func(_ context.Context, _, host string) ([]netip.Addr, error) {
		addrs := <-answers
		if addrs == nil {
			return nil, errors.New("no such host")
		}
		return addrs, nil
	}
	hosts := []string{"a.example.com"}
	first, second := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("::ffff:203.0.113.2")
	now := time.Unix(1000, 0)

	if got := n.resolve(hosts, now); len(got) != 0 {
		t.Errorf("before any answer: got %v, want nothing", got)
	}
	answers <- []netip.Addr{second, first}
	<-n.changed
	want := map[string][]netip.Addr{"a.example.com": {first, second.Unmap()}}
	if diff := cmp.Diff(want, n.resolve(hosts, now), compareNet); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}

	now = now.Add(resolveEvery) // asked again; the answer is an error
	n.resolve(hosts, now)
	answers <- nil
	<-n.changed
	n.wait()
	if got := n.problems([]mesh.Record{{Name: "a", Endpoints: []mesh.Endpoint{{Host: hosts[0], Port: 1}}}}); len(got) != 1 || got[0].Kind != mesh.ProblemEndpoint {
		t.Errorf("problems: got %v, want one %s", got, mesh.ProblemEndpoint)
	}
	if diff := cmp.Diff(want, n.resolve(hosts, now), compareNet); diff != "" {
		t.Errorf("after a resolver that fails (-want +got):\n%s", diff)
	}

	for _, after := range []time.Duration{resync, resolveEvery} { // found again by the next turn; later that is no news
		now = now.Add(after)
		n.resolve(hosts, now)
		answers <- []netip.Addr{first, second}
		n.wait()
		if len(n.problems(nil)) > 0 || len(n.failed) > 0 {
			t.Errorf("after an answer: got %v lost, want none", n.failed)
		}
	}
	<-n.changed
	select {
	case <-n.changed:
		t.Error("got a signal for an answer that is no news")
	default:
	}
	if got := n.resolve(nil, now); len(got) != 0 {
		t.Errorf("when nobody asks: got %v, want nothing", got)
	}
}

func TestHostNamesAndAddresses(t *testing.T) {
	resolved := map[string][]netip.Addr{"a.example.com": {netip.MustParseAddr("203.0.113.1")}}
	if got := withPort(mesh.Endpoint{Host: "a.example.com"}.Addresses(resolved), 7946); len(got) != 1 || got[0].String() != "203.0.113.1:7946" {
		t.Errorf("a name: got %v", got)
	}
	if got := withPort(mesh.Endpoint{Host: "203.0.113.9"}.Addresses(resolved), 7946); len(got) != 1 || got[0].String() != "203.0.113.9:7946" {
		t.Errorf("an address: got %v", got)
	}
}

// An internal IP is a way to a node of the same location. To any other it leads
// through the tunnel, and whoever is seen there would take it for an endpoint.
// Overlay addresses are ways only once the host has its own.
func TestGossipAddresses(t *testing.T) {
	cfg := parse(t, "node: {name: a}")
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{cfg: cfg, self: self{Identity: state.Identity{Key: key}}}
	d.memory.Own.Location = "home"
	record := func(id byte, location string) mesh.Record {
		return mesh.Record{
			Identity: []byte{id}, Location: location, GossipPort: 7946, Claim: mesh.Claim{Slot: int(id)},
			Endpoints:   []mesh.Endpoint{{Host: "203.0.113.7", Port: 51820}},
			InternalIPs: []netip.Prefix{netip.MustParsePrefix("192.168.1.7/24")},
		}
	}
	near, far := record(1, "home"), record(2, "")
	far.GossipAddr = "203.0.113.8:7000"
	seen := turn{view: mesh.View{Records: []mesh.Record{near, far}}}
	for _, step := range []struct {
		name      string
		addresses bool
		near, far string
	}{
		{"before there are addresses", false, "[192.168.1.7:7946 203.0.113.7:7946]", "[203.0.113.8:7000 203.0.113.7:7946]"},
		{
			"after", true,
			"[192.168.1.7:7946 203.0.113.7:7946 10.4.0.2:7946]", "[203.0.113.8:7000 203.0.113.7:7946 10.4.0.3:7946]",
		},
	} {
		got := d.gossipAddresses(seen, step.addresses)
		if g := fmt.Sprint(got[near.ID()]); g != step.near {
			t.Errorf("%s, to a neighbor: got %s, want %s", step.name, g, step.near)
		}
		if g := fmt.Sprint(got[far.ID()]); g != step.far {
			t.Errorf("%s, to elsewhere: got %s, want %s", step.name, g, step.far)
		}
	}
}

// Where a node accepts streams over TLS follows from its record: at each of its endpoints, at the
// port that it names, if that is one where nodes speak TLS. Addresses inside the mesh are left out.
func TestStreamEndpoints(t *testing.T) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{cfg: parse(t, "node: {name: a}"), self: self{Identity: state.Identity{Key: key}}}
	record := func(id byte, port uint16) mesh.Record {
		return mesh.Record{Identity: []byte{id}, GossipPort: 7946, StreamPort: port, Endpoints: []mesh.Endpoint{
			{Host: "203.0.113.7", Port: 51820}, {Host: "aws.example.com", Port: 4500}, {Host: "unknown.example.com", Port: 51820},
		}}
	}
	aws, gcp, none, ssh := record(1, 443), record(2, 8443), record(3, 0), record(4, 22)
	own := record(5, 443)
	own.Identity = key.Public().(ed25519.PublicKey)
	seen := turn{view: mesh.View{Records: []mesh.Record{aws, gcp, none, ssh, own}}}
	seen.wanted.Input.Resolved = map[string][]netip.Addr{
		"aws.example.com": {netip.MustParseAddr("203.0.113.8"), netip.MustParseAddr("10.4.0.9")},
	}
	at := func(port uint16) (all []mesh.Endpoint) {
		for _, host := range []string{"203.0.113.7", "aws.example.com", "203.0.113.8", "unknown.example.com"} {
			all = append(all, mesh.Endpoint{Host: host, Port: port})
		}
		return all
	}
	want := map[mesh.ID][]mesh.Endpoint{aws.ID(): at(443), gcp.ID(): at(8443)}
	if diff := cmp.Diff(want, d.streamEndpoints(seen)); diff != "" {
		t.Errorf("endpoints (-want +got):\n%s", diff)
	}
}

// TestHostileNames: thousands of records with made-up names, which nobody answers,
// lead to a bounded number of questions and of goroutines, hold up nobody who asks,
// and leave an honest node its place.
func TestHostileNames(t *testing.T) {
	records := make([]mesh.Record, 8100)
	for i := range records {
		r := &records[i]
		r.Identity = ed25519.PublicKey(fmt.Appendf(nil, "%032d", i))
		r.Claim = mesh.Claim{Slot: i % 256, Time: mesh.FirstRelease + int64(1000+i)}
		for n := range mesh.MaxEndpoints {
			r.Endpoints = append(r.Endpoints, mesh.Endpoint{Host: fmt.Sprintf("h%d-%d.example.com", i, n), Port: 1})
		}
		r.Identify()
	}
	honest := &records[4000]
	honest.Claim = mesh.Claim{Slot: 255, Time: mesh.FirstRelease}
	honest.Endpoints = []mesh.Endpoint{{Host: "honest.example.com", Port: 1}}

	ctx, cancel := context.WithCancel(t.Context())
	n := newResolver(ctx)
	var running, most atomic.Int32
	n.lookup = func(ctx context.Context, _, host string) ([]netip.Addr, error) {
		now := running.Add(1)
		defer running.Add(-1)
		for was := most.Load(); now > was && !most.CompareAndSwap(was, now); was = most.Load() {
		}
		if host == "honest.example.com" {
			return []netip.Addr{netip.MustParseAddr("203.0.113.1")}, nil
		}
		<-ctx.Done() // as a resolver does that drops questions
		return nil, ctx.Err()
	}
	hosts := hostNames(records, nil)
	if len(hosts) > maxNames {
		t.Errorf("got %d names, want at most %d", len(hosts), maxNames)
	}
	before := runtime.NumGoroutine()
	now := time.Unix(1000, 0)
	for range 100 {
		n.resolve(hosts, now)
	}
	if got := runtime.NumGoroutine() - before; got > maxLookups {
		t.Errorf("got %d goroutines more, want at most %d", got, maxLookups)
	}
	<-n.changed // the strongest claim's name is among the first
	if got := n.resolve(hosts, now)["honest.example.com"]; len(got) != 1 {
		t.Errorf("the honest node's name: got %v, want its address", got)
	}
	cancel()
	n.wait()
	if got := most.Load(); got > maxLookups {
		t.Errorf("%d questions were under way at a time, want at most %d", got, maxLookups)
	}
}

// TestHostileStatus: what a person sees of thousands of problems is bounded, and can
// be printed as it is.
func TestHostileStatus(t *testing.T) {
	var all []mesh.Problem
	for i := range 8000 {
		all = append(all, mesh.Problem{Kind: mesh.ProblemName, Node: fmt.Sprintf("n%d", i), Text: fmt.Sprintf("\x1b[2Jtext %d\n", i)})
	}
	all = append(all, mesh.Problem{Kind: mesh.ProblemKey, Node: "honest", Text: "same key"})
	got := shownProblems(all)
	if want := shownPerKind + 2; len(got) != want {
		t.Errorf("got %d problems, want %d", len(got), want)
	}
	more := 0
	for _, p := range got {
		if !mesh.ValidText(p.Text, mesh.MaxText) || !mesh.ValidText(p.Node, mesh.MaxHost) {
			t.Errorf("got %q", p)
		}
		if p.Text == fmt.Sprintf("there are %d more of this kind", 8000-shownPerKind) {
			more++
		}
	}
	if more != 1 {
		t.Errorf("got %d lines that count the rest, want 1", more)
	}
	if got := shownError(errors.Join(errors.New("a\x1b[31m"), errors.New("b\u202e"))); got != "a\\x1b[31m\nb\\u202e" {
		t.Errorf("got %q", got)
	}
}
