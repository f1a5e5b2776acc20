// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestMTU has a host behind a narrow link, and its peer not. What is found out is told, and follows
// the tunnel's MTU.
func TestMTU(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		a, b := w.host(t, 1, addrA), w.host(t, 2, addrB)
		a.mtu = 1352
		a.add(b, addrB)
		b.add(a, addrA)
		a.start(t)
		b.start(t)
		toA, toB := a.peer(direct(addrA)), b.peer(direct(addrB))
		toA.MTU, toB.MTU = 1420, 1420
		a.SetPeers([]Peer{toB})
		b.SetPeers([]Peer{toA})
		check := func(from, to *host, want int) {
			t.Helper()
			if got := from.statusOf(t, to).MTU; got != want {
				t.Errorf("MTU from %v to %v: got %d, want %d", from.id, to.id, got, want)
			}
		}
		time.Sleep(time.Minute)
		check(a, b, 1312)
		check(b, a, 1420)
		for { // a channel that holds one value
			select {
			case <-a.Changed():
				continue
			default:
			}
			break
		}
		toB.MTU = 1300
		a.SetPeers([]Peer{toB})
		check(a, b, 0)
		time.Sleep(10 * time.Second)
		check(a, b, 1300)
		select {
		case <-a.Changed():
		default:
			t.Error("nothing is told of a new MTU")
		}
	})
}
