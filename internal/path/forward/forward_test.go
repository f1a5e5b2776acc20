// SPDX-License-Identifier: Apache-2.0

package forward_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"pgregory.net/rapid"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/path/forward"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

const relayPort = 7946

// comparables are types with fields that are not exported.
var comparables = cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, path.KeptRow{})

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// pair is two nodes that are bound to a relay at eth0, with a session each way.
func pair() forward.Input {
	first := path.Kept{
		Node: path.Short{1}, Addr: addrPort("192.0.2.1:51820"), Local: addr("198.51.100.1"), Until: start.Add(time.Minute),
		Rows: []path.KeptRow{{Index: 0x0a0b0c0d, To: path.Short{2}, Until: start.Add(time.Hour)}},
	}
	second := path.Kept{
		Node: path.Short{2}, Addr: addrPort("203.0.113.1:40000"), Local: addr("198.51.100.1"), Until: start.Add(2 * time.Minute),
		Rows: []path.KeptRow{{Index: 7, To: path.Short{1}, Until: start.Add(30 * time.Second)}},
	}
	return forward.Input{
		Port: relayPort, Bound: []path.Kept{first, second},
		Hops: map[forward.Way]forward.Hop{
			forward.WayTo(first):  {Link: 2, Via: addr("198.51.100.254")},
			forward.WayTo(second): {Link: 2, Via: addr("198.51.100.254"), MTU: 1400},
		},
		Links:     []forward.Link{{Index: 2, Name: "eth0", MTU: 1500, Up: true, Neighbors: true}},
		Addresses: map[netip.Addr]int{addr("198.51.100.1"): 2},
	}
}

// text is how a table reads.
func text(t forward.Table) string {
	var b strings.Builder
	for _, c := range t.Chains {
		fmt.Fprintf(&b, "chain %s", c.Name)
		if c.Link != "" {
			fmt.Fprintf(&b, " at %s", c.Link)
		}
		b.WriteByte('\n')
		for _, r := range c.Rules {
			fmt.Fprintf(&b, "\t%s\n", r.Text)
		}
	}
	for _, s := range t.Sessions {
		fmt.Fprintf(&b, "%s from %s index %#x: %s for %v\n", s.Local, s.From, s.Index, s.Chain, s.Until.Sub(start))
	}
	return b.String()
}

func TestWanted(t *testing.T) {
	const chains = `chain from_2 at eth0
	meta pkttype host ether type ip ip protocol udp udp dport 7946 @th,64,32 0x04000000 ip frag-off & 0x3fff == 0 ip ttl > 1 udp checksum != 0 ip daddr . ip saddr . udp sport . @th,96,32 vmap @sessions
	meta pkttype host ether type ip6 ip6 nexthdr udp udp dport 7946 @th,64,32 0x04000000 ip6 hoplimit > 1 ip6 daddr . ip6 saddr . udp sport . @th,96,32 vmap @sessions6
`
	const receivers = `chain to_0100000000000000
	ip length > 1500 accept
	ip daddr set 192.0.2.1 udp dport set 51820 ip saddr set 198.51.100.1 udp sport set 7946 counter name forwarded fwd ip to 198.51.100.254 device "eth0"
chain to_0200000000000000
	ip length > 1400 accept
	ip daddr set 203.0.113.1 udp dport set 40000 ip saddr set 198.51.100.1 udp sport set 7946 counter name forwarded fwd ip to 198.51.100.254 device "eth0"
`
	const sessions = `198.51.100.1 from 192.0.2.1:51820 index 0xa0b0c0d: to_0200000000000000 for 1m0s
198.51.100.1 from 203.0.113.1:40000 index 0x7: to_0100000000000000 for 30s
`
	if got := text(forward.Wanted(pair())); got != chains+receivers+sessions {
		t.Errorf("got\n%s\nwant\n%s", got, chains+receivers+sessions)
	}
}

func TestWantedLimit(t *testing.T) {
	in := pair()
	in.Rate = 10_000_000
	got := text(forward.Wanted(in))
	for _, want := range []string{
		"chain max_rate\n\tlimit rate over 10000000 bytes/second burst 1000000 bytes counter name limited drop\n",
		"ip length > 1500 accept\n\tjump max_rate\n\tip daddr set",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("got\n%s\nwithout\n%s", got, want)
		}
	}
}

func TestWanted6(t *testing.T) {
	in := pair()
	in.Hops = map[forward.Way]forward.Hop{}
	for i := range in.Bound {
		in.Bound[i].Addr = netip.AddrPortFrom(addr(fmt.Sprintf("2001:db8:%d::1", i)), 51820)
		in.Bound[i].Local = addr("2001:db8::1")
		in.Hops[forward.WayTo(in.Bound[i])] = forward.Hop{Link: 2, Via: addr("fe80::1")}
	}
	got := text(forward.Wanted(in))
	for _, want := range []string{
		"ip6 length > 1460 accept\n",
		"ip6 daddr set 2001:db8:1::1 udp dport set 51820 ip6 saddr set 2001:db8::1 udp sport set 7946 counter name forwarded6 fwd ip6 to fe80::1 device \"eth0\"\n",
		"2001:db8::1 from [2001:db8::1]:51820 index 0xa0b0c0d: to_0200000000000000",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("got\n%s\nwithout\n%s", got, want)
		}
	}
}

// TestUserSpace has what the kernel can't forward, or not rightly: it has no session then.
func TestUserSpace(t *testing.T) {
	second := func(in *forward.Input) *path.Kept { return &in.Bound[1] }
	move := func(in *forward.Input, to netip.AddrPort, local netip.Addr) {
		h := in.Hops[forward.WayTo(*second(in))]
		second(in).Addr, second(in).Local = to, local
		in.Hops[forward.WayTo(*second(in))] = h
	}
	link := func(l forward.Link) func(*forward.Input) {
		return func(in *forward.Input) {
			l.Index, l.Name, l.MTU = 2, "eth0", 1500
			in.Links = append([]forward.Link{l}, in.Links[1:]...)
		}
	}
	tests := []struct {
		name   string
		change func(*forward.Input)
	}{
		{"a stream", func(in *forward.Input) { move(in, path.StreamAddr(mesh.ID{2}), addr("198.51.100.1")) }},
		{"the other family", func(in *forward.Input) { move(in, addrPort("[2001:db8::9]:51820"), addr("2001:db8::1")) }},
		{"an address of this host that is not known", func(in *forward.Input) { move(in, second(in).Addr, netip.Addr{}) }},
		{"loopback", func(in *forward.Input) { move(in, addrPort("127.0.0.2:51820"), addr("127.0.0.1")) }},
		{"link-local", func(in *forward.Input) { move(in, addrPort("169.254.0.2:51820"), addr("198.51.100.1")) }},
		{"no route", func(in *forward.Input) { clear(in.Hops) }},
		{"a next hop of the other family", func(in *forward.Input) {
			for w, h := range in.Hops {
				h.Via = addr("fe80::1")
				in.Hops[w] = h
			}
		}},
		{"a link without neighbours", link(forward.Link{Up: true})},
		{"a link that is down", link(forward.Link{Neighbors: true})},
		{"a link that merges datagrams", link(forward.Link{Up: true, Neighbors: true, Merges: true})},
		{"a VLAN of a bond of which one link merges", func(in *forward.Input) {
			link(forward.Link{Up: true, Neighbors: true, Beneath: []int{3}})(in)
			in.Links = append(in.Links, forward.Link{Index: 3, Beneath: []int{4, 5}}, forward.Link{Index: 4}, forward.Link{Index: 5, Merges: true})
		}},
		{"links in a circle", link(forward.Link{Neighbors: true, Beneath: []int{2}})},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := pair()
			tt.change(&in)
			if got := forward.Wanted(in); len(got.Sessions) > 0 {
				t.Errorf("got\n%s\nwant no sessions", text(got))
			}
		})
	}
}

// anyInput is what a relay may know, of few nodes at few addresses, so that much of it meets.
func anyInput() *rapid.Generator[forward.Input] {
	return rapid.Custom(func(t *rapid.T) forward.Input {
		in := forward.Input{
			Port: relayPort, Rate: rapid.SampledFrom([]uint64{0, 1_000_000}).Draw(t, "rate"), Hops: map[forward.Way]forward.Hop{},
			Addresses: map[netip.Addr]int{addr("198.51.100.1"): 1, addr("2001:db8::1"): 2},
		}
		for index := range 3 {
			in.Links = append(in.Links, forward.Link{
				Index: index + 1, Name: fmt.Sprint("eth", index), MTU: 1500, Up: rapid.IntRange(0, 9).Draw(t, "up") > 0,
				Neighbors: rapid.IntRange(0, 9).Draw(t, "neighbours") > 0, Merges: rapid.IntRange(0, 9).Draw(t, "merges") == 0,
			})
		}
		node := rapid.Custom(func(t *rapid.T) path.Short { return path.Short{rapid.ByteRange(1, 6).Draw(t, "node")} })
		until := rapid.Custom(func(t *rapid.T) time.Time {
			return start.Add(time.Duration(rapid.IntRange(1, 180).Draw(t, "seconds")) * time.Second)
		})
		locals := []netip.Addr{addr("198.51.100.1"), addr("198.51.100.2"), addr("2001:db8::1"), {}}
		for i := range rapid.IntRange(0, 6).Draw(t, "nodes") {
			k := path.Kept{Node: path.Short{byte(i + 1)}, Key: wgtypes.Key{byte(i + 1)}, Until: until.Draw(t, "until"), Local: rapid.SampledFrom(locals).Draw(t, "local")}
			switch rapid.IntRange(0, 9).Draw(t, "where") {
			case 0:
				k.Addr = path.StreamAddr(mesh.ID{byte(i + 1)})
			case 1, 2, 3:
				k.Addr = netip.AddrPortFrom(addr(fmt.Sprint("2001:db8:1::", i+1)), 51820)
			default:
				k.Addr = netip.AddrPortFrom(addr(fmt.Sprint("192.0.2.", i+1)), 51820)
			}
			for index := range uint32(rapid.IntRange(0, 4).Draw(t, "rows")) {
				k.Rows = append(k.Rows, path.KeptRow{Index: index, To: node.Draw(t, "to"), Until: until.Draw(t, "until")})
			}
			if rapid.IntRange(0, 9).Draw(t, "route") > 0 {
				in.Hops[forward.WayTo(k)] = forward.Hop{Link: rapid.IntRange(1, 4).Draw(t, "link"), Via: rapid.SampledFrom(locals[:3]).Draw(t, "via")}
			}
			in.Bound = append(in.Bound, k)
		}
		return in
	})
}

// data is a WireGuard data packet.
func data(index uint32) []byte {
	b := make([]byte, 32)
	b[0] = 4
	binary.LittleEndian.PutUint32(b[4:], index)
	return b
}

// TestForwardsAsRelay has the kernel forward only what the relay would forward, to the address to which
// the relay would send it, until the relay has forgotten it; and whatever else it forwards
// is for a reason.
func TestForwardsAsRelay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := anyInput().Draw(t, "input")
		relay := path.NewRelay([32]byte{1})
		relay.Restore(start, in.Bound)
		table := forward.Wanted(in)
		usable := func(k path.Kept) bool {
			hop, ok := in.Hops[forward.WayTo(k)]
			return ok && forward.CanForward(k) && hop.Via.Is4() == k.Local.Is4() && hop.Link <= 3 &&
				in.Links[hop.Link-1].Up && in.Links[hop.Link-1].Neighbors && !in.Links[hop.Link-1].Merges
		}
		nodes := map[path.Short]path.Kept{}
		for _, k := range in.Bound {
			nodes[k.Node] = k
		}
		found := map[string]bool{}
		for _, s := range table.Sessions {
			to, ok := forward.ReceiverOf(s.Chain)
			if !ok || !usable(nodes[to]) {
				t.Fatalf("session %v leads to a chain that can't forward", s)
			}
			chain := slices.IndexFunc(table.Chains, func(c forward.Chain) bool { return c.Name == s.Chain })
			if chain < 0 {
				t.Fatalf("session %v leads to a chain that does not exist", s)
			}
			last := table.Chains[chain].Rules[len(table.Chains[chain].Rules)-1].Text
			for _, now := range []time.Time{start, s.Until.Add(-time.Millisecond)} {
				at, verdict := relay.Forward(now, data(s.Index), s.From)
				if verdict != path.Pass || at != nodes[to].Addr {
					t.Fatalf("session %v: the relay returns %v, %v at %v", s, at, verdict, now.Sub(start))
				}
			}
			if want := fmt.Sprintf(" daddr set %s udp dport set %d ", nodes[to].Addr.Addr(), nodes[to].Addr.Port()); !strings.Contains(last, want) {
				t.Fatalf("session %v leads to %q, want %q in it", s, last, want)
			}
			found[fmt.Sprint(s.From, s.Index)] = true
		}
		// What the relay would forward and the kernel does not, it can't.
		for _, k := range in.Bound {
			for _, row := range k.Rows {
				_, verdict := relay.Forward(start, data(row.Index), k.Addr)
				to, there := nodes[row.To]
				could := there && forward.CanForward(k) && usable(to) && k.Local.Is4() == to.Local.Is4()
				if could && verdict == path.Pass && !found[fmt.Sprint(k.Addr, row.Index)] {
					t.Fatalf("the kernel does not forward index %d of node %v", row.Index, k.Node)
				}
			}
		}
	})
}

// TestWantedOrder has the same table follow in whatever order nodes and links come.
func TestWantedOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := anyInput().Draw(t, "input")
		want := forward.Wanted(in)
		in.Bound = rapid.Permutation(in.Bound).Draw(t, "bound")
		in.Links = rapid.Permutation(in.Links).Draw(t, "links")
		if diff := cmp.Diff(want, forward.Wanted(in), comparables); diff != "" {
			t.Fatal(diff)
		}
	})
}

// fakeTable is a table of nftables, as far as a change concerns it.
type fakeTable struct{ forward.Table }

// end has sessions end.
func (f *fakeTable) end(now time.Time) {
	f.Sessions = slices.DeleteFunc(f.Sessions, func(s forward.Session) bool { return !now.Before(s.Until) })
}

// apply fails where the kernel would.
func (f *fakeTable) apply(c forward.Change) error {
	for _, w := range c.Chains {
		i := slices.IndexFunc(f.Chains, func(h forward.Chain) bool { return h.Name == w.Name })
		isNew := slices.Contains(c.New, w.Name)
		switch {
		case i < 0 && !isNew || i >= 0 && isNew:
			return fmt.Errorf("chain %s is there: %t", w.Name, i >= 0)
		case i < 0:
			f.Chains = append(f.Chains, w)
		default:
			f.Chains[i].Rules = w.Rules
		}
	}
	for _, s := range c.Remove {
		i := slices.IndexFunc(f.Sessions, func(h forward.Session) bool { return h.Compare(s) == 0 })
		if i < 0 {
			return fmt.Errorf("session %v is not there", s)
		}
		f.Sessions = slices.Delete(f.Sessions, i, i+1)
	}
	for _, s := range c.Add {
		if slices.ContainsFunc(f.Sessions, func(h forward.Session) bool { return h.Compare(s) == 0 }) {
			return fmt.Errorf("session %v is there", s)
		}
		if !slices.ContainsFunc(f.Chains, func(c forward.Chain) bool { return c.Name == s.Chain }) {
			return fmt.Errorf("session %v leads nowhere", s)
		}
		f.Sessions = append(f.Sessions, s)
	}
	for _, name := range c.Obsolete {
		if slices.ContainsFunc(f.Sessions, func(s forward.Session) bool { return s.Chain == name }) {
			continue // it is busy
		}
		f.Chains = slices.DeleteFunc(f.Chains, func(c forward.Chain) bool { return c.Name == name })
	}
	slices.SortFunc(f.Chains, func(a, b forward.Chain) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(f.Sessions, forward.Session.Compare)
	return nil
}

// TestWalk goes from table to table while time passes. After each step no session leads elsewhere than it
// is to, none lasts longer, and what is missing or wrong is so for some seconds only.
func TestWalk(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var f fakeTable
		now := start
		for range rapid.IntRange(1, 5).Draw(t, "steps") {
			in := anyInput().Draw(t, "input")
			for i := range in.Bound {
				in.Bound[i].Until = in.Bound[i].Until.Add(now.Sub(start))
				for j := range in.Bound[i].Rows {
					in.Bound[i].Rows[j].Until = in.Bound[i].Rows[j].Until.Add(now.Sub(start))
				}
			}
			want := forward.Wanted(in)
			if err := f.apply(forward.Diff(f.Table, want, now)); err != nil {
				t.Fatal(err)
			}
			again := forward.Diff(f.Table, want, now)
			if len(again.Chains) > 0 || len(again.Add) > 0 || len(again.Remove) > 0 {
				t.Fatalf("a second change is not empty: %+v", again)
			}
			// What was left alone has ended after some seconds.
			now = now.Add(5 * time.Second)
			f.end(now)
			if err := f.apply(forward.Diff(f.Table, want, now)); err != nil {
				t.Fatal(err)
			}
			for _, h := range f.Sessions {
				i := slices.IndexFunc(want.Sessions, func(w forward.Session) bool { return w.Compare(h) == 0 })
				if i < 0 || want.Sessions[i].Chain != h.Chain || h.Until.Sub(want.Sessions[i].Until) > 2*time.Second {
					if h.Until.Sub(now) < 3*time.Second {
						continue
					}
					t.Fatalf("session %v is not wanted", h)
				}
			}
			for _, w := range want.Sessions {
				i := slices.IndexFunc(f.Sessions, func(h forward.Session) bool { return w.Compare(h) == 0 })
				if w.Until.Sub(now) >= 3*time.Second && (i < 0 || w.Until.Sub(f.Sessions[i].Until) > 45*time.Second) {
					t.Fatalf("session %v is missing, or ends too early", w)
				}
			}
			now = now.Add(time.Duration(rapid.IntRange(0, 100).Draw(t, "pause")) * time.Second)
			f.end(now)
		}
	})
}

// TestAdopt has a relay forward what its kernel knows and it had not written down, and nothing for others.
func TestAdopt(t *testing.T) {
	in := pair()
	have := forward.Wanted(in)
	var written []path.Kept
	for _, k := range in.Bound {
		k.Rows = nil
		written = append(written, k)
	}
	relay := path.NewRelay([32]byte{1})
	relay.Restore(start, forward.Adopt(written, have))
	if at, verdict := relay.Forward(start, data(0x0a0b0c0d), in.Bound[0].Addr); at != in.Bound[1].Addr || verdict != path.Pass {
		t.Errorf("got %v, %v, want it forwarded to the other node", at, verdict)
	}
	if _, verdict := relay.Forward(start, data(7), in.Bound[0].Addr); verdict != path.NoRow {
		t.Errorf("got %v for an index of the other node, want that there is no row", verdict)
	}
	if diff := cmp.Diff(in.Bound, forward.Adopt(in.Bound, have), comparables); diff != "" {
		t.Errorf("what is known has changed:\n%s", diff)
	}
	if got := forward.Adopt(nil, have); len(got) > 0 {
		t.Errorf("got %v of nodes that are not known", got)
	}
}
