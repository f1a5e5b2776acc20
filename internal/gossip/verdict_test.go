// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"crypto/ed25519"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/mesh"
)

func idOf(n int) mesh.ID { return mesh.IDOf(identity(n).Public().(ed25519.PublicKey)) }

// testVerdict returns a verdict of node n on another one.
func testVerdict(n, subject int, state mesh.Health, epoch uint64) mesh.Verdict {
	return mesh.Verdict{
		Author: identity(n).Public().(ed25519.PublicKey), Subject: idOf(subject),
		State: state, Epoch: epoch,
	}
}

func signVerdict(t testing.TB, n int, v verdict) []byte {
	t.Helper()
	payload, err := encodeVerdict(v)
	return signPayload(t, n, kindVerdict, payload, err)
}

func TestVerdictLimits(t *testing.T) {
	tests := []struct {
		name   string
		change func(*verdict)
		ok     bool
	}{
		{"down", func(*verdict) {}, true},
		{"up by another", func(v *verdict) { v.State = mesh.HealthUp }, false},
		{"draining by another", func(v *verdict) { v.State = mesh.HealthDraining }, false},
		{"up by itself", func(v *verdict) { v.Subject, v.State = idOf(0), mesh.HealthUp }, true},
		{"draining by itself", func(v *verdict) { v.Subject, v.State = idOf(0), mesh.HealthDraining }, true},
		{"other state", func(v *verdict) { v.State = "tired" }, false},
		{"epoch 0", func(v *verdict) { v.Epoch = 0 }, false},
		{"highest epoch", func(v *verdict) { v.Epoch = maxSequence }, true},
		{"absurd epoch", func(v *verdict) { v.Epoch = maxSequence + 1 }, false},
		{"absurd record", func(v *verdict) { v.Record = 1 << 63 }, false},
		{"short author", func(v *verdict) { v.Author = v.Author[1:] }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := verdict{testVerdict(0, 1, mesh.HealthDown, 3), 4, 5}
			tt.change(&v)
			payload, err := encodeVerdict(v)
			if (err == nil) != tt.ok {
				t.Fatalf("got %v, want ok %v", err, tt.ok)
			}
			if err != nil {
				return
			}
			b, err := decodeVerdict(payload)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(v, b, cmp.AllowUnexported(verdict{})); diff != "" {
				t.Errorf("verdict (-want +got):\n%s", diff)
			}
		})
	}
}

func TestJudge(t *testing.T) {
	now := time.Unix(1700000000, 0)
	g := idle(t, &now)
	g.acceptObjects([][]byte{signRecord(t, 1, testRecord(1, 7))}, fromSync)
	if err := g.Publish(testRecord(0, 3)); err != nil {
		t.Fatal(err)
	}
	down := testVerdict(0, 1, mesh.HealthDown, 2)
	own := testVerdict(0, 0, mesh.HealthDraining, 1)
	own.Author = nil
	older := down
	older.Epoch = 1
	for _, step := range []struct {
		v    mesh.Verdict
		want error
	}{{down, nil}, {down, ErrStale}, {older, ErrStale}, {own, nil}} {
		if err := g.PublishVerdict(step.v); !errors.Is(err, step.want) {
			t.Errorf("judge %+v: got %v, want %v", step.v, err, step.want)
		}
	}
	if err := g.PublishVerdict(testVerdict(1, 0, mesh.HealthDown, 9)); err == nil {
		t.Error("a verdict of another node is signed")
	}
	own.Author = down.Author
	want := []mesh.Verdict{down, own}
	slices.SortFunc(want, func(a, b mesh.Verdict) int { return a.Subject.Compare(b.Subject) })
	if diff := cmp.Diff(want, g.View().Verdicts); diff != "" {
		t.Errorf("verdicts (-want +got):\n%s", diff)
	}

	// A forgotten node's verdicts are forgotten too, and so are those on it.
	if err := g.Forget(idOf(1), 7); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]mesh.Verdict{own}, g.View().Verdicts); diff != "" || len(g.store.objects) != 3 {
		t.Errorf("after the tombstone: %d objects, want our record and verdict, and the tombstone; verdicts (-want +got):\n%s", len(g.store.objects), diff)
	}
	down.Epoch = 3
	g.acceptObjects([][]byte{signRecord(t, 1, testRecord(1, 8))}, fromSync)
	if err := g.PublishVerdict(down); err != nil {
		t.Fatal(err)
	}
	for i, v := range want {
		if v.Subject == down.Subject {
			want[i] = down
		}
	}
	if diff := cmp.Diff(want, g.View().Verdicts); diff != "" {
		t.Errorf("after it has returned (-want +got):\n%s", diff)
	}
}

// A verdict counts only if both its author's and its subject's record do.
func TestVerdictsOfStrangersDoNotCount(t *testing.T) {
	now := time.Unix(1700000000, 0)
	g := idle(t, &now)
	g.acceptObjects([][]byte{signRecord(t, 1, testRecord(1, 1))}, fromSync)
	for n, subject := range map[int]int{1: 2, 2: 1} {
		g.acceptObjects([][]byte{signVerdict(t, n, verdict{testVerdict(n, subject, mesh.HealthDown, 1), 0, 0})}, fromSync)
	}
	if got := g.View().Verdicts; len(got) > 0 {
		t.Errorf("verdicts %v, want none", got)
	}
	g.acceptObjects([][]byte{signRecord(t, 2, testRecord(2, 1))}, fromSync)
	if got := g.View().Verdicts; len(got) != 2 {
		t.Errorf("verdicts %v, want two", got)
	}
}

func TestVerdictReachesAllNodes(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 20)
	for epoch := range uint64(5) {
		v := testVerdict(3, 5, mesh.HealthDown, epoch+1)
		began := time.Now()
		if err := nodes[3].PublishVerdict(v); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the verdict is everywhere", nodes, func(view mesh.View) bool {
			return len(view.Verdicts) == 1 && view.Verdicts[0].Epoch == epoch+1
		})
		t.Logf("everywhere after %v", time.Since(began))
	}
}

func FuzzDecodeVerdict(f *testing.F) {
	v := verdict{testVerdict(0, 1, mesh.HealthDown, 3), 4, 5}
	f.Add(signVerdict(f, 0, v)[objectHeader:])
	f.Fuzz(func(t *testing.T, payload []byte) {
		b, err := decodeVerdict(payload)
		if err != nil {
			return
		}
		if _, err := encodeVerdict(b.(verdict)); err != nil {
			t.Errorf("encode what was decoded: %v", err)
		}
	})
}
