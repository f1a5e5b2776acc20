// SPDX-License-Identifier: Apache-2.0

package path

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// maxKept bounds how many rows are kept of all nodes together, see Relay.Kept. 200 nodes that
// all reach each other through one relay have 80,000.
const maxKept = 1 << 17

// Kept is what a relay knows of a node that is bound: all that it needs to forward again at once
// after a restart. The token of a node that is bound has been spent, and that the node is at the
// address stays proved for as long as without a restart.
type Kept struct {
	Node  Short          `cbor:"1,keyasint"`
	Key   wgtypes.Key    `cbor:"2,keyasint"`
	Addr  netip.AddrPort `cbor:"3,keyasint"`
	Until time.Time      `cbor:"4,keyasint"`
	Rows  []KeptRow      `cbor:"5,keyasint"`
	// Local is the address of the relay's host at which the node reaches it. It is left to
	// whoever has the socket.
	Local netip.Addr `cbor:"6,keyasint"`
}

// KeptRow says for whom packets with an index are.
type KeptRow struct {
	_     struct{} `cbor:",toarray"`
	Index uint32
	To    Short
	Until time.Time
}

// Kept returns what Restore takes after a restart, by node, see Cut.
func (r *Relay) Kept(now time.Time) []Kept {
	// The clock that counts while the relay runs is unknown to the next one.
	onClock := func(t time.Time) time.Time { return now.Round(0).Add(t.Sub(now)) }
	nodes := r.Nodes(now)
	all := make([]Kept, 0, len(nodes))
	for _, node := range nodes {
		b := r.bound[node]
		k := Kept{Node: node, Key: b.key, Addr: b.addr, Until: onClock(b.until)}
		for index, found := range b.rows {
			if !now.Before(found.until) {
				delete(b.rows, index)
				continue
			}
			k.Rows = append(k.Rows, KeptRow{Index: index, To: found.to, Until: onClock(found.until)})
		}
		all = append(all, k)
	}
	return all
}

// Cut sorts the rows of each node, the youngest first, and leaves out the oldest ones if there are
// too many.
func Cut(all []Kept) {
	for i := range all {
		k := &all[i]
		slices.SortFunc(k.Rows, func(a, b KeptRow) int { return cmp.Or(b.Until.Compare(a.Until), cmp.Compare(a.Index, b.Index)) })
		k.Rows = k.Rows[:min(len(k.Rows), maxKept/len(all))]
	}
}

// Restore has a new relay go on with what the one before knew. Nothing stays longer than if it
// were new, even if the clock was set back meanwhile.
func (r *Relay) Restore(now time.Time, all []Kept) {
	for _, k := range all {
		left := min(k.Until.Sub(now), boundFor)
		if left <= 0 || !k.Addr.IsValid() || len(r.bound) >= maxBound {
			continue
		}
		b := r.bind(now, k.Node, k.Key, k.Addr)
		b.until = now.Add(left)
		for _, kept := range k.Rows[:min(len(k.Rows), maxRows)] {
			if left := min(kept.Until.Sub(now), rowFor); left > 0 {
				b.rows[kept.Index] = row{kept.To, now.Add(left)}
			}
		}
	}
}
