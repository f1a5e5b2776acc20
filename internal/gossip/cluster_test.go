// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
)

// TestMain checks for leaked goroutines. Memberlist ends a running probe only after its
// timeout, some seconds after Shutdown.
func TestMain(m *testing.M) {
	code := m.Run()
	deadline := time.Now().Add(patience)
	for code == 0 {
		err := goleak.Find()
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			fmt.Fprintln(os.Stderr, "goroutines leaked:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// patience is far more than anything here takes on an idle machine.
const patience = 2 * time.Minute

var testSecret = [32]byte{1, 2, 3}

// identity returns the n-th of a fixed sequence of keys.
func identity(n int) ed25519.PrivateKey {
	seed := sha256.Sum256(fmt.Append(nil, "identity ", n))
	return ed25519.NewKeyFromSeed(seed[:])
}

func testCluster() mesh.Cluster {
	return mesh.Cluster{
		Name: "default", Generation: 1, Trust: "open", Mode: mesh.ModeLocation, Encapsulation: "always", Gateways: 1,
		Overlay:   []netip.Prefix{netip.MustParsePrefix("10.4.0.0/16")},
		Pods:      []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")},
		PodPrefix: []int{24},
		Services:  []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
	}
}

// testRecord returns a valid record of the n-th identity.
func testRecord(n int, sequence uint64) mesh.Record {
	return mesh.Record{
		Identity: identity(n).Public().(ed25519.PublicKey), Sequence: sequence, Instance: 1,
		Name: fmt.Sprintf("node-%d", n), Key: wgtypes.Key{byte(n + 1)}, Claim: mesh.Claim{Slot: n, Time: 1},
		Settings: testCluster().Hash(), Gateway: mesh.GatewayAuto, MTU: 1420, GossipPort: 7946,
	}
}

// testNode is a Gossip with the part of a daemon that it needs: it turns records into
// addresses.
type testNode struct {
	*Gossip
	t       *testing.T
	n       int
	blocked atomic.Pointer[map[uint16]bool] // ports that can't be reached
	dead    atomic.Pointer[netip.AddrPort]  // an address that drops everything, tried first
	stop    func()
}

func startNode(t *testing.T, n int, change func(*Options)) *testNode {
	t.Helper()
	node := &testNode{t: t, n: n}
	node.blocked.Store(&map[uint16]bool{})
	o := Options{
		Identity: identity(n), Cluster: testCluster(), Secrets: [][32]byte{testSecret},
		Boot: 1, Instance: uint64(n + 1), Bind: "127.0.0.1:0",
		filter: func(_ string, to netip.AddrPort) bool { return !(*node.blocked.Load())[to.Port()] },
	}
	if change != nil {
		change(&o)
	}
	var err error
	if node.Gossip, err = Start(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { node.followAddresses(done) })
	node.stop = sync.OnceFunc(func() {
		close(done)
		wg.Wait()
		if err := node.Stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	t.Cleanup(node.stop)
	return node
}

// followAddresses sets each record's ports on the loopback as its addresses.
func (n *testNode) followAddresses(done <-chan struct{}) {
	for {
		addresses := make(map[mesh.ID][]netip.AddrPort)
		streams := make(map[mesh.ID][]mesh.Endpoint)
		for _, r := range n.View().Records {
			if r.StreamPort != 0 {
				streams[r.ID()] = []mesh.Endpoint{{Host: "127.0.0.1", Port: r.StreamPort}}
			}
			addrs := []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), r.GossipPort)}
			if dead := n.dead.Load(); dead != nil {
				addrs = slices.Insert(addrs, 0, *dead)
			}
			addresses[r.ID()] = addrs
		}
		n.SetAddresses(addresses, streams)
		select {
		case <-n.Changed():
		case <-done:
			return
		}
	}
}

func (n *testNode) publish(sequence uint64) {
	n.t.Helper()
	r := testRecord(n.n, sequence)
	r.Instance, r.GossipPort = uint64(n.n+1), n.Addr().Port()
	if len(n.transport.tcp) > 1 {
		r.StreamPort = n.overTLS().port
	}
	if err := n.Publish(r); err != nil {
		n.t.Fatal(err)
	}
}

// block drops the packets that a node sends to others.
func (n *testNode) block(others ...*testNode) {
	ports := make(map[uint16]bool)
	for _, o := range others {
		ports[o.Addr().Port()] = true
	}
	n.blocked.Store(&ports)
}

func joining(nodes ...*testNode) func(*Options) {
	return func(o *Options) {
		for _, n := range nodes {
			o.Join = append(o.Join, n.Addr().String())
		}
	}
}

// eventually waits until a condition holds for all nodes.
func eventually(t *testing.T, what string, nodes []*testNode, holds func(mesh.View) bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		i := slices.IndexFunc(nodes, func(n *testNode) bool { return !holds(n.View()) })
		if i < 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not true on node %d: %+v", what, nodes[i].n, nodes[i].View())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// seen returns where the node has seen others outside of the mesh.
func (n *testNode) seen() map[mesh.ID]netip.AddrPort {
	t := n.transport
	t.mu.Lock()
	defer t.mu.Unlock()
	seen := make(map[mesh.ID]netip.AddrPort)
	for id, a := range t.addresses.nodes {
		if a.seen.IsValid() {
			seen[id] = a.seen
		}
	}
	return seen
}

// startCluster starts nodes that join the first one and publish a record each.
func startCluster(t *testing.T, count int) []*testNode {
	t.Helper()
	nodes := []*testNode{startNode(t, 0, nil)}
	for n := 1; n < count; n++ {
		nodes = append(nodes, startNode(t, n, joining(nodes[0])))
	}
	for _, n := range nodes {
		n.publish(1)
	}
	eventually(t, "all see all", nodes, func(v mesh.View) bool { return len(v.Alive) == count && len(v.Records) == count })
	return nodes
}

// sequenceOf returns the sequence of a node's record in a view.
func sequenceOf(v mesh.View, id mesh.ID) uint64 {
	for _, r := range v.Records {
		if r.ID() == id {
			return r.Sequence
		}
	}
	return 0
}

func hasProblem(v mesh.View, kind mesh.ProblemKind, text string) bool {
	return slices.ContainsFunc(v.Problems, func(p mesh.Problem) bool {
		return p.Kind == kind && strings.Contains(p.Text, text)
	})
}

func TestClusterConvergesAndUpdates(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 5)
	nodes[3].publish(2)
	eventually(t, "the update reaches all", nodes, func(v mesh.View) bool { return sequenceOf(v, nodes[3].self) == 2 })
	eventually(t, "met", nodes, func(v mesh.View) bool { return len(v.MetAt) == len(nodes)-1 && len(v.RTT) >= 1 })
	for _, n := range nodes {
		v := n.View()
		for _, o := range nodes {
			if at := v.MetAt[o.self]; o != n && at != o.Addr().Addr() {
				t.Errorf("node %d met at %v, want %v", o.n, at, o.Addr().Addr())
			}
		}
		if n.n > 0 && (!v.Merged || v.JoinEmpty || v.Alone) {
			t.Errorf("node %d: merged %v, join empty %v, alone %v", n.n, v.Merged, v.JoinEmpty, v.Alone)
		}
		if len(v.Problems) > 0 {
			t.Errorf("node %d: problems %v", n.n, v.Problems)
		}
	}
}

func TestDeadNodeIsNoticedAndItsRecordStays(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 4)
	dead := nodes[2]
	dead.stop()
	rest := []*testNode{nodes[0], nodes[1], nodes[3]}
	eventually(t, "death noticed", rest, func(v mesh.View) bool { return !v.Alive[dead.self] })
	eventually(t, "record kept", rest, func(v mesh.View) bool { return sequenceOf(v, dead.self) == 1 })
}

func TestSplitHeals(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 4)
	left, right := nodes[:2], nodes[2:]
	for _, n := range left {
		n.block(right...)
	}
	for _, n := range right {
		n.block(left...)
	}
	eventually(t, "split noticed", nodes, func(v mesh.View) bool { return len(v.Alive) == 2 })
	left[0].publish(7)
	right[1].publish(8)
	for _, n := range nodes {
		n.block()
	}
	eventually(t, "healed", nodes, func(v mesh.View) bool {
		return len(v.Alive) == 4 && sequenceOf(v, left[0].self) == 7 && sequenceOf(v, right[1].self) == 8
	})
}

// An address that drops everything, like a tunnel with old keys, costs time but no member.
func TestDeadPathIsAvoided(t *testing.T) {
	t.Parallel()
	sink, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	dead := sink.LocalAddr().(*net.UDPAddr).AddrPort()
	nodes := []*testNode{startNode(t, 0, nil)}
	for n := 1; n < 4; n++ {
		nodes = append(nodes, startNode(t, n, joining(nodes[0])))
	}
	for _, n := range nodes {
		n.dead.Store(&dead)
		n.publish(1)
	}
	eventually(t, "all see all", nodes, func(v mesh.View) bool { return len(v.Alive) == 4 && len(v.Records) == 4 })
	nodes[2].publish(2)
	eventually(t, "the update reaches all", nodes, func(v mesh.View) bool {
		return len(v.Alive) == 4 && sequenceOf(v, nodes[2].self) == 2 && !slices.ContainsFunc(nodes, func(n *testNode) bool { return slices.Contains(slices.Collect(maps.Values(n.seen())), dead) })
	})
}

// A node that is restarted without its seed rejoins through the nodes that it remembers.
func TestRememberedNodesAreSeeds(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 3)
	remembered := nodes[2].Remember()
	nodes[2].stop()
	nodes[0].stop()
	again := startNode(t, 2, func(o *Options) {
		joining(nodes[0])(o)
		o.Boot, o.Remembered = 2, remembered
	})
	if got, want := again.View().OwnSequence, uint64(1); got != want {
		t.Errorf("own sequence %d, want %d", got, want)
	}
	eventually(t, "found back", []*testNode{again}, func(v mesh.View) bool { return v.Alive[nodes[1].self] && v.Merged })
	again.publish(2)
	eventually(t, "update arrives", nodes[1:2], func(v mesh.View) bool { return sequenceOf(v, again.self) == 2 })
}

func TestForgottenNodeDisappearsEverywhere(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 3)
	gone := nodes[2]
	gone.stop()
	if err := nodes[0].Forget(gone.self, 5); err != nil {
		t.Fatal(err)
	}
	eventually(t, "forgotten", nodes[:2], func(v mesh.View) bool { return sequenceOf(v, gone.self) == 0 })

	// It returns with a sequence above the forgotten one.
	again := startNode(t, 2, func(o *Options) {
		joining(nodes[0])(o)
		o.Boot = 2
	})
	eventually(t, "knows of it", []*testNode{again}, func(v mesh.View) bool { return v.OwnSequence == 5 })
	r := testRecord(2, 5)
	if err := again.Publish(r); !errors.Is(err, ErrStale) {
		t.Errorf("publish of a forgotten sequence: got %v, want %v", err, ErrStale)
	}
	again.publish(6)
	eventually(t, "back", nodes[:2], func(v mesh.View) bool { return sequenceOf(v, gone.self) == 6 })

	if err := nodes[1].Forget(gone.self, mesh.Forever); err != nil {
		t.Fatal(err)
	}
	eventually(t, "revoked", []*testNode{again}, func(v mesh.View) bool { return hasProblem(v, ProblemRevoked, "revoked") })
}

func TestWrongSecretLearnsNothing(t *testing.T) {
	t.Parallel()
	inside := startNode(t, 0, nil)
	inside.publish(1)
	outside := startNode(t, 1, func(o *Options) {
		joining(inside)(o)
		o.Secrets = [][32]byte{{9}}
	})
	outside.publish(1)
	want := inside.Addr().String() + " closed the connection without an answer: its secret is another one"
	eventually(t, "problem named", []*testNode{outside}, func(v mesh.View) bool { return hasProblem(v, ProblemSecret, want) })
	eventually(t, "counted", []*testNode{inside}, func(v mesh.View) bool { return v.Counters["stream-sealed"] > 0 })
	for _, n := range []*testNode{inside, outside} {
		if v := n.View(); len(v.Records) != 1 || len(v.Alive) != 1 || v.Merged || len(v.MetAt) > 0 {
			t.Errorf("node %d learned something: %+v", n.n, v)
		}
	}
}

// While a secret is being changed, nodes that encrypt with the old one and nodes that
// encrypt with the new one can talk to each other.
func TestSecretIsRolledWithoutGap(t *testing.T) {
	t.Parallel()
	newSecret := [32]byte{7}
	old := startNode(t, 0, func(o *Options) { o.Secrets = [][32]byte{testSecret, newSecret} })
	changed := startNode(t, 1, func(o *Options) {
		joining(old)(o)
		o.Secrets = [][32]byte{newSecret, testSecret}
	})
	old.publish(1)
	changed.publish(1)
	eventually(t, "together", []*testNode{old, changed}, func(v mesh.View) bool { return len(v.Records) == 2 && !v.Alone })
}

func TestDifferentClustersAreNamedOnBothSides(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		change func(*mesh.Cluster)
		texts  [2]string // on the node that is joined, on the one that joins
	}{
		{
			"name", func(c *mesh.Cluster) { c.Name = "other" },
			[2]string{`cluster "default" here, "other" on`, `cluster "other" here, "default" on`},
		},
		{
			"pods",
			func(c *mesh.Cluster) { c.Pods = []netip.Prefix{netip.MustParsePrefix("10.44.0.0/16")} },
			[2]string{"cluster.pods is [10.42.0.0/16] here, [10.44.0.0/16] on", "cluster.pods is [10.44.0.0/16] here, [10.42.0.0/16] on"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := startNode(t, 0, nil)
			b := startNode(t, 1, func(o *Options) {
				joining(a)(o)
				tt.change(&o.Cluster)
			})
			eventually(t, "named there", []*testNode{a}, func(v mesh.View) bool { return hasProblem(v, ProblemCluster, tt.texts[0]) })
			eventually(t, "named here", []*testNode{b}, func(v mesh.View) bool { return hasProblem(v, ProblemCluster, tt.texts[1]) })
			if v := b.View(); v.Merged || !v.Alone {
				t.Errorf("merged %v, alone %v", v.Merged, v.Alone)
			}
		})
	}
}

func TestMinorDifferenceIsOnlyReported(t *testing.T) {
	t.Parallel()
	a := startNode(t, 0, nil)
	b := startNode(t, 1, func(o *Options) {
		joining(a)(o)
		o.Cluster.DNS.Domain = "other.local"
	})
	both := []*testNode{a, b}
	eventually(t, "reported", both, func(v mesh.View) bool { return hasProblem(v, ProblemSettings, "cluster.dns is ") && !v.Alone })
}

func TestRecordOfOtherRangesIsLeftOut(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t, 2)
	r := testRecord(1, 2)
	r.Settings++
	if err := nodes[1].Publish(r); err != nil {
		t.Fatal(err)
	}
	eventually(t, "left out", nodes, func(v mesh.View) bool {
		return sequenceOf(v, nodes[1].self) == 0 && hasProblem(v, ProblemSettings, "node-1 has other address ranges")
	})
}

// fakeResolver resolves some names.
type fakeResolver map[string][]netip.Addr

func (r fakeResolver) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	if addrs, ok := r[host]; ok {
		return addrs, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

func TestJoinListOfOneselfIsEmpty(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	local := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	n := startNode(t, 0, func(o *Options) {
		o.Bind = "127.0.0.1:" + port
		o.Join = []string{"me.example.com:" + port}
		o.Resolver = fakeResolver{"me.example.com": local}
	})
	eventually(t, "empty", []*testNode{n}, func(v mesh.View) bool { return v.JoinEmpty && v.Alone && len(v.Problems) == 0 })
}

// TestFormerAddressOfAnEntry: that an address has answered counts only as long as the name
// leads there.
func TestFormerAddressOfAnEntry(t *testing.T) {
	now := time.Unix(1700000000, 0)
	g := idle(t, &now)
	g.transport.filter = func(string, netip.AddrPort) bool { return false } // sends nothing
	at := func(addr string) target {
		to := targetAt(netip.MustParseAddrPort(addr))
		to.name = "a.example.com"
		return to
	}
	kept, former := at("192.0.2.1:7946"), at("192.0.2.2:7946")
	reached := map[target]error{kept: nil, former: nil}
	g.resolver = fakeResolver{}
	g.ask(t.Context(), "a.example.com:7946", reached)
	if len(reached) != 2 {
		t.Errorf("after a name was not resolved: got %v, want both addresses", reached)
	}
	g.resolver = fakeResolver{"a.example.com": {kept.addr.Addr()}}
	g.ask(t.Context(), "a.example.com:7946", reached)
	if _, ok := reached[kept]; !ok || len(reached) != 1 {
		t.Errorf("after the name was resolved to %v: got %v", kept, reached)
	}
}

func TestJoinListThatDoesNotResolveIsNotEmpty(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{}, 100)
	n := startNode(t, 0, func(o *Options) {
		o.Join = []string{"nobody.example.com:7946"}
		o.Resolver = resolverFunc(func() { asked <- struct{}{} })
	})
	for range 3 { // it is retried again and again
		select {
		case <-asked:
		case <-time.After(patience):
			t.Fatal("not resolved again")
		}
	}
	if n.View().JoinEmpty {
		t.Error("join list counts as empty")
	}
	eventually(t, "aware that nobody answers", []*testNode{n}, func(v mesh.View) bool { return hasProblem(v, ProblemJoin, "nobody.example.com") })
	startNode(t, 1, joining(n))
	eventually(t, "in company, and still aware", []*testNode{n}, func(v mesh.View) bool {
		return !v.Alone && hasProblem(v, ProblemJoin, "nobody.example.com:7946 of the join list has not answered")
	})
}

// TestJoinEntries: each entry of the join list counts on its own. One that answered is
// missed only while no other node is alive.
func TestJoinEntries(t *testing.T) {
	g := &Gossip{
		joinList: []string{"a:1", "b:1", "me:1"}, joinEntries: make(map[string]joinEntry), changed: make(chan struct{}, 1),
	}
	refused, self := joinEntry{err: errors.New("refused")}, joinEntry{self: true}
	for _, step := range []struct {
		what   string
		target string
		e      joinEntry
		inside []string // the problems among others
		alone  []string // and when no other node is alive
		empty  bool
	}{
		{"the first to be asked is ourselves", "me:1", self, nil, nil, false},
		{"one is not there", "a:1", refused, []string{"a:1 of the join list has not answered"}, []string{"a:1 of the join list has not answered"}, false},
		{"one is", "b:1", joinEntry{answered: true}, []string{"a:1"}, []string{"a:1"}, false},
		{"the other comes", "a:1", joinEntry{answered: true}, nil, nil, false},
		{"one goes", "b:1", refused, nil, []string{"b:1 of the join list does not answer any more"}, false},
	} {
		g.noteJoin(step.target, step.e)
		for alone, want := range map[bool][]string{false: step.inside, true: step.alone} {
			got := g.joinProblems(alone)
			if len(got) != len(want) || len(want) > 0 && !strings.Contains(got[0].Text, want[0]) {
				t.Errorf("%s: alone %t: got %v, want %v", step.what, alone, got, want)
			}
		}
		if g.joinEmpty() != step.empty {
			t.Errorf("%s: the list is empty: %t", step.what, g.joinEmpty())
		}
	}
	for _, target := range g.joinList {
		g.noteJoin(target, self)
	}
	if !g.joinEmpty() {
		t.Error("a list that names only this node is not empty")
	}
}

// TestNextAttempt: who has never answered is asked every second or two, in company too.
// After that the pauses grow while no other node is alive, else they are long.
func TestNextAttempt(t *testing.T) {
	for _, tt := range []struct {
		name         string
		eager, alone bool
		want         string // the waits
	}{
		{"at first", true, true, "100ms 200ms 400ms 800ms 1.5s 1.5s 1.5s 1.5s 1.5s"},
		{"at first, in company", true, false, "100ms 200ms 400ms 800ms 1.5s 1.5s 1.5s 1.5s 1.5s"},
		{"later, or answered once", false, true, "100ms 200ms 400ms 800ms 1.6s 3.2s 6.4s 10s 10s"},
		{"the same, in company", false, false, "1m0s 1m0s 1m0s 1m0s 1m0s 1m0s 1m0s 1m0s 1m0s"},
	} {
		pause := joinBackoffMin
		var waits []string
		for range 9 {
			var wait time.Duration
			wait, pause = nextAttempt(pause, tt.eager, tt.alone)
			waits = append(waits, wait.String())
		}
		if got := strings.Join(waits, " "); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
}

type resolverFunc func()

func (f resolverFunc) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	f()
	return nil, errors.New("no answer")
}

// freePort returns a port that was free a moment ago.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func TestDuplicateIsFound(t *testing.T) {
	t.Parallel()
	a := startNode(t, 0, nil)
	duplicate := startNode(t, 0, func(o *Options) {
		joining(a)(o)
		o.Instance = 99
	})
	eventually(t, "duplicate found", []*testNode{a, duplicate}, func(v mesh.View) bool { return hasProblem(v, mesh.ProblemDuplicate, "identity") })
}

func TestBindErrorsNameTheSetting(t *testing.T) {
	t.Parallel()
	n := startNode(t, 0, nil)
	for bind, want := range map[string]string{
		n.Addr().String(): "port is used by another program",
		"7946":            "want host:port",
	} {
		_, err := Start(context.Background(), Options{
			Identity: identity(1), Cluster: testCluster(), Secrets: [][32]byte{testSecret}, Bind: bind,
		})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "gossip.bind") {
			t.Errorf("bind %s: got %v, want an error with gossip.bind and %q", bind, err, want)
		}
	}
}

// A node without a host in its bind address is reached over both families, and sees IPv4
// addresses as IPv4.
func TestDualStack(t *testing.T) {
	t.Parallel()
	seed := startNode(t, 0, func(o *Options) { o.Bind = ":0" })
	port := seed.Addr().Port()
	for i, host := range []string{"127.0.0.1", "::1"} {
		bind := net.JoinHostPort(host, "0")
		n := startNode(t, i+1, func(o *Options) {
			o.Bind = bind
			o.Join = []string{netip.AddrPortFrom(netip.MustParseAddr(host), port).String()}
		})
		eventually(t, "seen", []*testNode{seed}, func(mesh.View) bool { return seed.seen()[n.self] == n.Addr() })
		if got, want := seed.View().MetAt[n.self], netip.MustParseAddr(host); got != want {
			t.Errorf("met at %v, want %v", got, want)
		}
	}
}

// A node whose state directory was restored counts its starts from an earlier number
// again. Its packets are accepted anyway after a handshake.
func TestNodeWithRestoredDiskIsHeard(t *testing.T) {
	t.Parallel()
	seed := startNode(t, 0, nil)
	before := startNode(t, 1, func(o *Options) {
		joining(seed)(o)
		o.Boot = 9
	})
	bootOf := func() uint64 {
		seed.transport.mu.Lock()
		defer seed.transport.mu.Unlock()
		if w := seed.transport.replays.windows[before.self]; w != nil {
			return w.boot
		}
		return 0
	}
	eventually(t, "heard", []*testNode{seed}, func(mesh.View) bool { return bootOf() == 9 })
	before.stop()
	startNode(t, 1, func(o *Options) {
		joining(seed)(o)
		o.Boot = 4
	})
	eventually(t, "heard again", []*testNode{seed}, func(mesh.View) bool { return bootOf() == 4 })
}

// Each less important setting that differs is named on both sides.
func TestEachSettingIsCompared(t *testing.T) {
	place := "there"
	for key, change := range map[string]func(*mesh.Cluster){
		"cluster.services": func(c *mesh.Cluster) { c.Services = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")} },
		"cluster.dns":      func(c *mesh.Cluster) { c.DNS.Domain = "other.local" },
		"cluster.trust":    func(c *mesh.Cluster) { c.Trust = "list" },
	} {
		other := testCluster()
		change(&other)
		for _, pair := range [][2]mesh.Cluster{{testCluster(), other}, {other, testCluster()}} {
			d := differences(pair[0], pair[1], place)
			if len(d) != 1 || d[0].fatal || !strings.HasPrefix(d[0].text, key+" is ") {
				t.Errorf("%s: got %+v, want one difference that is not fatal", key, d)
			}
		}
	}
}
