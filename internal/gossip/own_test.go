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

// testMembership returns what node n says of whom it has met, with every field set.
func testMembership(n int) membershipBody {
	return membershipBody{Membership: mesh.Membership{Author: idOf(n), Sequence: 1, Location: "aws", Met: []mesh.ShortID{{7}, {8}}}, identity: identity(n).Public().(ed25519.PublicKey), by: 1}
}

// testReach returns what node n says of whom it has tried to reach, with every field set.
func testReach(n int) reachBody {
	return reachBody{Reach: mesh.Reach{Author: idOf(n), Sequence: 1, Tried: []mesh.Tried{
		{Subject: mesh.ID{7}, Addr: netip.MustParseAddrPort("203.0.113.7:51820"), Reached: true},
		{Subject: mesh.ID{8}, Addr: netip.MustParseAddrPort("[2001:db8::8]:51820")},
	}}, identity: identity(n).Public().(ed25519.PublicKey), by: 1}
}

// signOwnBody signs what a node says of itself.
func signOwnBody(t testing.TB, n int, b ownBody, by uint64) []byte {
	t.Helper()
	kind := kindMembership
	if _, ok := b.(reachBody); ok {
		kind = kindReach
	}
	payload, err := b.encode(b.author(), b.sequence(), by)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := signObject(identity(n), "default", kind, payload)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

var compareOwn = cmp.Options{
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }), cmpopts.EquateEmpty(), cmp.AllowUnexported(membershipBody{}, reachBody{}),
}

func TestOwnGolden(t *testing.T) {
	for file, b := range map[string]ownBody{"membership": testMembership(0), "reach": testReach(0)} {
		golden, err := os.ReadFile("testdata/" + file + ".hex")
		if err != nil {
			t.Fatal(err)
		}
		raw := signOwnBody(t, 0, b, 1)
		if got := hex.EncodeToString(raw); got != strings.TrimSpace(string(golden)) {
			t.Errorf("%s: got\n%s\nwant another", file, got)
		}
		if diff := cmp.Diff(any(b), any(mustDecode(t, raw).body), compareOwn); diff != "" {
			t.Errorf("%s (-want +got):\n%s", file, diff)
		}
	}
}

// The largest objects fit a packet.
func TestOwnFitsPacket(t *testing.T) {
	m := testMembership(0)
	m.Sequence, m.Location, m.Met = maxSequence, strings.Repeat("a", mesh.MaxName), nil
	for i := range mesh.MaxMet {
		m.Met = append(m.Met, mesh.ShortID{byte(i)})
	}
	r := testReach(0)
	r.Sequence, r.Tried = maxSequence, nil
	for i := range mesh.MaxTried {
		r.Tried = append(r.Tried, mesh.Tried{Subject: mesh.ID{byte(i + 1)}, Addr: netip.MustParseAddrPort("[2001:db8:1111:2222:3333:4444:5555:6666]:51820")})
	}
	t.Logf("membership: %d bytes, reach: %d", len(signOwnBody(t, 0, m, maxSequence)), len(signOwnBody(t, 0, r, maxSequence)))
}

func TestHostileMemberships(t *testing.T) {
	tests := []struct {
		name   string
		change func(*membershipBody)
		ok     bool
	}{
		{"all fields", func(*membershipBody) {}, true},
		{"nobody met", func(b *membershipBody) { b.Met = nil }, true},
		{"no location", func(b *membershipBody) { b.Location = "" }, true},
		{"not in order", func(b *membershipBody) { slices.Reverse(b.Met) }, false},
		{"one twice", func(b *membershipBody) { b.Met[1] = b.Met[0] }, false},
		{"too many", func(b *membershipBody) {
			b.Met = nil
			for i := range mesh.MaxMet + 1 {
				b.Met = append(b.Met, mesh.ShortID{byte(i)})
			}
		}, false},
		{"long location", func(b *membershipBody) { b.Location = strings.Repeat("a", mesh.MaxName+1) }, false},
		{"a location that forges a line of the log", func(b *membershipBody) { b.Location = "a\nb" }, false},
		{"sequence 0", func(b *membershipBody) { b.Sequence = 0 }, false},
		{"absurd sequence", func(b *membershipBody) { b.Sequence = maxSequence + 1 }, false},
		{"without a record", func(b *membershipBody) { b.by = 0 }, false},
		{"another author", func(b *membershipBody) { b.identity = identity(1).Public().(ed25519.PublicKey) }, false},
		{"short author", func(b *membershipBody) { b.identity = b.identity[1:] }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := testMembership(0)
			tt.change(&b)
			checkHostile(t, b, b.by, tt.ok)
		})
	}
}

func TestHostileReaches(t *testing.T) {
	at := func(s string) func(*reachBody) {
		return func(b *reachBody) { b.Tried[0].Addr = netip.MustParseAddrPort(s) }
	}
	tests := []struct {
		name   string
		change func(*reachBody)
		ok     bool
	}{
		{"all fields", func(*reachBody) {}, true},
		{"nobody tried", func(b *reachBody) { b.Tried = nil }, true},
		{"itself", func(b *reachBody) { b.Tried = []mesh.Tried{{Subject: b.Author, Addr: b.Tried[0].Addr}} }, false},
		{"not in order", func(b *reachBody) { slices.Reverse(b.Tried) }, false},
		{"one address twice", func(b *reachBody) { b.Tried[1] = b.Tried[0]; b.Tried[1].Reached = false }, false},
		{"two addresses of a node", func(b *reachBody) { b.Tried[1].Subject = b.Tried[0].Subject }, true},
		{"too many", func(b *reachBody) {
			b.Tried = nil
			for i := range mesh.MaxTried + 1 {
				b.Tried = append(b.Tried, mesh.Tried{Subject: mesh.ID{7}, Addr: netip.AddrPortFrom(netip.MustParseAddr("203.0.113.7"), uint16(i+1))})
			}
		}, false},
		{"no address", func(b *reachBody) { b.Tried[0].Addr = netip.AddrPort{} }, false},
		{"port 0", at("203.0.113.7:0"), false},
		{"loopback", at("127.0.0.1:51820"), false},
		{"multicast", at("[ff02::1]:51820"), false},
		{"a zone", at("[fe80::1%eth0]:51820"), false},
		{"IPv4 written as IPv6", at("[::ffff:203.0.113.7]:51820"), false},
		{"sequence 0", func(b *reachBody) { b.Sequence = 0 }, false},
		{"absurd sequence", func(b *reachBody) { b.Sequence = maxSequence + 1 }, false},
		{"without a record", func(b *reachBody) { b.by = 0 }, false},
		{"another author", func(b *reachBody) { b.identity = identity(1).Public().(ed25519.PublicKey) }, false},
		{"short author", func(b *reachBody) { b.identity = b.identity[1:] }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := testReach(0)
			tt.change(&b)
			checkHostile(t, b, b.by, tt.ok)
		})
	}
}

// checkHostile checks whether others accept what node 0 has signed.
func checkHostile(t *testing.T, b ownBody, by uint64, ok bool) {
	t.Helper()
	o, err := decodeObject("default", signOwnBody(t, 0, b, by))
	if (err == nil) != ok {
		t.Fatalf("got %v, want ok %v", err, ok)
	}
	if err == nil {
		if diff := cmp.Diff(any(b), any(o.body), compareOwn); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}

// An author has one object of each kind: the latest. It goes with its author's record.
func TestOwnBudget(t *testing.T) {
	now := time.Unix(1700000000, 0)
	g := idle(t, &now)
	var raws [][]byte
	for _, sequence := range []uint64{1, 3, 2} {
		m, r := testMembership(1), testReach(1)
		m.Sequence, r.Sequence = sequence, sequence
		raws = append(raws, signOwnBody(t, 1, m, 1), signOwnBody(t, 1, r, 1))
	}
	g.acceptObjects(raws, fromSync)
	if v := g.View(); len(v.Memberships)+len(v.Reaches) != 0 {
		t.Errorf("without a record: got %v, %v", v.Memberships, v.Reaches)
	}
	g.acceptObjects([][]byte{signRecord(t, 1, testRecord(1, 1))}, fromSync)
	v := g.View()
	if len(v.Memberships) != 1 || v.Memberships[0].Sequence != 3 || len(v.Reaches) != 1 || v.Reaches[0].Sequence != 3 {
		t.Errorf("got %v, %v, want the ones with sequence 3", v.Memberships, v.Reaches)
	}
	if err := g.Forget(idOf(1), 1); err != nil {
		t.Fatal(err)
	}
	g.acceptObjects(raws, fromSync)
	if n := heldOf(g, idOf(1)); n != 0 {
		t.Errorf("%d objects of a node that is forgotten", n)
	}
}

// What a node has met and reached is said once, changed when it changes, and on disk.
func TestPublishOwn(t *testing.T) {
	now := time.Unix(1700000000, 0)
	g := idle(t, &now)
	if err := g.Publish(testRecord(0, 1)); err != nil {
		t.Fatal(err)
	}
	fired(g.Changed())
	publish := func(m mesh.Membership, r mesh.Reach, changed bool) {
		t.Helper()
		if err := g.PublishMembership(m); err != nil {
			t.Fatal(err)
		}
		if err := g.PublishReach(r); err != nil {
			t.Fatal(err)
		}
		if fired(g.Changed()) != changed {
			t.Errorf("Changed fires: %v", !changed)
		}
	}
	m, r := testMembership(0).Membership, testReach(0).Reach
	publish(mesh.Membership{Location: "aws"}, mesh.Reach{}, false) // nothing to say
	publish(m, r, true)
	publish(m, r, false)
	if saved := g.Remember(); len(saved.Objects) != 3 {
		t.Errorf("got %d objects for the disk, want 3", len(saved.Objects))
	}
	publish(mesh.Membership{Location: "aws"}, mesh.Reach{}, true)
	v := g.View()
	if len(v.Memberships) != 1 || len(v.Memberships[0].Met) != 0 || len(v.Reaches) != 1 || len(v.Reaches[0].Tried) != 0 {
		t.Errorf("got %v, %v, want that nobody was met or tried", v.Memberships, v.Reaches)
	}
	slices.Reverse(m.Met)
	if err := g.PublishMembership(m); err == nil {
		t.Error("a membership that others refuse is published")
	}
	slices.Reverse(r.Tried)
	if err := g.PublishReach(r); err == nil {
		t.Error("a reach that others refuse is published")
	}
}

// The records of a view have what follows from what nodes have met and reached.
func TestViewLocatesAndProves(t *testing.T) {
	now := time.Unix(1700000000, 0)
	g := idle(t, &now)
	var raws [][]byte
	for n := range 4 {
		r := testRecord(n, 1)
		r.Location = ""
		r.Endpoints = []mesh.Endpoint{{Host: fmt.Sprintf("203.0.113.%d", n+1), Port: 51820, Source: mesh.EndpointConfigured}}
		if n < 2 {
			r.Location = "aws"
			m := testMembership(n)
			m.Met = []mesh.ShortID{idOf(1 - n).Short()}
			raws = append(raws, signOwnBody(t, n, m, 1))
		} else {
			b := testReach(n)
			b.Tried = []mesh.Tried{{Subject: idOf(0), Addr: netip.MustParseAddrPort("203.0.113.1:51820"), Reached: true}}
			raws = append(raws, signOwnBody(t, n, b, 1))
		}
		raws = append(raws, signRecord(t, n, r))
	}
	g.acceptObjects(raws, fromSync)
	rs := g.View().Records
	if len(rs) != 4 {
		t.Fatalf("got %d records, want 4", len(rs))
	}
	i := slices.IndexFunc(rs, func(r mesh.Record) bool { return r.ID() == idOf(0) })
	j := slices.IndexFunc(rs, func(r mesh.Record) bool { return r.ID() == idOf(1) })
	if !rs[i].SameLAN(&rs[j]) || rs[i].Segment == (mesh.ID{}) {
		t.Errorf("nodes that have met are in segments %v and %v", rs[i].Segment, rs[j].Segment)
	}
	if rs[i].Closed || !rs[j].Closed {
		t.Errorf("closed: %v and %v, want only the one that nobody has reached", rs[i].Closed, rs[j].Closed)
	}
}

func FuzzDecodeMembership(f *testing.F) {
	f.Add(signOwnBody(f, 0, testMembership(0), 1)[objectHeader:])
	f.Fuzz(func(t *testing.T, payload []byte) { fuzzOwn(t, payload, decodeMembership) })
}

func FuzzDecodeReach(f *testing.F) {
	f.Add(signOwnBody(f, 0, testReach(0), 1)[objectHeader:])
	f.Fuzz(func(t *testing.T, payload []byte) { fuzzOwn(t, payload, decodeReach) })
}

// fuzzOwn checks that what is decoded is encoded and decoded again to the same.
func fuzzOwn(t *testing.T, payload []byte, decode func([]byte) (body, error)) {
	b, err := decode(payload)
	if err != nil {
		return
	}
	by := uint64(0)
	switch b := b.(type) {
	case membershipBody:
		by = b.by
	case reachBody:
		by = b.by
	}
	again, err := b.(ownBody).encode(b.author(), b.sequence(), by)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := decode(again); err != nil || !cmp.Equal(any(b), any(c), compareOwn) {
		t.Errorf("%+v became %+v, %v", b, c, err)
	}
}
