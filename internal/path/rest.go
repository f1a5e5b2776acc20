// SPDX-License-Identifier: Apache-2.0

package path

import "time"

// A path between two ends neither of which strangers reach has to be held open all the time, and a node
// may have hundreds of peers. So a node holds some of them only, those that were used last (see Holds and
// SetRest), and the others rest: they go through a relay, where nothing has to be held, until one of the two
// ends sends data. That passes through the relay at once, and opens the straight path again. Each end says
// which paths it rests, and the one that leads does what either of them wants.

// restAfter is how long no data must have been sent or received.
const restAfter = 2 * time.Minute

// resting is what becomes of a path that is not to be held.
type resting struct {
	here, there bool      // this end, and the other one, rests the path
	looked      time.Time // when a relay to rest on was looked for last
}

// SetRest sets whether this end rests the path while nothing is sent, if there is a relay.
func (m *Machine) SetRest(rest bool) { m.rest.here = rest }

// Holds reports whether this end may have to hold a path open: one that was punched is in use, or was
// until this end began to rest it.
func (m *Machine) Holds() bool { return m.rest.here || m.use != nil && m.use.isPunched() }

// Used returns when data was sent or received last; zero for never.
func (m *Machine) Used() time.Time { return m.used }

// IsUsed reports whether data was sent or received a short time ago.
func (m *Machine) IsUsed(now time.Time) bool { return !m.used.IsZero() && now.Sub(m.used) < restAfter }

// rests reports whether the path is not to be held open now.
func (m *Machine) rests(now time.Time) bool {
	return (m.rest.here || m.rest.there) && !m.IsUsed(now) && now.Sub(m.made) >= restAfter
}

// mayUse reports whether a path may be used that is better than the one in use.
func (m *Machine) mayUse(now time.Time, w *way) bool { return !m.rests(now) || !w.isPunched() }

// strangersReach reports whether strangers reach the peer there, as it says.
func (w *way) strangersReach() bool { return w.Open && !w.learned }

// isPunched reports whether a path is open only because both ends have sent something.
func (w *way) isPunched() bool { return w.Path.Straight() && !w.strangersReach() && !w.farOpen }

// idlePace is how long after a probe the next one follows without traffic. A binding holds the way to a
// relay, and WireGuard's keepalives hold the mapping of a NAT that lets in everybody.
func (w *way) idlePace() time.Duration {
	if !w.Path.Straight() || w.strangersReach() && w.farOpen {
		return restPace
	}
	return holdPace
}

// goToRest has the leader change from a path that is not to be held to the best one through a relay.
func (m *Machine) goToRest(now time.Time) {
	if !m.leads || m.use == nil || !m.use.isPunched() || !m.rests(now) {
		return
	}
	isRelayed := func(w *way) bool { return w.kind() == Relayed && !w.isHeld(now) }
	if now.Sub(m.rest.looked) >= searchIdle {
		m.rest.looked = now
		for _, w := range m.ways {
			if isRelayed(w) {
				w.search, w.answers = now.Add(searchFor), 0
			}
		}
	}
	if w := m.best(now, func(w *way) bool { return isRelayed(w) && w.answers >= betterAnswers && m.lives(w, now) }); w != nil {
		m.change(now, w)
	}
}
