// SPDX-License-Identifier: Apache-2.0

package path

import (
	"net/netip"
	"slices"
	"time"
)

// The pace of probes on the path in use. A path that is cut is noticed after
// deadMisses at fastPace: in a little more than a second.
const (
	fastPace   = 200 * time.Millisecond // while an answer is missing, WireGuard is silent, or a change is under way
	steadyPace = time.Second            // with traffic
	holdPace   = 25 * time.Second       // without: NATs keep a UDP mapping for 30 s at least, RFC 4787 REQ-5
	restPace   = 2 * time.Minute        // without, where no mapping has to be held; sooner than wantFor ends
	lostPace   = 4 * time.Second        // of a path that has not answered for long, instead of fastPace
)

// When a probe counts as missed, and a path as dead.
const (
	minTimeout = 250 * time.Millisecond
	// firstTimeout is for paths whose round trip is unknown: RFC 6298 says 1 s.
	firstTimeout = time.Second
	nextMisses   = 2 // from then on alternatives are probed, too
	deadMisses   = 4
	// deadAfter is how long that takes.
	deadAfter = (deadMisses - 1) * fastPace
	// A path that misses this many is probed every second, and then at lostPace: a peer may
	// be down for days.
	slowMisses = 25
	lostMisses = 50
)

// How a path is replaced by a better one.
const (
	betterAnswers = 3               // in a row, before a better path is used
	minHold       = 3 * time.Second // between two changes
	maxHold       = time.Minute     // after a path has failed again and again
	maxHoldLong   = searchLate      // after it has dropped packets and passed probes: only its use shows whether it still does
	sameKindHold  = 30 * time.Second
	sameKindGain  = 10 * time.Millisecond
	provenFor     = 5 * time.Second  // for how long an answer shows that a path works
	openFor       = 25 * time.Second // for how long a NAT surely lets answers in, RFC 4787 REQ-5
)

// When a path is left that is slow, or that passes probes and drops packets: a relay may do that, and a
// network that blocks WireGuard. WireGuard answers data with a keepalive after 10 s at the latest
// (Keepalive-Timeout in section 6.1 of the WireGuard paper).
const (
	slow       = time.Second             // a round trip, on whatever path
	lossAfter  = 1500 * time.Millisecond // of what both ends say, which is late by some readings of the device
	quietAfter = 12 * time.Second        // of what this end sees alone
)

// When a path is left on which probes are lost, for one of its kind on which none is: a relay may forward
// as much as it is allowed to, see relay.max-rate.
const (
	lossyProbes = 7               // of the last 32, more than a fifth
	cleanProbes = 20              // none of which is lost; on a path that loses a fifth, that is so once in 87 times
	lossyHold   = 5 * time.Minute // it may be clean only because nobody uses it
)

// The endpoint is written again and again after a change, because each packet that
// arrives over the path before sets WireGuard's endpoint back.
const (
	insistFor   = time.Second
	insistEvery = 50 * time.Millisecond
)

// What is done while nothing answers.
const (
	rotateAfter = 15 * time.Second
	rotateEvery = 5 * time.Second
)

// When paths better than the one in use are looked for again.
const (
	searchFor  = 2 * time.Second // for how long each candidate is probed
	searchSoon = 5 * time.Second // after the first search, doubled each time until it is searchBusy
	searchBusy = time.Minute
	searchIdle = 5 * time.Minute
	searchLate = 30 * time.Minute
)

// workedFor is for how long a path that has worked is tried although nobody names it.
const workedFor = 10 * time.Minute

// maxExpired bounds how many probes are remembered that were not answered in time: those of six
// seconds at fastPace.
const maxExpired = 32

// maxLearned bounds the addresses that were learned from where a peer's probes came.
const maxLearned = 4

// Candidate is a path to try.
type Candidate struct {
	Path Path
	// Open reports whether a probe may go there at once: strangers reach it. A probe to a
	// closed one waits until the peer has opened its side, see punch.go.
	Open bool
}

// Traffic is what WireGuard shows of a peer.
type Traffic struct {
	Sent, Received uint64 // bytes since the device was made
	// OwnSent and OwnReceived are how much of that is gossip's, or a little more. What is sent is counted
	// there before WireGuard counts it, and what is received after.
	OwnSent, OwnReceived uint64
	Endpoint             netip.AddrPort
}

// Action is something to do: send a message, or write WireGuard's endpoint.
type Action struct {
	Path    Path
	Message Message // its Op is zero if the endpoint is to be written
	TTL     int     // of the packet; 0 for the system's
}

// way is what is known of one path.
type way struct {
	Candidate
	learned  bool      // from where a probe came
	far      Kind      // how the peer's packets leave on it, as the peer has said last
	farOpen  bool      // strangers reach this node there, as the peer has said last
	heard    time.Time // when something came from there last
	pending  []ping
	expired  []ping // the last ones that were not answered in time
	outcomes outcomes
	misses   int // in a row
	answers  int // in a row
	srtt     time.Duration
	rttvar   time.Duration
	answered time.Time     // when the last answer came; zero for never
	echoed   time.Time     // when the newest probe that was answered had been sent
	probed   time.Time     // when the last probe was due; zero to send one at once
	search   time.Time     // until when to probe it as a better path
	hold     time.Duration // how long it must be stable before it is used again
	failed   time.Time     // when it was left as dead
	fit      fit
}

type ping struct {
	number uint32
	at     time.Time
}

// Machine chooses the path to one peer. Both ends run one. The end that leads chooses
// among the paths that live, and says so in its probes; the other one does the same.
// Either may leave a path that is dead. It is not safe for concurrent use.
type Machine struct {
	leads   bool
	ways    []*way
	use     *way // nil for none
	changed time.Time
	carried bool      // WireGuard received something on the path before
	written time.Time // when the endpoint was written last
	insist  time.Time // until when it is written again
	wanted  Path      // that the leader uses, and on which it did not answer yet
	number  uint32

	made     time.Time
	traffic  Traffic
	sent     balance
	got      balance
	used     time.Time     // when data was sent or received last, other than gossip's; zero for never
	busy     time.Time     // when such data was sent last
	received time.Time     // when bytes were received last
	passed   time.Time     // the same, but for handshakes that a peer begins: the answer may not arrive
	silent   time.Time     // since when such data was sent and nothing received; zero if not
	unheard  time.Time     // when the peer said last that it receives nothing
	deaf     time.Duration // for how long it had not received anything when its last probe came
	missed   time.Time     // when the peer said last that it receives nothing although data was sent meanwhile
	lost     time.Time     // since when the peer has said so although data was sent meanwhile; zero if it has not
	rotated  time.Time

	elsewhere bool // WireGuard has followed the peer away from the path in use, which is not asked yet

	searches int       // since candidates changed, or a worse path had to be used
	searched time.Time // when the last one began
	punch    punch
	renewal  renewal
	mtu      int // of the tunnel; 0 for unknown
	rest     resting
}

// NewMachine returns the machine for a peer. The end with the lower WireGuard key leads.
// Before is what WireGuard shows of the peer already: where it sends packets stays in use until
// something else is proved, and what it has counted until now is no traffic.
func NewMachine(leads bool, before Traffic, now time.Time) *Machine {
	m := &Machine{leads: leads, made: now, changed: now, traffic: before}
	if before.Endpoint.IsValid() {
		m.use = m.add(Candidate{Path: At(before.Endpoint), Open: true}, true)
	}
	return m
}

// CountFrom sets what the numbers of probes follow. Answers to those of a machine before, which
// somebody may have recorded, must not be taken for answers to those of this one.
func (m *Machine) CountFrom(number uint32) { m.number = number }

// SetCandidates sets the paths to try. Those that are in use stay, and those that worked a
// short time ago: what others see of a NAT need not be what the peer sees.
func (m *Machine) SetCandidates(now time.Time, all []Candidate) {
	changed := false
	for _, c := range all {
		w := m.find(c.Path)
		if w == nil {
			w = m.mistaken(c.Path)
		}
		if w == nil {
			m.add(c, false)
			changed = true
			continue
		}
		changed = changed || c.Open && !w.Open
		w.Candidate, w.learned = c, false
	}
	m.ways = slices.DeleteFunc(m.ways, func(w *way) bool {
		listed := slices.ContainsFunc(all, func(c Candidate) bool { return c.Path == w.Path })
		worked := !w.answered.IsZero() && now.Sub(w.answered) < workedFor
		isRelay := slices.ContainsFunc(all, func(c Candidate) bool { return !c.Path.Straight() && c.Path.Addr == w.Path.Addr })
		return w != m.use && (!listed && !w.learned && !worked || w.learned && w.Path.Straight() && isRelay)
	})
	slices.SortFunc(m.ways, func(a, b *way) int { return a.Path.Compare(b.Path) })
	if changed {
		m.searches = 0
		m.punch.attempts = 0
	}
}

func (m *Machine) add(c Candidate, learned bool) *way {
	w := &way{Candidate: c, learned: learned, hold: minHold}
	m.ways = append(m.ways, w)
	slices.SortFunc(m.ways, func(a, b *way) int { return a.Path.Compare(b.Path) })
	return w
}

// find returns the way with the same route: a straight path is known by its address alone.
func (m *Machine) find(p Path) *way {
	i := slices.IndexFunc(m.ways, func(w *way) bool {
		return w.Path == p || w.Path.Straight() && p.Straight() && w.Path.Addr == p.Addr
	})
	if i < 0 {
		return nil
	}
	return m.ways[i]
}

// kind is that of the worse end: each has a leg of its own to a relay.
func (w *way) kind() Kind { return worse(w.Path.Kind, w.far) }

// mistaken returns the way that was taken for a straight one before it was known that a relay is
// at its address: WireGuard's endpoint does not tell, see NewMachine and Observe.
func (m *Machine) mistaken(p Path) *way {
	i := slices.IndexFunc(m.ways, func(w *way) bool {
		return w.learned && w.Path.Straight() && !p.Straight() && w.Path.Addr == p.Addr
	})
	if i < 0 {
		return nil
	}
	return m.ways[i]
}

// learn returns the way over which a message came, which need not be among the candidates:
// a NAT may show the peer elsewhere than others see it.
func (m *Machine) learn(now time.Time, over Path) *way {
	if w := m.find(over); w != nil {
		return w
	}
	learned := 0
	for _, w := range m.ways {
		if w.learned {
			learned++
		}
	}
	if learned >= maxLearned {
		i := slices.IndexFunc(m.ways, func(w *way) bool { return w.learned && w != m.use && (w.misses > 0 || now.Sub(w.heard) >= openFor) })
		if i < 0 {
			return nil
		}
		m.ways = slices.Delete(m.ways, i, i+1)
	}
	return m.add(Candidate{Path: over}, true)
}

// Observe takes what WireGuard shows of the peer.
func (m *Machine) Observe(now time.Time, t Traffic) {
	m.sent.add(now, added(t.Sent, m.traffic.Sent), added(t.OwnSent, m.traffic.OwnSent))
	if m.sent.take(now, 0) {
		m.used, m.busy = now, now
		if m.silent.IsZero() {
			m.silent = now
		}
	}
	got := added(t.Received, m.traffic.Received)
	if got != 0 {
		m.received, m.silent = now, time.Time{}
		if got != initiationLen {
			m.passed = now
		}
	}
	m.got.add(now, got, added(t.OwnReceived, m.traffic.OwnReceived))
	if t.Endpoint != m.traffic.Endpoint && t.Endpoint.IsValid() {
		// WireGuard follows whoever sends authenticated packets. To us that is a candidate, and the path in use
		// may be dead.
		m.elsewhere = m.use != nil && t.Endpoint != m.use.Path.Addr
		if m.find(At(t.Endpoint)) == nil && !m.isRelay(t.Endpoint) {
			if w := m.learn(now, At(t.Endpoint)); w != nil {
				w.heard, w.probed, w.search = now, time.Time{}, now.Add(searchFor)
			}
		}
	}
	m.traffic = t
}

// added returns by how much a counter has grown. That of a peer that was made anew begins at 0.
func added(now, before uint64) uint64 {
	if now < before {
		return now
	}
	return now - before
}

func (m *Machine) isRelay(a netip.AddrPort) bool {
	return slices.ContainsFunc(m.ways, func(w *way) bool { return !w.Path.Straight() && w.Path.Addr == a })
}

// overhead reports whether WireGuard sends that many bytes without data: nothing, a
// keepalive of 32 bytes, or a handshake's message of 148 or 92 bytes and a few keepalives.
func overhead(bytes uint64) bool {
	switch bytes {
	case 0, 32, 92, 92 + 32, 92 + 2*32, 92 + 3*32, 148, 148 + 32, 148 + 2*32, 148 + 3*32:
		return true
	}
	return false
}

// isOpen reports whether a probe may go all the way: strangers reach the peer there, or
// the peer has sent something from there a short time ago.
func (m *Machine) isOpen(w *way, now time.Time) bool {
	return w.Open || !w.Path.Straight() || !w.heard.IsZero() && now.Sub(w.heard) < openFor
}

// lives reports whether a path works: it answered a short time ago, and no probe since
// was missed.
func (m *Machine) lives(w *way, now time.Time) bool {
	return w.misses == 0 && !w.answered.IsZero() && now.Sub(w.answered) < provenFor
}

// Receive takes a message that the peer has sealed, and the path over which it came, and
// returns what to send at once. A Call, a Called and a Renew may also come by gossip; their
// path is the zero value then.
func (m *Machine) Receive(now time.Time, msg Message, over Path) []Action {
	var w *way
	if over.Kind != None {
		if w = m.learn(now, over); w != nil {
			w.heard, w.far, w.farOpen = now, msg.Look, msg.Open
		}
	}
	m.rest.there = msg.Rests
	switch msg.Op {
	case Ping:
		pong := m.message(Pong, w)
		pong.Look, pong.Number, pong.Seen = over.Kind, msg.Number, over.Addr
		actions := []Action{{Path: over, Message: pong}}
		if w != nil {
			m.heard(now, msg, w)
		}
		if msg.This && w != m.use { // the path in use may be dead
			actions = append(actions, m.Ask(now)...)
		}
		return actions
	case Pong:
		if w != nil {
			m.answer(now, msg, w)
		}
	case Call, Called:
		return m.called(now, msg, over)
	case Renew:
		m.askedToRenew(now)
	}
	return nil
}

// heard notes what a peer's probe says of the path that the peer uses.
func (m *Machine) heard(now time.Time, msg Message, w *way) {
	if m.use == nil || w.answered.IsZero() {
		m.prove(now, w) // a probe that came need not mean that one goes back
	}
	m.deaf = msg.Silence
	m.noteLoss(now, msg.Silence)
	if msg.Silence > 0 && m.isBusy(now) {
		m.lookAround(now) // what we send does not arrive there
		if m.use != nil && msg.Silence >= m.use.silence() && m.busy.After(now.Add(m.use.srtt-msg.Silence)) {
			m.missed = now
		}
		if msg.Silence >= deadAfter {
			m.unheard = now
		}
	}
	if msg.This && w == m.use {
		m.wanted = Path{}
	}
	if !msg.This || w == m.use {
		return
	}
	if m.leads && m.use != nil && m.use.misses < nextMisses {
		if !m.yields(now) {
			return // the leader chooses, unless its own path fails
		}
		if now.Sub(m.use.failed) >= lossAfter {
			m.failLong(now)
		}
	}
	switch {
	case m.lives(w, now):
		m.change(now, w)
	default:
		m.wanted = w.Path
		m.prove(now, w)
	}
}

// noteLoss takes for how long the peer has received nothing, and notes since when that is although
// this node has sent something.
func (m *Machine) noteLoss(now time.Time, silence time.Duration) {
	began := now.Add(-silence)
	switch {
	case silence == 0 || m.busy.Before(began.Add(lossAfter)):
		m.lost = time.Time{}
	case m.lost.Before(began):
		m.lost = now
	}
}

// prove probes a way over which something came.
func (m *Machine) prove(now time.Time, w *way) {
	w.probed, w.search = time.Time{}, now.Add(searchFor)
	if m.use != nil && w.isClaim() {
		w.search = now.Add(fastPace / 2) // once
	}
}

// isClaim reports whether nothing but the source of the peer's messages says that it is there.
// Somebody who repeats a probe from elsewhere before it arrives can forge that, so while there is
// another path, one probe at most goes there for each message.
func (w *way) isClaim() bool { return w.learned && w.answered.IsZero() }

// lookAround has the other paths probed for a moment, so that one is known to work when the
// one in use has to be left.
func (m *Machine) lookAround(now time.Time) {
	for _, w := range m.ways {
		if w != m.use && !w.isClaim() && w.search.Before(now.Add(fastPace)) {
			w.search = now.Add(2 * fastPace)
		}
	}
}

// answer takes the answer to a probe.
func (m *Machine) answer(now time.Time, msg Message, w *way) {
	if m.fits(now, w, msg.Number) {
		return
	}
	sent := func(p ping) bool { return p.number == msg.Number }
	if i := slices.IndexFunc(w.expired, sent); i >= 0 {
		w.sample(now.Sub(w.expired[i].at)) // it has grown: so must the time for answers
		w.expired = slices.Delete(w.expired, i, i+1)
	} else if i := slices.IndexFunc(w.pending, sent); i >= 0 {
		w.echoed = w.pending[i].at
		w.sample(now.Sub(w.echoed))
		for range i {
			w.outcomes.add(false)
		}
		w.outcomes.add(true)
		w.pending = slices.Delete(w.pending, 0, i+1) // those before it are lost, or come too late
	} else {
		return // one that was sent elsewhere: NATs may answer from another address
	}
	w.misses, w.answered = 0, now
	w.answers++
	switch {
	case m.use == nil, m.wanted == w.Path:
		m.change(now, w)
	case w == m.use:
	case m.use.answered.IsZero() && m.use.isLate(now, w.timeout()): // the endpoint of an earlier run
		m.change(now, w)
	case w.answers >= betterAnswers && !m.better(now, w, m.use):
		w.search = now // it is known to work now
	}
}

// isLate reports whether the answer to a probe takes longer than timeout.
func (w *way) isLate(now time.Time, timeout time.Duration) bool {
	return w.misses > 0 || len(w.pending) > 0 && now.Sub(w.pending[0].at) >= timeout
}

// sample updates the round trip as RFC 6298 does.
func (w *way) sample(rtt time.Duration) {
	if w.srtt == 0 {
		w.srtt, w.rttvar = rtt, rtt/2
		return
	}
	w.rttvar += ((w.srtt - rtt).Abs() - w.rttvar) / 4
	w.srtt += (rtt - w.srtt) / 8
}

// timeout is after how long without an answer a probe counts as missed.
func (w *way) timeout() time.Duration { return w.patience(2*w.srtt + 4*w.rttvar) }

// patience is how long to wait for an answer, which follows from the round trip if that is known.
func (w *way) patience(d time.Duration) time.Duration {
	if w.srtt == 0 {
		return firstTimeout
	}
	return max(minTimeout, d)
}

// change begins to use a path.
func (m *Machine) change(now time.Time, w *way) {
	if m.use == w {
		return
	}
	m.carried = !m.received.Before(m.changed)
	if m.use != nil && w.kind() > m.use.kind() {
		m.searches, m.searched = 1, now // what has failed may be back soon
	}
	m.use, m.changed, m.wanted, m.missed, m.lost = w, now, Path{}, time.Time{}, time.Time{}
	if w.Path.Straight() {
		m.punch.attempts = 0
	}
	m.written, m.insist = time.Time{}, now.Add(insistFor)
	w.probed = time.Time{} // tell the peer
}

// message returns a message with what this node says of itself in each.
func (m *Machine) message(op Op, over *way) Message {
	msg := Message{Op: op, Rests: m.rest.here}
	if over != nil {
		msg.Look, msg.Open = over.Path.Kind, over.strangersReach()
		msg.This = over == m.use
	}
	if m.use != nil {
		msg.Use, msg.Node = m.use.Path.Kind, m.use.Path.Relay
	}
	return msg
}

// InUse returns the path in use, and whether it is proved: the peer answers on it.
func (m *Machine) InUse() (Path, bool) {
	if m.use == nil {
		return Path{}, false
	}
	return m.use.Path, !m.use.answered.IsZero() && m.use.misses < deadMisses
}
