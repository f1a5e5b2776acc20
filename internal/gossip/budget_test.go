// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/meshd/meshd/internal/mesh"
)

// flood is more tombstones than the store holds of one author, and a quarter of it more
// revocations.
const flood = 4300

// invented returns the n-th of some fingerprints that no node has.
func invented(n int) mesh.ID { return mesh.ID{0xfd, byte(n >> 8), byte(n)} }

// tombstones returns n tombstones of an author for nodes that don't exist. Several tests
// need the same ones, and signing takes long with the race detector.
func tombstones(t testing.TB, author, n int, upTo uint64) [][]byte {
	t.Helper()
	signed.mu.Lock()
	defer signed.mu.Unlock()
	key := [2]uint64{uint64(author), upTo}
	for i := len(signed.by[key]); i < n; i++ {
		signed.by[key] = append(signed.by[key], signTombstone(t, author, invented(i), upTo))
	}
	return slices.Clone(signed.by[key][:n])
}

// signed has the tombstones that were made, by author and sequence.
var signed = struct {
	mu sync.Mutex
	by map[[2]uint64][][]byte
}{by: map[[2]uint64][][]byte{}}

// heldOf counts the objects of an author.
func heldOf(g *Gossip, author mesh.ID) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	for key := range g.store.objects {
		if key.author == author {
			n++
		}
	}
	return n
}

// A node with the secret can make as many objects as it likes: those of others still find
// room, and when it is revoked, its objects are dropped, from disk as well.
func TestHostileTombstonesLeaveRoom(t *testing.T) {
	const insider = 9
	now := time.Unix(1700000000, 0)
	g := idle(t, &now)
	if err := g.Publish(testRecord(0, 1)); err != nil {
		t.Fatal(err)
	}
	for n := range 4 {
		g.acceptObjects([][]byte{signRecord(t, n+1, testRecord(n+1, 1))}, fromSync)
	}
	g.acceptObjects([][]byte{signRecord(t, insider, testRecord(insider, 1)), signTombstone(t, insider, idOf(3), 1), signTombstone(t, insider, idOf(4), mesh.Forever)}, fromSync)
	if v := g.View(); sequenceOf(v, idOf(3)) != 0 || sequenceOf(v, idOf(4)) != 0 {
		t.Fatalf("records %v, want two forgotten", v.Records)
	}
	flooded := tombstones(t, insider, flood, 5)
	g.acceptObjects(flooded, fromSync)
	g.acceptObjects(tombstones(t, insider, flood/4, mesh.Forever), fromSync)
	if v := g.View(); !hasProblem(v, ProblemFull, "node-9 has made") {
		t.Errorf("problems %v, want one that names the node which fills the store", v.Problems)
	}

	if err := g.PublishVerdict(testVerdict(0, 1, mesh.HealthDown, 1)); err != nil {
		t.Error(err)
	}
	if err := g.Forget(idOf(2), 1); err != nil {
		t.Error(err)
	}
	g.acceptObjects([][]byte{signVerdict(t, 1, verdict{testVerdict(1, 0, mesh.HealthDown, 1), 1, 1}), signRecord(t, 5, testRecord(5, 1))}, fromSync)
	if v := g.View(); len(v.Verdicts) != 2 || sequenceOf(v, idOf(2)) != 0 || sequenceOf(v, idOf(5)) != 1 {
		t.Errorf("verdicts %v, records %v; want two verdicts, no record of node-2 and one of node-5", v.Verdicts, v.Records)
	}
	before := g.Remember()

	revocations := budgets[classRevocation].own // of the insider, they stay
	if err := g.Forget(idOf(insider), mesh.Forever); err != nil {
		t.Fatal(err)
	}
	g.acceptObjects([][]byte{signRecord(t, 3, testRecord(3, 1)), signRecord(t, 4, testRecord(4, 1))}, fromSync)
	g.acceptObjects(flooded[:20], fromSync)
	if v := g.View(); sequenceOf(v, idOf(3)) != 1 || sequenceOf(v, idOf(4)) != 1 || sequenceOf(v, idOf(insider)) != 0 {
		t.Errorf("records %v, want those that the insider has removed", v.Records)
	}
	if n, r := heldOf(g, idOf(insider)), g.Remember(); n != revocations || len(r.Objects) > 20 || len(r.Highest) > 20 {
		t.Errorf("%d objects of the insider; %d objects and %d sequences go to disk", n, len(r.Objects), len(r.Highest))
	}

	// The remembered objects of a node that was off all the time, and of one with an
	// earlier version.
	for i := range flood {
		key := objectKey{kindTombstone, idOf(insider), invented(i)}
		before.Highest = append(before.Highest, Highest{string(key.bytes()), 5})
	}
	before.Objects = append(before.Objects, flooded[:flood/2]...)
	before.Objects = append(before.Objects, signTombstone(t, 0, idOf(insider), mesh.Forever))
	g = idle(t, &now)
	g.restore(before)
	if n, r := heldOf(g, idOf(insider)), g.Remember(); n != revocations || len(r.Objects) > 20 || len(r.Highest) > 20 {
		t.Errorf("after a restart: %d objects of the insider; %d objects and %d sequences go to disk", n, len(r.Objects), len(r.Highest))
	}
}

// Remembered objects of an earlier version that filled its store leave room for the
// objects of others.
func TestHostileOldDiskLeavesRoom(t *testing.T) {
	const insider = 9
	now := time.Unix(1700000000, 0)
	g := idle(t, &now)
	remembered := Remembered{Objects: tombstones(t, insider, flood, 5)}
	for i := range flood {
		key := objectKey{kindTombstone, idOf(insider), invented(i)}
		remembered.Highest = append(remembered.Highest, Highest{string(key.bytes()), 5})
	}
	g.restore(remembered)
	g.acceptObjects([][]byte{signRecord(t, 1, testRecord(1, 1)), signVerdict(t, 1, verdict{testVerdict(1, 2, mesh.HealthDown, 1), 1, 1}), signRecord(t, 2, testRecord(2, 1))}, fromSync)
	if v := g.View(); len(v.Records) != 2 || len(v.Verdicts) != 1 {
		t.Errorf("records %v, verdicts %v; want two and one", v.Records, v.Verdicts)
	}
	if err := g.Forget(idOf(insider), mesh.Forever); err != nil {
		t.Fatal(err)
	}
	if r := g.Remember(); len(r.Objects) != 4 {
		t.Errorf("%d objects go to disk, want 4", len(r.Objects))
	}
}

// However many identities an attacker makes, nodes that were known before can still
// publish, and the store stays bounded.
func TestHostileIdentitiesLeaveRoom(t *testing.T) {
	now := time.Unix(1700000000, 0)
	g := idle(t, &now)
	for n := range 3 {
		g.acceptObjects([][]byte{signRecord(t, n+1, testRecord(n+1, 1))}, fromSync)
	}
	for i := range maxAuthors + 200 {
		seed := make([]byte, ed25519.SeedSize)
		binary.BigEndian.PutUint64(seed, uint64(i+1))
		key := ed25519.NewKeyFromSeed(seed)
		r := testRecord(50, 1)
		r.Identity = key.Public().(ed25519.PublicKey)
		payload, err := encodeRecord(r)
		if err != nil {
			t.Fatal(err)
		}
		raws := make([][]byte, 0, 2)
		record, err := signObject(key, "default", kindRecord, payload)
		if err != nil {
			t.Fatal(err)
		}
		raws = append(raws, record)
		payload, err = encodeTombstone(tombstone{r.Identity, invented(i), mesh.Forever})
		if err != nil {
			t.Fatal(err)
		}
		revocation, err := signObject(key, "default", kindTombstone, payload)
		if err != nil {
			t.Fatal(err)
		}
		g.acceptObjects(append(raws, revocation), fromSync)
	}
	if n := len(g.store.authors); n != maxUnmet || len(g.store.highest) > 2*maxAuthors {
		t.Errorf("%d authors and %d sequences, want %d and not many more than twice that", n, len(g.store.highest), maxUnmet)
	}
	if v := g.View(); !hasProblem(v, ProblemFull, "accepts only 256 more") {
		t.Errorf("problems %v, want %s", v.Problems, ProblemFull)
	}
	g.acceptObjects([][]byte{signRecord(t, 4, testRecord(4, 1))}, fromSync)
	before := sequenceOf(g.View(), idOf(4))
	g.transport.noteMet(idOf(4))
	g.acceptObjects([][]byte{signRecord(t, 4, testRecord(4, 1))}, fromSync)
	if after := sequenceOf(g.View(), idOf(4)); before != 0 || after != 1 {
		t.Errorf("a newcomer's record: got sequence %d before its greeting and %d after it, want 0 and 1", before, after)
	}
	if err := g.Publish(testRecord(0, 1)); err != nil {
		t.Errorf("our own record: %v", err)
	}
	if err := g.PublishVerdict(testVerdict(0, 1, mesh.HealthDown, 1)); err != nil {
		t.Errorf("our verdict: %v", err)
	}
	if err := g.Forget(idOf(3), mesh.Forever); err != nil {
		t.Errorf("our revocation: %v", err)
	}
	g.acceptObjects([][]byte{
		signRecord(t, 1, testRecord(1, 2)), signVerdict(t, 1, verdict{testVerdict(1, 2, mesh.HealthDown, 1), 1, 1}),
		signTombstone(t, 1, invented(7), 3), signClient(t, 1, testClient("laptop")),
	}, fromSync)
	if v := g.View(); sequenceOf(v, idOf(1)) != 2 || len(v.Verdicts) != 2 || len(v.Clients) != 1 || g.store.forgottenUpTo[invented(7)] < 3 {
		t.Errorf("sequence %d, %d verdicts, %d clients; want 2, 2 and 1, and a tombstone", sequenceOf(v, idOf(1)), len(v.Verdicts), len(v.Clients))
	}
}

// Of many verdicts of one author, all nodes keep the same ones.
func TestHostileVerdictsAreTheSameEverywhere(t *testing.T) {
	var objects []object
	for n := range 3 * budgets[class(kindVerdict)].own {
		v := verdict{testVerdict(1, 2, mesh.HealthDown, uint64(n%5+1)), 1, uint64(n%7 + 1)}
		v.Subject = invented(n)
		objects = append(objects, mustDecode(t, signVerdict(t, 1, v)))
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b := newStore(), newStore()
		for _, o := range rapid.Permutation(objects).Draw(t, "a") {
			a.put(o)
		}
		for _, o := range rapid.SliceOf(rapid.SampledFrom(objects)).Draw(t, "b") {
			b.put(o)
		}
		for range 3 {
			exchange(t, a, b)
		}
		if !equalStores(a, b) || len(a.objects) != budgets[class(kindVerdict)].own {
			t.Errorf("%d and %d objects", len(a.objects), len(b.objects))
		}
	})
}

// A node with verdicts on many others still keeps the verdict on itself. Dropped verdicts
// that come back are stale, and cause no problem.
func TestOwnVerdictIsKept(t *testing.T) {
	now := time.Unix(1700000000, 0)
	g := idle(t, &now)
	say := func(subject mesh.ID, state mesh.Health, sequence uint64) {
		v := verdict{testVerdict(1, 2, state, 1), 1, sequence}
		v.Subject = subject
		g.acceptObjects([][]byte{signVerdict(t, 1, v)}, fromSync)
	}
	say(idOf(1), mesh.HealthUp, 1)
	most := budgets[class(kindVerdict)].own
	for n := range most {
		say(invented(n+1), mesh.HealthDown, uint64(n+2))
	}
	if all := g.store.verdicts(); len(all) != most || !slices.ContainsFunc(all, func(v mesh.Verdict) bool { return v.Subject == idOf(1) }) {
		t.Errorf("%d verdicts, and the first one is not among them", len(all))
	}
	say(invented(1), mesh.HealthDown, 2)
	if v := g.View(); hasProblem(v, ProblemFull, "") {
		t.Errorf("what was dropped comes back: problems %v, want none", v.Problems)
	}
}

// An object does not count if its author was trusted when it was checked, but is not any
// more.
func TestHostileTrustChangesMeanwhile(t *testing.T) {
	now := time.Unix(1700000000, 0)
	g := idle(t, &now)
	o, err := g.check(signRecord(t, 1, testRecord(1, 1)))
	if err != nil {
		t.Fatal(err)
	}
	c := testCluster()
	c.Trust = mesh.TrustList
	g.setTrust(c, []mesh.ID{idOf(0)})
	if g.storeChecked(o) || len(g.View().Records) != 0 {
		t.Errorf("records %v, want none", g.View().Records)
	}
}

// A new node gets records first.
func TestRecordsComeFirst(t *testing.T) {
	now := time.Unix(1700000000, 0)
	g := idle(t, &now)
	for n := range 4 {
		g.acceptObjects([][]byte{signTombstone(t, 1, invented(n), 1), signRecord(t, n+1, testRecord(n+1, 1))}, fromSync)
	}
	raws, err := unpackObjects(delegate{g}.LocalState(true)[1:])
	if err != nil || len(raws) != 8 {
		t.Fatalf("%d objects, %v", len(raws), err)
	}
	for n, raw := range raws {
		if kind := mustDecode(t, raw).key.kind; (kind == kindRecord) != (n < 4) {
			t.Errorf("object %d is of kind %d", n, kind)
		}
	}
}

func TestRevocations(t *testing.T) {
	id := func(n int) mesh.ID { return mesh.ID{byte(n)} }
	tests := []struct {
		name  string
		edges [][2]int
		want  []int
	}{
		{"one", [][2]int{{1, 2}}, []int{2}},
		{"whom a revoked one revokes is free", [][2]int{{5, 2}, {2, 3}}, []int{2}},
		{"three in a row", [][2]int{{5, 2}, {2, 3}, {3, 4}}, []int{2, 4}},
		{"each other", [][2]int{{1, 2}, {2, 1}}, []int{2}},
		{"the lower one's other victims", [][2]int{{2, 1}, {1, 2}, {2, 7}, {1, 8}}, []int{2, 8}},
		{"a circle", [][2]int{{1, 2}, {2, 3}, {3, 1}}, []int{2}},
		{"a circle and somebody outside", [][2]int{{1, 2}, {2, 1}, {9, 1}}, []int{1}},
		{"all, and two say no", [][2]int{{5, 1}, {5, 3}, {5, 8}, {8, 5}, {3, 5}}, []int{5}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := make(revocations)
			for _, e := range tt.edges {
				g[id(e[0])] = append(g[id(e[0])], id(e[1]))
			}
			want := make(map[mesh.ID]bool)
			for _, n := range tt.want {
				want[id(n)] = true
			}
			if got := g.revoked(); !maps.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

// Whichever nodes revoke each other, and in whatever order the revocations come: the
// stores agree on what counts.
func TestHostileRevocationsConverge(t *testing.T) {
	const nodes = 5
	var objects []object
	for a := range nodes {
		objects = append(objects, mustDecode(t, signRecord(t, a, testRecord(a, 1))), mustDecode(t, signTombstone(t, a, invented(a), 1)))
		for b := range nodes {
			if a != b {
				objects = append(objects, mustDecode(t, signTombstone(t, a, idOf(b), mesh.Forever)))
			}
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		stores := []*store{newStore(), newStore(), newStore()}
		for i := range stores {
			for _, o := range rapid.SliceOfN(rapid.SampledFrom(objects), 0, 20).Draw(t, fmt.Sprint("delivered", i)) {
				stores[i].put(o)
			}
		}
		for range 3 * nodes {
			exchange(t, stores[0], stores[1])
			exchange(t, stores[1], stores[2])
			exchange(t, stores[2], stores[0])
		}
		for _, s := range stores {
			if !equalStores(s, stores[0]) {
				t.Fatalf("%d and %d objects", len(s.objects), len(stores[0].objects))
			}
			revoked := s.revocations().revoked()
			for id, upTo := range s.forgottenUpTo {
				if (upTo == mesh.Forever) != revoked[id] {
					t.Errorf("%v: forgotten up to %d, revoked %v", id, upTo, revoked[id])
				}
			}
			for key, o := range s.objects {
				if revoked[key.author] && o.class() != classRevocation {
					t.Errorf("an object of %v counts, although it is revoked", key.author)
				}
			}
		}
	})
}

// Two nodes that revoke each other: the one with the lower fingerprint stays, and the
// other one is told why its revocation does not count.
func TestHostileMutualRevocation(t *testing.T) {
	now := time.Unix(1700000000, 0)
	for _, other := range []int{1, 2, 3, 4, 5, 6} {
		g := idle(t, &now)
		if err := g.Publish(testRecord(0, 1)); err != nil {
			t.Fatal(err)
		}
		g.acceptObjects([][]byte{signRecord(t, other, testRecord(other, 1)), signTombstone(t, other, idOf(0), mesh.Forever)}, fromSync)
		if !hasProblem(g.View(), ProblemRevoked, "revoked") {
			t.Fatal("the node is not revoked")
		}
		err := g.Forget(idOf(other), mesh.Forever)
		lower := idOf(0).Compare(idOf(other)) < 0
		if (err == nil) != lower || (g.View().Forgotten == 0) != lower {
			t.Errorf("lower %v: got %v, forgotten up to %d", lower, err, g.View().Forgotten)
		}
	}
}

// An insider fills the stores of a running cluster, makes nodes forget its members and
// revokes them. Failover and new nodes still find room, and everything is undone when the
// insider is revoked.
func TestHostileInsiderIsUndone(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 4)
	slices.SortFunc(nodes, func(a, b *testNode) int { return a.self.Compare(b.self) })
	admin, honest, insider := nodes[0], nodes[:3], nodes[3]
	c, err := insider.AddClient(testClient("backdoor"))
	if err != nil {
		t.Fatal(err)
	}
	raws := tombstones(t, insider.n, flood, 5)
	for len(raws) > 0 {
		n := min(len(raws), 100)
		for _, victim := range honest {
			insider.sendObjects(victim.self, raws[:n], fromSync)
		}
		raws = raws[n:]
		time.Sleep(2 * time.Millisecond) // so that few are lost
	}
	if err := insider.Forget(honest[1].self, mesh.Forever); err != nil {
		t.Fatal(err)
	}
	eventually(t, "one is revoked, a client is there", []*testNode{honest[0], honest[2]}, func(v mesh.View) bool {
		return sequenceOf(v, honest[1].self) == 0 && len(v.Clients) == 1 && v.Clients[0].ID == c.ID
	})

	newcomer := startNode(t, 10, joining(admin))
	newcomer.publish(1)
	if err := honest[2].PublishVerdict(testVerdict(honest[2].n, admin.n, mesh.HealthDown, 1)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a verdict and a newcomer are heard", []*testNode{admin, honest[2], newcomer}, func(v mesh.View) bool {
		return len(v.Verdicts) == 1 && sequenceOf(v, newcomer.self) == 1
	})

	if err := admin.Forget(insider.self, mesh.Forever); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is revoked", []*testNode{admin, honest[1], honest[2], newcomer}, func(v mesh.View) bool {
		return sequenceOf(v, insider.self) == 0 && len(v.Clients) == 0
	})
	eventually(t, "its victim may come back", []*testNode{honest[1]}, func(v mesh.View) bool { return v.Forgotten == 0 })
	honest[1].publish(2)
	all := append(slices.Clone(honest), newcomer)
	eventually(t, "its victim is back", all, func(v mesh.View) bool { return sequenceOf(v, honest[1].self) == 2 })
	for _, n := range all {
		if left := heldOf(n.Gossip, insider.self); left != 1 {
			t.Errorf("node %d: %d objects of the insider are left, want its revocation alone", n.n, left)
		}
	}
}

// Whatever the epoch of a verdict, its subject can publish a higher one, and others can
// publish again that it is down.
func TestHostileEpochsLeaveRoom(t *testing.T) {
	now := time.Unix(1700000000, 0)
	for _, epoch := range []uint64{maxSequence, maxSequence - 1, mesh.EpochStep + 1, mesh.EpochStep, mesh.EpochStep - 1} {
		g := idle(t, &now)
		g.acceptObjects([][]byte{signRecord(t, 1, testRecord(1, 1))}, fromSync)
		if err := g.Publish(testRecord(0, 1)); err != nil {
			t.Fatal(err)
		}
		g.acceptObjects([][]byte{signVerdict(t, 1, verdict{testVerdict(1, 0, mesh.HealthDown, epoch), 1, 1})}, fromSync)
		standing := func() mesh.Verdict { return highestOf(g.View().Verdicts) }
		// A verdict that was too far ahead may count after the first attempt.
		for range 2 {
			if err := g.PublishVerdict(testVerdict(0, 0, mesh.HealthUp, standing().Epoch+1)); err != nil {
				t.Fatalf("epoch %d: %v", epoch, err)
			}
		}
		if got := standing(); got.State != mesh.HealthUp {
			t.Errorf("epoch %d: after its own verdict: %+v", epoch, got)
		}
		g.acceptObjects([][]byte{signVerdict(t, 2, verdict{testVerdict(2, 0, mesh.HealthDown, standing().Epoch+1), 1, 1}), signRecord(t, 2, testRecord(2, 1))}, fromSync)
		if got := standing(); got.State != mesh.HealthDown {
			t.Errorf("epoch %d: after another node's verdict: %+v", epoch, got)
		}
	}
}

// highestOf returns the verdict with the highest epoch.
func highestOf(verdicts []mesh.Verdict) mesh.Verdict {
	var out mesh.Verdict
	for _, v := range verdicts {
		if v.Epoch > out.Epoch {
			out = v
		}
	}
	return out
}

// No node can give a verdict on itself an epoch that others can't exceed.
func TestHostileOwnEpochHasALimit(t *testing.T) {
	v := verdict{testVerdict(1, 1, mesh.HealthUp, maxSequence-mesh.EpochStep), 1, 1}
	if _, err := encodeVerdict(v); err != nil {
		t.Errorf("the highest one: %v", err)
	}
	v.Epoch++
	if _, err := encodeVerdict(v); err == nil {
		t.Error("a higher one is accepted")
	}
}

// The error for a refused verdict says which epoch must be exceeded.
func TestRefusedVerdictSaysWhatToExceed(t *testing.T) {
	now := time.Unix(1700000000, 0)
	g := idle(t, &now)
	g.acceptObjects([][]byte{signRecord(t, 1, testRecord(1, 1))}, fromSync)
	if err := g.Publish(testRecord(0, 1)); err != nil {
		t.Fatal(err)
	}
	if err := g.PublishVerdict(testVerdict(0, 1, mesh.HealthDown, 41)); err != nil {
		t.Fatal(err)
	}
	var said *EpochError
	if err := g.PublishVerdict(testVerdict(0, 1, mesh.HealthDown, 3)); !errors.As(err, &said) || said.Exceed != 41 || !errors.Is(err, ErrStale) {
		t.Errorf("got %v, want an epoch to exceed, 41", err)
	}
}
