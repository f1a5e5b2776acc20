// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/state"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestNames(t *testing.T) {
	answers := make(chan []netip.Addr)
	n := newNames(t.Context())
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

	for range 2 { // found again; the second time that is no news
		now = now.Add(resolveEvery)
		n.resolve(hosts, now)
		answers <- []netip.Addr{first, second}
		n.wait()
		if len(n.problems(nil)) > 0 || len(n.lost) > 0 {
			t.Errorf("after an answer: got %v lost, want none", n.lost)
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
	if got := at(addrsOf("a.example.com", resolved), 7946); len(got) != 1 || got[0].String() != "203.0.113.1:7946" {
		t.Errorf("a name: got %v", got)
	}
	if got := at(addrsOf("203.0.113.9", resolved), 7946); len(got) != 1 || got[0].String() != "203.0.113.9:7946" {
		t.Errorf("an address: got %v", got)
	}
}

// An internal IP is a way to a node of the same location. To any other it leads
// through the tunnel, and whoever is seen there would take it for an endpoint.
// Overlay addresses are ways only once the host has its own.
func TestPaths(t *testing.T) {
	cfg := parse(t, "node: {name: a}")
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{cfg: cfg, identity: state.Identity{Key: key}}
	d.own.Location = "home"
	record := func(id byte, location string) mesh.Record {
		return mesh.Record{
			Identity: []byte{id}, Location: location, GossipPort: 7946, Claim: mesh.Claim{Slot: int(id)},
			Endpoints:   []mesh.Endpoint{{Host: "203.0.113.7", Port: 51820}},
			InternalIPs: []netip.Prefix{netip.MustParsePrefix("192.168.1.7/24")},
		}
	}
	near, far := record(1, "home"), record(2, "")
	far.GossipAddr = "203.0.113.8:7000"
	before := turn{view: gossip.View{Records: []mesh.Record{near, far}}}
	before.desired.Addresses = []netip.Prefix{netip.MustParsePrefix("10.4.0.1/16")}
	after := before
	after.observed = netcfg.State{Device: &netcfg.Device{Up: true}, Addresses: before.desired.Addresses}
	for _, step := range []struct {
		name      string
		turn      turn
		near, far string
	}{
		{"before there are addresses", before, "[192.168.1.7:7946 203.0.113.7:7946]", "[203.0.113.8:7000 203.0.113.7:7946]"},
		{
			"after", after,
			"[192.168.1.7:7946 203.0.113.7:7946 10.4.0.2:7946]", "[203.0.113.8:7000 203.0.113.7:7946 10.4.0.3:7946]",
		},
	} {
		got := d.paths(step.turn)
		if g := fmt.Sprint(got[near.ID()]); g != step.near {
			t.Errorf("%s, to a neighbor: got %s, want %s", step.name, g, step.near)
		}
		if g := fmt.Sprint(got[far.ID()]); g != step.far {
			t.Errorf("%s, to elsewhere: got %s, want %s", step.name, g, step.far)
		}
	}
}
