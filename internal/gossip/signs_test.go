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
	a.SetAddresses(map[mesh.ID][]netip.AddrPort{b.self: {b.Addr(), netip.MustParseAddrPort("10.4.0.2:7946")}}, nil)
	if heard := a.LastHeard(); len(heard) > 0 {
		t.Fatalf("before it asks: got %v, want nothing heard", heard)
	}
	before := time.Now()
	for a.LastHeard()[b.self].Before(before) {
		if time.Since(before) > time.Minute {
			t.Fatal("no sign of life")
		}
		a.RequestSigns([]mesh.ID{b.self, {9}})
		time.Sleep(10 * time.Millisecond)
	}
	if b.LastHeard()[a.self].Before(before) {
		t.Error("who was asked has not heard who asked")
	}
}
