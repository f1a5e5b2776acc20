// SPDX-License-Identifier: Apache-2.0

package path

import (
	"net/netip"
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
	m := NewMachine(leads, netip.AddrPort{}, epoch)
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
	m := NewMachine(true, byStream.Addr, epoch)
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
