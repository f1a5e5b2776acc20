// SPDX-License-Identifier: Apache-2.0

package path

import (
	"net/netip"
	"testing"
	"time"
)

// TestCrowd has many hosts meet at once, some behind routers that take a first packet for their own. What one
// of them sends too early gives another host a new port there, and then all new flows of that host, too: to
// others, who don't know that port. Some can't meet at all, and try again and again.
func TestCrowd(t *testing.T) {
	for seed := uint64(10); seed < 15; seed++ {
		n := newInternet(seed)
		n.near = seed%2 == 0
		n.host(public, false, 0).relay = true
		n.host(public, false, 0).relay = true
		var crowd []*box
		for i, kind := range []natKind{preserving, preserving, preserving, restricted, symmetric, symmetric} {
			b := n.host(kind, i < 2, 1+i)
			b.router.collect = 20 * time.Second
			n.bind(b)
			for _, o := range crowd {
				n.connect(o, b, func() bool { return true })
			}
			crowd = append(crowd, b)
		}
		for _, a := range crowd {
			for _, b := range crowd {
				if a != b {
					n.after(time.Duration(n.rand.Int64N(int64(5*time.Second))), func() {
						n.send(a, a.addr.Port(), netip.AddrPortFrom(b.router.addr, b.addr.Port()), 0, datagram{author: a.num, to: b.num})
					})
				}
			}
		}
		n.run(5 * time.Minute)
		for i, a := range crowd {
			for _, b := range crowd[:i] {
				want := n.bestKind(a, b)
				if got, proved := a.machine[b.num].InUse(); got.Kind > want || !proved {
					t.Errorf("seed %d: %d, %v, uses %v to %d, %v (proved %t), want %v", seed, a.num, a.router.kind, got, b.num, b.router.kind, proved, want)
				}
			}
		}
	}
}
