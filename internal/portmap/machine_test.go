// SPDX-License-Identifier: Apache-2.0

package portmap

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

var (
	gateway = netip.MustParseAddr("192.168.1.1")
	source  = netip.MustParseAddr("192.168.1.7")
	public  = netip.MustParseAddr("203.0.113.9")
	start   = time.Unix(1_800_000_000, 0)

	errRefused = errors.New("not today")
	addrs      = cmpopts.EquateComparable(netip.AddrPort{}, netip.Addr{})
)

func target(ports ...uint16) Target { return Target{Gateway: gateway, Source: source, Ports: ports} }

// bench is a machine, and what its router does.
type bench struct {
	machine
	now    time.Time
	router func(action) result
	asked  []string
}

func newBench(known ...Mapping) *bench {
	b := &bench{now: start}
	if len(known) > 0 {
		b.machine = newMachine(known)
	} else {
		b.machine = newMachine(nil)
	}
	return b
}

// run answers all questions until some time has passed.
func (b *bench) run(d time.Duration) {
	for end := b.now.Add(d); ; {
		a, due, wait := b.next(b.now)
		switch {
		case due:
			b.asked = append(b.asked, fmt.Sprintf("%v %s %s %d", b.now.Sub(start), a.kind, a.protocol, a.mapping.Internal.Port()))
			b.done(a, b.router(a), b.now)
		case wait == 0 || b.now.Add(wait).After(end):
			b.now = end
			return
		default:
			b.now = b.now.Add(wait)
		}
	}
}

// takeAsked returns what was asked since the last time.
func (b *bench) takeAsked() []string {
	all := b.asked
	b.asked = nil
	return all
}

// external returns the external addresses there are.
func (b *bench) external() []string {
	var all []string
	for _, n := range b.mappings(b.now) {
		all = append(all, n.External.String())
	}
	return all
}

// speaks is a router that speaks some protocols.
func (b *bench) speaks(life time.Duration, all ...Protocol) func(action) result {
	began := b.now
	return func(a action) result {
		if !slices.Contains(all, a.protocol) {
			return result{err: errNoAnswer}
		}
		r := result{mapping: a.mapping, lifetime: life, reading: reading{hasEpoch: a.protocol != UPnP, epoch: uint32(b.now.Sub(began) / time.Second)}}
		r.mapping.External = netip.AddrPortFrom(public, a.mapping.External.Port())
		return r
	}
}

func silent(action) result { return result{err: errNoAnswer} }

func wantAsked(t *testing.T, b *bench, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, b.takeAsked()); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
}

func wantExternal(t *testing.T, b *bench, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, b.external()); diff != "" {
		t.Errorf("external addresses (-want +got):\n%s", diff)
	}
}

func TestProtocolsInOrder(t *testing.T) {
	b := newBench()
	b.router = b.speaks(lifetime, UPnP)
	b.want(target(51820), b.now)
	b.run(time.Second)
	wantAsked(t, b, "0s map PCP 51820", "0s map NAT-PMP 51820", "0s map UPnP 51820")
	wantExternal(t, b, "203.0.113.9:51820")

	// At another router, the one that has worked comes first.
	b.want(Target{Gateway: netip.MustParseAddr("192.168.1.2"), Source: source, Ports: []uint16{51820}}, b.now)
	wantExternal(t, b)
	b.run(time.Second)
	wantAsked(t, b, "1s map UPnP 51820")
}

func TestNoRouterAnswers(t *testing.T) {
	b := newBench()
	b.router = silent
	b.want(target(51820), b.now)
	b.run(2 * time.Hour)
	var searches []string
	for i, a := range b.takeAsked() {
		if i%3 == 0 {
			searches = append(searches, a)
		}
	}
	// Ever more rarely, then each half hour.
	want := []string{"0s", "1m0s", "3m0s", "7m0s", "15m0s", "31m0s", "1h1m0s", "1h31m0s"}
	for i := range want {
		want[i] += " map PCP 51820"
	}
	if diff := cmp.Diff(want, searches); diff != "" {
		t.Errorf("searches (-want +got):\n%s", diff)
	}
	// Somebody announces something again and again: each half minute at most.
	for range 100 {
		b.hint(b.now)
		b.run(time.Second)
	}
	if got := len(b.takeAsked()); got != 4*3 {
		t.Errorf("asked %d times in 100 s of announcements, want 4 searches of three", got)
	}
}

func TestRenewedAtHalf(t *testing.T) {
	for _, tt := range []struct {
		granted time.Duration
		want    []string // renewals in three minutes
	}{
		{2 * time.Minute, []string{"0s", "1m0s", "2m0s", "3m0s"}},
		{3 * time.Minute, []string{"0s", "1m30s", "3m0s"}},
		{time.Second, []string{"0s", "15s", "30s", "45s", "1m0s", "1m15s", "1m30s", "1m45s", "2m0s", "2m15s", "2m30s", "2m45s", "3m0s"}},
		{2 * time.Hour, []string{"0s"}},
	} {
		b := newBench()
		b.router = b.speaks(tt.granted, PCP)
		b.want(target(51820), b.now)
		b.run(3 * time.Minute)
		var got []string
		for _, a := range b.takeAsked() {
			var at, kind string
			if _, err := fmt.Sscan(a, &at, &kind); err == nil && kind == string(toMap) {
				got = append(got, at)
			}
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%v (-want +got):\n%s", tt.granted, diff)
		}
	}
}

func TestRouterRestarts(t *testing.T) {
	b := newBench()
	b.router = b.speaks(lifetime, PCP)
	b.want(target(51820, 7946), b.now)
	b.run(2*time.Minute + 30*time.Second)
	wantAsked(t, b, "0s map PCP 51820", "0s map PCP 7946", "1m0s check PCP 51820", "2m0s check PCP 51820")
	b.router = b.speaks(lifetime, PCP) // its clock begins anew
	b.run(time.Minute)
	wantAsked(t, b, "3m0s check PCP 51820", "3m0s map PCP 51820", "3m0s map PCP 7946")

	// One that says so is asked at once, however often it says so.
	b.router = b.speaks(lifetime, PCP)
	for range 8 {
		b.hint(b.now)
		b.run(time.Second)
	}
	wantAsked(t, b, "3m30s check PCP 51820", "3m30s map PCP 51820", "3m30s map PCP 7946", "3m35s check PCP 51820")
}

func TestRouterGoneAndBack(t *testing.T) {
	b := newBench()
	b.router = b.speaks(lifetime, NATPMP)
	b.want(target(51820), b.now)
	b.run(30 * time.Second)
	b.router = silent
	b.run(5 * time.Minute)
	wantExternal(t, b, "203.0.113.9:51820") // it may be about to restart
	b.takeAsked()
	b.router = b.speaks(lifetime, NATPMP)
	b.run(retryEvery)
	wantAsked(t, b, "5m45s check NAT-PMP 51820", "5m45s map NAT-PMP 51820")

	b.router = silent
	b.run(patience + 2*time.Minute)
	wantExternal(t, b)
	b.router = b.speaks(lifetime, UPnP) // another router at the same address
	b.run(searchMax)
	wantExternal(t, b, "203.0.113.9:51820")
}

// TestMappingEnds has a router that is silent when it should renew a short mapping.
func TestMappingEnds(t *testing.T) {
	b := newBench()
	b.router = b.speaks(2*time.Minute, PCP)
	b.want(target(51820), b.now)
	b.run(30 * time.Second)
	b.router = silent
	b.run(89 * time.Second)
	wantExternal(t, b, "203.0.113.9:51820")
	b.run(2 * time.Second)
	wantExternal(t, b)
}

func TestRefused(t *testing.T) {
	b := newBench()
	b.router = func(a action) result {
		if a.protocol == UPnP {
			return b.speaks(lifetime, UPnP)(a)
		}
		return result{err: errRefused}
	}
	b.want(target(51820), b.now)
	b.run(time.Minute)
	wantExternal(t, b, "203.0.113.9:51820")
	b.router = func(a action) result { return result{err: errRefused} }
	b.run(2 * time.Hour) // until it should be renewed
	wantExternal(t, b)

	// Of two ports only the first one is needed.
	b = newBench()
	b.router = func(a action) result {
		if a.mapping.Internal.Port() == 7946 {
			return result{err: errRefused}
		}
		return b.speaks(lifetime, PCP)(a)
	}
	b.want(target(51820, 7946), b.now)
	b.run(searchMax - time.Second)
	wantExternal(t, b, "203.0.113.9:51820")
	maps := slices.DeleteFunc(b.takeAsked(), func(s string) bool { return !slices.Contains([]string{"0s map PCP 51820", "0s map PCP 7946"}, s) })
	if len(maps) != 2 {
		t.Errorf("asked for %q, want each port once", maps)
	}
	// Other protocols are tried for none of them.
	if b.machine.protocol != PCP {
		t.Errorf("got protocol %s, want PCP", b.machine.protocol)
	}
}

// TestSecondPortRefusedByNATPMP has answers that name the router's address.
func TestSecondPortRefusedByNATPMP(t *testing.T) {
	b := newBench()
	good := b.speaks(lifetime, NATPMP)
	b.router = func(a action) result {
		r := good(a)
		r.reading.address = public
		if a.mapping.Internal.Port() == 7946 {
			r.err = errRefused
		}
		return r
	}
	b.want(target(51820, 7946), b.now)
	b.run(10 * time.Minute)
	wantExternal(t, b, "203.0.113.9:51820")
}

// TestNonceOfALostAnswer asks again with the nonce that the router may know already.
func TestNonceOfALostAnswer(t *testing.T) {
	b := newBench()
	b.router = func(a action) result {
		r := silent(a)
		if r.mapping = a.mapping; a.protocol == PCP && a.mapping.Nonce == [12]byte{} {
			r.mapping.Nonce = [12]byte{5}
		}
		return r
	}
	b.want(target(51820), b.now)
	b.run(time.Second)
	if got := b.wanted(51820).Nonce; got != [12]byte{5} {
		t.Errorf("got nonce %x, want that of the first question", got)
	}
}

func TestSecondPortUnanswered(t *testing.T) {
	b := newBench()
	answers := 0
	b.router = func(a action) result {
		if answers++; answers > 1 {
			return silent(a)
		}
		return b.speaks(lifetime, PCP)(a)
	}
	b.want(target(51820, 7946), b.now)
	b.run(time.Minute)
	wantExternal(t, b, "203.0.113.9:51820")
}

func TestExternalAddressChanges(t *testing.T) {
	b := newBench()
	b.router = b.speaks(lifetime, NATPMP)
	b.want(target(51820), b.now)
	b.run(time.Second)
	b.router = func(a action) result {
		return result{reading: reading{address: netip.MustParseAddr("203.0.113.77")}}
	}
	b.run(checkEvery)
	wantExternal(t, b, "203.0.113.77:51820")
}

func TestRouterHasLostIt(t *testing.T) {
	b := newBench()
	b.router = b.speaks(lifetime, UPnP)
	b.want(target(51820), b.now)
	b.run(time.Second)
	b.takeAsked()
	b.router = func(a action) result {
		r := b.speaks(lifetime, UPnP)(a)
		r.reading.gone = a.kind == toCheck
		return r
	}
	b.run(checkEvery)
	wantAsked(t, b, "1m0s check UPnP 51820", "1m0s map UPnP 51820")
}

func TestPermanentMappingStays(t *testing.T) {
	b := newBench()
	b.router = func(a action) result {
		r := b.speaks(0, UPnP)(a)
		r.mapping.Permanent = true
		return r
	}
	b.want(target(51820), b.now)
	b.run(time.Hour)
	wantExternal(t, b, "203.0.113.9:51820")
	maps := 0
	for _, a := range b.takeAsked() {
		var at, kind string
		if _, err := fmt.Sscan(a, &at, &kind); err == nil && kind == string(toMap) {
			maps++
		}
	}
	if maps != 3 { // by each protocol
		t.Errorf("asked for it %d times, want 3: it need not be renewed", maps)
	}
}

func mapping(p Protocol, external string) Mapping {
	return Mapping{Protocol: p, Gateway: gateway, Internal: netip.AddrPortFrom(source, 51820), External: netip.MustParseAddrPort(external), Nonce: [12]byte{1}}
}

func TestRestartLosesNothing(t *testing.T) {
	known := mapping(NATPMP, "203.0.113.9:40001")
	b := newBench(known)
	wantExternal(t, b, "203.0.113.9:40001")
	b.want(Target{Ports: []uint16{51820}}, b.now) // no default route yet
	wantExternal(t, b, "203.0.113.9:40001")
	var asked []action
	b.router = func(a action) result {
		asked = append(asked, a)
		return b.speaks(lifetime, NATPMP)(a)
	}
	b.want(target(51820), b.now)
	wantExternal(t, b, "203.0.113.9:40001")
	b.run(time.Second)
	wantAsked(t, b, "0s map NAT-PMP 51820")
	if diff := cmp.Diff(known, asked[0].mapping, addrs); diff != "" {
		t.Errorf("asked for (-want +got):\n%s", diff)
	}
	wantExternal(t, b, "203.0.113.9:40001")
}

func TestRestartElsewhere(t *testing.T) {
	b := newBench(mapping(PCP, "203.0.113.9:51820"))
	b.router = b.speaks(lifetime, PCP)
	b.want(Target{Gateway: netip.MustParseAddr("10.0.0.1"), Source: netip.MustParseAddr("10.0.0.2"), Ports: []uint16{51820}}, b.now)
	wantExternal(t, b)
	b.run(time.Second)
	wantAsked(t, b, "0s map PCP 51820")
}

func TestTurnedOff(t *testing.T) {
	for name, b := range map[string]*bench{"while it runs": newBench(), "while it did not run": newBench(mapping(PCP, "203.0.113.9:51820"))} {
		t.Run(name, func(t *testing.T) {
			b.router = b.speaks(lifetime, PCP)
			if b.known == nil {
				b.want(target(51820), b.now)
				b.run(time.Second)
				b.takeAsked()
			}
			b.want(Target{}, b.now)
			wantExternal(t, b)
			if len(b.kept()) != 1 {
				t.Errorf("kept %v, want what is yet to be removed", b.kept())
			}
			at := b.now.Sub(start)
			b.run(time.Hour)
			wantAsked(t, b, fmt.Sprintf("%v remove PCP 51820", at))
			if len(b.kept()) != 0 {
				t.Errorf("kept %v, want nothing", b.kept())
			}
		})
	}
}

// TestTurnedOffAtSilentRouter gives up at last: the mapping ends by itself.
func TestTurnedOffAtSilentRouter(t *testing.T) {
	b := newBench(mapping(PCP, "203.0.113.9:51820"))
	b.router = silent
	b.want(Target{}, b.now)
	b.run(time.Hour)
	wantAsked(t, b, "0s remove PCP 51820", "0s remove PCP 51820")
}

// TestTurnedOffMeanwhile turns it off while the router is asked.
func TestTurnedOffMeanwhile(t *testing.T) {
	b := newBench()
	b.want(target(51820), b.now)
	a, _, _ := b.next(b.now)
	b.want(Target{}, b.now)
	b.done(a, b.speaks(lifetime, PCP)(a), b.now)
	b.router = b.speaks(lifetime, PCP)
	b.run(time.Hour)
	wantAsked(t, b, "0s remove PCP 51820")
}

func TestUplinkGoesAndComes(t *testing.T) {
	b := newBench()
	b.router = b.speaks(lifetime, PCP)
	b.want(target(51820), b.now)
	b.run(time.Second)
	a := action{kind: toMap, protocol: PCP, gateway: gateway, source: source, mapping: b.held[0].Mapping}
	b.takeAsked()
	b.want(Target{Ports: []uint16{51820}}, b.now)
	b.done(a, b.router(a), b.now) // a renewal that was under way
	b.run(time.Minute)
	wantExternal(t, b, "203.0.113.9:51820")
	wantAsked(t, b)
	b.want(target(51820), b.now)
	wantExternal(t, b, "203.0.113.9:51820")
	b.run(time.Second)
	wantAsked(t, b, "1m1s check PCP 51820")
}

func TestEpoch(t *testing.T) {
	type at struct {
		server uint32
		here   time.Duration
	}
	for _, tt := range []struct {
		name string
		all  []at
		want bool // of the last one
	}{
		{"the first", []at{{5, 0}}, false},
		{"in step", []at{{5, 0}, {65, time.Minute}}, false},
		{"a second back, rounded", []at{{5, 0}, {4, 0}}, false},
		{"two back", []at{{5, 0}, {3, 0}}, true},
		{"began anew", []at{{1000, 0}, {0, time.Minute}}, true},
		{"began anew, and runs for longer than before", []at{{5, 0}, {60, 10 * time.Minute}}, true},
		{"a slow clock", []at{{0, 0}, {95, 100 * time.Second}}, false},
		{"a fast clock", []at{{0, 0}, {105, 100 * time.Second}}, false},
		{"this host was suspended", []at{{0, 0}, {7200, time.Minute}}, true},
		{"around 2^32", []at{{1<<32 - 10, 0}, {50, time.Minute}}, true},
	} {
		var e epoch
		var got bool
		for _, a := range tt.all {
			got = e.note(a.server, start.Add(a.here))
		}
		if got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

// TestAnyRouter has routers that do anything, and wants that change: the gateway is never asked
// without a pause for long, what is shown was granted, and a router that is well again is used.
func TestAnyRouter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := newBench()
		granted := make(map[netip.AddrPort]bool)
		good := b.speaks(lifetime, PCP)
		b.router = func(a action) result {
			if len(b.asked) > 10_000 {
				t.Fatalf("asked without end: %q", b.asked[:20])
			}
			switch rapid.IntRange(0, 4).Draw(t, "answer") {
			case 0:
				return result{err: errNoAnswer}
			case 1:
				return result{err: errRefused}
			case 2:
				r := result{reading: reading{gone: true}, mapping: a.mapping, lifetime: time.Second}
				r.mapping.External = netip.AddrPortFrom(public, rapid.Uint16Min(1).Draw(t, "port"))
				granted[r.mapping.External] = true
				return r
			default:
				r := result{mapping: a.mapping, lifetime: lifetime, reading: reading{hasEpoch: true, epoch: rapid.Uint32().Draw(t, "epoch")}}
				r.mapping.Permanent = rapid.Bool().Draw(t, "permanent")
				r.mapping.External = netip.AddrPortFrom(public, a.mapping.External.Port())
				granted[r.mapping.External] = true
				return r
			}
		}
		wants := []Target{{}, {Ports: []uint16{51820}}, target(51820), target(51820, 7946), target(7946), {Gateway: source, Source: gateway, Ports: []uint16{51820}}}
		for range rapid.IntRange(1, 10).Draw(t, "steps") {
			b.want(rapid.SampledFrom(wants).Draw(t, "want"), b.now)
			if rapid.Bool().Draw(t, "hint") {
				b.hint(b.now)
			}
			b.run(time.Duration(rapid.IntRange(0, 600).Draw(t, "seconds")) * time.Second)
			for _, n := range b.mappings(b.now) {
				if !granted[n.External] {
					t.Fatalf("shows %v, which was not granted", n)
				}
			}
		}
		b.want(target(51820), b.now)
		b.router = good
		b.run(patience + 2*searchMax)
		if got := b.external(); len(got) != 1 {
			t.Fatalf("got %q at a good router, want a mapping", got)
		}
	})
}
