// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/mesh"
)

// The nodes of the scenarios. a and b are on one LAN with the author, and a is its
// gateway; x and y are remote; r is the author's carrier, p another peer.
var (
	self = identity(1)
	a    = mesh.IDOf(identity(4))
	b    = mesh.ID{0xb}
	x    = mesh.IDOf(identity(2))
	y    = mesh.IDOf(identity(3))
	r    = mesh.ID{0xf}
	p    = mesh.ID{0xd}

	names = map[mesh.ID]string{a: "a", b: "b", x: "x", y: "y", r: "r", p: "p"}
)

func identity(seed byte) ed25519.PublicKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize)).Public().(ed25519.PublicKey)
}

func addrs(id mesh.ID, families int) []netip.Addr {
	return []netip.Addr{
		netip.AddrFrom4([4]byte{10, 4, id[0], id[1]}),
		netip.AddrFrom16([16]byte{0: 0xfd, 14: id[0], 15: id[1]}),
	}[:families]
}

func watch(families int, w Watch) Watch {
	w.own = addrs(mesh.ID{}, families)
	w.addrs = make(map[mesh.ID][]netip.Addr)
	for id := range names {
		w.addrs[id] = addrs(id, families)
	}
	return w
}

// network is the state of the network at a time since the start.
type network struct {
	pings func(t Target, at time.Duration) bool   // whether a request sent then is answered
	hears func(id mesh.ID, at time.Duration) bool // whether a sign of life arrives outside of the mesh
	alive func(id mesh.ID, at time.Duration) bool // according to gossip; default: always
	rtt   func(t Target) time.Duration            // default: 10 ms
	watch func(now Watch, at time.Duration) Watch // default: unchanged
	// records are those of the nodes that have a location.
	records []mesh.Record
	length  time.Duration // of the scenario; default: twice the time of the event
	since   time.Duration // when the gateway's term began; 0 for unknown
}

func to(t Target, ids ...mesh.ID) bool {
	return slices.ContainsFunc(ids, func(id mesh.ID) bool { return slices.Contains(addrs(id, 2), t.Addr) })
}

// simulate calls Evaluate every 50 ms of simulated time, and returns the verdicts, one line
// each.
func simulate(w network, first Watch, length time.Duration) []string {
	const interval, misses, step, begin = 250 * time.Millisecond, 4, 50 * time.Millisecond, 20 * time.Millisecond
	start := time.Unix(1_800_000_000, 0)
	table := NewTable(Pace{interval, misses})
	watched := first
	table.SetTargets(watched.Targets())
	type answer struct {
		at  time.Duration
		run func()
	}
	var answers []answer
	var verdicts []mesh.Verdict
	heard := make(map[mesh.ID]time.Time)
	lines := []string{}
	for at := time.Duration(0); at <= length; at += 10 * time.Millisecond {
		now := start.Add(at)
		for _, a := range answers {
			if a.at == at {
				a.run()
			}
		}
		if at%interval == begin {
			for t, req := range table.TakeDue(now) {
				if !w.pings(t, at) {
					continue
				}
				rtt := 10 * time.Millisecond
				if w.rtt != nil {
					rtt = w.rtt(t)
				}
				answers = append(answers, answer{at + rtt, func() { table.RecordAnswer(t.Addr, req.Sequence, start.Add(at+rtt)) }})
			}
		}
		if at%step != 0 {
			continue
		}
		if w.watch != nil {
			watched = w.watch(watched, at)
			table.SetTargets(watched.Targets())
		}
		alive := make(map[mesh.ID]bool)
		for id := range names {
			alive[id] = w.alive == nil || w.alive(id, at)
		}
		var since time.Time
		if w.since > 0 {
			since = start.Add(w.since)
		}
		f := Evaluate(EvaluateInput{
			Now: now, Since: since, Author: self, Watch: watched, Results: table.Results(now), Pace: Pace{interval, misses},
			Alive: alive, LastHeard: heard, Verdicts: verdicts, Records: w.records,
		})
		for _, id := range f.RequestSigns {
			if w.hears != nil && w.hears(id, at) {
				answers = append(answers, answer{at + 40*time.Millisecond, func() { heard[id] = start.Add(at + 40*time.Millisecond) }})
			}
		}
		for _, v := range f.Verdicts {
			lines = append(lines, fmt.Sprintf("%v %s is %s, epoch %d", at, names[v.Subject], v.State, v.Epoch))
			verdicts = append(slices.DeleteFunc(verdicts, func(o mesh.Verdict) bool { return o.Subject == v.Subject }), v)
		}
	}
	return lines
}

// TestTimelines checks the time of each verdict from the start of the probes. The event
// happens after 10 s.
func TestTimelines(t *testing.T) {
	const event = 10 * time.Second
	always := func(mesh.ID, time.Duration) bool { return true }
	until := func(ids ...mesh.ID) func(Target, time.Duration) bool {
		return func(t Target, at time.Duration) bool { return at < event || !to(t, ids...) }
	}
	gossipUntil := func(ids ...mesh.ID) func(mesh.ID, time.Duration) bool {
		return func(id mesh.ID, at time.Duration) bool { return at < event || !slices.Contains(ids, id) }
	}
	// takesOver has a become the gateway after a while.
	takesOver := func(after time.Duration) func(Watch, time.Duration) Watch {
		return func(now Watch, at time.Duration) Watch {
			if at == after {
				return watch(1, Watch{Gateway: a, Remote: now.Remote})
			}
			return now
		}
	}
	three := watch(1, Watch{Gateway: a, LAN: []mesh.ID{b}, Remote: []mesh.ID{x, y}, Unprobed: []mesh.ID{x, y}})
	two := watch(1, Watch{Gateway: a, Remote: []mesh.ID{x}, Unprobed: []mesh.ID{x}})
	carried := watch(1, Watch{Carrier: r, Peers: []mesh.ID{p}})
	served := watch(1, Watch{Servers: []mesh.ID{a, b}, Others: []mesh.ID{x}})
	deadAfter := func(id mesh.ID, after time.Duration) func(mesh.ID, time.Duration) bool {
		return func(o mesh.ID, at time.Duration) bool { return o != id || at < event+after }
	}

	tests := []struct {
		name    string
		watch   Watch
		network network
		want    []string
	}{
		{"nothing happens", three, network{pings: until(), hears: always}, nil},
		{"the gateway's host is gone", three, network{pings: until(a, x, y), hears: always}, []string{"10.9s a is down, epoch 1"}},
		{"the gateway's host is gone, and gossip has no other way out of the LAN", three, network{pings: until(a, x, y)}, []string{"10.9s a is down, epoch 1"}},
		{"the gateway's host is gone, and no other node is on the LAN", two, network{pings: until(a, x), hears: always}, []string{"10.9s a is down, epoch 1"}},
		{"one answer in three is lost", three, network{
			pings: func(_ Target, at time.Duration) bool { return at/(250*time.Millisecond)%3 != 0 }, hears: always,
		}, nil},
		{"the gateway is alive but does not forward", three, network{pings: until(x, y), hears: always}, []string{"11.3s a is down, epoch 1"}},
		{"the gateway does not forward one family", watch(2, three), network{
			pings: func(t Target, at time.Duration) bool { return at < event || t.Addr.Is4() || to(t, a, b) }, hears: always,
		}, []string{"11.3s a is down, epoch 1"}},
		{"the gateway finds another path to the remote node", two, network{
			pings: func(t Target, at time.Duration) bool { return at < event || at > event+2*time.Second || !to(t, x) }, hears: always,
		}, nil},
		{"the gateway finds other paths to the remote nodes", three, network{
			pings: func(t Target, at time.Duration) bool { return at < event || at > event+time.Second || !to(t, x, y) }, hears: always,
		}, nil},
		{"the gateway finds another path to both remote nodes, which are at one location", three, network{
			pings: func(t Target, at time.Duration) bool { return at < event || at > event+2*time.Second || !to(t, x, y) }, hears: always,
			records: []mesh.Record{{Identity: identity(2), Location: "site"}, {Identity: identity(3), Location: "site"}},
		}, nil},
		{"the gateway lost one of two addresses, which its daemon restores", watch(2, three), network{
			pings: func(t Target, at time.Duration) bool { return at < event || t.Addr.Is4() || !to(t, a) }, hears: always,
		}, nil},
		{"a server is gone", served, network{pings: until(a), hears: gossipUntil(a)}, []string{"10.9s a is down, epoch 1"}},
		{"both servers are gone", served, network{pings: until(a, b), hears: gossipUntil(a, b)}, []string{"10.9s a is down, epoch 1", "10.9s b is down, epoch 1"}},
		{"there is no path to a server that lives", served, network{pings: until(a), hears: always}, nil},
		{"there is no path to a server, which dies later", served, network{
			pings: until(a), alive: deadAfter(a, 5*time.Second),
			hears: func(id mesh.ID, at time.Duration) bool { return id != a || at < event+2*time.Second },
		}, []string{"15s a is down, epoch 1"}},
		{"this node is cut off from the servers and all others", served, network{pings: until(a, b), hears: gossipUntil(a, b, x)}, nil},
		{"a server that has never answered dies", served, network{
			pings: func(t Target, _ time.Duration) bool { return !to(t, a) }, hears: gossipUntil(a), alive: deadAfter(a, 5*time.Second),
		}, []string{"15.05s a is down, epoch 1"}},
		{"a server is gone, and others are heard inside of the mesh only", served, network{pings: until(a), alive: deadAfter(a, 5*time.Second), length: 45 * time.Second}, []string{"40.05s a is down, epoch 1"}},
		{"this node is cut off, and others are heard inside of the mesh only", served, network{
			pings: until(a, b), alive: func(id mesh.ID, at time.Duration) bool { return at < event+12*time.Second }, length: 45 * time.Second,
		}, nil},
		{"a server on the LAN is gone, and others are heard inside of the mesh only", watch(1, Watch{Gateway: b, LAN: []mesh.ID{a}, Servers: []mesh.ID{a}, Others: []mesh.ID{x}}), network{
			pings: until(a), records: []mesh.Record{{Identity: identity(1), Location: "site"}, {Identity: identity(4), Location: "site"}},
		}, []string{"10.9s a is down, epoch 1"}},
		{"the server is the gateway", watch(1, Watch{Gateway: a, LAN: []mesh.ID{b}, Servers: []mesh.ID{a}, Others: []mesh.ID{x}}), network{
			pings: until(a), hears: gossipUntil(a),
		}, []string{"10.9s a is down, epoch 1"}},
		{"one tunnel of two is down", three, network{pings: until(x), hears: always}, nil},
		{"this node's own link is cut", three, network{pings: until(a, b, x, y), hears: gossipUntil(x, y)}, nil},
		{"this node's own link is cut, and only the gateway is on the LAN", two, network{pings: until(a, x), hears: gossipUntil(x)}, nil},
		{"this node's link to the LAN is cut, but it has another one", three, network{pings: until(a, b, x, y), hears: always}, nil},
		{"the rest of the LAN dies, gossip notices after 8 s", three, network{
			pings: until(a, b, x, y), hears: always,
			alive: func(id mesh.ID, at time.Duration) bool { return at < event+8*time.Second || id != a && id != b },
		}, []string{"18s a is down, epoch 1"}},
		{"the only other gateway dies", two, network{pings: until(x), hears: gossipUntil(x)}, nil},
		{"the only other gateway dies, and its last packet arrives late", two, network{
			pings: until(x), hears: gossipUntil(x), rtt: func(Target) time.Duration { return 300 * time.Millisecond },
		}, nil},
		{"a tunnel is down though gossip gets through: another gateway may do better", two, network{
			pings: until(x), hears: always,
		}, []string{"12.55s a is down, epoch 1"}},
		{"a distant location answers late", three, network{
			pings: until(), hears: always, rtt: func(Target) time.Duration { return 900 * time.Millisecond },
		}, nil},
		{"no node answers pings, and the gateway dies", three, network{
			pings: until(), hears: always, rtt: func(Target) time.Duration { return time.Hour },
			alive: func(id mesh.ID, at time.Duration) bool { return at < event+8*time.Second || id != a },
		}, []string{"18.05s a is down, epoch 1"}},
		{"the next gateway has been dead for long", three, network{
			pings: func(t Target, _ time.Duration) bool { return !to(t, a, x, y) }, hears: always,
			alive: func(id mesh.ID, _ time.Duration) bool { return id != a },
		}, []string{"900ms a is down, epoch 1"}},
		{"a new gateway is not blamed for what happened before", three, network{
			// No remote node has ever answered through b, so their silence is not b's fault.
			pings: until(a, x, y), hears: always,
			watch: func(now Watch, at time.Duration) Watch {
				if at == event+time.Second {
					return watch(1, Watch{Gateway: b, Remote: now.Remote, Unprobed: now.Unprobed})
				}
				return now
			},
		}, []string{"10.9s a is down, epoch 1"}},
		{"the next gateway can't be reached from this node", three, network{
			pings: func(t Target, _ time.Duration) bool { return to(t, b) }, hears: func(mesh.ID, time.Duration) bool { return false },
		}, []string{"9.9s a is down, epoch 1"}},
		{"the whole LAN can't be reached from this node", three, network{
			pings: func(Target, time.Duration) bool { return false }, hears: always,
		}, nil},
		{"the next gateway filters pings", three, network{pings: func(t Target, _ time.Duration) bool { return !to(t, a) }, hears: always}, nil},
		{"the next gateway does not forward", watch(1, Watch{Gateway: b, Remote: three.Remote}), network{
			pings: func(t Target, _ time.Duration) bool { return t.Via != a }, hears: always,
			watch: takesOver(time.Second),
		}, []string{"10.95s a is down, epoch 1"}},
		{"a gateway that takes over from one that works does not forward", watch(1, Watch{Gateway: b, Remote: three.Remote}), network{
			pings: func(t Target, _ time.Duration) bool { return t.Via != a }, hears: always, since: event - 5*time.Second,
			watch: takesOver(event),
		}, []string{"11.3s a is down, epoch 1"}},
		{"a gateway takes over from one that works, and the nodes beyond die", watch(1, Watch{Gateway: b, Remote: three.Remote}), network{
			pings: func(t Target, _ time.Duration) bool { return t.Via != a }, since: event - 5*time.Second,
			watch: takesOver(event),
		}, nil},
		{"no remote node is alive any more when the next gateway takes over", watch(1, Watch{Gateway: b, Remote: three.Remote}), network{
			pings: func(t Target, _ time.Duration) bool { return t.Via != a },
			watch: takesOver(time.Second),
		}, nil},
		{"remote nodes have never answered through any gateway", three, network{
			pings: func(t Target, _ time.Duration) bool { return !to(t, x, y) }, hears: always,
		}, []string{"9.95s a is down, epoch 1"}},
		{"nor through one that was replaced before", three, network{
			pings: func(t Target, _ time.Duration) bool { return !to(t, x, y) }, hears: always,
			records: []mesh.Record{{Identity: identity(4), Replaced: 1}},
		}, nil},
		{"nor is one of them heard", three, network{pings: func(t Target, _ time.Duration) bool { return !to(t, x, y) }}, nil},
		{"a carrier dies, gossip notices after 8 s", carried, network{
			pings: until(r), alive: func(id mesh.ID, at time.Duration) bool { return at < event+8*time.Second || id != r },
		}, []string{"18s r is down, epoch 1"}},
		{"this node has no path to the carrier", carried, network{pings: until(r)}, nil},
		{"a carrier's daemon is stopped", carried, network{pings: until(), alive: gossipUntil(r)}, nil},
		{"no peer answers, so this node is cut off", carried, network{pings: until(r, p), alive: gossipUntil(r, p)}, nil},
		{"a carrier that was dead when this node started", carried, network{
			pings: func(t Target, _ time.Duration) bool { return !to(t, r) }, alive: func(id mesh.ID, _ time.Duration) bool { return id != r },
		}, []string{"900ms r is down, epoch 1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := simulate(tt.network, tt.watch, max(tt.network.length, 2*event))
			if diff := cmp.Diff(strings.Join(tt.want, "\n"), strings.Join(got, "\n")); diff != "" {
				t.Errorf("verdicts (-want +got):\n%s", diff)
			}
		})
	}
}

// A gateway that is down already gets no further verdict; that it says it is up counts
// once its record has come. A new verdict has a higher epoch than all before.
func TestEpochs(t *testing.T) {
	itself := identity(1)
	a := mesh.IDOf(itself)
	now := time.Unix(1_800_000_000, 0)
	w := watch(1, Watch{Gateway: a, LAN: []mesh.ID{b}})
	w.addrs[a] = addrs(a, 1)
	results := map[Target]Result{
		w.targetsOf(a, mesh.ID{})[0]: {Misses: 4, FirstMiss: now.Add(-time.Second), LastMiss: now, Answered: now.Add(-time.Minute)},
		w.targetsOf(b, mesh.ID{})[0]: {Answered: now},
	}
	other := identity(2)
	for _, tt := range []struct {
		verdicts []mesh.Verdict
		want     uint64 // 0 for none
	}{
		{nil, 1},
		{[]mesh.Verdict{{Author: itself, Subject: a, State: mesh.HealthUp, Epoch: 6, Record: 3}, {Author: self, Subject: a, State: mesh.HealthDown, Epoch: 5}}, 7},
		{[]mesh.Verdict{{Author: itself, Subject: a, State: mesh.HealthUp, Epoch: 6, Record: 4}, {Author: self, Subject: a, State: mesh.HealthDown, Epoch: 5}}, 0},
		{[]mesh.Verdict{{Author: itself, Subject: a, State: mesh.HealthUp, Epoch: 6, Record: 4}}, 7},
		{[]mesh.Verdict{{Author: itself, Subject: a, State: mesh.HealthDraining, Epoch: 6}}, 7},
		{[]mesh.Verdict{{Author: other, Subject: a, State: mesh.HealthDown, Epoch: 6}}, 0},
		{[]mesh.Verdict{{Author: other, Subject: b, State: mesh.HealthDown, Epoch: 6}}, 1},
	} {
		f := Evaluate(EvaluateInput{Now: now, Author: self, Watch: w, Results: results, Pace: Pace{Misses: 4}, Verdicts: tt.verdicts, Records: []mesh.Record{{Identity: itself, Sequence: 3}}, Alive: map[mesh.ID]bool{a: true}})
		var got uint64
		if len(f.Verdicts) > 0 {
			got = f.Verdicts[0].Epoch
		}
		if got != tt.want {
			t.Errorf("after %v: got epoch %d, want %d", tt.verdicts, got, tt.want)
		}
	}
}

// A remote node that has been silent for long is judged rarely, so that a dead one causes
// no load.
func TestJudgeAgain(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	w := watch(1, Watch{Gateway: a, Remote: []mesh.ID{x}})
	for _, tt := range []struct {
		misses int
		want   time.Duration
	}{{0, 0}, {1, 0}, {2, recheckSoon}, {12, recheckSoon}, {13, recheckLater}, {1000, recheckLater}} {
		f := Evaluate(EvaluateInput{
			Now: now, Author: self, Watch: w, Pace: Pace{Misses: 4}, Alive: map[mesh.ID]bool{a: true},
			Results: map[Target]Result{w.targetsOf(x, a)[0]: {Misses: tt.misses, FirstMiss: now, LastMiss: now, Answered: now}},
		})
		if f.RecheckAfter != tt.want || len(f.Verdicts) > 0 {
			t.Errorf("after %d misses: got %+v, want to judge again in %v", tt.misses, f, tt.want)
		}
	}
}

func TestHold(t *testing.T) {
	var h HoldDown
	now := time.Unix(1_800_000_000, 0)
	fall := func(want time.Duration) {
		t.Helper()
		if got := h.Failed(now); got != want {
			t.Errorf("after a failure: got a wait of %v, want %v", got, want)
		}
		now = now.Add(want)
		if got := h.Failed(now); got != 0 {
			t.Errorf("after %v: got %v more, want none", want, got)
		}
		h.Recovered(now)
	}
	for _, s := range []int{10, 20, 40, 80, 160, 300, 300} {
		now = now.Add(time.Minute)
		fall(time.Duration(s) * time.Second)
	}
	now = now.Add(relapse + time.Second)
	h.Recovered(now) // the gateway is up already
	fall(10 * time.Second)
}
