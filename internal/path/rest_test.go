// SPDX-License-Identifier: Apache-2.0

package path

import (
	"testing"
	"time"
)

// restCase says which of two hosts rest the path, and whether there is a relay.
type restCase struct {
	first, second bool
	relay         bool
	want          Kind
}

// TestRest has two hosts behind NAT without traffic. While one of them rests the path they use a relay, if
// there is one, else the direct path is held. What is sent then arrives, and they are direct again.
func TestRest(t *testing.T) {
	tests := map[string]restCase{
		"neither":         {false, false, true, Direct},
		"the leader":      {true, false, true, Relayed},
		"the other end":   {false, true, true, Relayed},
		"both":            {true, true, true, Relayed},
		"without a relay": {true, true, false, Direct},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			testRest(t, newInternet(1), tt)
		})
	}
}

func testRest(t *testing.T, n *internet, tt restCase) {
	t.Helper()
	n.host(public, false, 0) // for gossip, and to see from where they come
	relay := n.host(public, false, 0)
	relay.relay = true
	a, b := n.host(restricted, false, 1), n.host(preserving, false, 2)
	busy := true
	n.bind(a)
	n.bind(b)
	n.connect(a, b, func() bool { return busy })
	use := func(when string, want Kind) {
		t.Helper()
		n.wantKind(t, when, a, b, want)
	}
	n.run(20 * time.Second)
	use("with traffic", Direct)
	relay.up = tt.relay
	a.rests, b.rests = tt.first, tt.second
	n.run(restAfter + time.Minute)
	use("with traffic, although it rests", Direct)
	busy = false
	n.run(restAfter - 10*time.Second)
	use("soon after the traffic", Direct)
	n.run(20 * time.Minute)
	use("without traffic", tt.want)
	before := len(n.log)
	n.run(20 * time.Minute)
	if len(n.log) != before {
		t.Errorf("without traffic something happens:\n%s", n.last(len(n.log)-before))
	}
	a.gap, a.last, b.gap, b.last = 0, n.now, 0, n.now
	busy = true
	n.run(5 * time.Second)
	if gap := max(a.gap, b.gap); gap > 500*ms {
		t.Errorf("when traffic begins nothing arrives for %v", gap)
	}
	use("with traffic again", Direct)
}

// TestRestOfOpenPaths: where strangers reach one end at least nothing rests, and where they reach both,
// nothing has to be held.
func TestRestOfOpenPaths(t *testing.T) {
	for _, tt := range []struct {
		there, here bool // strangers reach that end, as the other one says
		punched     bool
		pace        time.Duration
	}{
		{false, false, true, holdPace},
		{false, true, false, holdPace},
		{true, false, false, holdPace},
		{true, true, false, restPace},
	} {
		m := machineWith(true, directly)
		now := answering{directly: Direct}.run(m, epoch, 20*time.Second)
		m.SetCandidates(now, []Candidate{{directly, tt.there}})
		m.Receive(now, Message{Op: Ping, Look: Direct, Open: tt.here}, directly)
		if m.use.isPunched() != tt.punched || m.Holds() != tt.punched || m.pace(now) != tt.pace {
			t.Errorf("%+v: got punched %t, to be held %t, probed every %v", tt, m.use.isPunched(), m.Holds(), m.pace(now))
		}
	}
}

// TestRestStays: a punched path that answers is not used while it rests.
func TestRestStays(t *testing.T) {
	for _, rests := range []bool{false, true} {
		m := machineWith(true, firstHop)
		all := answering{firstHop: Relayed, directly: Direct}
		now := all.run(m, epoch, restAfter)
		m.SetRest(rests)
		m.SetCandidates(now, []Candidate{{firstHop, true}, {directly, false}})
		m.Receive(now, Message{Op: Ping, Look: Direct}, directly)
		all.run(m, now, 20*time.Second)
		if use, _ := m.InUse(); (use == firstHop) != rests {
			t.Errorf("rests %t: uses %v", rests, use)
		}
	}
}
