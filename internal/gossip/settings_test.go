// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"crypto/ed25519"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/mesh"
)

// withSettings changes the settings in a node's file.
func withSettings(generation uint64, mode mesh.Mode) func(*Options) {
	return func(o *Options) { o.Cluster.Generation, o.Cluster.Mode = generation, mode }
}

// all combines several changes.
func all(changes ...func(*Options)) func(*Options) {
	return func(o *Options) {
		for _, change := range changes {
			change(o)
		}
	}
}

func follows(generation uint64, mode mesh.Mode) func(mesh.View) bool {
	return func(v mesh.View) bool { return v.Cluster.Generation == generation && v.Cluster.Mode == mode }
}

func signSettings(t testing.TB, n int, number uint64, s settings) []byte {
	t.Helper()
	payload, err := encodeSettings(settingsBody{s, identity(n).Public().(ed25519.PublicKey), number, testCluster().Hash(), 1})
	return signPayload(t, n, kindSettings, payload, err)
}

func TestSettingsRoundTrip(t *testing.T) {
	good := settings{3, mesh.ModeCross, mesh.EncapsulationNever, 2}
	for name, tt := range map[string]struct {
		change func(*settingsBody)
		ok     bool
	}{
		"good":             {func(*settingsBody) {}, true},
		"number 0":         {func(t *settingsBody) { t.number = 0 }, false},
		"absurd number":    {func(t *settingsBody) { t.number = 1 << 60 }, false},
		"no record":        {func(t *settingsBody) { t.by = 0 }, false},
		"generation":       {func(t *settingsBody) { t.Generation = maxSequence + 1 }, false},
		"mode":             {func(t *settingsBody) { t.Mode = "star" }, false},
		"encapsulation":    {func(t *settingsBody) { t.Encapsulation = "ipip" }, false},
		"no gateway":       {func(t *settingsBody) { t.Gateways = 0 }, false},
		"many gateways":    {func(t *settingsBody) { t.Gateways = 1 << 40 }, false},
		"short identity":   {func(t *settingsBody) { t.identity = t.identity[1:] }, false},
		"other generation": {func(t *settingsBody) { t.Generation = 0 }, true},
	} {
		t.Run(name, func(t *testing.T) {
			in := settingsBody{good, identity(0).Public().(ed25519.PublicKey), 4, 5, 6}
			tt.change(&in)
			payload, err := encodeSettings(in)
			if err != nil {
				t.Fatal(err)
			}
			out, err := decodeSettings(payload)
			if (err == nil) != tt.ok {
				t.Fatalf("got %v, want ok %v", err, tt.ok)
			}
			if err == nil && !cmp.Equal(in, out.(settingsBody), cmp.AllowUnexported(settingsBody{})) {
				t.Errorf("got %+v, want %+v", out, in)
			}
		})
	}
}

// One node is started with an edited file: all follow, including one that joins when that
// node is gone, and none reverts.
func TestHighestGenerationIsAdopted(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 3)
	edited := startNode(t, 3, all(joining(nodes[0]), withSettings(2, mesh.ModeFull)))
	edited.publish(1)
	eventually(t, "adopted", append(slices.Clone(nodes), edited), follows(2, mesh.ModeFull))
	for _, n := range nodes {
		if v := n.View(); !hasProblem(v, ProblemSettings, "this node's configuration has cluster.generation 1; it follows generation 2") {
			t.Errorf("node %d: problems %v", n.n, v.Problems)
		}
	}
	if p := edited.View().Problems; len(p) > 0 {
		t.Errorf("problems on the edited node: %v", p)
	}

	edited.stop()
	if err := nodes[0].Forget(edited.self, 1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "forgotten", nodes, func(v mesh.View) bool { return len(v.Records) == 3 })
	late := startNode(t, 4, joining(nodes[1]))
	late.publish(1)
	eventually(t, "adopted by a newcomer", append(slices.Clone(nodes), late), follows(2, mesh.ModeFull))
}

// Two files with one generation and different settings: both sides report it, and no node
// follows either.
func TestOneGenerationWithTwoContentsIsNotAdopted(t *testing.T) {
	t.Parallel()
	nodes := []*testNode{
		startNode(t, 0, withSettings(2, mesh.ModeFull)),
	}
	nodes = append(nodes, startNode(t, 1, all(joining(nodes[0]), withSettings(2, mesh.ModeCross))))
	for _, n := range nodes {
		n.publish(1)
	}
	eventually(t, "named there", nodes[:1], func(v mesh.View) bool {
		return hasProblem(v, ProblemSettings, "mode cross, encapsulation always, gateways 1 on node-1")
	})
	eventually(t, "named here", nodes[1:], func(v mesh.View) bool {
		return hasProblem(v, ProblemSettings, "mode full, encapsulation always, gateways 1 on node-0")
	})
	third := startNode(t, 2, joining(nodes[1]))
	third.publish(1)
	eventually(t, "named by a third", []*testNode{third}, func(v mesh.View) bool {
		return hasProblem(v, ProblemSettings, "on node-0") && hasProblem(v, ProblemSettings, "on node-1")
	})
	for i, want := range []func(mesh.View) bool{follows(2, mesh.ModeFull), follows(2, mesh.ModeCross), follows(1, mesh.ModeLocation)} {
		n := append(slices.Clone(nodes), third)[i]
		if v := n.View(); !want(v) {
			t.Errorf("node %d follows %+v", i, v.Cluster)
		}
	}

	// The solution: a higher generation on any node.
	c := testCluster()
	c.Generation, c.Mode = 3, mesh.ModeCross
	if err := third.Reconfigure(c, nil, [][32]byte{testSecret}, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "settled", append(nodes, third), follows(3, mesh.ModeCross))
}

func TestAdoptedSettingsAreRemembered(t *testing.T) {
	adopted := testCluster()
	adopted.Generation, adopted.Gateways = 4, 2
	other := adopted
	other.Name = "other"
	for _, tt := range []struct {
		adopted mesh.Cluster
		file    uint64
		want    uint64
	}{{adopted, 1, 4}, {adopted, 4, 4}, {adopted, 5, 5}, {other, 1, 1}, {mesh.Cluster{}, 1, 1}} {
		o := Options{Identity: identity(0), Cluster: testCluster(), Secrets: [][32]byte{testSecret}, Adopted: tt.adopted}
		o.Cluster.Generation = tt.file
		g, err := newGossip(o)
		if err != nil {
			t.Fatal(err)
		}
		if got := g.View().Cluster.Generation; got != tt.want {
			t.Errorf("file %d, adopted %d of %q: got %d, want %d", tt.file, tt.adopted.Generation, tt.adopted.Name, got, tt.want)
		}
	}
}

// Settings announced only by unknown nodes are not adopted.
func TestSettingsOfStrangersAreNotAdopted(t *testing.T) {
	now := time.Unix(1700000000, 0)
	g := idle(t, &now)
	g.merged = true
	g.acceptObjects([][]byte{signSettings(t, 1, 1, settings{9, mesh.ModeFull, mesh.EncapsulationNever, 1})}, fromSync)
	if v := g.View(); !follows(1, mesh.ModeLocation)(v) {
		t.Errorf("follows %+v", v.Cluster)
	}
	g.acceptObjects([][]byte{signRecord(t, 1, testRecord(1, 1))}, fromSync)
	if v := g.View(); !follows(9, mesh.ModeFull)(v) {
		t.Errorf("a member's settings are not adopted: %+v", v.Cluster)
	}
}

// A new node that has received one of two conflicting announcements waits until it has
// merged a member's state.
func TestNewNodeWaitsForBothSides(t *testing.T) {
	now := time.Unix(1700000000, 0)
	all := [][]byte{
		signRecord(t, 1, testRecord(1, 1)), signSettings(t, 1, 1, settings{9, mesh.ModeFull, mesh.EncapsulationNever, 1}),
		signRecord(t, 2, testRecord(2, 1)), signSettings(t, 2, 1, settings{9, mesh.ModeCross, mesh.EncapsulationNever, 1}),
	}
	for _, tt := range []struct {
		state [][]byte
		want  uint64
	}{{all, 1}, {all[:2], 9}} {
		g := idle(t, &now)
		g.acceptObjects(all[:2], fromGossip)
		if v := g.View(); !follows(1, mesh.ModeLocation)(v) {
			t.Errorf("before it has merged a state it follows %+v", v.Cluster)
		}
		state, _ := packObjects([]byte{formatVersion}, tt.state, maxState)
		delegate{g}.MergeRemoteState(state, true)
		if got := g.View().Cluster.Generation; got != tt.want {
			t.Errorf("member with %d objects: it follows generation %d, want %d", len(tt.state), got, tt.want)
		}
	}
}

// If all agree, few nodes announce their settings, and none before it has merged a state.
func TestSettingsAreAnnouncedOnce(t *testing.T) {
	now := time.Unix(1700000000, 0)
	g := idle(t, &now)
	if err := g.Publish(testRecord(0, 1)); err != nil {
		t.Fatal(err)
	}
	if got := len(g.store.announcedSettings(g.ranges)); got != 0 {
		t.Errorf("announced %d times by a new node, want none", got)
	}
	g.merged = true
	g.acceptObjects([][]byte{signRecord(t, 1, testRecord(1, 1)), signSettings(t, 1, 1, settingsOf(testCluster()))}, fromSync)
	if got := len(g.store.announcedSettings(g.ranges)); got != 1 {
		t.Errorf("announced %d times, want once", got)
	}
	if err := g.Forget(idOf(1), 1); err != nil {
		t.Fatal(err)
	}
	g.updateSettings()
	if got := len(g.store.announcedSettings(g.ranges)); got != 1 {
		t.Errorf("announced %d times after the other is forgotten, want once", got)
	}
}

// A generation above the highest that a file can have is refused, also from disk.
func TestHostileGenerationIsRefused(t *testing.T) {
	s := settings{mesh.MaxGeneration, mesh.ModeCross, mesh.EncapsulationNever, 1}
	if err := s.check(); err != nil {
		t.Errorf("the highest: %v", err)
	}
	s.Generation++
	now := time.Unix(1700000000, 0)
	g := idle(t, &now)
	g.acceptObjects([][]byte{signRecord(t, 1, testRecord(1, 1)), signSettings(t, 1, 1, s)}, fromSync)
	if v := g.View(); v.Counters["object-content"] != 1 || v.Cluster.Generation > mesh.MaxGeneration {
		t.Errorf("counters %v, generation %d", v.Counters, v.Cluster.Generation)
	}
	o := Options{Identity: identity(0), Cluster: testCluster(), Secrets: [][32]byte{testSecret}, Adopted: s.applyTo(testCluster())}
	g, err := newGossip(o)
	if err != nil {
		t.Fatal(err)
	}
	if got := g.effectiveSettings(); got != settingsOf(o.Cluster) {
		t.Errorf("from disk: %v", got)
	}
}
