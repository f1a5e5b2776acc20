// SPDX-License-Identifier: Apache-2.0

package ping

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/meshd/meshd/internal/probe"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The kernel answers on loopback addresses. Nothing can be sent from 192.0.2.1 (RFC 5737),
// because this host does not have that address.
func TestProber(t *testing.T) {
	pace := probe.Pace{Interval: 20 * time.Millisecond, Misses: 3}
	p := Start(t.Context(), Options{Pace: pace})
	defer p.Stop()
	v4, v6 := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")
	answering := []probe.Target{{Addr: v4}, {Addr: netip.MustParseAddr("127.0.0.2"), Source: netip.MustParseAddr("127.0.0.3")}, {Addr: v6, Source: v6}}
	unanswered := probe.Target{Addr: v4, Source: netip.MustParseAddr("192.0.2.1")}
	p.SetTargets([]probe.ScheduledTarget{{Target: answering[0]}, {Target: answering[1]}, {Target: answering[2]}, {Target: unanswered}}, pace)
	await(t, p, "answers", func() bool {
		r := p.Results()
		for _, w := range answering {
			if r[w].Answered.IsZero() || r[w].RTT <= 0 || r[w].Misses > 0 {
				return false
			}
		}
		return r[unanswered].Misses >= 3 && r[unanswered].Answered.IsZero()
	})
	p.SetTargets([]probe.ScheduledTarget{{Target: answering[0]}}, pace)
	if got := len(p.Results()); got != 1 {
		t.Errorf("after targets were removed: got %d results, want 1", got)
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

func TestPingOnce(t *testing.T) {
	p := Start(t.Context(), Options{Pace: probe.Pace{Interval: time.Hour, Misses: 3}})
	defer p.Stop()
	var targets []probe.Target
	for i := range 120 {
		targets = append(targets, probe.Target{Addr: netip.AddrFrom4([4]byte{127, 0, 1, byte(i)})})
	}
	rtt, err := p.PingOnce(t.Context(), targets)
	if err != nil || len(rtt) != len(targets) {
		t.Errorf("got %d answers and %v, want %d", len(rtt), err, len(targets))
	}
	// With a target that does not answer, PingOnce waits until ctx ends.
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	unanswered := probe.Target{Addr: netip.MustParseAddr("127.0.0.1"), Source: netip.MustParseAddr("192.0.2.1")}
	if rtt, err := p.PingOnce(ctx, []probe.Target{unanswered}); err != nil || len(rtt) != 0 || ctx.Err() == nil {
		t.Errorf("got %v, %v and ctx %v, want no answer after the whole time", rtt, err, ctx.Err())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.rounds) != 0 {
		t.Error("the state of a finished sweep is still there")
	}
}
