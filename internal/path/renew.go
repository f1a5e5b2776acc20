// SPDX-License-Identifier: Apache-2.0

package path

import "time"

// A relay that does not know a session drops what belongs to it, and WireGuard begins another one
// only when nothing has come for 15 s. So the relay tells the sender (Unknown), and the end that
// leads renews the session: it removes the peer and adds it again. The other end asks it to
// (Renew). This is the last resort: nodes tell relays their sessions before.
//
// A relay may know only what one of the two ends sends: then the other end's packets arrive, and
// nothing is quiet but the peer says that it hears nothing.
//
// Whoever sends Unknown or Renew without end causes one renewal a minute, of a session through
// that relay in which nothing comes from the peer, or nothing comes to it.
const (
	unknownFor = 2 * time.Second // for how long an Unknown counts
	quietFor   = time.Second     // for how long nothing must have come
	renewMin   = 5 * time.Second // between two renewals, doubled each time
	renewMax   = time.Minute
)

// renewal is the state of renewing.
type renewal struct {
	unknown time.Time     // when a relay did not know what may have been for the peer
	by      Short         // which relay
	last    time.Time     // when the session was to be renewed, or the peer was asked to
	wait    time.Duration // from then until the next time
}

// Unknown takes a relay's word that it does not know something that may have been for the peer.
func (m *Machine) Unknown(now time.Time, relay Short) {
	m.renewal.unknown, m.renewal.by = now, relay
}

// Renew returns when WireGuard's session with the peer was to be begun anew, last; zero for never.
func (m *Machine) Renew() time.Time {
	if !m.leads {
		return time.Time{}
	}
	return m.renewal.last
}

// renewing renews the session, or asks the peer to, if a relay does not know it.
func (m *Machine) renewing(now time.Time) []Action {
	r := &m.renewal
	unknown := !r.unknown.IsZero() && now.Sub(r.unknown) < unknownFor && m.use != nil && m.use.Path.Relay == r.by
	quiet := !m.silent.IsZero() && now.Sub(m.silent) >= quietFor || m.deaf >= quietFor && now.Sub(m.unheard) < quietFor
	if !unknown || !quiet || !r.allow(now) || m.leads {
		return nil
	}
	return []Action{m.call(Renew, m.callPath(now))}
}

// askedToRenew takes a Renew of the peer.
func (m *Machine) askedToRenew(now time.Time) {
	if m.leads && m.use != nil && m.use.Path.Relay != (Short{}) && now.Sub(m.received) >= quietFor {
		m.renewal.allow(now)
	}
}

// allow reports whether it is time to renew, and notes it.
func (r *renewal) allow(now time.Time) bool {
	switch gone := now.Sub(r.last); {
	case gone < r.wait:
		return false
	case gone >= 2*renewMax:
		r.wait = renewMin
	default:
		r.wait = min(2*r.wait, renewMax)
	}
	r.last = now
	return true
}
