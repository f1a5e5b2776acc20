// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"net/netip"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// Two nodes that have never met hear of each other only because one asks.
func TestAsk(t *testing.T) {
	t.Parallel()
	a, b := startNode(t, 0, nil), startNode(t, 1, nil)
	a.SetPaths(map[mesh.ID][]netip.AddrPort{b.self: {b.Addr(), netip.MustParseAddrPort("10.4.0.2:7946")}})
	if heard := a.Heard(); len(heard) > 0 {
		t.Fatalf("before it asks: got %v, want nothing heard", heard)
	}
	before := time.Now()
	for a.Heard()[b.self].Before(before) {
		if time.Since(before) > time.Minute {
			t.Fatal("no sign of life")
		}
		a.Ask([]mesh.ID{b.self, {9}})
		time.Sleep(10 * time.Millisecond)
	}
	if b.Heard()[a.self].Before(before) {
		t.Error("who was asked has not heard who asked")
	}
}
