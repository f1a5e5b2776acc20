// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/meshd/meshd/internal/mesh"
)

var (
	viaMesh     = netip.MustParseAddrPort("10.4.0.2:7946")
	viaEndpoint = netip.MustParseAddrPort("203.0.113.7:7946")
	viaLAN      = netip.MustParseAddrPort("192.168.1.2:7946")
	viaRoaming  = netip.MustParseAddrPort("198.51.100.9:4001")
)

func TestAddressesNext(t *testing.T) {
	node := mesh.ID{1}
	type step struct {
		at     time.Duration
		hear   netip.AddrPort // an answer
		ask    netip.AddrPort // a question; else a packet is sent
		fail   bool           // and the system refuses it
		want   netip.AddrPort
		unsure bool
	}
	all := []netip.AddrPort{viaMesh, viaEndpoint, viaLAN}
	tests := []struct {
		name       string
		candidates []netip.AddrPort
		steps      []step
	}{
		{"nothing known", nil, []step{{}}},
		{"first candidate first", all, []step{{want: viaMesh, unsure: true}}},
		{"the same address while an answer may come", all, []step{
			{want: viaMesh, unsure: true},
			{at: answerTimeout / 2, want: viaMesh, unsure: true},
		}},
		{"one unanswered packet, the next address, and round again", all, []step{
			{want: viaMesh, unsure: true},
			{at: time.Second, want: viaEndpoint, unsure: true},
			{at: 2 * time.Second, want: viaLAN, unsure: true},
			{at: 3 * time.Second, want: viaMesh, unsure: true},
		}},
		{"what was heard from is used", all, []step{
			{want: viaMesh, unsure: true},
			{at: time.Second, hear: viaRoaming},
			{at: time.Second + freshAddress, want: viaRoaming},
		}},
		{"after silence it still has the first turn", all, []step{
			{hear: viaLAN},
			{at: time.Minute, want: viaLAN, unsure: true},
			{at: time.Minute + time.Second, want: viaMesh, unsure: true},
		}},
		{"where it was last seen comes last", []netip.AddrPort{viaMesh}, []step{
			{hear: viaRoaming},
			{at: time.Minute, want: viaRoaming, unsure: true},
			{at: time.Minute + time.Second, want: viaMesh, unsure: true},
			{at: time.Minute + 2*time.Second, want: viaRoaming, unsure: true},
		}},
		{"a question is answered where it came from, but then all are tried", all[:2], []step{
			{ask: viaRoaming},
			{want: viaRoaming, unsure: true},
			{at: answerTimeout, ask: viaRoaming},
			{at: answerTimeout, want: viaMesh, unsure: true},
			{at: 2 * answerTimeout, ask: viaRoaming},
			{at: 2 * answerTimeout, want: viaEndpoint, unsure: true},
		}},
		{"a question does not move an address that works", all, []step{
			{hear: viaLAN},
			{at: time.Millisecond, ask: viaRoaming},
			{at: time.Millisecond, want: viaLAN},
		}},
		{"and is forgotten after long", []netip.AddrPort{viaMesh}, []step{
			{hear: viaRoaming},
			{at: addressMemory + time.Second, want: viaMesh, unsure: true},
		}},
		{"a refused packet moves on at once", all, []step{
			{want: viaMesh, unsure: true, fail: true},
			{at: time.Millisecond, want: viaEndpoint, unsure: true},
		}},
		{"also from an address that was good", all, []step{
			{hear: viaMesh},
			{at: time.Millisecond, want: viaMesh, fail: true},
			{at: 2 * time.Millisecond, want: viaEndpoint, unsure: true},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			start := time.Unix(1700000000, 0)
			p := newAddressTable(testCluster().Overlay)
			if tt.candidates != nil {
				p.set(map[mesh.ID][]netip.AddrPort{node: tt.candidates})
			}
			for i, s := range tt.steps {
				now := start.Add(s.at)
				if s.hear.IsValid() {
					answer(p, node, s.hear, now)
					continue
				}
				if s.ask.IsValid() {
					p.sawAt(node, s.ask, now)
					continue
				}
				got, unsure, ok := p.next(node, now)
				if got != s.want || unsure != s.unsure || ok != s.want.IsValid() {
					t.Errorf("step %d: got %v, unsure %v, ok %v; want %v, unsure %v", i, got, unsure, ok, s.want, s.unsure)
				}
				if s.fail {
					p.noteSendError(node, got)
				}
			}
		})
	}
}

// answer lets a question that went to an address be answered from there.
func answer(p *addressTable, id mesh.ID, addr netip.AddrPort, now time.Time) {
	p.noteQuestion(id, uint64(now.UnixNano()), addr)
	p.noteAnswer(id, uint64(now.UnixNano()), now)
	p.heardFrom(id, addr, now)
}

func TestAddressesOrderBeginsWithWhatWorked(t *testing.T) {
	node, now := mesh.ID{1}, time.Unix(1700000000, 0)
	p := newAddressTable(nil)
	p.set(map[mesh.ID][]netip.AddrPort{node: {viaMesh, viaEndpoint, viaEndpoint, viaLAN}})
	p.setGuess(node, viaRoaming)
	answer(p, node, viaEndpoint, now)
	want := []netip.AddrPort{viaEndpoint, viaLAN, viaRoaming, viaMesh}
	if diff := cmp.Diff(want, p.order(node, now), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}

func TestUnderlayIsNeverInsideTheMesh(t *testing.T) {
	node, now := mesh.ID{1}, time.Unix(1700000000, 0)
	p := newAddressTable(testCluster().Overlay)
	answer(p, node, viaEndpoint, now)
	answer(p, node, viaMesh, now.Add(time.Second))
	if got := p.nodes[node].seen; got != viaEndpoint {
		t.Errorf("seen outside of the mesh: %v, want %v", got, viaEndpoint)
	}
	if got, _, _ := p.next(node, now.Add(2*time.Second)); got != viaMesh {
		t.Errorf("next %v, want %v", got, viaMesh)
	}
}

// As long as one address works, it is found within one round, whatever was
// before; and never is anything but a known address used.
func TestAddressesFindTheOneThatWorks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		addrs := []netip.AddrPort{viaMesh, viaEndpoint, viaLAN, viaRoaming}
		candidates := rapid.SliceOfNDistinct(rapid.SampledFrom(addrs), 1, 4, rapid.ID).Draw(t, "candidates")
		works := rapid.SampledFrom(candidates).Draw(t, "works")
		node, now := mesh.ID{1}, time.Unix(1700000000, 0)
		p := newAddressTable(nil)
		p.set(map[mesh.ID][]netip.AddrPort{node: candidates})
		for range rapid.IntRange(0, 10).Draw(t, "before") {
			now = now.Add(time.Duration(rapid.IntRange(0, 5000).Draw(t, "ms")) * time.Millisecond)
			if rapid.Bool().Draw(t, "hear") {
				answer(p, node, rapid.SampledFrom(candidates).Draw(t, "from"), now)
			} else {
				p.next(node, now)
			}
		}
		now = now.Add(freshAddress + time.Second) // from here on, only one works
		for range len(candidates) + 1 {
			addr, _, ok := p.next(node, now)
			if !ok || !slices.Contains(candidates, addr) {
				t.Fatalf("next is %v", addr)
			}
			if addr == works {
				return
			}
			now = now.Add(answerTimeout)
		}
		t.Fatalf("%v of %v was not tried", works, candidates)
	})
}

func TestAddressesAreBounded(t *testing.T) {
	p := newAddressTable(nil)
	keep := mesh.ID{0xff}
	p.set(map[mesh.ID][]netip.AddrPort{keep: {viaLAN}})
	now := time.Unix(1700000000, 0)
	for i := range maxSenders + 10 {
		p.heardFrom(mesh.ID{byte(i), byte(i >> 8)}, viaRoaming, now.Add(time.Duration(i)))
	}
	if len(p.nodes) > maxSenders {
		t.Errorf("%d nodes are remembered, at most %d", len(p.nodes), maxSenders)
	}
	if p.nodes[keep] == nil {
		t.Error("a node with candidates was forgotten before those without")
	}
}
