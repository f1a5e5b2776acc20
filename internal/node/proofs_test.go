// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/mesh"
)

// The peer of meshOfTwo is met when it answers, and stays so until it is heard by gossip for a
// minute without answering: not while it is down, nor when it is back.
func TestMembership(t *testing.T) {
	m, in, peer := meshOfTwo()
	in.Config.Location = "home"
	in.Now = time.Unix(1e9, 0)
	in.LastHeard, in.Paths.Met = map[mesh.ID]time.Time{}, map[mesh.ID]time.Time{}
	pass := func(d time.Duration, heard, answers bool, want int) {
		t.Helper()
		for range d / time.Second {
			in.Now = in.Now.Add(time.Second)
			if heard {
				in.LastHeard[peer.ID()] = in.Now
			}
			if answers {
				in.Paths.Met[peer.ID()] = in.Now
			}
			m.Membership(in)
		}
		if got := m.Membership(in); len(got.Met) != want || got.Location != "home" {
			t.Errorf("heard %v, answers %v: got %v, want %d met", heard, answers, got, want)
		}
	}
	pass(time.Minute, true, false, 0)
	pass(time.Second, true, true, 1)
	pass(50*time.Second, true, false, 1)
	pass(20*time.Second, true, false, 0)
	pass(time.Second, true, true, 1)
	pass(time.Hour, false, false, 1) // it is down
	pass(50*time.Second, true, false, 1)
	pass(20*time.Second, true, false, 0)
	pass(time.Second, true, true, 1)

	// A restart: it is there at once, and has as much time as any other.
	in.View.Memberships = []mesh.Membership{{Author: in.Self.ID(), Location: "home", Met: []mesh.ShortID{peer.ID().Short()}}}
	m = Memory{Own: m.Own}
	in.LastHeard, in.Paths.Met = map[mesh.ID]time.Time{}, map[mesh.ID]time.Time{}
	pass(time.Second, false, false, 1)
	pass(50*time.Second, true, false, 1)
	pass(20*time.Second, true, false, 0)

	// It is elsewhere now.
	pass(time.Second, true, true, 1)
	in.View.Records[1].Location = "office"
	pass(time.Second, true, true, 0)
}

func TestMembershipProblems(t *testing.T) {
	_, in, peer := meshOfTwo()
	in.Config.Location, in.View.Cluster.Mode = "home", mesh.ModeLocation
	in.Started, in.Now = time.Unix(1e9, 0), time.Unix(1e9, 0).Add(2*unmetAfter)
	met := func(author mesh.ID, of mesh.ID) mesh.Membership {
		return mesh.Membership{Author: author, Location: "home", Met: []mesh.ShortID{of.Short()}}
	}
	both := []mesh.Membership{met(in.Self.ID(), peer.ID()), met(peer.ID(), in.Self.ID())}
	for _, tt := range []struct {
		name   string
		change func(*Input)
		want   string // part of the only problem; "" for none
	}{
		{"met", func(in *Input) { in.View.Memberships = both }, ""},
		{"not met", func(*Input) {}, "stands alone"},
		{"not met yet", func(in *Input) { in.Now = in.Started.Add(time.Second) }, ""},
		{"not alive", func(in *Input) { in.View.Alive = map[mesh.ID]bool{in.Self.ID(): true} }, ""},
		{"in mode full", func(in *Input) { in.View.Cluster.Mode = mesh.ModeFull }, ""},
		{"only by others", func(in *Input) {
			third := in.View.Records[1]
			third.Identity = slices.Repeat([]byte{7}, 32)
			in.View.Records = append(in.View.Records, third)
			id := third.ID()
			in.View.Memberships = []mesh.Membership{met(in.Self.ID(), id), met(peer.ID(), id), {
				Author: id, Location: "home", Met: mesh.Nearest(id, []mesh.ID{in.Self.ID(), peer.ID()}),
			}}
		}, "don't answer each other"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := in
			in.View.Records = slices.Clone(in.View.Records)
			tt.change(&in)
			mesh.Locate(in.View.Records, in.View.Memberships)
			got := membershipProblems(in)
			if tt.want == "" && len(got) > 0 || tt.want != "" && (len(got) != 1 || !strings.Contains(got[0].Text, tt.want)) {
				t.Errorf("got %v, want one with %q, or none for the empty string", got, tt.want)
			}
		})
	}
}

// Of the tries to reach a node, the last one counts. What was said before a restart stays until
// there is something new, and until others say enough when it is their task.
func TestReach(t *testing.T) {
	_, in, peer := meshOfTwo()
	in.View.Records[1].Location = "" // else this node would not try
	at := netip.MustParseAddrPort("203.0.113.2:51820")
	tried := func(reached bool) []mesh.Tried {
		return []mesh.Tried{{Subject: peer.ID(), Addr: at, Reached: reached}}
	}
	check := func(what string, want []mesh.Tried) {
		t.Helper()
		if diff := cmp.Diff(want, in.Reach().Tried, compareNet); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	check("nothing is known", nil)
	in.Paths.Tried = tried(true)
	check("reached", tried(true))
	in.View.Reaches = []mesh.Reach{{Author: in.Self.ID(), Tried: tried(true)}}
	in.Paths.Tried = tried(false)
	check("no more", tried(false))
	in.Paths.Tried = nil
	check("after a restart", tried(true))
	in.View.Alive = map[mesh.ID]bool{in.Self.ID(): true}
	check("it is down", tried(true))
	in.View.Records[1].Endpoints[0].Host = "203.0.113.9"
	check("it is elsewhere", nil)
}

// A node is asked where it is on this node's private network, and tried at its endpoints if it
// is this node's task. So are nodes without a tunnel.
func TestPathPeersWithProofs(t *testing.T) {
	m, in, peer := meshOfTwo()
	in.View.Paths = []mesh.PathRecord{{Author: peer.ID(), Key: [32]byte{9}}}
	got := m.withProofs(pathFilter{in: in}, nil, map[mesh.ID]mesh.PathRecord{peer.ID(): in.View.Paths[0]})
	private := []netip.AddrPort{netip.MustParseAddrPort("192.168.1.2:51820")}
	if diff := cmp.Diff([]PathPeer{{ID: peer.ID(), Key: peer.Key, PathKey: [32]byte{9}, NoTunnel: true, Private: private}}, got, compareNet); diff != "" {
		t.Errorf("of the same location (-want +got):\n%s", diff)
	}
	in.View.Records[1].Location = "office"
	got = m.withProofs(pathFilter{in: in}, nil, map[mesh.ID]mesh.PathRecord{peer.ID(): in.View.Paths[0]})
	try := []netip.AddrPort{netip.MustParseAddrPort("203.0.113.2:51820")}
	if diff := cmp.Diff([]PathPeer{{ID: peer.ID(), Key: peer.Key, PathKey: [32]byte{9}, NoTunnel: true, Try: try}}, got, compareNet); diff != "" {
		t.Errorf("of another one (-want +got):\n%s", diff)
	}
	if got := m.withProofs(pathFilter{in: in}, nil, nil); len(got) != 0 {
		t.Errorf("without a path key: got %v, want none", got)
	}
}

// Pods wait a moment for a node that stands alone beside others of its location.
func TestReadyWaitForLocation(t *testing.T) {
	m, in, peer := meshOfTwo()
	in.Promise.Ready, in.View.Cluster.Mode = true, mesh.ModeLocation
	in.Started, in.Now = time.Unix(1e9, 0), time.Unix(1e9, 0).Add(time.Second)
	topology := mesh.Topology{Peers: make([]mesh.Peer, 1)}
	want := func(what string, wait time.Duration) {
		t.Helper()
		if got := m.readyWait(in, topology); got != wait {
			t.Errorf("%s: got %v, want %v", what, got, wait)
		}
	}
	mesh.Locate(in.View.Records, nil)
	want("alone", meetFirst-time.Second)
	mesh.Locate(in.View.Records, []mesh.Membership{
		{Author: in.Self.ID(), Location: "home", Met: []mesh.ShortID{peer.ID().Short()}},
		{Author: peer.ID(), Location: "home", Met: []mesh.ShortID{in.Self.ID().Short()}},
	})
	want("met", 0)
	mesh.Locate(in.View.Records, nil)
	in.View.Alive = map[mesh.ID]bool{in.Self.ID(): true}
	want("nobody is there", 0)
}

// TestEndpointsToTry: what a node says of itself comes first, but a private address does not keep
// others from trying where it may be on the internet.
func TestEndpointsToTry(t *testing.T) {
	_, in, peer := meshOfTwo()
	r := &in.View.Records[1]
	for _, tt := range []struct {
		name       string
		endpoints  []string
		candidates []mesh.PathCandidate
		metAt      string
		want       []string
	}{
		{name: "nothing is known"},
		{name: "endpoints", endpoints: []string{"198.51.100.2", "2001:db8::2", "198.51.100.3"}, metAt: "198.51.100.9", want: []string{"198.51.100.2", "2001:db8::2"}},
		{name: "met by gossip", metAt: "198.51.100.9", want: []string{"198.51.100.9"}},
		{name: "met by gossip, and a private endpoint", endpoints: []string{"172.20.1.2"}, metAt: "198.51.100.9", want: []string{"172.20.1.2", "198.51.100.9"}},
		{name: "private endpoints only", endpoints: []string{"172.20.1.2", "172.20.1.3"}, metAt: "172.20.1.9", want: []string{"172.20.1.2"}},
		{
			name: "a candidate", candidates: []mesh.PathCandidate{candidate(mesh.CandidateLAN, "172.20.1.2:51820", true), candidate(mesh.CandidateSeen, "198.51.100.5:51820", false)},
			metAt: "198.51.100.9", want: []string{"198.51.100.5"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r.ListenPort, r.Endpoints = 51820, nil
			for _, host := range tt.endpoints {
				r.Endpoints = append(r.Endpoints, mesh.Endpoint{Host: host, Port: 51820})
			}
			in.View.Paths = []mesh.PathRecord{{Author: peer.ID(), Candidates: tt.candidates}}
			in.View.MetAt = nil
			if tt.metAt != "" {
				in.View.MetAt = map[mesh.ID]netip.Addr{peer.ID(): netip.MustParseAddr(tt.metAt)}
			}
			var want []netip.AddrPort
			for _, a := range addrs(tt.want...) {
				want = append(want, netip.AddrPortFrom(a, 51820))
			}
			if got := in.endpointsToTry(peer.ID()); !slices.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}
