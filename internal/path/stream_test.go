// SPDX-License-Identifier: Apache-2.0

package path

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

// answering is a peer that answers on some paths, with a kind of its own for each.
type answering map[Path]Kind

// run has a machine run for a while without traffic.
func (a answering) run(m *Machine, from time.Time, d time.Duration) time.Time {
	end := from.Add(d)
	for now := from; ; {
		for _, act := range m.Step(now) {
			if far, ok := a[act.Path]; ok && act.Message.Op == Ping {
				m.Receive(now.Add(10*time.Millisecond), Message{Op: Pong, Number: act.Message.Number, Look: far}, act.Path)
			}
		}
		next := m.Next(now)
		if least := now.Add(20 * time.Millisecond); next.Before(least) {
			next = least
		}
		if next.After(end) {
			return end
		}
		now = next
	}
}

var (
	epoch     = time.Unix(1e9, 0)
	byStream  = Path{Kind: Stream, Addr: netip.MustParseAddrPort("127.0.0.1:1001")}
	directly  = Path{Kind: Direct, Addr: netip.MustParseAddrPort("203.0.113.1:51820")}
	firstHop  = Path{Kind: Relayed, Relay: Short{1}, Addr: netip.MustParseAddrPort("203.0.113.1:7946")}
	secondHop = Path{Kind: Relayed, Relay: Short{2}, Addr: netip.MustParseAddrPort("203.0.113.2:7946")}
)

func machineWith(leads bool, paths ...Path) *Machine {
	m := NewMachine(leads, Traffic{}, epoch)
	var all []Candidate
	for _, p := range paths {
		all = append(all, Candidate{Path: p, Open: true})
	}
	m.SetCandidates(epoch, all)
	return m
}

// An idle machine whose path is a stream, or a relayed one although strangers reach the peer,
// tries the direct path every minute.
func TestDirectIsTriedAgain(t *testing.T) {
	for before, kind := range map[Path]Kind{byStream: Stream, firstHop: Relayed} {
		m := machineWith(true, before, directly)
		now := answering{before: kind}.run(m, epoch, time.Hour)
		if use, proved := m.InUse(); use != before || !proved {
			t.Fatalf("uses %v, proved %t, want %v", use, proved, before)
		}
		answering{before: kind, directly: Direct}.run(m, now, searchBusy+5*time.Second)
		if use, _ := m.InUse(); use != directly {
			t.Errorf("uses %v, want the direct path, which works for more than a minute", use)
		}
	}
}

// A relayed path is over TCP if it is so for the peer, and then one that is not is better.
func TestKindOfTheWorseEnd(t *testing.T) {
	m := machineWith(true, firstHop, secondHop)
	now := answering{firstHop: Stream}.run(m, epoch, 10*time.Second)
	if r := m.Report(now); r.Path != firstHop || r.Kind() != Stream {
		t.Fatalf("uses %v, kind %v, want %v over TCP", r.Path, r.Kind(), firstHop)
	}
	now = answering{firstHop: Stream, secondHop: Relayed}.run(m, now, 2*searchBusy)
	if r := m.Report(now); r.Path != secondHop || r.Kind() != Relayed {
		t.Errorf("uses %v, kind %v, want %v", r.Path, r.Kind(), secondHop)
	}
	if (Report{Path: directly, Far: LAN}).Kind() != Direct {
		t.Error("a straight path is of this end's kind")
	}
}

// WireGuard's endpoint on the loopback is a stream, whether it comes from before or from where a
// peer's packets came.
func TestLoopbackIsAStream(t *testing.T) {
	m := NewMachine(true, Traffic{Endpoint: byStream.Addr}, epoch)
	if use, _ := m.InUse(); use != byStream {
		t.Errorf("begins with %v, want %v", use, byStream)
	}
	m = machineWith(true, directly)
	m.Observe(epoch, Traffic{Received: 1, Endpoint: byStream.Addr})
	answering{byStream: Stream, directly: Direct}.run(m, epoch, 10*time.Second)
	if use, _ := m.InUse(); use != directly {
		t.Errorf("uses %v, want %v, although there is a stream", use, directly)
	}
	tried := false
	for _, w := range m.Report(epoch).Tried {
		tried = tried || w.Path == byStream && !w.Answered.IsZero()
	}
	if !tried {
		t.Error("the stream is not tried")
	}
}

// A peer that was made anew in WireGuard counts from 0, and its first handshake is no traffic.
func TestCountersBeginAnew(t *testing.T) {
	m := machineWith(true, directly)
	m.Observe(epoch, Traffic{Sent: 5000, Received: 5000, Endpoint: directly.Addr})
	later := epoch.Add(time.Minute)
	m.Observe(later, Traffic{Sent: 148, Endpoint: directly.Addr})
	if m.isBusy(later) {
		t.Error("a handshake is taken for data")
	}
	m.Observe(later, Traffic{Sent: 1000, Received: 92, Endpoint: directly.Addr})
	if !m.isBusy(later) || m.received != later {
		t.Error("data is not noticed")
	}
}

// A peer that moves again and again is followed, also by an end that only answers.
func TestPeerMovesOften(t *testing.T) {
	m := NewMachine(false, Traffic{}, epoch)
	now := epoch
	for i := range 2 * maxLearned {
		at := Path{Kind: Direct, Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), 4000)}
		for range 48 {
			m.Receive(now, Message{Op: Ping, Number: 1, Look: Direct, Use: Direct, This: true}, at)
			now = answering{at: Direct}.run(m, now, holdPace)
		}
		if use, _ := m.InUse(); use != at {
			t.Errorf("after %d moves: uses %v, want %v", i, use, at)
		}
	}
}

// An end that waits for the leader's probes asks by itself when none comes for long.
func TestForsakenFollower(t *testing.T) {
	m := machineWith(false, directly)
	now := answering{directly: Direct}.run(m, epoch, 20*time.Second)
	if _, proved := m.InUse(); !proved {
		t.Fatal("the path is not proved at first")
	}
	answering{}.run(m, now, 5*time.Minute)
	if _, proved := m.InUse(); proved {
		t.Error("a path on which nothing has come for minutes is proved")
	}
}

// What the leader has said of a path counts as long as it is there.
func TestWantedPathIsForgotten(t *testing.T) {
	m := machineWith(false, directly, firstHop)
	now := answering{directly: Direct}.run(m, epoch, 20*time.Second)
	m.Receive(now, Message{Op: Ping, Number: 1, Look: Relayed, Use: Relayed, This: true}, firstHop)
	m.Receive(now, Message{Op: Ping, Number: 2, Look: Direct, Use: Direct, This: true}, directly)
	now = answering{directly: Direct}.run(m, now, 10*time.Second)
	m.prove(now, m.find(firstHop))
	answering{directly: Direct, firstHop: Relayed}.run(m, now, time.Second)
	if use, _ := m.InUse(); use != directly {
		t.Errorf("uses %v, want %v", use, directly)
	}
}

// A round trip that grows, as over a line that is full, is not taken for loss.
func TestRoundTripGrows(t *testing.T) {
	m := machineWith(true, directly, firstHop)
	now := answering{directly: Direct, firstHop: Relayed}.run(m, epoch, 20*time.Second)
	type answer struct {
		at   time.Time
		over Path
		msg  Message
	}
	var coming []answer
	for end := now.Add(2 * time.Minute); now.Before(end); now = now.Add(20 * time.Millisecond) {
		for _, act := range m.Step(now) {
			if act.Message.Op == Ping {
				coming = append(coming, answer{now.Add(600 * time.Millisecond), act.Path, Message{Op: Pong, Number: act.Message.Number}})
			}
		}
		for len(coming) > 0 && !coming[0].at.After(now) {
			m.Receive(now, coming[0].msg, coming[0].over)
			coming = coming[1:]
		}
		if use, proved := m.InUse(); use != directly || !proved {
			t.Fatalf("after %v: uses %v, proved %t", now.Sub(epoch), use, proved)
		}
	}
	if misses := m.use.misses; misses > 0 {
		t.Errorf("%d probes count as missed in the end", misses)
	}
}

// A path whose answers take longer than a probe may is used all the same if there is no other one, and
// is left for a faster one, of whatever kind.
func TestSlowPath(t *testing.T) {
	type answer struct {
		at   time.Time
		over Path
		msg  Message
	}
	m := machineWith(true, byStream, firstHop)
	now, coming := epoch, []answer(nil)
	run := func(d time.Duration, takes map[Path]time.Duration) {
		sent := uint64(0)
		for end := now.Add(d); now.Before(end); now = now.Add(20 * time.Millisecond) {
			sent += 100
			use, _ := m.InUse()
			m.Observe(now, Traffic{Sent: sent, Received: sent, Endpoint: use.Addr})
			for _, act := range m.Step(now) {
				if after, ok := takes[act.Path]; ok && act.Message.Op == Ping {
					coming = append(coming, answer{now.Add(after), act.Path, Message{Op: Pong, Number: act.Message.Number, Look: act.Path.Kind}})
				}
			}
			coming = slices.DeleteFunc(coming, func(a answer) bool {
				if a.at.After(now) {
					return false
				}
				m.Receive(now, a.msg, a.over)
				return true
			})
		}
	}
	run(30*time.Second, map[Path]time.Duration{firstHop: 2500 * time.Millisecond})
	if use, proved := m.InUse(); use != firstHop || !proved {
		t.Errorf("uses %v, proved %t, want the slow path, which is the only one", use, proved)
	}
	run(2*time.Minute, map[Path]time.Duration{firstHop: 2500 * time.Millisecond, byStream: 20 * time.Millisecond})
	if use, _ := m.InUse(); use != byStream {
		t.Errorf("uses %v, want the faster path", use)
	}
	run(5*time.Minute, map[Path]time.Duration{firstHop: 50 * time.Millisecond, byStream: 20 * time.Millisecond})
	if use, _ := m.InUse(); use != firstHop {
		t.Errorf("uses %v, want the relay, which is fast again", use)
	}
}
