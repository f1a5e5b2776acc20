// SPDX-License-Identifier: Apache-2.0

package path

import (
	"testing"
	"time"
)

// TestReport has two hosts lose a fifth of the datagrams, and compares what a machine tells
// with what is.
func TestReport(t *testing.T) {
	n := newInternet(1)
	n.host(public, false, 0).relay = true
	a, b := n.host(public, false, 1), n.host(public, false, 2)
	n.bind(a)
	n.bind(b)
	n.connect(a, b, func() bool { return true })
	n.run(60 * time.Second)
	r := a.machine[b.num].Report(n.now)
	delay := n.delay(a.num, b.num) + n.delay(b.num, a.num)
	if r.Path.Addr != b.addr || !r.Proved || r.Loss != 0 || (r.RTT-delay).Abs() > 5*time.Millisecond || n.now.Sub(r.Since) > time.Minute {
		t.Errorf("got %+v, want %v, proved, without loss, round trip %v", r, b.addr, delay)
	}
	if !a.machine[b.num].IsActive(n.now) {
		t.Error("with traffic: got not active")
	}
	if len(r.Tried) != 2 || r.Tried[0].Path != r.Path || r.Tried[0].Answered.IsZero() || !r.Tried[1].Open || r.Tried[1].Path.Kind != Relayed {
		t.Errorf("got tried %+v, want the path in use and a relayed one", r.Tried)
	}
	n.loss = 0.2
	n.run(60 * time.Second)
	if r := a.machine[b.num].Report(n.now); r.Loss < 0.1 || r.Loss > 0.7 { // of two ways, and in bursts
		t.Errorf("got loss %v, want a third", r.Loss)
	}
}

// TestReceived: a handshake that a peer begins is no sign that packets pass both ways.
func TestReceived(t *testing.T) {
	m := NewMachine(true, Traffic{Endpoint: directly.Addr}, epoch)
	received := func(after time.Duration, bytes uint64) time.Duration {
		m.Observe(epoch.Add(after), Traffic{Received: bytes, Endpoint: directly.Addr})
		return m.Report(epoch.Add(after)).Received.Sub(epoch)
	}
	if got := received(time.Second, initiationLen); got > 0 {
		t.Errorf("after the peer has begun: got %s", got)
	}
	if got := received(2*time.Second, initiationLen+responseLen); got != 2*time.Second {
		t.Errorf("after it has answered: got %s, want 2s", got)
	}
	if got := received(3*time.Second, 2*initiationLen+responseLen); got != 2*time.Second {
		t.Errorf("after it has begun again: got %s, want 2s", got)
	}
}

// TestOutcomes: a path is lossy by more than a fifth of what was lost lately, and clean if nothing was, of enough.
func TestOutcomes(t *testing.T) {
	var o outcomes
	want := func(when string, lossy, clean bool) {
		t.Helper()
		if o.isLossy() != lossy || o.isClean() != clean {
			t.Errorf("%s: got lossy %t, clean %t, want %t, %t", when, o.isLossy(), o.isClean(), lossy, clean)
		}
	}
	add := func(times int, answered bool) {
		for range times {
			o.add(answered)
		}
	}
	add(cleanProbes-1, true)
	want("of few", false, false)
	add(1, true)
	want("of enough", false, true)
	add(lossyProbes-1, false)
	want("with a fifth lost", false, false)
	add(1, false)
	want("with more lost", true, false)
	add(32-lossyProbes+1, true)
	want("after some answers", false, false)
	add(lossyProbes-1, true)
	want("after 32 answers", false, true)
}
