// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/meshd/meshd/internal/mesh"
)

// Invalid encrypted packets are counted, and change nothing.
func TestPacketsThatAreDropped(t *testing.T) {
	t.Parallel()
	tests := []struct {
		reason string
		change func(*packet, mesh.ID)
		times  int
	}{
		{"packet-cluster", func(p *packet, _ mesh.ID) { p.label = label{1} }, 1},
		{"packet-own", func(p *packet, self mesh.ID) { p.from = self }, 1},
		{"packet-replayed", func(*packet, mesh.ID) {}, 2},
		{"packet-kind", func(p *packet, _ mesh.ID) { p.kind = 99 }, 1},
		{"packet-content", func(p *packet, _ mesh.ID) { p.payload = []byte{99} }, 1},
		{"packet-content", func(p *packet, _ mesh.ID) { p.kind, p.payload = kindObjects, nil }, 1},
		{"packet-content", func(p *packet, _ mesh.ID) { p.kind, p.payload = kindObjects, []byte{0, 9, 9} }, 1},
		{"object-size", func(p *packet, _ mesh.ID) { p.kind, p.payload = kindObjects, []byte{0, 0, 1, 7} }, 1},
	}
	for _, tt := range tests {
		t.Run(tt.reason, func(t *testing.T) {
			t.Parallel()
			n := startNode(t, 0, nil)
			conn, err := net.Dial("udp", n.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			p := packet{kind: kindSync, label: labelOf(testCluster()), from: mesh.ID{9}, boot: 1, counter: 1, payload: newStore().rootMessage()}
			tt.change(&p, n.self)
			b, err := testRing(t, testSecret).sealPacket(rand.Reader, p, n.self)
			if err != nil {
				t.Fatal(err)
			}
			for range tt.times {
				if _, err := conn.Write(b); err != nil {
					t.Fatal(err)
				}
			}
			eventually(t, "counted", []*testNode{n}, func(v mesh.View) bool { return v.Counters[tt.reason] == 1 })
		})
	}
}

// A node that asks for an answer gets one, at the address from which it asked, and from
// the address that it asked: the kernel itself would answer from 127.0.0.1.
func TestPacketIsAnswered(t *testing.T) {
	t.Parallel()
	n := startNode(t, 0, func(o *Options) { o.Bind = ":0" })
	asked := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), n.Addr().Port())
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(asked))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ring, us := testRing(t, testSecret), mesh.ID{9}
	p := packet{kind: kindHere, want: true, label: labelOf(testCluster()), from: us, boot: 1, counter: 1}
	b, err := ring.sealPacket(rand.Reader, p, n.self)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2*maxPacket)
	size, err := conn.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ring.openPacket(buf[:size], us)
	if err != nil {
		t.Fatal(err)
	}
	if got.kind != kindHere || got.want {
		t.Errorf("got %+v, want an answer", got)
	}
}

func TestMembersOfForeignAddressAreRefused(t *testing.T) {
	m := newMembers(mesh.ID{}, func() {}).listen("")
	id := mesh.ID{1, 2, 3}
	tests := []struct {
		name string
		node memberlist.Node
		ok   bool
	}{
		{"good", memberlist.Node{Name: nodeName(id, 0), Addr: syntheticIP(id), Port: syntheticPort}, true},
		{"later epoch", memberlist.Node{Name: nodeName(id, 7), Addr: syntheticIP(id), Port: syntheticPort}, true},
		{"no epoch", memberlist.Node{Name: nodeName(id, 0) + "-7", Addr: syntheticIP(id), Port: syntheticPort}, false},
		{"no fingerprint", memberlist.Node{Name: "host", Addr: syntheticIP(id), Port: syntheticPort}, false},
		{"other address", memberlist.Node{Name: nodeName(id, 0), Addr: syntheticIP(mesh.ID{4}), Port: syntheticPort}, false},
		{"other port", memberlist.Node{Name: nodeName(id, 0), Addr: syntheticIP(id), Port: 1}, false},
		{"metadata", memberlist.Node{Name: nodeName(id, 0), Addr: syntheticIP(id), Port: syntheticPort, Meta: []byte{1}}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := m.NotifyAlive(&tt.node); (err == nil) != tt.ok {
				t.Errorf("got %v, want ok %v", err, tt.ok)
			}
		})
	}
}

func TestMemberlistLog(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))
	w := memberlistLog{newLimitedLog(log)}
	for _, line := range []string{"[DEBUG] memberlist: not shown\n", "[ERR] memberlist: Push/Pull failed\n"} {
		if _, err := w.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := out.String(), "level=INFO msg=\"memberlist reports\" report=\"Push/Pull failed\"\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	before := strings.Count(out.String(), "\n")
	for _, line := range []string{
		"[WARN] memberlist: Refuting a suspect message (from: a)", "[WARN] memberlist: Refuting a dead message (from: b)",
		"[WARN] memberlist: Was able to connect to a over TCP but UDP probes failed, network may be misconfigured",
		"[WARN] memberlist: Was able to connect to b over TCP but UDP probes failed, network may be misconfigured",
	} {
		_, _ = w.Write([]byte(line + "\n"))
	}
	if got := strings.Count(out.String(), "\n") - before; got != 2 {
		t.Errorf("%d lines of lasting conditions are logged, want one of each kind", got)
	}
	for range 10 * logBurst {
		_, _ = w.Write([]byte("[WARN] memberlist: again\n"))
	}
	if got := strings.Count(out.String(), "\n"); got > 2*logBurst {
		t.Errorf("%d lines of a flood are logged", got)
	}
}

// TestRefusedLineIsNew: a line that a rate has kept out of the log is not taken for a repetition.
func TestRefusedLineIsNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		l := newLimitedLog(slog.New(slog.NewTextHandler(&out, nil)))
		for i := range 2 * logBurst {
			l.at(slog.LevelInfo, "refused", "from", i)
		}
		time.Sleep(2 * time.Second)
		last := fmt.Sprintf("from=%d\n", 2*logBurst-1)
		if strings.Contains(out.String(), last) {
			t.Fatalf("the flood was not limited:\n%s", &out)
		}
		l.at(slog.LevelInfo, "refused", "from", 2*logBurst-1)
		if !strings.Contains(out.String(), last) {
			t.Errorf("got no line with %q, want one:\n%s", last, &out)
		}
	})
}

// idle returns a Gossip without a network, for tests of the store.
func idle(t testing.TB, now *time.Time) *Gossip {
	t.Helper()
	g, err := newGossip(Options{
		Identity: identity(0), Cluster: testCluster(), Secrets: [][32]byte{testSecret}, Instance: 1,
		Now: func() time.Time { return *now },
	})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// foreignRecord returns a record of node 0's identity, made by another instance.
func foreignRecord(t *testing.T, sequence uint64) []byte {
	r := testRecord(0, sequence)
	r.Instance = 2
	return signRecord(t, 0, r)
}

func TestLostDiskIsJumpedPast(t *testing.T) {
	now := time.Unix(1700000000, 0)
	g := idle(t, &now)
	for _, sequence := range []uint64{50, 52} { // from two nodes, one of which is outdated
		g.acceptObjects([][]byte{foreignRecord(t, sequence)}, fromSync)
	}
	if got, want := g.View().OwnSequence, uint64(52); got != want {
		t.Errorf("own sequence %d, want %d", got, want)
	}
	if err := g.Publish(testRecord(0, 53)); err != nil {
		t.Fatal(err)
	}
	now = now.Add(time.Minute)
	if p := g.View().Problems; len(p) > 0 {
		t.Errorf("problems %v, want none", p)
	}
}

func TestSequenceConflictIsReported(t *testing.T) {
	now := time.Unix(1700000000, 0)
	g := idle(t, &now)
	g.acceptObjects([][]byte{signRecord(t, 1, testRecord(1, 3)), conflicting(t, 1, 3)}, fromGossip)
	if v := g.View(); !hasProblem(v, ProblemSequence, "sequence 3") || v.Counters["object-conflict"] != 1 || len(v.Records) != 1 {
		t.Errorf("view %+v, want one record and %s", v, ProblemSequence)
	}
}

func TestPublishRefuses(t *testing.T) {
	now := time.Unix(1700000000, 0)
	g := idle(t, &now)
	if err := g.Publish(testRecord(1, 1)); err == nil {
		t.Error("a record of another node is published")
	}
	if err := g.Publish(testRecord(0, 0)); err == nil {
		t.Error("a record without a sequence is published")
	}
}

func TestRememberedObjectsAreChecked(t *testing.T) {
	now := time.Unix(1700000000, 0)
	g := idle(t, &now)
	forged := signRecord(t, 1, testRecord(1, 1))
	forged[10] ^= 1
	g.restore(Remembered{
		Objects: [][]byte{signRecord(t, 2, testRecord(2, 1)), forged},
		Highest: []Highest{{"nonsense", 3}},
	})
	v := g.View()
	if len(v.Records) != 1 || v.Counters["remembered-content"] != 2 {
		t.Errorf("%d records, counters %v; want 1 record, 2 refused", len(v.Records), v.Counters)
	}
}

// An object outlives the message that it came in, and must not keep the whole message in
// memory.
func TestObjectsDoNotKeepTheirMessage(t *testing.T) {
	now := time.Unix(1700000000, 0)
	g := idle(t, &now)
	want := signRecord(t, 1, testRecord(1, 1))
	state, _ := packObjects([]byte{formatVersion}, [][]byte{want}, maxState)
	delegate{g}.MergeRemoteState(state, true)
	clear(state)
	if got := g.Remember().Objects; len(got) != 1 || !bytes.Equal(got[0], want) {
		t.Errorf("objects %x, want %x", got, want)
	}
}

// A push/pull with nothing new signals no change, except the first one.
func TestMergeOfKnownObjectsSignalsNothing(t *testing.T) {
	now := time.Unix(1700000000, 0)
	g := idle(t, &now)
	state, _ := packObjects([]byte{formatVersion}, [][]byte{signRecord(t, 1, testRecord(1, 1))}, maxState)
	for i, want := range []int{1, 0, 0} {
		delegate{g}.MergeRemoteState(state, false)
		if got := len(g.Changed()); got != want {
			t.Errorf("merge %d: signalled %d times, want %d", i, got, want)
		}
		for range len(g.Changed()) {
			<-g.Changed()
		}
	}
}

func TestFullStoreIsReported(t *testing.T) {
	now := time.Unix(1700000000, 0)
	g := idle(t, &now)
	for n := range maxAuthors {
		g.store.authors[mesh.ID{byte(n), byte(n >> 8)}]++
	}
	g.acceptObjects([][]byte{signRecord(t, 1, testRecord(1, 1))}, fromGossip)
	if v := g.View(); !hasProblem(v, ProblemFull, "1024 nodes") || v.Counters["object-full"] != 1 {
		t.Errorf("problems %v, counters %v; want %s", v.Problems, v.Counters, ProblemFull)
	}
}

// countingHandler counts lines of all levels.
type countingHandler struct {
	slog.Handler
	lines *atomic.Int64
}

func (h countingHandler) Enabled(context.Context, slog.Level) bool { return true }
func (h countingHandler) Handle(context.Context, slog.Record) error {
	h.lines.Add(1)
	return nil
}

// However much garbage arrives, it leaves few log lines and nothing in memory.
func TestFloodOfGarbageLeavesLittle(t *testing.T) {
	var lines atomic.Int64
	n := startNode(t, 0, func(o *Options) {
		o.Logger = slog.New(countingHandler{slog.DiscardHandler, &lines})
	})
	const flood = 10000
	b := make([]byte, maxPacket)
	for i := range flood {
		b[0], b[1], b[2] = formatVersion, byte(i), byte(i>>8)
		n.transport.receive(b, netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), 1), netip.Addr{})
		n.log.at(slog.LevelWarn, "stream can't be decrypted with our secret", "from", i)
	}
	if got := n.View().Counters["packet-sealed"]; got != flood {
		t.Errorf("%d packets counted, want %d", got, flood)
	}
	if got := lines.Load(); got > flood/100 {
		t.Errorf("%d lines are logged of %d packets", got, flood)
	}
	n.transport.mu.Lock()
	defer n.transport.mu.Unlock()
	if got := len(n.transport.addresses.nodes) + len(n.transport.replays.windows); got > 0 {
		t.Errorf("%d senders of garbage are remembered", got)
	}
	if got := len(n.log.limiters); got > 5 {
		t.Errorf("%d limiters", got)
	}
}
