// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The kernel answers on the loopback; from 192.0.2.1 (RFC 5737), which is no
// address of this host, nothing can be sent.
func TestProber(t *testing.T) {
	pace := Pace{20 * time.Millisecond, 3}
	p := Start(t.Context(), Options{Pace: pace})
	defer p.Stop()
	v4, v6 := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")
	well := []Target{{Addr: v4}, {Addr: netip.MustParseAddr("127.0.0.2"), Source: netip.MustParseAddr("127.0.0.3")}, {Addr: v6, Source: v6}}
	gone := Target{Addr: v4, Source: netip.MustParseAddr("192.0.2.1")}
	p.Aim([]Aim{{Target: well[0]}, {Target: well[1]}, {Target: well[2]}, {Target: gone}}, pace)
	await(t, p, "answers", func() bool {
		r := p.Results()
		for _, w := range well {
			if r[w].Answered.IsZero() || r[w].RTT <= 0 || r[w].Misses > 0 {
				return false
			}
		}
		return r[gone].Misses >= 3 && r[gone].Answered.IsZero()
	})
	p.Aim([]Aim{{Target: well[0]}}, pace)
	if got := len(p.Results()); got != 1 {
		t.Errorf("after targets were taken away: got %d results, want 1", got)
	}
	if err := p.Err(); err != nil {
		t.Errorf("got %v, want no error", err)
	}
}

func await(t *testing.T, p *Prober, what string, done func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for !done() {
		select {
		case <-p.Changed():
		case <-time.After(50 * time.Millisecond):
		case <-deadline:
			t.Fatalf("no %s: %+v", what, p.Results())
		}
	}
}

func TestSweep(t *testing.T) {
	p := Start(t.Context(), Options{Pace: Pace{time.Hour, 3}})
	defer p.Stop()
	var targets []Target
	for i := range 120 {
		targets = append(targets, Target{Addr: netip.AddrFrom4([4]byte{127, 0, 1, byte(i)})})
	}
	rtt, err := p.Sweep(t.Context(), targets)
	if err != nil || len(rtt) != len(targets) {
		t.Errorf("got %d answers and %v, want %d", len(rtt), err, len(targets))
	}
	// One that does not answer makes it wait as long as it may.
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	gone := Target{Addr: netip.MustParseAddr("127.0.0.1"), Source: netip.MustParseAddr("192.0.2.1")}
	if rtt, err := p.Sweep(ctx, []Target{gone}); err != nil || len(rtt) != 0 || ctx.Err() == nil {
		t.Errorf("got %v and %v, want to have waited for an answer in vain", rtt, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.sweeps) != 0 {
		t.Error("the sweep is not forgotten")
	}
}
