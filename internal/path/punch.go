// SPDX-License-Identifier: Apache-2.0

package path

import "time"

// Two ends behind NAT or a firewall reach each other only if each sends first. But a
// packet that arrives at a router before its host has sent one may be taken for one to the
// router itself, whose connection tracking then gives the host's own packet another
// port. So both send packets that die on the way (their TTL is low) to open their own
// side, and tell each other so, before any probe goes all the way:
//
//	leader                        follower
//	   CALL over a path that works, or gossip ─►
//	                              opens its side
//	   ◄─ CALLED
//	opens its side
//	   CALLED ─►
//	probes for 4 s                probes for 4 s
//
// What comes too early all the same holds a port of the router for 30 s, and Linux then gives the
// host's new flows another one, to whomever they go, which nobody has been told (find_appropriate_src).
// So after a failure all pairs with traffic try again at the same time, by their clocks: routers forget in
// between.
const (
	punchPace  = 100 * time.Millisecond
	punchSlow  = 400 * time.Millisecond // where another attempt is in no hurry: there may be many of these at once
	punchFor   = 4 * time.Second
	punchQuiet = 35 * time.Second // after a failure: conntrack forgets an unanswered UDP flow after 30 s
	punchRound = time.Minute      // and what it has forgotten counts until it is collected, some time later
	lowTTL     = 2                // beyond the own router
	higherTTL  = 5                // beyond a carrier's, too; every fourth round
	maxCalls   = 5                // that are repeated soon if not answered: after 8, 12, 20, 36 s
	openings   = 2                // packets that open the own side, for each candidate
	// A peer may call so often at once, and then once in punchQuiet: its candidates may be
	// addresses of others, who would get some hundred probes for each call.
	maxAttempts = 5
)

// punch is the state of punching.
type punch struct {
	attempts int
	began    time.Time // of the last attempt
	opened   bool      // this side is open, in this attempt
	until    time.Time // until when probes go all the way
	last     time.Time // when a probe went all the way to where strangers may not reach the peer, last
	next     time.Time
	over     Path // the path over which calls go
	// asked is how many attempts the peer has called for, less one for each punchQuiet that has
	// passed, as of the time counted.
	asked   float64
	counted time.Time
}

// allow reports whether the peer may call for another attempt, and counts it.
func (p *punch) allow(now time.Time) bool {
	p.asked = max(0, p.asked-now.Sub(p.counted).Seconds()/punchQuiet.Seconds())
	p.counted = now
	if p.asked > maxAttempts-1 {
		return false
	}
	p.asked++
	return true
}

// called takes a Call or a Called of the peer.
func (m *Machine) called(now time.Time, msg Message, over Path) []Action {
	p := &m.punch
	if msg.Op == Call {
		if now.Sub(p.began) < punchFor {
			return nil // an attempt is under way
		}
		if !p.allow(now) {
			return nil
		}
		p.begin(now, over)
		return m.open(now)
	}
	if !p.until.IsZero() {
		return nil // the probes of this attempt have begun, and are not to be prolonged
	}
	p.over = over
	var actions []Action
	if !p.opened {
		actions = m.open(now)
	}
	p.until, p.next = now.Add(punchFor), now
	return actions
}

func (p *punch) begin(now time.Time, over Path) {
	p.attempts++
	p.began, p.opened, p.until, p.over = now, false, time.Time{}, over
}

// open sends the packets that open this side, and says so.
func (m *Machine) open(now time.Time) []Action {
	p := &m.punch
	p.opened = true
	ttl := lowTTL
	if p.attempts > 1 && now.Unix()/int64(punchRound.Seconds())%4 == 0 {
		ttl = higherTTL
	}
	var actions []Action
	for range openings {
		for _, w := range m.ways {
			if m.closed(w, now) {
				msg := m.message(Ping, w) // never answered: its number is not remembered
				actions = append(actions, Action{Path: w.Path, Message: msg, TTL: ttl})
			}
		}
	}
	for _, w := range m.ways {
		if w.Path.Straight() && w != m.use {
			w.search, w.probed, w.misses = now.Add(punchFor), time.Time{}, 0 // what it has missed was before
		}
	}
	return append(actions, m.call(Called, p.over))
}

// closed reports whether a way needs punching.
func (m *Machine) closed(w *way, now time.Time) bool { return w != m.use && !m.isOpen(w, now) }

// punching begins an attempt if one is due, and sends its probes.
func (m *Machine) punching(now time.Time) []Action {
	p := &m.punch
	if now.Before(p.until) {
		if now.Before(p.next) {
			return nil
		}
		p.next = now.Add(punchPace)
		if p.attempts > 1 && m.works(now) && !m.isBusy(now) {
			p.next = now.Add(punchSlow)
		}
		var actions []Action
		for _, w := range m.ways {
			if m.closed(w, now) {
				actions = append(actions, m.probe(now, w))
			}
		}
		return actions
	}
	if !m.leads || !m.wantsPunch(now) {
		return nil
	}
	p.begin(now, m.callPath(now))
	return []Action{m.call(Call, p.over)}
}

// callPath is the path in use if the peer answers on it, else that of gossip.
func (m *Machine) callPath(now time.Time) Path {
	if m.works(now) {
		return m.use.Path
	}
	return Path{}
}

func (m *Machine) call(op Op, over Path) Action {
	return Action{Path: over, Message: m.message(op, m.find(over))}
}

// works reports whether the peer answers on the path in use.
func (m *Machine) works(now time.Time) bool {
	return m.use != nil && m.use.misses < nextMisses && !m.use.answered.IsZero()
}

// wantsPunch reports whether the leader is to call now: there is no straight path that works, and
// one might be opened.
func (m *Machine) wantsPunch(now time.Time) bool {
	if m.works(now) && m.use.Path.Straight() || m.rests(now) {
		return false
	}
	closed := false
	for _, w := range m.ways {
		closed = closed || m.closed(w, now)
	}
	if !closed {
		return false
	}
	quiet := punchQuiet
	switch {
	case m.punch.attempts == 0:
		return now.Sub(m.punch.began) >= punchFor
	case !m.punch.opened && m.punch.attempts < maxCalls:
		// The call was lost, or the peer does not know this node yet. No probe has gone to its
		// side, so there is nothing to be forgotten.
		quiet = punchFor << (m.punch.attempts - 1)
	case m.isBusy(now):
		return !now.Before(m.punch.nextRound())
	case m.punch.attempts == 1 && !m.works(now):
		quiet = searchIdle
	default:
		quiet = searchLate
	}
	return now.Sub(m.punch.began) >= punchFor+quiet
}

// nextRound returns when the next attempt begins after one that has failed: with those of all other
// nodes, or if they begin too soon, once by itself.
func (p *punch) nextRound() time.Time {
	soonest := p.began.Add(punchFor + punchQuiet)
	if quiet := p.last.Add(punchQuiet); quiet.After(soonest) {
		soonest = quiet
	}
	if round := p.began.Truncate(punchRound).Add(punchRound); round.After(soonest) {
		return round
	}
	return soonest
}
