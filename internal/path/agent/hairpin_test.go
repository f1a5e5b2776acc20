// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"testing"
	"testing/synctest"
)

// TestHairpin has a router pass back what a host sends to its own public address, and not pass it.
func TestHairpin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		a, b := w.host(t, 1, addrA), w.host(t, 2, addrB)
		a.start(t)
		b.start(t)
		own := netip.MustParseAddrPort(addrA)
		if !a.Hairpin(t.Context(), own) {
			t.Error("to itself: does not come back")
		}
		if a.Hairpin(t.Context(), netip.MustParseAddrPort(addrB)) {
			t.Error("to somebody else: comes back")
		}
		w.mu.Lock()
		w.cut[own] = true
		w.mu.Unlock()
		if a.Hairpin(t.Context(), own) {
			t.Error("cut: comes back")
		}
		a.inRun(func() {
			if len(a.loops) > 0 {
				t.Errorf("got %d datagrams that are waited for, want none", len(a.loops))
			}
		})
		a.stop()
		if a.Hairpin(t.Context(), own) {
			t.Error("after its end: comes back")
		}
	})
}
