// SPDX-License-Identifier: Apache-2.0

package path

import (
	"net/netip"
	"slices"
	"time"
)

// Step returns what is to be done now. It is called whenever something has happened, and at
// the time that Next returns.
func (m *Machine) Step(now time.Time) []Action {
	for _, w := range m.ways {
		m.expire(now, w)
	}
	if m.got.take(now, readFor) {
		m.used = now
	}
	m.leaveDead(now)
	m.improve(now)
	m.goToRest(now)
	m.plan(now)
	var actions []Action
	for _, w := range m.ways {
		if due, ok := m.due(now, w); ok && !due.After(now) {
			actions = append(actions, m.probe(now, w))
		}
	}
	if m.elsewhere {
		m.elsewhere = false
		actions = append(actions, m.Ask(now)...)
	}
	actions = append(actions, m.punching(now)...)
	actions = append(actions, m.renewing(now)...)
	actions = append(actions, m.fitting(now)...)
	if a, ok := m.endpoint(now); ok {
		actions = append(actions, a)
	}
	return actions
}

// expire counts the probes that were not answered in time.
func (m *Machine) expire(now time.Time, w *way) {
	for len(w.pending) > 0 && now.Sub(w.pending[0].at) >= w.timeout() {
		w.expired = append(w.expired, w.pending[0])
		if len(w.expired) > maxExpired {
			w.expired = w.expired[1:]
		}
		w.pending = w.pending[1:]
		w.misses++
		w.answers = 0
		w.outcomes.add(false)
	}
}

// probe sends a ping and plans the next one.
func (m *Machine) probe(now time.Time, w *way) Action {
	m.number++
	w.pending = append(w.pending, ping{m.number, now})
	msg := m.message(Ping, w)
	msg.Number, msg.Seen = m.number, m.sees(w)
	if !m.silent.IsZero() {
		msg.Silence = now.Sub(m.silent)
	}
	w.probed = now
	if w != m.use && w.Path.Straight() && !w.Open {
		m.punch.last = now
	}
	return Action{Path: w.Path, Message: msg}
}

// sees returns the address of a direct path if it is where the peer sends from. Of an idle path only one
// end probes, and the other one, which gets no Pong, would not learn that it is seen elsewhere now.
func (m *Machine) sees(w *way) netip.AddrPort {
	later := func(o *way) bool {
		return o.kind() == Direct && o.Path.Addr.Addr().Is4() == w.Path.Addr.Addr().Is4() && o.heard.After(w.heard)
	}
	if w.kind() != Direct || w.heard.IsZero() || slices.ContainsFunc(m.ways, later) {
		return netip.AddrPort{}
	}
	return w.Path.Addr
}

// pace is how long after a probe the next one follows on the path in use.
func (m *Machine) pace(now time.Time) time.Duration {
	switch {
	case m.use.misses > 0, m.use.answered.IsZero(), now.Before(m.insist), m.isSilent(now), m.isForsaken(now), m.isMissed(now):
		return m.use.soon()
	case m.isBusy(now):
		return steadyPace
	default:
		return m.use.idlePace()
	}
}

// isForsaken reports whether the leader, which probes an idle path, has sent nothing on it for long.
func (m *Machine) isForsaken(now time.Time) bool {
	patience := 2*m.use.idlePace() + time.Second
	return !m.leads && now.Sub(m.use.heard) > patience && now.Sub(m.use.answered) > patience && now.Sub(m.changed) > patience
}

// soon is how long after a probe the next one follows while an answer is wanted at once.
func (w *way) soon() time.Duration {
	switch {
	case w.misses < slowMisses:
		return fastPace
	case w.misses < lostMisses:
		return steadyPace
	default:
		return lostPace
	}
}

// Ask probes the path in use now if it has not answered a short time ago: without traffic, that may be
// minutes ago.
func (m *Machine) Ask(now time.Time) []Action {
	if m.use == nil || len(m.use.pending) > 0 || now.Sub(m.use.answered) < provenFor {
		return nil
	}
	return []Action{m.probe(now, m.use)}
}

// isBusy reports whether there was traffic in the last seconds.
func (m *Machine) isBusy(now time.Time) bool {
	return !m.busy.IsZero() && now.Sub(m.busy) < 10*time.Second
}

// IsActive reports whether Observe is to be called often, some ten times a second: there is
// traffic, the path has just changed, or it has just failed.
func (m *Machine) IsActive(now time.Time) bool {
	return m.isBusy(now) || now.Before(m.insist) || m.use != nil && m.use.misses > 0 && now.Sub(m.use.answered) < rotateAfter
}

// isSilent reports whether the peer's WireGuard should have said something by now, and no probe has
// shown since that the path works: the peer may have nothing to say.
func (m *Machine) isSilent(now time.Time) bool {
	return !m.silent.IsZero() && m.use != nil && now.Sub(m.silent) >= m.use.silence() && m.isBusy(now) && m.use.echoed.Before(m.silent)
}

// silence is for how long nothing may come back after data was sent, until that is worth probes.
func (w *way) silence() time.Duration { return w.srtt + 2*insistEvery }

// due returns when a path is to be probed next, and whether it is at all.
func (m *Machine) due(now time.Time, w *way) (time.Time, bool) {
	if w != m.use {
		return w.probed.Add(w.soon()), m.isOpen(w, now) && now.Before(w.search)
	}
	pace := m.pace(now)
	return w.probed.Add(pace), pace < holdPace || m.leads
}

// Next returns when to call Step again, if nothing happens before.
func (m *Machine) Next(now time.Time) time.Time {
	next := now.Add(time.Second)
	sooner := func(t time.Time, wanted bool) {
		if wanted && t.Before(next) {
			next = t
		}
	}
	for _, w := range m.ways {
		if len(w.pending) > 0 {
			sooner(w.pending[0].at.Add(w.timeout()), true)
		}
		sooner(m.due(now, w))
	}
	sooner(m.written.Add(insistEvery), now.Before(m.insist))
	sooner(m.punch.next, now.Before(m.punch.until))
	if m.use != nil {
		silent := m.silent.Add(m.use.silence())
		sooner(silent, !m.silent.IsZero() && m.isBusy(now) && now.Before(silent))
	}
	return next
}

// leaveDead leaves a path on which nothing comes back for one on which the peer answers.
func (m *Machine) leaveDead(now time.Time) {
	if m.use == nil {
		return
	}
	swallows := m.swallows(now)
	if m.use.srtt >= slow && m.isBusy(now) {
		m.lookAround(now)
	}
	doubts := m.use.misses + m.use.overdue(now, now)
	if doubts < nextMisses && (doubts == 0 || !m.isSilent(now)) && !swallows {
		return
	}
	m.lookAround(now)
	if !swallows && m.delivers(now) {
		return
	}
	if w := m.best(now, func(w *way) bool {
		if w == m.use || !m.lives(w, now) || now.Sub(w.answered) >= time.Second {
			return false
		}
		if swallows {
			return !w.isHeld(now)
		}
		return m.use.misses+m.use.overdue(now, w.echoed) >= m.mostMisses(now)
	}); w != nil {
		if swallows {
			m.failLong(now)
		} else {
			m.fail(now, maxHold)
		}
		m.change(now, w)
		return
	}
	if m.use.misses < deadMisses {
		return
	}
	if m.isBusy(now) && now.Sub(m.use.answered) > rotateAfter && now.Sub(m.changed) > rotateAfter && now.Sub(m.rotated) > rotateEvery {
		m.rotate(now)
	}
}

// mostMisses is how many probes must be missed before the path in use is left for one that lives.
func (m *Machine) mostMisses(now time.Time) int {
	if m.isMissed(now) {
		return nextMisses
	}
	return deadMisses
}

// isMissed reports whether the peer says that what this node sends does not arrive.
func (m *Machine) isMissed(now time.Time) bool { return now.Sub(m.missed) < steadyPace }

// overdue returns how many probes that were sent before a time have no answer yet, for long beside the
// round trip. Where that varies, they are not missed yet.
func (w *way) overdue(now, before time.Time) (n int) {
	patience := w.patience(2 * w.srtt)
	for _, p := range w.pending {
		if p.at.Before(before) && now.Sub(p.at) >= patience {
			n++
		}
	}
	return n
}

// fail notes that the path in use has failed, and for how long it is not to be used: longer each
// time, up to most.
func (m *Machine) fail(now time.Time, most time.Duration) {
	if now.Sub(m.changed) < 2*maxHold {
		m.use.hold = min(2*m.use.hold, most)
	} else {
		m.use.hold = minHold
	}
	m.use.failed = now
}

// isHeld reports whether a path is not to be used yet, as it has failed.
func (w *way) isHeld(now time.Time) bool { return now.Sub(w.failed) < w.hold }

// failLong is fail for a path that passes probes and drops packets. If nothing came on this path at
// all, as on the one before, the peer's WireGuard is down and the paths are not to blame.
func (m *Machine) failLong(now time.Time) {
	if m.received.Before(m.changed) && !m.carried {
		for _, w := range m.ways {
			w.hold = minHold
		}
	}
	m.fail(now, maxHoldLong)
}

// swallows reports whether the path in use passes probes and drops packets, of one end at least:
// nothing comes for longer than WireGuard lets data go unanswered, or the peer says that nothing
// comes of what this node sends.
func (m *Machine) swallows(now time.Time) bool {
	if !m.isBusy(now) {
		return false
	}
	quiet := !m.silent.IsZero() && now.Sub(m.silent) >= quietAfter && now.Sub(m.changed) >= quietAfter
	lost := !m.lost.IsZero() && now.Sub(m.lost) >= lossAfter && now.Sub(m.unheard) < deadAfter
	return quiet || lost
}

// yields reports whether the leader goes where the other end is: nothing has come on its path for
// longer than the other one takes to follow.
func (m *Machine) yields(now time.Time) bool {
	return m.isBusy(now) && !m.silent.IsZero() &&
		now.Sub(m.silent) >= lossAfter && now.Sub(m.changed) >= lossAfter
}

// delivers reports whether WireGuard's packets seem to pass on the path in use although no
// probe is answered: the other daemon may be away while its kernel forwards. What arrives
// says so, unless WireGuard has moved elsewhere, or the peer receives nothing itself.
func (m *Machine) delivers(now time.Time) bool {
	return now.Sub(m.received) < deadAfter && m.traffic.Endpoint == m.use.Path.Addr && now.Sub(m.unheard) >= deadAfter
}

// rotate tries the paths in turn, by WireGuard's own packets.
func (m *Machine) rotate(now time.Time) {
	i := slices.Index(m.ways, m.use)
	for n := range len(m.ways) {
		if w := m.ways[(i+1+n)%len(m.ways)]; m.isOpen(w, now) && w != m.use {
			m.rotated = now
			changed := m.changed
			m.change(now, w)
			m.changed = changed
			return
		}
	}
}

// best returns the best of the ways for which want holds; nil if there is none.
func (m *Machine) best(now time.Time, want func(*way) bool) *way {
	var best *way
	for _, w := range m.ways {
		if want(w) && (best == nil || m.better(now, w, best)) {
			best = w
		}
	}
	return best
}

// better reports whether a path is better than another one: its kind, or its round trip if
// that is lower by much.
func (m *Machine) better(now time.Time, w, than *way) bool {
	switch {
	case than.isSlowBeside(w):
		return true
	case w.isSlowBeside(than):
		return false
	case w.kind() != than.kind():
		return w.kind() < than.kind()
	case than.isLossyBeside(w):
		return true
	case w.isLossyBeside(than):
		return false
	}
	if than == m.use {
		return now.Sub(m.changed) >= sameKindHold && w.srtt+max(than.srtt/5, sameKindGain) < than.srtt
	}
	return w.srtt < than.srtt
}

// isSlowBeside reports whether a path is so slow that another one is better, of whatever kind.
func (w *way) isSlowBeside(o *way) bool { return w.srtt >= slow && o.srtt > 0 && o.srtt < w.srtt/2 }

// isLossyBeside reports whether on a path much is lost, and nothing on another one.
func (w *way) isLossyBeside(o *way) bool { return w.outcomes.isLossy() && o.outcomes.isClean() }

// improve has the leader use a better path that is stable.
func (m *Machine) improve(now time.Time) {
	if !m.leads || m.use == nil {
		return
	}
	if now.Sub(m.changed) < minHold && !m.use.answered.IsZero() {
		return
	}
	w := m.best(now, func(w *way) bool {
		return w != m.use && m.mayUse(now, w) && w.answers >= betterAnswers && m.lives(w, now) && !w.isHeld(now) && m.better(now, w, m.use)
	})
	if w == nil {
		return
	}
	if w.kind() == m.use.kind() && m.use.isLossyBeside(w) {
		m.fail(now, maxHoldLong)
		m.use.hold = max(m.use.hold, lossyHold)
	}
	m.change(now, w)
}

// plan decides when to look for better paths.
func (m *Machine) plan(now time.Time) {
	if m.use == nil {
		for _, w := range m.ways {
			if w.Path.Straight() || !m.expectsStraight(now) {
				w.search = now.Add(searchFor)
			}
		}
		return
	}
	// A path that has begun to answer is probed until it is used. If that may take long, only traffic makes
	// it worth that.
	for _, w := range m.ways {
		if w != m.use && m.leads && m.mayUse(now, w) && w.answers > 0 && m.lives(w, now) && m.better(now, w, m.use) && (m.isBusy(now) || !w.isHeld(now)) {
			w.search = now.Add(searchFor)
		}
	}
	if m.searches > 0 && now.Sub(m.searched) < m.untilSearch(now) {
		return
	}
	for _, w := range m.ways {
		if w != m.use && w.kind() <= m.use.kind() && m.mayUse(now, w) && m.isWorthIt(now, w) {
			w.search, w.answers = now.Add(searchFor), 0
		}
	}
	m.searches++
	m.searched = now
	m.use.probed = time.Time{} // what has changed may be why it works no longer
}

// isWorthIt reports whether to look for a path: another relay that has been tried is no gain while there is
// no traffic, and whether it is one is the leader's business.
func (m *Machine) isWorthIt(now time.Time, w *way) bool {
	return w.Path.Straight() || w.kind() < m.use.kind() || m.leads && (w.probed.IsZero() || m.isBusy(now))
}

// expectsStraight reports whether the first probes to an address that strangers reach may
// still be answered. Until then nothing is sent through relays: to have it bind there costs
// a node more than a few probes.
func (m *Machine) expectsStraight(now time.Time) bool {
	return now.Sub(m.changed) < firstTimeout && slices.ContainsFunc(m.ways, func(w *way) bool { return w.Path.Straight() && w.Open })
}

// untilSearch is how long after a search the next one follows. Where strangers reach the peer, only
// something that is to be mended keeps this node from it.
func (m *Machine) untilSearch(now time.Time) time.Duration {
	switch {
	case m.isBusy(now), m.use.kind() == Stream,
		m.use.kind() == Relayed && slices.ContainsFunc(m.ways, func(w *way) bool { return w.Path.Straight() && w.Open }):
		return min(searchSoon<<min(m.searches-1, 4), searchBusy)
	case m.searches < 2:
		return searchIdle
	default:
		return searchLate
	}
}

// endpoint returns the write of WireGuard's endpoint, if one is due.
func (m *Machine) endpoint(now time.Time) (Action, bool) {
	if m.use == nil || m.use.answered.IsZero() && m.rotated.IsZero() || m.traffic.Endpoint == m.use.Path.Addr && now.After(m.insist) {
		return Action{}, false
	}
	if now.Sub(m.written) < insistEvery {
		return Action{}, false
	}
	if now.After(m.insist) && m.use.misses >= nextMisses {
		return Action{}, false // it may be the kernel that is right
	}
	m.written = now
	return Action{Path: m.use.Path}, true
}
