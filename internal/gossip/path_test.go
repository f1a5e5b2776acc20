// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/meshd/meshd/internal/mesh"
)

func candidate(addr string, kind mesh.CandidateKind) mesh.PathCandidate {
	return mesh.PathCandidate{Addr: netip.MustParseAddrPort(addr), Kind: kind}
}

// testPath returns a path record of node n with every field set.
func testPath(n int, sequence uint64) pathBody {
	open := candidate("[2001:db8::1]:51820", mesh.CandidatePublic)
	open.Open = true
	return pathBody{
		PathRecord: mesh.PathRecord{
			Author: idOf(n), Sequence: sequence, Key: [32]byte{byte(n + 1)},
			Candidates: []mesh.PathCandidate{open, candidate("192.168.10.1:51820", mesh.CandidateLAN)},
			Relays:     []mesh.ID{{7}, {8}},
			Relay:      mesh.RelayPrefer,
		},
		identity: identity(n).Public().(ed25519.PublicKey), by: 1,
	}
}

func signPath(t testing.TB, n int, b pathBody) []byte {
	t.Helper()
	payload, err := encodePath(b)
	return signPayload(t, n, kindPath, payload, err)
}

var comparePaths = cmp.Options{
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }), cmpopts.EquateEmpty(), cmp.AllowUnexported(pathBody{}),
}

// pathOf returns a node's path record in a view; the zero one if there is none.
func pathOf(v mesh.View, id mesh.ID) mesh.PathRecord {
	if i := slices.IndexFunc(v.Paths, func(p mesh.PathRecord) bool { return p.Author == id }); i >= 0 {
		return v.Paths[i]
	}
	return mesh.PathRecord{}
}

func fired(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestPathGolden(t *testing.T) {
	golden, err := os.ReadFile("testdata/path.hex")
	if err != nil {
		t.Fatal(err)
	}
	raw := signPath(t, 0, testPath(0, 5))
	if got := hex.EncodeToString(raw); got != strings.TrimSpace(string(golden)) {
		t.Errorf("got\n%s\nwant another", got)
	}
	if diff := cmp.Diff(testPath(0, 5), mustDecode(t, raw).body.(pathBody), comparePaths); diff != "" {
		t.Errorf("path record (-want +got):\n%s", diff)
	}
}

// The largest path record fits a packet.
func TestPathFitsPacket(t *testing.T) {
	b := testPath(0, maxSequence)
	b.by, b.Candidates = maxSequence, nil
	for i := range mesh.MaxPathCandidates {
		b.Candidates = append(b.Candidates, candidate(fmt.Sprintf("[2001:db8:1111:2222:3333:4444:5555:6666]:%d", 50000+i), mesh.CandidateConfigured))
	}
	t.Logf("%d bytes", len(signPath(t, 0, b)))
}

func TestHostilePaths(t *testing.T) {
	with := func(addr string, kind mesh.CandidateKind) func(*pathBody) {
		return func(b *pathBody) { b.Candidates = []mesh.PathCandidate{candidate(addr, kind)} }
	}
	tests := []struct {
		name   string
		change func(*pathBody)
		ok     bool
	}{
		{"all fields", func(*pathBody) {}, true},
		{"no candidates and no relays", func(b *pathBody) { b.Candidates, b.Relays = nil, nil }, true},
		{"12 candidates", func(b *pathBody) { b.Candidates = slices.Repeat(b.Candidates, 6) }, true},
		{"13 candidates", func(b *pathBody) { b.Candidates = append(slices.Repeat(b.Candidates, 6), b.Candidates[0]) }, false},
		{"3 relays", func(b *pathBody) { b.Relays = []mesh.ID{{1}, {2}, {3}} }, false},
		{"its own relay", func(b *pathBody) { b.Relays[1] = b.Author }, false},
		{"no relay itself", func(b *pathBody) { b.Relay = "" }, true},
		{"a relay of a newer version's kind", func(b *pathBody) { b.Relay = "sometimes" }, true},
		{"a long kind of relay", func(b *pathBody) { b.Relay = "seventeen-letters" }, false},
		{"no key", func(b *pathBody) { b.Key = [32]byte{} }, false},
		{"sequence 0", func(b *pathBody) { b.Sequence = 0 }, false},
		{"absurd sequence", func(b *pathBody) { b.Sequence = maxSequence + 1 }, false},
		{"without a record", func(b *pathBody) { b.by = 0 }, false},
		{"absurd record", func(b *pathBody) { b.by = maxSequence + 1 }, false},
		{"short author", func(b *pathBody) { b.identity = b.identity[1:] }, false},
		{"another author", func(b *pathBody) { b.identity = identity(1).Public().(ed25519.PublicKey) }, false},
		{"public", with("203.0.113.1:51820", mesh.CandidateSeen), true},
		{"private, seen", with("10.1.2.3:51820", mesh.CandidateSeen), true},
		{"a kind of a newer version", with("203.0.113.1:51820", "mapped"), true},
		{"long kind", with("203.0.113.1:51820", "seventeen-letters"), false},
		{"no address", func(b *pathBody) { b.Candidates[0].Addr = netip.AddrPort{} }, false},
		{"port 0", with("203.0.113.1:0", mesh.CandidateSeen), false},
		{"loopback", with("127.0.0.1:51820", mesh.CandidateLAN), false},
		{"unspecified", with("[::]:51820", mesh.CandidateLAN), false},
		{"multicast", with("224.0.0.251:5353", mesh.CandidateLAN), false},
		{"IPv6 multicast", with("[ff02::1]:51820", mesh.CandidateLAN), false},
		{"broadcast", with("255.255.255.255:51820", mesh.CandidateLAN), false},
		{"metadata service", with("169.254.169.254:80", mesh.CandidateLAN), false},
		{"link-local with a zone", with("[fe80::1%eth0]:51820", mesh.CandidateLAN), false},
		{"zone", with("[2001:db8::1%eth0]:51820", mesh.CandidateSeen), false},
		{"IPv4 written as IPv6", with("[::ffff:203.0.113.1]:51820", mesh.CandidateSeen), false},
		{"between router and carrier", with("192.0.0.2:51820", mesh.CandidateSeen), false},
		{"invented by a proxy", with("198.18.0.7:51820", mesh.CandidatePublic), false},
		{"reserved", with("240.0.0.1:51820", mesh.CandidatePublic), false},
		{"an overlay", with("[200::1]:51820", "mapped"), false},
		{"an overlay, by configuration", with("[200::1]:51820", mesh.CandidateConfigured), true},
		{"test network as a LAN", with("198.18.0.7:51820", mesh.CandidateLAN), true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := testPath(0, 1)
			tt.change(&b)
			o, err := decodeObject("default", signPath(t, 0, b))
			if (err == nil) != tt.ok {
				t.Fatalf("got %v, want ok %v", err, tt.ok)
			}
			if err != nil {
				return
			}
			if diff := cmp.Diff(b, o.body.(pathBody), comparePaths); diff != "" {
				t.Errorf("path record (-want +got):\n%s", diff)
			}
		})
	}
}

// Candidates in the cluster's ranges lead into the tunnels that they are to carry.
func TestHostilePathInsideTheMesh(t *testing.T) {
	now := time.Unix(1700000000, 0)
	g := idle(t, &now)
	outside := candidate("203.0.113.1:51820", mesh.CandidateSeen)
	b := testPath(1, 1)
	b.Candidates = []mesh.PathCandidate{
		candidate("10.4.0.2:51820", mesh.CandidateLAN), outside, candidate("10.42.1.1:51820", mesh.CandidateLAN), candidate("10.43.0.10:51820", mesh.CandidateSeen),
	}
	g.acceptObjects([][]byte{signRecord(t, 1, testRecord(1, 1)), signPath(t, 1, b)}, fromSync)
	if diff := cmp.Diff([]mesh.PathCandidate{outside}, pathOf(g.View(), idOf(1)).Candidates, comparePaths); diff != "" {
		t.Errorf("candidates (-want +got):\n%s", diff)
	}
	if err := g.PublishPath(b.PathRecord); err == nil {
		t.Error("a path record with an address of the mesh is published")
	}
}

// An author has one path record: the latest.
func TestPathBudget(t *testing.T) {
	s := newStore()
	for _, sequence := range []uint64{1, 3, 2} {
		s.put(mustDecode(t, signPath(t, 1, testPath(1, sequence))))
	}
	if all := s.paths(); len(all) != 1 || all[0].Sequence != 3 {
		t.Errorf("got %v, want the one with sequence 3", all)
	}
}

func TestPublishPath(t *testing.T) {
	now := time.Unix(1700000000, 0)
	g := idle(t, &now)
	g.transport.self.boot = 3
	want := testPath(0, 0).PathRecord
	want.Author = mesh.ID{}
	publish := func(sequence uint64, changed bool) {
		t.Helper()
		if err := g.PublishPath(want); err != nil {
			t.Fatal(err)
		}
		got := pathOf(g.View(), g.self)
		if got.Sequence != sequence || sequence > 0 && !samePath(got, want) {
			t.Errorf("got %+v, want sequence %d, %+v", got, sequence, want)
		}
		if fired(g.PathsChanged()) != changed {
			t.Errorf("PathsChanged fires: %v", !changed)
		}
	}
	publish(0, false) // this node has no record yet
	if err := g.Publish(testRecord(0, 1)); err != nil {
		t.Fatal(err)
	}
	if !fired(g.Changed()) {
		t.Error("the record does not make Changed fire")
	}
	const first = 3 << bootBits
	if !fired(g.PathsChanged()) || pathOf(g.View(), g.self).Sequence != first {
		t.Errorf("got %+v with the first record, want sequence %d", g.View().Paths, first)
	}
	publish(first, false) // the same once more
	want.Candidates[0].Open = false
	publish(first+1, true)
	want.Relays = want.Relays[:1]
	publish(first+2, true)
	if fired(g.Changed()) {
		t.Error("path records make Changed fire")
	}
	if err := g.PublishPath(mesh.PathRecord{}); err == nil {
		t.Error("a path record without a key is published")
	}

	// What changes too often is left out, until the next comparison of stores.
	now = now.Add(time.Minute)
	for i := range 3 * ownBurst {
		want.Key[0] = byte(i + 1)
		if err := g.PublishPath(want); err != nil {
			t.Fatal(err)
		}
	}
	const last = first + 2 + ownBurst
	if got := pathOf(g.View(), g.self); got.Sequence != last || samePath(got, want) {
		t.Errorf("got sequence %d, want %d and not the last content", got.Sequence, last)
	}
	now = now.Add(ownPeriod)
	g.updateOwn()
	if got := pathOf(g.View(), g.self); got.Sequence != last+1 || !samePath(got, want) {
		t.Errorf("a period later: got %+v, want sequence %d, %+v", got, last+1, want)
	}
}

// Others return what an earlier start of this node has signed. It is overruled, also if
// Boot has fallen, because the state directory comes from a backup; and left alone if it
// is what this start wants to say.
func TestPathAfterRestart(t *testing.T) {
	now := time.Unix(1700000000, 0)
	g := idle(t, &now)
	g.transport.self.boot = 3
	if err := g.Publish(testRecord(0, 1)); err != nil {
		t.Fatal(err)
	}
	const earlier = 5<<bootBits + 9
	former := testPath(0, earlier)
	g.acceptObjects([][]byte{signPath(t, 0, former)}, fromSync)
	if err := g.PublishPath(former.PathRecord); err != nil {
		t.Fatal(err)
	}
	if got := pathOf(g.View(), g.self); got.Sequence != earlier {
		t.Errorf("the same content: got sequence %d, want %d", got.Sequence, earlier)
	}
	want := former.PathRecord
	want.Key[0]++
	if err := g.PublishPath(want); err != nil {
		t.Fatal(err)
	}
	if got := pathOf(g.View(), g.self); got.Sequence != earlier+1 || !samePath(got, want) {
		t.Errorf("got %+v, want sequence %d, %+v", got, earlier+1, want)
	}
	former.Sequence = earlier + 7
	g.acceptObjects([][]byte{signPath(t, 0, former)}, fromSync)
	g.updateOwn()
	if got := pathOf(g.View(), g.self); got.Sequence != earlier+8 || !samePath(got, want) {
		t.Errorf("after a higher one: got %+v, want sequence %d, %+v", got, earlier+8, want)
	}
}

func TestPathsAreNotKeptOnDisk(t *testing.T) {
	now := time.Unix(1700000000, 0)
	g := idle(t, &now)
	g.acceptObjects([][]byte{signRecord(t, 1, testRecord(1, 1))}, fromSync)
	before := g.Remember()
	g.acceptObjects([][]byte{signPath(t, 1, testPath(1, 4))}, fromSync)
	if len(g.View().Paths) != 1 {
		t.Fatal("the path record does not count")
	}
	if diff := cmp.Diff(before, g.Remember()); diff != "" {
		t.Errorf("a path record changes what is kept (-before +after):\n%s", diff)
	}
}

// A path record counts as long as its author's record does.
func TestPathGoesWithItsAuthor(t *testing.T) {
	now := time.Unix(1700000000, 0)
	for _, upTo := range []uint64{1, mesh.Forever} {
		g := idle(t, &now)
		path := signPath(t, 1, testPath(1, 1))
		g.acceptObjects([][]byte{path}, fromSync)
		if got := g.View().Paths; len(got) != 0 {
			t.Errorf("without a record: got %v", got)
		}
		g.acceptObjects([][]byte{signRecord(t, 1, testRecord(1, 1))}, fromSync)
		if got := g.View().Paths; len(got) != 1 {
			t.Errorf("with a record: got %v", got)
		}
		if err := g.Forget(idOf(1), upTo); err != nil {
			t.Fatal(err)
		}
		g.acceptObjects([][]byte{path}, fromSync)
		if _, held := g.store.objects[pathKey(idOf(1))]; held || g.store.highest[pathKey(idOf(1))] != 0 {
			t.Errorf("forgotten up to %d: the path record stays", upTo)
		}
		back := testPath(1, 2)
		back.by = 2
		g.acceptObjects([][]byte{signRecord(t, 1, testRecord(1, 2)), signPath(t, 1, back)}, fromSync)
		if got := len(g.View().Paths); got != map[uint64]int{1: 1, mesh.Forever: 0}[upTo] {
			t.Errorf("after it has returned from %d: got %d path records", upTo, got)
		}
	}
}

func TestPathsReachAllNodes(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 4)
	published := make(map[mesh.ID]mesh.PathRecord)
	for n, node := range nodes {
		p := testPath(n, 0).PathRecord
		if err := node.PublishPath(p); err != nil {
			t.Fatal(err)
		}
		published[node.self] = p
	}
	all := func(v mesh.View) bool {
		return len(v.Paths) == len(nodes) && !slices.ContainsFunc(v.Paths, func(p mesh.PathRecord) bool { return !samePath(p, published[p.Author]) })
	}
	eventually(t, "all paths are known", nodes, all)

	// A node that has lost its disk, its clock and its counters is heard again.
	nodes[3].stop()
	nodes[3] = startNode(t, 3, func(o *Options) { o.Boot = 0; joining(nodes[0])(o) })
	p := published[nodes[3].self]
	p.Key[1]++
	published[nodes[3].self] = p
	if err := nodes[3].PublishPath(p); err != nil {
		t.Fatal(err)
	}
	nodes[3].publish(100)
	eventually(t, "the new path is known", nodes, all)
}

func FuzzDecodePath(f *testing.F) {
	f.Add(signPath(f, 0, testPath(0, 1))[objectHeader:])
	f.Fuzz(func(t *testing.T, payload []byte) {
		b, err := decodePath(payload)
		if err != nil {
			return
		}
		again, err := encodePath(b.(pathBody))
		if err != nil {
			t.Fatal(err)
		}
		if c, err := decodePath(again); err != nil || !cmp.Equal(b, c, comparePaths) {
			t.Errorf("path record %+v became %+v, %v", b, c, err)
		}
	})
}
