// SPDX-License-Identifier: Apache-2.0

package node

import (
	"crypto/ed25519"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/path"
)

func addrs(all ...string) (out []netip.Addr) {
	for _, a := range all {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func candidate(kind mesh.CandidateKind, addr string, open bool) mesh.PathCandidate {
	return mesh.PathCandidate{Addr: netip.MustParseAddrPort(addr), Kind: kind, Open: open}
}

// TestCandidatesThatOthersRefuse checks that what others would refuse in a path record is not in it: one
// peer that says nonsense, or a name in /etc/hosts, would keep all else from being told.
func TestCandidatesThatOthersRefuse(t *testing.T) {
	m, in, peer := meshOfTwo()
	in.Facts.Addresses = addrs("192.168.1.1")
	in.Paths.Seen = map[mesh.ID][]netip.AddrPort{peer.ID(): {netip.MustParseAddrPort("203.0.113.9:0")}}
	in.Config.Endpoint = mesh.Endpoint{Host: "me.example.com", Port: 51820}
	in.Resolved = map[string][]netip.Addr{"me.example.com": addrs("127.0.1.1")}
	for _, c := range m.OwnCandidates(in) {
		if err := c.Check(); err != nil {
			t.Errorf("%v: %v", c, err)
		}
	}
}

// withSpare are the facts of a host that has a second address in its network.
var withSpare = netcfg.Facts{
	Addresses: addrs("2001:db8::1", "203.0.113.1", "203.0.113.2"),
	Uplinks:   []netcfg.Uplink{{Link: "eth0", Source: netip.MustParsePrefix("203.0.113.1/24")}, {Link: "eth0", Source: netip.MustParsePrefix("2001:db8::1/64")}},
	Attached: []netcfg.LAN{
		{Link: "eth0", Address: netip.MustParsePrefix("203.0.113.1/24")},
		{Link: "eth0", Address: netip.MustParsePrefix("203.0.113.2/24")},
		{Link: "eth0", Address: netip.MustParsePrefix("2001:db8::1/64")},
	},
}

// everybody is alive.
func everybody() map[mesh.ID]bool {
	alive := make(map[mesh.ID]bool)
	for i := range byte(10) {
		alive[mesh.ID{i}] = true
	}
	return alive
}

// TestSightings: each node has one voice, what it sees now comes before what it has reached, and
// who is not alive has none.
func TestSightings(t *testing.T) {
	former, now := netip.MustParseAddrPort("198.51.100.7:51820"), netip.MustParseAddrPort("198.51.100.8:51820")
	six := netip.MustParseAddrPort("[2001:db8::7]:51820")
	self := Identity{Public: make([]byte, 32)}
	reached := func(author byte, at ...netip.AddrPort) mesh.Reach {
		r := mesh.Reach{Author: mesh.ID{author}}
		for _, a := range at {
			r.Tried = append(r.Tried, mesh.Tried{Subject: self.ID(), Addr: a, Reached: true})
		}
		return r
	}
	in := Input{
		Self:  self,
		Paths: Paths{Seen: map[mesh.ID][]netip.AddrPort{{1}: {now}, {2}: {former}}},
		View: mesh.View{
			Alive:   map[mesh.ID]bool{{1}: true, {3}: true},
			Reaches: []mesh.Reach{reached(1, former, six), reached(2, former), reached(3, former), reached(4, former)},
		},
	}
	if diff := cmp.Diff([]netip.AddrPort{former, now, six}, in.sightings(), compareNet); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestOwnCandidates(t *testing.T) {
	lan := []netip.Prefix{netip.MustParsePrefix("192.168.1.5/24")}
	seen := func(all ...string) map[mesh.ID][]netip.AddrPort {
		out := make(map[mesh.ID][]netip.AddrPort)
		for i, a := range all {
			out[mesh.ID{byte(i)}] = []netip.AddrPort{netip.MustParseAddrPort(a)}
		}
		return out
	}
	streaming := config()
	streaming.StreamPort = 51820
	second := config()
	second.Endpoint = mesh.Endpoint{Host: "203.0.113.2", Port: 51820}
	named := config()
	named.Endpoint = mesh.Endpoint{Host: "a.example.com", Port: 443}
	for _, tt := range []struct {
		name  string
		in    Input
		own   mesh.Record
		wants []mesh.PathCandidate
	}{
		{"nothing is known", Input{Config: config()}, mesh.Record{}, nil},
		{
			"public addresses of both families",
			Input{Config: config(), Facts: netcfg.Facts{Addresses: addrs("2001:db8::1", "203.0.113.1")}},
			mesh.Record{},
			[]mesh.PathCandidate{candidate(mesh.CandidatePublic, "203.0.113.1:51820", true), candidate(mesh.CandidatePublic, "[2001:db8::1]:51820", true)},
		},
		{
			"a second address of a network",
			Input{Config: config(), Facts: withSpare},
			mesh.Record{},
			[]mesh.PathCandidate{candidate(mesh.CandidatePublic, "203.0.113.1:51820", true), candidate(mesh.CandidatePublic, "[2001:db8::1]:51820", true)},
		},
		{
			"a second address that is configured",
			Input{Config: second, Facts: withSpare},
			mesh.Record{},
			[]mesh.PathCandidate{
				candidate(mesh.CandidateConfigured, "203.0.113.2:51820", true), candidate(mesh.CandidatePublic, "203.0.113.1:51820", true),
				candidate(mesh.CandidatePublic, "[2001:db8::1]:51820", true),
			},
		},
		{
			"behind NAT",
			Input{Config: config(), Facts: netcfg.Facts{Addresses: addrs("192.168.1.5")}, Paths: Paths{Seen: seen("198.51.100.7:40001")}},
			mesh.Record{InternalIPs: lan},
			[]mesh.PathCandidate{candidate(mesh.CandidateLAN, "192.168.1.5:51820", true), candidate(mesh.CandidateSeen, "198.51.100.7:40001", false)},
		},
		{
			"behind NAT that keeps the port, and lets in nobody as far as is known",
			Input{Config: config(), Facts: netcfg.Facts{Addresses: addrs("192.168.1.5")}, Paths: Paths{Seen: seen("198.51.100.7:51820")}},
			mesh.Record{Endpoints: []mesh.Endpoint{{Host: "198.51.100.7", Port: 51820}}},
			[]mesh.PathCandidate{candidate(mesh.CandidateSeen, "198.51.100.7:51820", false)},
		},
		{
			"a firewall that others have met, and a NAT that lets them in",
			Input{
				Config: config(), Facts: netcfg.Facts{Addresses: addrs("2001:db8::1")}, Paths: Paths{Seen: seen("198.51.100.7:40001")},
				View: mesh.View{Reaches: []mesh.Reach{
					{Author: mesh.ID{1}, Tried: []mesh.Tried{{Subject: mesh.IDOf(nil), Addr: netip.MustParseAddrPort("198.51.100.7:40001"), Reached: true}, {Subject: mesh.IDOf(nil), Addr: netip.MustParseAddrPort("[2001:db8::1]:51820")}}},
					{Author: mesh.ID{2}, Tried: []mesh.Tried{{Subject: mesh.IDOf(nil), Addr: netip.MustParseAddrPort("[2001:db8::1]:51820")}}},
				}},
			},
			mesh.Record{},
			[]mesh.PathCandidate{candidate(mesh.CandidateSeen, "198.51.100.7:40001", true), candidate(mesh.CandidatePublic, "[2001:db8::1]:51820", false)},
		},
		{
			"seen at its own address, on the LAN, inside the mesh and at no address of the internet",
			Input{
				Config: config(), Facts: netcfg.Facts{Addresses: addrs("203.0.113.1")},
				Paths: Paths{Seen: seen("203.0.113.1:51820", "192.168.1.5:51820", "10.4.0.1:51820", "198.18.0.1:51820")},
			},
			mesh.Record{},
			[]mesh.PathCandidate{candidate(mesh.CandidatePublic, "203.0.113.1:51820", true)},
		},
		{
			"of many mappings those that most peers name",
			Input{Config: config(), Paths: Paths{Seen: seen("198.51.100.7:1", "198.51.100.7:2", "198.51.100.7:3", "198.51.100.7:4", "198.51.100.7:9", "198.51.100.7:9")}},
			mesh.Record{},
			[]mesh.PathCandidate{
				candidate(mesh.CandidateSeen, "198.51.100.7:1", false), candidate(mesh.CandidateSeen, "198.51.100.7:2", false),
				candidate(mesh.CandidateSeen, "198.51.100.7:3", false), candidate(mesh.CandidateSeen, "198.51.100.7:9", false),
			},
		},
		{
			"a configured name",
			Input{
				Config: named, Facts: netcfg.Facts{Addresses: addrs("203.0.113.1")},
				Resolved: map[string][]netip.Addr{"a.example.com": addrs("203.0.113.1", "10.42.0.1", "198.51.100.9")},
			},
			mesh.Record{},
			[]mesh.PathCandidate{
				candidate(mesh.CandidateConfigured, "198.51.100.9:443", true), candidate(mesh.CandidateConfigured, "203.0.113.1:443", true),
				candidate(mesh.CandidatePublic, "203.0.113.1:51820", true),
			},
		},
		{
			"a configured address that others don't reach, and one that some do",
			Input{
				Config: named, Resolved: map[string][]netip.Addr{"a.example.com": addrs("198.51.100.8", "198.51.100.9")},
				View: mesh.View{Reaches: []mesh.Reach{
					{Author: mesh.ID{1}, Tried: []mesh.Tried{{Subject: mesh.IDOf(nil), Addr: netip.MustParseAddrPort("198.51.100.8:443")}, {Subject: mesh.IDOf(nil), Addr: netip.MustParseAddrPort("198.51.100.9:443")}}},
					{Author: mesh.ID{2}, Tried: []mesh.Tried{{Subject: mesh.IDOf(nil), Addr: netip.MustParseAddrPort("198.51.100.8:443")}, {Subject: mesh.IDOf(nil), Addr: netip.MustParseAddrPort("198.51.100.9:443")}}},
					{Author: mesh.ID{3}, Tried: []mesh.Tried{{Subject: mesh.IDOf(nil), Addr: netip.MustParseAddrPort("198.51.100.9:443"), Reached: true}}},
				}},
			},
			mesh.Record{},
			[]mesh.PathCandidate{candidate(mesh.CandidateConfigured, "198.51.100.8:443", false), candidate(mesh.CandidateConfigured, "198.51.100.9:443", true)},
		},
		{
			"streams at a port of their own, the number of which is that of a UDP port",
			Input{Config: streaming, Facts: netcfg.Facts{Addresses: addrs("203.0.113.1", "192.168.1.5")}, Paths: Paths{Seen: seen("198.51.100.7:40001")}},
			mesh.Record{InternalIPs: lan},
			[]mesh.PathCandidate{
				candidate(mesh.CandidateLAN, "192.168.1.5:51820", true), candidate(mesh.CandidateSeen, "198.51.100.7:40001", false),
				candidate(mesh.CandidatePublic, "203.0.113.1:51820", true), candidate(mesh.CandidateStream, "203.0.113.1:51820", true),
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.in.View.Cluster, tt.in.View.Alive = config().Cluster, everybody()
			m := Memory{Own: tt.own}
			if diff := cmp.Diff(tt.wants, m.OwnCandidates(tt.in), compareNet); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// meshOfTwo returns the input of a node in location home, and the record of its peer.
func meshOfTwo() (Memory, Input, mesh.Record) {
	record := func(n int, location string, ip string) mesh.Record {
		r := mesh.Record{
			Identity: ed25519.NewKeyFromSeed(slices.Repeat([]byte{byte(n)}, 32)).Public().(ed25519.PublicKey), Name: fmt.Sprint(n), Sequence: 1,
			Claim: mesh.Claim{Slot: n, Time: 1}, Key: [32]byte{byte(n)}, Location: location, ListenPort: 51820, MTU: 1420, Settings: config().Cluster.Hash(),
			Endpoints: []mesh.Endpoint{{Host: fmt.Sprintf("203.0.113.%d", n), Port: 51820}},
		}
		if ip != "" {
			r.InternalIPs = []netip.Prefix{netip.MustParsePrefix(ip)}
		}
		return r
	}
	own, peer := record(1, "home", "192.168.1.1/24"), record(2, "home", "192.168.1.2/24")
	in := Input{
		Self: Identity{Public: own.Identity}, Config: config(),
		View: mesh.View{Cluster: config().Cluster, Records: []mesh.Record{own, peer}, Alive: map[mesh.ID]bool{own.ID(): true, peer.ID(): true}},
		Facts: netcfg.Facts{
			Addresses: addrs("192.168.1.1", "203.0.113.1"),
			Nearby:    mesh.Nearby{Attached: []mesh.AttachedNetwork{{Prefix: netip.MustParsePrefix("192.168.1.0/24"), Link: "eth0", LAN: true}}},
		},
	}
	return Memory{Own: own, Handshakes: NewHandshakes(in.View.Records)}, in, peer
}

func TestPathPeers(t *testing.T) {
	said := func(cs ...mesh.PathCandidate) func(*Input, *mesh.Record) {
		return func(in *Input, peer *mesh.Record) {
			in.View.Paths = []mesh.PathRecord{{Author: peer.ID(), Key: [32]byte{9}, Candidates: cs}}
		}
	}
	tried := func(kind path.Kind, addr string, open bool) path.Candidate {
		return path.Candidate{Path: path.Path{Kind: kind, Addr: netip.MustParseAddrPort(addr)}, Open: open}
	}
	lan, direct := tried(path.LAN, "192.168.1.2:51820", true), tried(path.Direct, "203.0.113.2:51820", true)
	elsewhere := func(in *Input, peer *mesh.Record) {
		peer.Location = ""
		said(candidate(mesh.CandidateLAN, "192.168.1.2:51820", true), candidate(mesh.CandidateSeen, "198.51.100.7:2", false))(in, peer)
	}
	for _, tt := range []struct {
		name   string
		change func(*Input, *mesh.Record)
		wants  []path.Candidate
	}{
		{"by its record alone", func(*Input, *mesh.Record) {}, []path.Candidate{lan, direct}},
		{
			"behind NAT", said(candidate(mesh.CandidateSeen, "198.51.100.7:40001", false)),
			[]path.Candidate{lan, tried(path.Direct, "198.51.100.7:40001", false), direct},
		},
		{"what the record says, too, is open", said(candidate(mesh.CandidateSeen, "203.0.113.2:51820", true), candidate(mesh.CandidateLAN, "192.168.1.2:51820", true)), []path.Candidate{lan, direct}},
		{"where it accepts streams is no place for UDP", said(candidate(mesh.CandidateStream, "203.0.113.2:443", true)), []path.Candidate{lan, direct}},
		{"a private network that may be another one", elsewhere, []path.Candidate{tried(path.Direct, "198.51.100.7:2", false), direct}},
		{
			"behind the same NAT", func(in *Input, peer *mesh.Record) {
				elsewhere(in, peer)
				in.Paths.Seen = map[mesh.ID][]netip.AddrPort{peer.ID(): {netip.MustParseAddrPort("198.51.100.7:1")}}
			},
			[]path.Candidate{lan, tried(path.Direct, "198.51.100.7:2", false), direct},
		},
		{
			"inside the mesh, at this host, and of a family that it lacks",
			said(candidate(mesh.CandidatePublic, "10.42.0.7:51820", true), candidate(mesh.CandidatePublic, "203.0.113.1:51820", true), candidate(mesh.CandidatePublic, "[2001:db8::2]:51820", true)),
			[]path.Candidate{lan, direct},
		},
		{
			"behind the tunnel", func(in *Input, peer *mesh.Record) {
				elsewhere(in, peer)
				peer.AllowedLocationIPs = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
			},
			[]path.Candidate{direct},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, in, peer := meshOfTwo()
			tt.change(&in, &peer)
			in.View.Records[1] = peer
			got := m.PathPeers(in, m.Configure(in), nil)
			if len(got) != 1 || got[0].ID != peer.ID() || got[0].Key != peer.Key {
				t.Fatalf("got %+v, want the peer", got)
			}
			if diff := cmp.Diff(tt.wants, got[0].Candidates, compareNet); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if known := len(in.View.Paths) > 0; known != (got[0].PathKey != [32]byte{}) {
				t.Errorf("got path key %x", got[0].PathKey)
			}
		})
	}
}

// TestFollowerHasNoEndpoint: of two nodes that meet for the first time, one waits for the other,
// and says so although it knows a path.
func TestFollowerHasNoEndpoint(t *testing.T) {
	m, in, peer := meshOfTwo()
	m.Handshakes = NewHandshakes(nil)
	in.Paths.Proved = map[mesh.ID]netip.AddrPort{peer.ID(): netip.MustParseAddrPort("198.51.100.7:2")}
	follows := func() bool {
		c := m.Configure(in)
		endpoint := c.Desired.Peers[0].Endpoint
		follows := m.PathPeers(in, c, nil)[0].Follows
		if follows == endpoint.IsValid() || !follows && endpoint != in.Paths.Proved[peer.ID()] {
			t.Errorf("got endpoint %v, and that it follows: %t", endpoint, follows)
		}
		return follows
	}
	leads := follows()
	m.Own.Key, peer.Key = peer.Key, m.Own.Key
	in.View.Records = []mesh.Record{m.Own, peer}
	if follows() == leads {
		t.Error("both lead, or both follow")
	}
}

// TestCandidatesAreStable: what a node says of itself, and what it tries, depends on what is known
// and not on the order in which it is listed.
func TestCandidatesAreStable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, in, peer := meshOfTwo()
		addr := rapid.Custom(func(t *rapid.T) netip.AddrPort {
			first := rapid.SampledFrom([][]byte{{203, 0, 113}, {192, 168, 1}, {10, 42, 0}, {198, 51, 100}, {169, 254, 169}}).Draw(t, "network")
			a := netip.AddrFrom4([4]byte(append(slices.Clone(first), rapid.Byte().Draw(t, "host"))))
			return netip.AddrPortFrom(a, rapid.Uint16Range(1, 3).Draw(t, "port"))
		})
		in.Paths.Seen = make(map[mesh.ID][]netip.AddrPort)
		for i, a := range rapid.SliceOfN(addr, 0, 20).Draw(t, "seen") {
			in.Paths.Seen[mesh.ID{byte(i)}] = []netip.AddrPort{a}
		}
		for _, a := range rapid.SliceOfN(addr, 0, 20).Draw(t, "own") {
			in.Facts.Addresses = append(in.Facts.Addresses, a.Addr())
		}
		var said []mesh.PathCandidate
		kinds := rapid.SampledFrom([]mesh.CandidateKind{mesh.CandidateConfigured, mesh.CandidatePublic, mesh.CandidateLAN, mesh.CandidateSeen, "new"})
		for _, a := range rapid.SliceOfNDistinct(addr, 0, mesh.MaxPathCandidates, netip.AddrPort.String).Draw(t, "said") {
			said = append(said, mesh.PathCandidate{Addr: a, Kind: kinds.Draw(t, "kind"), Open: rapid.Bool().Draw(t, "open")})
		}
		result := func() ([]mesh.PathCandidate, []path.Candidate) {
			in.View.Paths = []mesh.PathRecord{{Author: peer.ID(), Candidates: said}}
			return m.OwnCandidates(in), m.PathPeers(in, m.Configure(in), nil)[0].Candidates
		}
		own, tried := result()
		if len(own) > mesh.MaxPathCandidates {
			t.Fatalf("%d candidates", len(own))
		}
		for _, c := range own {
			if err := c.Check(); err != nil || !in.View.Cluster.Outside(c.Addr.Addr()) {
				t.Fatalf("%+v: %v", c, err)
			}
		}
		for i, c := range tried {
			if !in.View.Cluster.Outside(c.Path.Addr.Addr()) || slices.Contains(in.Facts.Addresses, c.Path.Addr.Addr()) {
				t.Fatalf("tries %v", c)
			}
			if i > 0 && tried[i-1].Path.Compare(c.Path) >= 0 {
				t.Fatalf("%v comes before %v", tried[i-1], c)
			}
		}
		in.Facts.Addresses = rapid.Permutation(in.Facts.Addresses).Draw(t, "own again")
		said = rapid.Permutation(said).Draw(t, "said again")
		ownAgain, triedAgain := result()
		if !slices.Equal(own, ownAgain) || !slices.Equal(tried, triedAgain) {
			t.Fatalf("got\n%v\n%v\nand in another order\n%v\n%v", own, tried, ownAgain, triedAgain)
		}
	})
}
