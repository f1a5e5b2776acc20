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

// The nodes of the scenarios. A and b are on one LAN with the author, and a is
// its gateway; x, y and z are beyond; r carries for the author as a relay.
var (
	self = identity(1)
	a    = mesh.ID{0xa}
	b    = mesh.ID{0xb}
	x    = mesh.ID{0xe, 1}
	y    = mesh.ID{0xe, 2}
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

// world is how the network really is at a time since the start.
type world struct {
	pings func(t Target, at time.Duration) bool   // whether a request sent then is answered
	hears func(id mesh.ID, at time.Duration) bool // whether gossip gets through outside of the mesh
	alive func(id mesh.ID, at time.Duration) bool // as gossip believes
	rtt   func(t Target) time.Duration            // default: 1 ms
	watch func(now Watch, at time.Duration) Watch // default: what it was
}

func to(t Target, ids ...mesh.ID) bool {
	return slices.ContainsFunc(ids, func(id mesh.ID) bool { return slices.Contains(addrs(id, 2), t.Addr) })
}

// play lets time pass, as a daemon does that looks every 50 ms, and returns the
// verdicts, one line each.
func play(w world, first Watch, length time.Duration) []string {
	const interval, misses, step, begin = 250 * time.Millisecond, 4, 50 * time.Millisecond, 20 * time.Millisecond
	start := time.Unix(1_800_000_000, 0)
	bk := newBook(Pace{interval, misses})
	watched := first
	bk.aim(watched.Aims())
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
		for _, e := range answers {
			if e.at == at {
				e.run()
			}
		}
		if at%interval == begin {
			for t, req := range bk.due(now) {
				if !w.pings(t, at) {
					continue
				}
				rtt := 10 * time.Millisecond
				if w.rtt != nil {
					rtt = w.rtt(t)
				}
				answers = append(answers, answer{at + rtt, func() { bk.answer(t.Addr, req.sequence, start.Add(at+rtt)) }})
			}
		}
		if at%step != 0 {
			continue
		}
		if w.watch != nil {
			watched = w.watch(watched, at)
			bk.aim(watched.Aims())
		}
		alive := make(map[mesh.ID]bool)
		for id := range names {
			alive[id] = w.alive == nil || w.alive(id, at)
		}
		f := Judge(Situation{
			Now: now, Author: self, Watch: watched, Results: bk.results(now), Pace: Pace{interval, misses},
			Alive: alive, Heard: heard, Verdicts: verdicts,
		})
		for _, id := range f.Ask {
			if w.hears != nil && w.hears(id, at) {
				answers = append(answers, answer{at + 40*time.Millisecond, func() { heard[id] = start.Add(at + 40*time.Millisecond) }})
			}
		}
		for _, v := range f.Verdicts {
			lines = append(lines, fmt.Sprintf("%v %s %s is %s, epoch %d", at, v.Role, names[v.Subject], v.State, v.Epoch))
			verdicts = append(slices.DeleteFunc(verdicts, func(o mesh.Verdict) bool { return o.Subject == v.Subject && o.Role == v.Role }), v)
		}
	}
	return lines
}

// TestTimelines follows the probes from the start; whatever happens, happens
// after 10 s.
func TestTimelines(t *testing.T) {
	const event = 10 * time.Second
	always := func(mesh.ID, time.Duration) bool { return true }
	until := func(ids ...mesh.ID) func(Target, time.Duration) bool {
		return func(t Target, at time.Duration) bool { return at < event || !to(t, ids...) }
	}
	gossipUntil := func(ids ...mesh.ID) func(mesh.ID, time.Duration) bool {
		return func(id mesh.ID, at time.Duration) bool { return at < event || !slices.Contains(ids, id) }
	}
	three := watch(1, Watch{Gateway: a, Beside: []mesh.ID{b}, Beyond: []mesh.ID{x, y}, Outside: []mesh.ID{x, y}})
	two := watch(1, Watch{Gateway: a, Beyond: []mesh.ID{x}, Outside: []mesh.ID{x}})
	relayed := watch(1, Watch{Relays: []mesh.ID{r}, Peers: []mesh.ID{p}})

	tests := []struct {
		name  string
		watch Watch
		world world
		want  []string
	}{
		{"all is well", three, world{pings: until(), hears: always}, nil},
		{"the gateway's host is gone", three, world{pings: until(a, x, y), hears: always}, []string{"10.9s gateway a is down, epoch 1"}},
		{"it is gone, and gossip gets nowhere but by it", three, world{pings: until(a, x, y)}, []string{"10.9s gateway a is down, epoch 1"}},
		{"it is gone, nobody else is on the LAN", two, world{pings: until(a, x), hears: always}, []string{"10.9s gateway a is down, epoch 1"}},
		{"one answer in three is lost", three, world{
			pings: func(_ Target, at time.Duration) bool { return at/(250*time.Millisecond)%3 != 0 }, hears: always,
		}, nil},
		{"it lives and does not forward", three, world{pings: until(x, y), hears: always}, []string{"10.9s gateway a is down, epoch 1"}},
		{"it does not forward one family", watch(2, three), world{
			pings: func(t Target, at time.Duration) bool { return at < event || t.Addr.Is4() || to(t, a, b) }, hears: always,
		}, []string{"10.9s gateway a is down, epoch 1"}},
		{"it lost one address of two, which its daemon mends", watch(2, three), world{
			pings: func(t Target, at time.Duration) bool { return at < event || t.Addr.Is4() || !to(t, a) }, hears: always,
		}, nil},
		{"one tunnel of two is down", three, world{pings: until(x), hears: always}, nil},
		{"this node's own link is cut", three, world{pings: until(a, b, x, y), hears: gossipUntil(x, y)}, nil},
		{"the same, of two on a LAN", two, world{pings: until(a, x), hears: gossipUntil(x)}, nil},
		{"this node's link to the LAN is cut, it has another one", three, world{pings: until(a, b, x, y), hears: always}, nil},
		{"the rest of the LAN dies, gossip notices after 8 s", three, world{
			pings: until(a, b, x, y), hears: always,
			alive: func(id mesh.ID, at time.Duration) bool { return at < event+8*time.Second || id != a && id != b },
		}, []string{"18s gateway a is down, epoch 1"}},
		{"the only other gateway dies", two, world{pings: until(x), hears: gossipUntil(x)}, nil},
		{"the same, and its last words are under way for long", two, world{
			pings: until(x), hears: gossipUntil(x), rtt: func(Target) time.Duration { return 300 * time.Millisecond },
		}, nil},
		{"its tunnel goes another way than gossip: the gateway can do no more than others, but who knows", two, world{
			pings: until(x), hears: always,
		}, []string{"10.9s gateway a is down, epoch 1"}},
		{"a far place answers late", three, world{
			pings: until(), hears: always, rtt: func(Target) time.Duration { return 900 * time.Millisecond },
		}, nil},
		{"nobody answers pings, the gateway dies", three, world{
			pings: until(), hears: always, rtt: func(Target) time.Duration { return time.Hour },
			alive: func(id mesh.ID, at time.Duration) bool { return at < event+8*time.Second || id != a },
		}, []string{"18.05s gateway a is down, epoch 1"}},
		{"an heir that has been dead for long", three, world{
			pings: func(t Target, _ time.Duration) bool { return !to(t, a, x, y) }, hears: always,
			alive: func(id mesh.ID, _ time.Duration) bool { return id != a },
		}, []string{"900ms gateway a is down, epoch 1"}},
		{"a new gateway is judged by what it does", three, world{
			// Nothing beyond has answered through b, so that is not its fault.
			pings: until(a, x, y), hears: always,
			watch: func(now Watch, at time.Duration) Watch {
				if at == event+time.Second {
					return watch(1, Watch{Gateway: b, Beyond: now.Beyond, Outside: now.Outside})
				}
				return now
			},
		}, []string{"10.9s gateway a is down, epoch 1"}},
		{"an heir that this node is cut off from", three, world{
			pings: func(t Target, _ time.Duration) bool { return to(t, b) }, hears: func(mesh.ID, time.Duration) bool { return false },
		}, []string{"9.9s gateway a is down, epoch 1"}},
		{"the same, and this node from the whole LAN", three, world{
			pings: func(Target, time.Duration) bool { return false }, hears: always,
		}, nil},
		{"an heir that filters pings", three, world{pings: func(t Target, _ time.Duration) bool { return !to(t, a) }, hears: always}, nil},
		{"an heir without a way out", watch(1, Watch{Gateway: b, Beyond: three.Beyond}), world{
			pings: func(t Target, _ time.Duration) bool { return t.Via != a }, hears: always,
			watch: func(now Watch, at time.Duration) Watch {
				if at == time.Second {
					return watch(1, Watch{Gateway: a, Beyond: now.Beyond})
				}
				return now
			},
		}, []string{"10.95s gateway a is down, epoch 1"}},
		{"the same, and nobody is beyond any more", watch(1, Watch{Gateway: b, Beyond: three.Beyond}), world{
			pings: func(t Target, _ time.Duration) bool { return t.Via != a },
			watch: func(now Watch, at time.Duration) Watch {
				if at == time.Second {
					return watch(1, Watch{Gateway: a, Beyond: now.Beyond})
				}
				return now
			},
		}, nil},
		{"those beyond have never answered through any gateway", three, world{
			pings: func(t Target, _ time.Duration) bool { return !to(t, x, y) }, hears: always,
		}, nil},
		{"a relay dies", relayed, world{pings: until(r)}, []string{"10.9s relay r is down, epoch 1"}},
		{"all peers die, which is us", relayed, world{pings: until(r, p)}, nil},
		{"a relay comes back after 30 s", relayed, world{
			pings: func(t Target, at time.Duration) bool { return at < event || at > event+30*time.Second || !to(t, r) },
		}, []string{"10.9s relay r is down, epoch 1", "50.05s relay r is up, epoch 2"}},
		{"a relay comes and goes", relayed, world{
			pings: func(t Target, at time.Duration) bool { return at < event || at/(5*time.Second)%2 == 1 || !to(t, r) },
		}, []string{"10.9s relay r is down, epoch 1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			length := 2 * event
			if len(tt.watch.Relays) > 0 {
				length = 6 * event // it takes its time to trust one again
			}
			got := play(tt.world, tt.watch, length)
			if diff := cmp.Diff(strings.Join(tt.want, "\n"), strings.Join(got, "\n")); diff != "" {
				t.Errorf("verdicts (-want +got):\n%s", diff)
			}
		})
	}
}

// A gateway that is down already is not judged again, and a verdict goes beyond
// all there were.
func TestEpochs(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	w := watch(1, Watch{Gateway: a, Beside: []mesh.ID{b}})
	results := map[Target]Result{
		w.targets(a, mesh.ID{})[0]: {Misses: 4, FirstMiss: now.Add(-time.Second), LastMiss: now, Answered: now.Add(-time.Minute)},
		w.targets(b, mesh.ID{})[0]: {Answered: now},
	}
	other := identity(2)
	for _, tt := range []struct {
		verdicts []mesh.Verdict
		want     uint64 // 0 for none
	}{
		{nil, 1},
		{[]mesh.Verdict{{Author: other, Subject: a, Role: mesh.RoleGateway, State: mesh.HealthUp, Epoch: 6}, {Author: self, Subject: a, Role: mesh.RoleGateway, State: mesh.HealthDown, Epoch: 5}}, 7},
		{[]mesh.Verdict{{Author: other, Subject: a, Role: mesh.RoleGateway, State: mesh.HealthDraining, Epoch: 6}}, 7},
		{[]mesh.Verdict{{Author: other, Subject: a, Role: mesh.RoleGateway, State: mesh.HealthDown, Epoch: 6}}, 0},
		{[]mesh.Verdict{{Author: other, Subject: a, Role: mesh.RoleRelay, State: mesh.HealthDown, Epoch: 6}}, 1},
		{[]mesh.Verdict{{Author: other, Subject: b, Role: mesh.RoleGateway, State: mesh.HealthDown, Epoch: 6}}, 1},
	} {
		f := Judge(Situation{Now: now, Author: self, Watch: w, Results: results, Pace: Pace{Misses: 4}, Verdicts: tt.verdicts, Alive: map[mesh.ID]bool{a: true}})
		var got uint64
		if len(f.Verdicts) > 0 {
			got = f.Verdicts[0].Epoch
		}
		if got != tt.want {
			t.Errorf("after %v: got epoch %d, want %d", tt.verdicts, got, tt.want)
		}
	}
}

// Who is silent for long is looked at now and then: a far end that is dead must
// not keep everybody busy.
func TestPatience(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	w := watch(1, Watch{Gateway: a, Beyond: []mesh.ID{x}})
	for _, tt := range []struct {
		misses int
		want   time.Duration
	}{{0, 0}, {1, 0}, {2, lookSoon}, {12, lookSoon}, {13, slowly}, {1000, slowly}} {
		f := Judge(Situation{
			Now: now, Author: self, Watch: w, Pace: Pace{Misses: 4}, Alive: map[mesh.ID]bool{a: true},
			Results: map[Target]Result{w.targets(x, a)[0]: {Misses: tt.misses, FirstMiss: now, LastMiss: now, Answered: now}},
		})
		if f.Again != tt.want || len(f.Verdicts) > 0 {
			t.Errorf("after %d misses: got %+v, want to judge again in %v", tt.misses, f, tt.want)
		}
	}
}

func TestHold(t *testing.T) {
	var h Hold
	now := time.Unix(1_800_000_000, 0)
	fall := func(want time.Duration) {
		t.Helper()
		if got := h.Fall(now); got != want {
			t.Errorf("fall: got a wait of %v, want %v", got, want)
		}
		now = now.Add(want)
		if got := h.Fall(now); got != 0 {
			t.Errorf("after %v: got %v more, want none", want, got)
		}
		h.Raise(now)
	}
	for _, s := range []int{10, 20, 40, 80, 160, 300, 300} {
		now = now.Add(time.Minute)
		fall(time.Duration(s) * time.Second)
	}
	now = now.Add(relapse + time.Second)
	h.Raise(now) // says nothing new
	fall(10 * time.Second)
}
