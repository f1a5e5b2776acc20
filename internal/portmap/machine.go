// SPDX-License-Identifier: Apache-2.0

package portmap

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
	"time"
)

const (
	// lifetime is what is asked for: RFC 6886, section 3.3, recommends two hours. A mapping is
	// renewed at half of what is granted.
	lifetime = 2 * time.Hour
	// maxLifetime is more than any router should grant (RFC 6887, section 15), and minLifetime
	// bounds how often one that grants little is asked.
	maxLifetime = 24 * time.Hour
	minLifetime = 30 * time.Second

	// checkEvery is how often the gateway is asked whether it has started anew. Those that
	// announce it are asked then.
	checkEvery = time.Minute
	// retryEvery is how often a gateway is asked that no longer answers, and patience for how
	// long, unless the mapping ends before. A home's router is back within a few minutes.
	retryEvery = 15 * time.Second
	patience   = 10 * time.Minute
	// A gateway that speaks none of the protocols is asked again, ever more rarely: somebody
	// may turn one on.
	searchMin, searchMax = time.Minute, 30 * time.Minute
	// hintPause is the least time between two questions that others on the link can cause, and
	// hintSearchPause that between two searches.
	hintPause       = 5 * time.Second
	hintSearchPause = 30 * time.Second
	// removals is how often the gateway is asked to remove a mapping.
	removals = 2
)

// errNoAnswer is wrapped by errors of a gateway that does not speak a protocol, or not now. All
// other errors are refusals.
var errNoAnswer = errors.New("no answer")

// actionKind is what the gateway is asked for.
type actionKind string

const (
	toMap    actionKind = "map"
	toCheck  actionKind = "check"
	toRemove actionKind = "remove"
)

// action is one question to a gateway.
type action struct {
	kind            actionKind
	protocol        Protocol
	gateway, source netip.Addr
	mapping         Mapping // to map: External is what is wanted, zero for anything
}

// result is what came of an action.
type result struct {
	mapping  Mapping       // made, or zero
	lifetime time.Duration // of the mapping, unless it is permanent
	reading  reading
	err      error
}

// reading is what an answer says of the router.
type reading struct {
	hasEpoch bool
	epoch    uint32     // seconds since the router forgot all mappings last
	address  netip.Addr // its external one; invalid if the answer does not say
	gone     bool       // it does not have the mapping
}

// machine decides what to ask a gateway when. It is a value without I/O or a clock.
type machine struct {
	target   Target
	known    []Mapping // of an earlier daemon, until it is known what is wanted
	protocol Protocol  // that works with the gateway, "" while none does
	last     Protocol  // that worked before
	nonces   map[uint16][12]byte
	held     []held
	leaving  []leaving

	search struct {
		next int // in the order of the protocols
		at   time.Time
		wait time.Duration // after all have failed
	}
	checkAt time.Time
	asked   time.Time // when a check or a search began last
	silent  time.Time // since when the gateway does not answer; zero if it does
	epoch   epoch
}

// held is a mapping that there is, as far as is known.
type held struct {
	Mapping
	expires time.Time // zero if permanent, or not known
	renewAt time.Time
}

// leaving is a mapping to be removed.
type leaving struct {
	Mapping
	tries int
}

func newMachine(known []Mapping) machine {
	m := machine{known: slices.Clone(known), nonces: make(map[uint16][12]byte)}
	for _, k := range known {
		m.last = k.Protocol
		m.nonces[k.Internal.Port()] = k.Nonce
	}
	return m
}

// want sets what is wanted, and reports whether that is something new.
func (m *machine) want(t Target, now time.Time) bool {
	if t.Gateway == m.target.Gateway && t.Source == m.target.Source && slices.Equal(t.Ports, m.target.Ports) && m.known == nil {
		return false
	}
	m.target.Ports = slices.Clone(t.Ports)
	if len(t.Ports) > 0 && !t.Gateway.IsValid() {
		m.target.Gateway, m.target.Source = t.Gateway, t.Source
		return true // what there is stays, and counts again if the gateway turns out to be the same
	}
	var all []Mapping
	for _, h := range m.held {
		all = append(all, h.Mapping)
	}
	restored := m.known != nil
	all = append(all, m.known...)
	m.target.Gateway, m.target.Source, m.known = t.Gateway, t.Source, nil
	kept := func(n Mapping) bool {
		return slices.Contains(t.Ports, n.Internal.Port()) && n.Gateway == t.Gateway && n.Internal.Addr() == t.Source
	}
	if !slices.ContainsFunc(all, kept) {
		m.startSearch(now)
	} else if restored {
		m.protocol, m.checkAt = m.last, now.Add(checkEvery)
	}
	m.held = slices.DeleteFunc(m.held, func(h held) bool { return !kept(h.Mapping) })
	for _, n := range all {
		switch {
		case kept(n) && restored:
			m.held = append(m.held, held{Mapping: n, renewAt: now})
		case kept(n):
		case len(t.Ports) == 0, n.Gateway == t.Gateway && (n.Permanent || n.Internal.Addr() == t.Source):
			m.leaving = append(m.leaving, leaving{Mapping: n})
		}
	}
	return true
}

// startSearch forgets which protocol works.
func (m *machine) startSearch(now time.Time) {
	m.protocol, m.held, m.silent, m.epoch = "", nil, time.Time{}, epoch{}
	m.search.next, m.search.at, m.search.wait = 0, now, 0
}

// order returns the protocols in the order in which they are tried.
func (m *machine) order() []Protocol {
	all := []Protocol{PCP, NATPMP, UPnP}
	slices.SortStableFunc(all, func(a, b Protocol) int { return cmp.Compare(bit(a != m.last), bit(b != m.last)) })
	return all
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}

// next returns what to ask now. If there is nothing, it returns how long that stays so, 0 for
// until something else is wanted.
func (m *machine) next(now time.Time) (a action, due bool, wait time.Duration) {
	if len(m.leaving) > 0 {
		n := m.leaving[0].Mapping
		return action{toRemove, n.Protocol, n.Gateway, n.Internal.Addr(), n}, true, 0
	}
	t := m.target
	if len(t.Ports) == 0 || !t.Gateway.IsValid() {
		return action{}, false, 0
	}
	ask := func(kind actionKind, p Protocol, n Mapping) (action, bool, time.Duration) {
		n.Protocol, n.Gateway = p, t.Gateway
		return action{kind, p, t.Gateway, t.Source, n}, true, 0
	}
	if m.protocol == "" {
		if d := m.search.at.Sub(now); d > 0 {
			return action{}, false, d
		}
		m.asked = now
		return ask(toMap, m.order()[m.search.next], m.wanted(t.Ports[0]))
	}
	at := m.checkAt
	for _, port := range t.Ports {
		i := m.find(port)
		if i < 0 {
			return ask(toMap, m.protocol, m.wanted(port))
		}
		if !m.held[i].renewAt.After(now) {
			return ask(toMap, m.protocol, m.held[i].Mapping)
		}
		if m.held[i].renewAt.Before(at) {
			at = m.held[i].renewAt
		}
	}
	if d := at.Sub(now); d > 0 {
		return action{}, false, d
	}
	m.asked = now
	return ask(toCheck, m.protocol, m.held[0].Mapping)
}

// wanted is the mapping of a port that there is none of: others know the port already.
func (m *machine) wanted(port uint16) Mapping {
	return Mapping{
		Internal: netip.AddrPortFrom(m.target.Source, port),
		External: netip.AddrPortFrom(netip.IPv4Unspecified(), port),
		Nonce:    m.nonces[port],
	}
}

func (m *machine) find(port uint16) int {
	return slices.IndexFunc(m.held, func(h held) bool { return h.Internal.Port() == port })
}

// done takes in what came of an action.
func (m *machine) done(a action, r result, now time.Time) {
	if a.kind == toRemove {
		m.removed(a, r)
		return
	}
	wanted := a.gateway == m.target.Gateway && a.source == m.target.Source && slices.Contains(m.target.Ports, a.mapping.Internal.Port())
	switch paused := len(m.target.Ports) > 0 && !m.target.Gateway.IsValid(); {
	case !wanted && !paused && r.err == nil && a.kind == toMap: // something else is wanted meanwhile
		m.leaving = append(m.leaving, leaving{Mapping: r.mapping})
		return
	case !wanted:
		return
	}
	m.read(r, now)
	if r.mapping.Nonce != [12]byte{} {
		m.nonces[a.mapping.Internal.Port()] = r.mapping.Nonce // the answer may be what was lost
	}
	switch {
	case r.err != nil:
		m.failed(a, r, now)
	case a.kind == toMap:
		m.made(r, now)
	default:
		m.checkAt = now.Add(checkEvery)
	}
}

// read takes in what an answer says of the router.
func (m *machine) read(r result, now time.Time) {
	if r.err == nil || !errors.Is(r.err, errNoAnswer) {
		m.silent = time.Time{}
	}
	restarted := r.reading.hasEpoch && m.epoch.note(r.reading.epoch, now)
	for i := range m.held {
		h := &m.held[i]
		if restarted || r.reading.gone {
			h.renewAt = now // it has forgotten all of them
		}
		if r.reading.address.IsValid() && h.External.IsValid() {
			h.External = netip.AddrPortFrom(r.reading.address, h.External.Port())
		}
	}
}

// made takes in a mapping.
func (m *machine) made(r result, now time.Time) {
	h := held{Mapping: r.mapping}
	if h.Permanent {
		h.renewAt = now.Add(maxLifetime)
	} else {
		d := min(max(r.lifetime, minLifetime), maxLifetime)
		h.expires, h.renewAt = now.Add(d), now.Add(d/2)
	}
	if m.protocol == "" {
		m.protocol, m.last = h.Protocol, h.Protocol
		m.checkAt = now.Add(checkEvery)
	}
	if i := m.find(h.Internal.Port()); i >= 0 {
		m.held[i] = h
	} else {
		m.held = append(m.held, h)
	}
	slices.SortFunc(m.held, func(a, b held) int {
		return cmp.Compare(slices.Index(m.target.Ports, a.Internal.Port()), slices.Index(m.target.Ports, b.Internal.Port()))
	})
}

// failed takes in an action without success. What the gateway has granted stays while it is
// silent: it may be about to restart.
func (m *machine) failed(a action, r result, now time.Time) {
	if m.protocol == "" {
		m.search.next++
		if m.search.next == len(m.order()) {
			m.search.next, m.search.wait = 0, min(max(2*m.search.wait, searchMin), searchMax)
			m.search.at = now.Add(m.search.wait)
		}
		return
	}
	if !errors.Is(r.err, errNoAnswer) {
		switch {
		case a.kind == toCheck: // it answers, and that is all that there is to know
			m.checkAt = now.Add(checkEvery)
		case a.mapping.Internal.Port() == m.target.Ports[0]:
			m.startSearch(now)
		default:
			m.postpone(a.mapping, now.Add(searchMax)).External = netip.AddrPort{}
		}
		return
	}
	if m.silent.IsZero() {
		m.silent = now
	}
	m.checkAt = now.Add(retryEvery)
	expired := false
	if a.kind == toMap {
		h := m.postpone(a.mapping, now.Add(retryEvery))
		expired = !h.expires.IsZero() && !now.Before(h.expires)
	}
	if expired || now.Sub(m.silent) >= patience {
		m.startSearch(now)
	}
}

// postpone has a mapping asked for again later. If there is none, it returns one without an
// external address.
func (m *machine) postpone(n Mapping, until time.Time) *held {
	i := m.find(n.Internal.Port())
	if i < 0 {
		n.External = netip.AddrPort{}
		i, m.held = len(m.held), append(m.held, held{Mapping: n})
	}
	m.held[i].renewAt = until
	return &m.held[i]
}

// removed takes in that a mapping was removed, or was not.
func (m *machine) removed(a action, r result) {
	i := slices.IndexFunc(m.leaving, func(l leaving) bool { return l.Mapping == a.mapping })
	if i < 0 {
		return
	}
	m.leaving[i].tries++
	if r.err == nil || !errors.Is(r.err, errNoAnswer) || m.leaving[i].tries == removals {
		m.leaving = slices.Delete(m.leaving, i, i+1)
	}
}

// hint has the gateway asked soon: somebody has said that it has started anew.
func (m *machine) hint(now time.Time) {
	at, pause := &m.checkAt, hintPause
	if m.protocol == "" {
		at, pause = &m.search.at, hintSearchPause
	}
	soon := now
	if least := m.asked.Add(pause); soon.Before(least) {
		soon = least
	}
	if soon.Before(*at) {
		*at = soon
	}
}

// mappings returns those that there are.
func (m *machine) mappings(now time.Time) []Mapping {
	all := slices.Clone(m.known)
	for _, h := range m.held {
		if h.External.IsValid() && (h.expires.IsZero() || now.Before(h.expires)) {
			all = append(all, h.Mapping)
		}
	}
	return all
}

// kept returns what the next daemon should know: also what is yet to be removed.
func (m *machine) kept() []Mapping {
	all := slices.Clone(m.known)
	for _, h := range m.held {
		if h.External.IsValid() {
			all = append(all, h.Mapping)
		}
	}
	for _, l := range m.leaving {
		all = append(all, l.Mapping)
	}
	return all
}

// epoch watches the clock of a router, which begins anew when the router has lost its mappings.
type epoch struct {
	server uint32    // seconds, as it said last
	at     time.Time // when that was; zero for never
}

// note takes in the router's clock, and reports whether it has begun anew: it is behind what it
// was, or the two clocks have run at paces that differ by more than a sixteenth (RFC 6887,
// section 8.5, which is stricter than RFC 6886, section 3.6).
func (e *epoch) note(server uint32, now time.Time) (restarted bool) {
	last := *e
	e.server, e.at = server, now
	if last.at.IsZero() {
		return false
	}
	there := int64(server) - int64(last.server)
	here := int64(now.Sub(last.at) / time.Second)
	return there < -1 || here+2 < there-there/16 || there+2 < here-here/16
}
