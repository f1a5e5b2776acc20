// SPDX-License-Identifier: Apache-2.0

package node

import (
	"crypto/ed25519"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/path"
)

// relayMesh has node 1, of location home, and so many others, which stand alone and are relays at
// 203.0.113.n:7946.
func relayMesh(others int) (Memory, Input) {
	m, in, _ := meshOfTwo()
	m.Own.GossipPort = 7946
	in.View.Records = []mesh.Record{m.Own}
	for n := 2; n < 2+others; n++ {
		r := m.Own
		r.Identity = ed25519.NewKeyFromSeed(slices.Repeat([]byte{byte(n)}, 32)).Public().(ed25519.PublicKey)
		r.Name, r.Claim.Slot, r.Key, r.Location, r.InternalIPs = fmt.Sprint(n), n, [32]byte{byte(n)}, "", nil
		r.Endpoints = []mesh.Endpoint{{Host: fmt.Sprintf("203.0.113.%d", n), Port: 51820}}
		in.View.Records = append(in.View.Records, r)
		in.View.Alive[r.ID()] = true
		in.View.Paths = append(in.View.Paths, mesh.PathRecord{
			Author: r.ID(), Key: [32]byte{byte(n)}, Relay: mesh.RelayAuto,
			Candidates: []mesh.PathCandidate{candidate(mesh.CandidatePublic, fmt.Sprintf("203.0.113.%d:51820", n), true)},
		})
	}
	m.Handshakes = NewHandshakes(in.View.Records)
	return m, in
}

// behindNAT takes from node 1 what strangers reach.
func behindNAT(m *Memory, in *Input) {
	in.Facts.Addresses, m.Own.Endpoints = addrs("192.168.1.1"), nil
}

func ids(relays []Relay) (out []mesh.ID) {
	for _, r := range relays {
		out = append(out, r.ID)
	}
	return out
}

func TestRelays(t *testing.T) {
	at := func(all ...string) (out []netip.AddrPort) {
		for _, a := range all {
			out = append(out, netip.MustParseAddrPort(a))
		}
		return out
	}
	for _, tt := range []struct {
		name   string
		change func(in *Input, r *mesh.Record, p *mesh.PathRecord)
		wants  []netip.AddrPort // nil for no relay
	}{
		{"at an open address", func(*Input, *mesh.Record, *mesh.PathRecord) {}, at("203.0.113.2:7946")},
		{"a relay of a kind of a newer version", func(_ *Input, _ *mesh.Record, p *mesh.PathRecord) { p.Relay = "sometimes" }, nil},
		{"no relay", func(_ *Input, _ *mesh.Record, p *mesh.PathRecord) { p.Relay = "" }, nil},
		{"not alive", func(in *Input, r *mesh.Record, _ *mesh.PathRecord) { delete(in.View.Alive, r.ID()) }, nil},
		{
			"not alive, but this node is bound to it",
			func(in *Input, r *mesh.Record, _ *mesh.PathRecord) {
				delete(in.View.Alive, r.ID())
				in.Paths.Bound = []BoundRelay{{ID: r.ID()}}
			},
			at("203.0.113.2:7946"),
		},
		{"at a port of its own", func(_ *Input, r *mesh.Record, _ *mesh.PathRecord) { r.GossipPort = 7000 }, at("203.0.113.2:7000")},
		{
			"where it advertises its gossip first",
			func(in *Input, r *mesh.Record, _ *mesh.PathRecord) {
				r.GossipAddr = "a.example.com:80"
				in.Resolved = map[string][]netip.Addr{"a.example.com": addrs("198.51.100.7")}
			},
			at("198.51.100.7:80", "203.0.113.2:7946"),
		},
		{
			"at no closed address, of another family, in the mesh, or of this host",
			func(_ *Input, _ *mesh.Record, p *mesh.PathRecord) {
				p.Candidates = []mesh.PathCandidate{
					candidate(mesh.CandidateSeen, "198.51.100.7:1", false), candidate(mesh.CandidatePublic, "[2001:db8::2]:51820", true),
					candidate(mesh.CandidatePublic, "10.42.0.7:51820", true), candidate(mesh.CandidatePublic, "192.168.1.1:51820", true),
				}
			},
			nil,
		},
		{
			"on a private network of its own",
			func(_ *Input, _ *mesh.Record, p *mesh.PathRecord) {
				p.Candidates = append(p.Candidates, candidate(mesh.CandidateLAN, "192.168.1.2:51820", true))
			},
			at("203.0.113.2:7946"),
		},
		{
			"on the same private network",
			func(_ *Input, r *mesh.Record, p *mesh.PathRecord) {
				r.Location = "home"
				p.Candidates = append(p.Candidates, candidate(mesh.CandidateLAN, "192.168.1.2:51820", true))
			},
			at("203.0.113.2:7946", "192.168.1.2:7946"),
		},
		{
			"on the same private network, and this node is seen from outside",
			func(in *Input, r *mesh.Record, p *mesh.PathRecord) {
				r.Location = "home"
				p.Candidates = append(p.Candidates, candidate(mesh.CandidateLAN, "192.168.1.2:51820", true))
				in.Paths.Seen = map[mesh.ID][]netip.AddrPort{r.ID(): at("198.51.100.1:51820")}
			},
			at("192.168.1.2:7946", "203.0.113.2:7946"),
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, in := relayMesh(1)
			behindNAT(&m, &in)
			tt.change(&in, &in.View.Records[1], &in.View.Paths[0])
			relays, keep := m.Relays(in, Configuration{})
			var got []netip.AddrPort
			for _, r := range relays {
				got = append(got, r.Addrs...)
			}
			if !slices.Equal(got, tt.wants) {
				t.Errorf("got %v, want %v", got, tt.wants)
			}
			if keep != mesh.MaxPathRelays {
				t.Errorf("stays bound to %d, want %d", keep, mesh.MaxPathRelays)
			}
		})
	}
}

// TestOpenNodeKeepsNoRelays: whom strangers reach needs none.
func TestOpenNodeKeepsNoRelays(t *testing.T) {
	m, in := relayMesh(3)
	if relays, keep := m.Relays(in, Configuration{}); len(relays) != 3 || keep != 0 {
		t.Errorf("got %d relays of which to keep %d, want 3, 0", len(relays), keep)
	}
}

// TestPartlyReachedNodeKeepsRelays: what strangers have reached before may be cut off now.
func TestPartlyReachedNodeKeepsRelays(t *testing.T) {
	m, in := relayMesh(3)
	near, far := in.View.Records[1].ID(), in.View.Records[2].ID()
	in.Now = time.Unix(1000, 0)
	in.View.Alive[far] = true
	in.Paths.Proved = map[mesh.ID]netip.AddrPort{near: netip.MustParseAddrPort("203.0.113.2:51820")}
	in.Paths.InUse = map[mesh.ID]path.Path{near: {Kind: path.Direct}, far: {Kind: path.Direct}}
	wantKept := func(want int) {
		t.Helper()
		if _, keep := m.Relays(in, Configuration{}); keep != want {
			t.Errorf("at %s: keeps %d relays, want %d", in.Now, keep, want)
		}
	}
	if wait := m.NoteUnreached(in); wait != relayPatience {
		t.Errorf("waits %s, want %s", wait, relayPatience)
	}
	wantKept(0)
	in.Now = in.Now.Add(relayPatience)
	if wait := m.NoteUnreached(in); wait != 0 {
		t.Errorf("waits %s longer", wait)
	}
	wantKept(mesh.MaxPathRelays)
	if relays, _ := m.Relays(in, Configuration{}); relays[len(relays)-1].ID != far {
		t.Errorf("got %v, want the relay that does not answer last", ids(relays))
	}

	in.Paths.Proved[far] = netip.MustParseAddrPort("203.0.113.3:51820")
	in.Paths.InUse[far] = path.Path{Kind: path.Relayed}
	m.NoteUnreached(in)
	wantKept(mesh.MaxPathRelays)
	in.Paths.InUse[far] = path.Path{Kind: path.Direct}
	m.NoteUnreached(in)
	wantKept(0)
}

// TestPreferredRelaysComeFirst: and the order of the others does not depend on how they are listed, and is
// not the same on each node.
func TestPreferredRelaysComeFirst(t *testing.T) {
	m, in := relayMesh(20)
	in.View.Paths[7].Relay = mesh.RelayPrefer
	first, _ := m.Relays(in, Configuration{})
	if first[0].ID != in.View.Paths[7].Author || !first[0].Preferred || first[1].Preferred {
		t.Errorf("got %v first, want the preferred one, and no other one preferred", first[0])
	}
	in.View.Paths = slices.Clone(in.View.Paths)
	slices.Reverse(in.View.Paths)
	if again, _ := m.Relays(in, Configuration{}); !slices.Equal(ids(first), ids(again)) {
		t.Errorf("got %v, and in another order %v", ids(first), ids(again))
	}
	in.Self.Public = in.View.Records[5].Identity
	other, _ := m.Relays(in, Configuration{})
	if slices.Equal(ids(first)[1:4], ids(other)[1:4]) {
		t.Error("two nodes prefer the same relays")
	}
}

func TestOwnRelays(t *testing.T) {
	in := Input{Paths: Paths{Bound: []BoundRelay{{mesh.ID{3}, true}, {mesh.ID{2}, false}, {mesh.ID{1}, true}}}}
	if diff := cmp.Diff([]mesh.ID{{1}, {3}}, in.OwnRelays()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// TestBothEndsTryTheSameRelays: whatever two nodes are bound to, they have a relay in common.
func TestBothEndsTryTheSameRelays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, in := relayMesh(6)
		configuration := m.Configure(in)
		a, b := in.View.Records[0], in.View.Records[1]
		all := []mesh.ID{in.View.Records[2].ID(), in.View.Records[3].ID(), in.View.Records[4].ID(), b.ID()}
		bound := rapid.Custom(func(t *rapid.T) []mesh.ID {
			return rapid.Permutation(all).Draw(t, "bound")[:rapid.IntRange(0, 2).Draw(t, "count")]
		})
		boundA, boundB := bound.Draw(t, "a"), slices.DeleteFunc(slices.Clone(bound.Draw(t, "b")), func(id mesh.ID) bool { return id == b.ID() })
		tries := func(self mesh.Record, own []mesh.ID, peer mesh.Record, theirs []mesh.ID) []mesh.ID {
			in, m := in, Memory{Own: self}
			in.Self.Public = self.Identity
			in.Paths.Bound = nil
			for _, id := range own {
				in.Paths.Bound = append(in.Paths.Bound, BoundRelay{id, true})
			}
			relays, _ := m.Relays(in, configuration)
			return in.relaysTo(mesh.PathRecord{Author: peer.ID(), Relays: theirs}, relays)
		}
		fromA, fromB := tries(a, boundA, b, boundB), tries(b, boundB, a, boundA)
		if len(fromA) == 0 || !slices.Equal(fromA, fromB) {
			t.Fatalf("one end tries %v, the other one %v", fromA, fromB)
		}
		if slices.Contains(fromA, a.ID()) || slices.Contains(fromA, b.ID()) {
			t.Fatalf("%v has one of the ends", fromA)
		}
	})
}

func TestRelayService(t *testing.T) {
	m, in := relayMesh(3)
	other := in.View.Paths
	in.Paths.Proved = map[mesh.ID]netip.AddrPort{
		other[0].Author: netip.MustParseAddrPort("203.0.113.2:51820"), // open
		other[1].Author: netip.MustParseAddrPort("203.0.113.9:7946"),  // through a relay
	}
	s := m.RelayService(in)
	if !s.Serves || len(s.Nodes) != 3 || s.Nodes[0].PathKey != other[0].Key {
		t.Errorf("got %+v, want three nodes served", s)
	}
	want := map[mesh.ID]netip.AddrPort{other[0].Author: netip.MustParseAddrPort("203.0.113.2:51820")}
	if diff := cmp.Diff(want, s.Proved, compareNet); diff != "" {
		t.Errorf("proved (-want +got):\n%s", diff)
	}
	in.View.Paths = nil
	if s := m.RelayService(in); len(s.Nodes) != 3 || s.Nodes[0].PathKey != [32]byte{} {
		t.Errorf("before gossip has told anything: got %+v, want three nodes served", s)
	}
	in.View.Paths = other
	never := in
	never.Config.Relay = mesh.RelayNever
	if s := m.RelayService(never); s.Serves || !s.Never {
		t.Error("serves although it is never to")
	}
	behindNAT(&m, &in)
	if s := m.RelayService(in); s.Serves {
		t.Error("serves although strangers don't reach it")
	}
}
