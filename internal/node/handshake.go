// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"maps"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

const (
	// followerWait is how long a node leaves it to the leader of the two to bring about
	// their first handshake.
	followerWait = 3 * time.Second
	// roleChangeWait is how long a node that becomes the leader later waits for what the
	// other one may have sent meanwhile.
	roleChangeWait = 200 * time.Millisecond
	// firstRenewWait is how long the leader waits for the first handshake before it renews
	// the peer; each time after that it waits twice as long, up to retryInterval. When a
	// gateway takes over, both ends add each other a few hundredths of a second apart,
	// and nothing passes until they have met. A round trip of half a second delays a
	// second. Later handshakes have retryInterval from the beginning.
	firstRenewWait = 150 * time.Millisecond
	// retryInterval is how soon a node speaks again to a living peer that has not answered:
	// WireGuard itself tries every 5 s once it has something to send.
	retryInterval = 5 * time.Second
	// endpointDelay is how long it takes until a peer that gets an endpoint has it: the
	// loop takes its next turn by then.
	endpointDelay = 50 * time.Millisecond
	// pollInterval is how often to look for a handshake that has just been begun: WireGuard
	// does not tell when it is there.
	pollInterval = 500 * time.Millisecond
)

// Handshakes holds what was tried to get a handshake with each peer.
//
// WireGuard drops a handshake's first message when it comes from a key that it does not
// know, and sends the next one only 5 s later. So whoever adds a peer last would have to
// speak first, and nobody knows who is last. If both speak, their messages cross, and both
// are in vain: each side answers the other's and thereby forgets its own, so no answer
// finds the state it belongs to. Then they wait 5 s and may cross again.
//
// Therefore one of the two leads in their first handshake. It speaks at once, and when
// nothing comes back it renews the peer, which has no session to lose, and speaks again.
// The other one follows: its peer has no endpoint for a while, so that nobody's packet into
// the tunnel can make it speak; WireGuard learns the endpoint from the leader's message.
//
// A node that names no endpoint itself leads; between equals it is the one with the lower
// key. Who has begun to lead goes on until there is a session, so for a while both may. As long
// as no endpoint of the peer is known, not even one that probes have found, both wait. Peers from
// before this daemon started have no first handshake: whoever has lost its sessions speaks at
// once. A node that becomes a peer later, because one of the two is a gateway now, does have one,
// however long they have known each other.
//
// Where probes find a peer elsewhere than WireGuard had it, what WireGuard has sent, for this node or for
// a pod, was in vain, and it would repeat that only after 5 s. So each of the two then renews the
// peer and speaks again. The follower lets the leader go first.
//
// The leader also renews a living peer whose session has run out and which does not
// answer. WireGuard remembers the time that a peer's last handshake carried and refuses
// older ones, so two hosts whose clocks were both set back refuse each other until the
// clocks are past that time again.
//
// A session that lives is renewed only if a relay does not know it, see path.Machine.
//
// Clients begin their handshakes themselves. They are only told where this host is, see
// tellClients.
type Handshakes struct {
	peers   map[mesh.ID]*attempt
	known   map[mesh.ID]bool // nodes from before this daemon started; none once this node has its peers
	clients map[wgtypes.Key]told
}

// attempt is the state of one peer.
type attempt struct {
	role        role
	firstDone   bool           // the first handshake is over, or left to chance
	waiting     bool           // for a session
	proved      netip.AddrPort // where the peer answered probes then
	initiated   bool           // something was sent that WireGuard may be waiting on
	inVain      bool           // what WireGuard has sent went to where the peer is not, or nowhere
	spokeTo     netip.AddrPort // where WireGuard has sent that, for whomever it was
	initiateAt  time.Time      // when to speak next; zero while there is a session, or no endpoint
	wait        time.Duration  // from then until the next time
	maxWait     time.Duration
	scheduledAt time.Time // the schedule
	toldAt      time.Time // when a peer with a session was told where this host is
	renewed     time.Time // when its session was to be begun anew, as far as that is done
}

// role is what a schedule depends on: when it changes, the schedule does.
type role struct {
	leads bool
	named bool // the peer names an endpoint
}

// roleOf returns this node's role towards a peer.
func roleOf(self mesh.Record, p mesh.Peer) role {
	r := role{leads: bytes.Compare(self.Key[:], p.Key[:]) < 0, named: len(p.Endpoints) > 0}
	if own := len(self.Endpoints) > 0 || onLAN(self, p); own != r.named {
		r.leads = r.named
	}
	return r
}

// retryInterval returns how soon to speak again without an answer. The two do so in different
// intervals: messages that have crossed once would cross each time.
func (r role) retryInterval() time.Duration {
	if r.leads {
		return retryInterval
	}
	return retryInterval + roleChangeWait
}

// onLAN reports whether a peer is reached in this node's private network. Then it reaches this
// node there as well, although neither of them may have an endpoint for others.
func onLAN(self mesh.Record, p mesh.Peer) bool {
	return slices.ContainsFunc(p.Endpoints, func(e netip.AddrPort) bool {
		return slices.ContainsFunc(self.InternalIPs, func(ip netip.Prefix) bool { return ip.Contains(e.Addr()) })
	})
}

// NewHandshakes begins with the records that were known before.
func NewHandshakes(records []mesh.Record) Handshakes {
	h := Handshakes{peers: make(map[mesh.ID]*attempt), known: make(map[mesh.ID]bool), clients: make(map[wgtypes.Key]told)}
	for _, r := range records {
		h.known[r.ID()] = true
	}
	return h
}

// awaited returns the peers that are to send the first handshake.
func (h Handshakes) awaited(peers []mesh.Peer, self mesh.Record) map[mesh.ID]bool {
	awaited := make(map[mesh.ID]bool)
	for _, p := range peers {
		if !h.attempt(p.ID).firstDone && !roleOf(self, p).leads {
			awaited[p.ID] = true
		}
	}
	return awaited
}

// foundPath reports whether a peer without a session answers probes at another endpoint than
// before, so that a turn should be taken at once.
func (h Handshakes) foundPath(proved map[mesh.ID]netip.AddrPort) bool {
	for id, a := range h.peers {
		if at, ok := proved[id]; ok && a.waiting && at != a.proved {
			return true
		}
	}
	return false
}

// isAsked reports whether the session with a peer is to be begun anew.
func (h Handshakes) isAsked(renew map[mesh.ID]time.Time) bool {
	for id, a := range h.peers {
		if renew[id].After(a.renewed) {
			return true
		}
	}
	return false
}

// handshakeInput is what the next step depends on.
type handshakeInput struct {
	Now      time.Time
	Self     mesh.Record // as published
	Topology mesh.Topology
	Alive    map[mesh.ID]bool
	Observed netcfg.State
	Proved   map[mesh.ID]netip.AddrPort // see Paths
	Renew    map[mesh.ID]time.Time      // see Paths
	// Settled is since when this host is where it is, as far as this daemon knows.
	Settled time.Time
}

// HandshakePlan is what there is to do about peers without a session, or with one that a relay
// does not know.
type HandshakePlan struct {
	Renew        map[wgtypes.Key]time.Time // peers to renew first, see netcfg.Options
	Initiate     []netip.Addr              // addresses to send something to
	RecheckAfter time.Duration             // how soon to ask again; 0 for not before something happens
}

// next returns what to do now.
func (h Handshakes) next(in handshakeInput) HandshakePlan {
	out := HandshakePlan{Renew: make(map[wgtypes.Key]time.Time)}
	last := make(map[wgtypes.Key]time.Time, len(in.Observed.Peers))
	endpoint := make(map[wgtypes.Key]netip.AddrPort, len(in.Observed.Peers))
	for _, p := range in.Observed.Peers {
		last[p.Key], endpoint[p.Key] = p.LastHandshake, p.Endpoint
	}
	wanted := make(map[mesh.ID]bool, len(in.Topology.Peers))
	for _, p := range in.Topology.Peers {
		wanted[p.ID] = true
		handshake, there := last[p.Key]
		a, proved := h.attempt(p.ID), in.Proved[p.ID]
		if !a.spokeTo.IsValid() {
			a.spokeTo = endpoint[p.Key]
		}
		asked := in.Renew[p.ID].After(a.renewed)
		if asked {
			a.renewed = in.Renew[p.ID]
		}
		switch {
		case !there || !in.Alive[p.ID]:
			a.waiting, a.initiateAt = false, time.Time{}
		case !handshake.IsZero() && in.Now.Sub(handshake) < netcfg.HandshakeFresh:
			toldAt := a.toldAt
			switch {
			case asked && handshake.Before(a.renewed):
				out.Renew[p.Key] = a.renewed
				out.Initiate = append(out.Initiate, anyAddress(p)...)
				out.RecheckAfter = soonest(out.RecheckAfter, pollInterval)
			case handshake.Before(in.Settled) && toldAt.Before(in.Settled):
				// The peer may know us at another address. It sends there until its session is
				// too old, unless we say something.
				out.Initiate = append(out.Initiate, anyAddress(p)...)
				toldAt = in.Now
			}
			*a = attempt{firstDone: true, toldAt: toldAt, renewed: a.renewed}
		case len(p.Endpoints) == 0 && !proved.IsValid() && !endpoint[p.Key].IsValid():
			// WireGuard inside the daemon takes a message that it can't send for lost, like any other.
			inVain := a.firstDone || roleOf(in.Self, p).leads
			a.waiting, a.proved, a.initiateAt, a.inVain = true, netip.AddrPort{}, time.Time{}, inVain
		default:
			a.plan(roleOf(in.Self, p), proved, handshake.IsZero(), in.Now)
			out.add(p, a, endpoint[p.Key], in.Now)
		}
	}
	h.tellClients(in, &out)
	maps.DeleteFunc(h.peers, func(id mesh.ID, _ *attempt) bool { return !wanted[id] })
	if len(in.Topology.Addresses) > 0 {
		clear(h.known)
	}
	return out
}

// attempt returns the peer's state, a fresh one when it has none.
func (h Handshakes) attempt(id mesh.ID) *attempt {
	a, ok := h.peers[id]
	if !ok {
		a = &attempt{firstDone: h.known[id]}
		h.peers[id] = a
	}
	return a
}

// plan makes a schedule where there is none for this role, or where another path has been found
// than the one on which this node spoke: the peer has moved. It depends on whether the two have never had a handshake.
func (a *attempt) plan(r role, proved netip.AddrPort, never bool, now time.Time) {
	a.maxWait = r.retryInterval() // also if both lead
	if a.initiated && a.role.leads {
		r = a.role // it goes on with what it has begun: the other one may have a session that this node has lost
	}
	found := proved.IsValid() && a.spokeTo.IsValid() && proved != a.spokeTo && (r.leads || a.firstDone)
	scheduled, changed := !a.initiateAt.IsZero(), !a.initiateAt.IsZero() && a.role != r
	a.waiting, a.proved = true, proved
	if scheduled && !changed && !found {
		return
	}
	if found {
		a.inVain, a.spokeTo = true, proved
	}
	a.role, a.scheduledAt, a.initiateAt, a.wait = r, now, now, a.maxWait
	if r.leads && never {
		a.wait = firstRenewWait
	}
	switch {
	case changed:
		// WireGuard may have tried to speak while the peer had no endpoint.
		a.initiateAt, a.initiated = now.Add(roleChangeWait), true
	case !r.leads && !a.firstDone:
		a.initiateAt = now.Add(followerWait)
	case !r.leads:
		a.initiateAt = now.Add(roleChangeWait)
	}
}

// add does what is due for a peer without a session, whose endpoint is the given one.
func (o *HandshakePlan) add(p mesh.Peer, a *attempt, endpoint netip.AddrPort, now time.Time) {
	switch due := !now.Before(a.initiateAt); {
	case due && !a.role.leads && !a.firstDone:
		// The leader has had its time. The next turn gives the peer its endpoint, so that
		// it can be spoken to.
		a.firstDone, a.initiateAt = true, now.Add(endpointDelay)
	case due:
		if a.inVain || a.initiated && a.role.leads {
			o.Renew[p.Key] = now.Add(-netcfg.HandshakeFresh) // unless it has a session
		}
		o.Initiate = append(o.Initiate, anyAddress(p)...)
		if a.spokeTo = endpoint; a.proved.IsValid() {
			a.spokeTo = a.proved // which WireGuard gets first
		}
		a.initiated, a.inVain, a.initiateAt, a.wait = true, false, now.Add(a.wait), min(2*a.wait, a.maxWait)
	}
	wait := a.initiateAt.Sub(now)
	if now.Sub(a.scheduledAt) < retryInterval {
		wait = min(wait, pollInterval)
	}
	o.RecheckAfter = soonest(o.RecheckAfter, wait)
}

// anyAddress returns one address at the far end of the peer's tunnel, or none.
func anyAddress(p mesh.Peer) []netip.Addr {
	for _, prefix := range p.AllowedIPs {
		if prefix.IsSingleIP() {
			return []netip.Addr{prefix.Addr()}
		}
	}
	return nil
}
