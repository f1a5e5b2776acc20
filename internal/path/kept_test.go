// SPDX-License-Identifier: Apache-2.0

package path

import (
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// TestRestore has a relay start again: sessions go on at once, without anything from the nodes,
// and nothing stays longer than it would have.
func TestRestore(t *testing.T) {
	g := guests(3)
	for _, c := range []struct {
		name    string
		jump    time.Duration // of the clock, while the relay is away
		after   time.Duration // since the restart
		forward bool
	}{
		{"at once", 0, 0, true},
		{"a minute later", time.Minute, 0, true},
		{"while the nodes are still bound", 0, boundFor - time.Second, true},
		{"long after", 0, boundFor, false},
		{"started late", boundFor, 0, false},
		{"clock set back", -time.Hour, 0, true},
		{"long after the clock was set back", -time.Hour, boundFor, false},
		{"clock set forward", time.Hour, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			old := bind(t, g[0], g[1])
			old.Learn(began, g[0].id, 5, g[1].id)
			old.Learn(began.Add(-rowFor), g[0].id, 6, g[1].id)
			old.Forward(began, handshake(initiation, initiationLen, 7, 0, g[0].key), g[1].addr)
			r := NewRelay([32]byte{8})
			now := began.Add(c.jump)
			r.Restore(now, old.Kept(began))
			now = now.Add(c.after)
			for _, index := range []uint32{5, 7} {
				if to, got := r.Forward(now, data(index), g[0].addr); (got == Pass && to == g[1].addr) != c.forward {
					t.Errorf("data with index %d: got verdict %d to %s, want it passed %t", index, got, to, c.forward)
				}
			}
			if _, got := r.Forward(now, data(6), g[0].addr); got == Pass {
				t.Error("a session that was forgotten is known again")
			}
			if to, got := r.Forward(now, handshake(initiation, initiationLen, 9, 0, g[1].key), g[0].addr); (got == Pass && to == g[1].addr) != c.forward {
				t.Errorf("initiation: got verdict %d to %s, want it passed %t", got, to, c.forward)
			}
			if !c.forward {
				return
			}
			// They bind again without a token, and nobody else does.
			if answer := r.Bind(now, g[0].id, g[0].key, Message{Op: Bind}, g[0].addr); answer.Token != (Token{}) {
				t.Error("a node whose address is proved is asked for a token")
			}
			if answer := r.Bind(now, g[1].id, g[1].key, Message{Op: Bind}, g[2].addr); answer.Token == (Token{}) {
				t.Error("a node at another address is not asked for a token")
			}
		})
	}
}

// TestSetKeys has nodes change while a relay is away.
func TestSetKeys(t *testing.T) {
	g := guests(3)
	r := NewRelay([32]byte{8})
	r.Restore(began, bind(t, g...).Kept(began))
	r.SetKeys(map[Short]wgtypes.Key{g[0].id: g[0].key, g[1].id: {9}})
	if !r.IsBound(began, g[0].id) || r.IsBound(began, g[1].id) || r.IsBound(began, g[2].id) {
		t.Errorf("bound: got %v, want the one whose key is the same", r.Nodes(began))
	}
}

// TestHostileKept has rows without end: the youngest ones of each node are kept.
func TestHostileKept(t *testing.T) {
	g := guests(64)
	r := bind(t, g...)
	const last = 1 << 20
	for _, one := range g {
		for i := range uint32(maxRows - 1) {
			r.Learn(began, one.id, i, g[0].id)
		}
		r.Learn(began.Add(time.Second), one.id, last, g[0].id)
	}
	all := r.Kept(began.Add(time.Second))
	Cut(all)
	rows := 0
	for _, k := range all {
		rows += len(k.Rows)
		if k.Rows[0].Index != last {
			t.Fatalf("the first row kept is %v, want the youngest one", k.Rows[0])
		}
	}
	if rows > maxKept || len(all) != len(g) {
		t.Errorf("got %d nodes with %d rows, want %d and no more than %d", len(all), rows, len(g), maxKept)
	}

	many := guests(maxBound + 1)
	tooMany := make([]KeptRow, 2*maxRows)
	for i := range tooMany {
		tooMany[i] = KeptRow{Index: uint32(i), Until: began.Add(time.Minute)}
	}
	var kept []Kept
	for _, one := range many {
		kept = append(kept, Kept{Node: one.id, Addr: one.addr, Until: began.Add(time.Hour), Rows: tooMany[:1]})
	}
	kept[0].Rows = tooMany
	r = NewRelay([32]byte{8})
	if r.Restore(began, kept); len(r.bound) != maxBound {
		t.Errorf("restored: got %d nodes, want %d", len(r.bound), maxBound)
	}
	if got := len(r.bound[many[0].id].rows); got != maxRows {
		t.Errorf("restored: got %d rows of a node, want %d", got, maxRows)
	}

	// What has ended takes no room.
	r = bind(t, g[:2]...)
	r.Learn(began, g[0].id, 1, g[1].id)
	r.bound[g[0].id].until = began.Add(time.Hour)
	if r.Kept(began.Add(rowFor)); len(r.bound[g[0].id].rows) != 0 {
		t.Error("a row that has ended stays")
	}
}

func BenchmarkKept(b *testing.B) {
	g := guests(200)
	r := bind(b, g...)
	for i, one := range g {
		for n := range uint32(400) {
			r.Learn(began, one.id, n<<8|uint32(i), g[n%200].id)
		}
	}
	for b.Loop() {
		Cut(r.Kept(began))
	}
}
