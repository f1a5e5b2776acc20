// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"slices"
	"time"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/path"
)

// Problems with the path to one peer; the last one also with those to all.
const (
	ProblemNoPath mesh.ProblemKind = "no-path"  // the peer lives, and nothing passes
	ProblemDetour mesh.ProblemKind = "detour"   // packets go through a relay or over TCP although both ends are open to others
	ProblemMTU    mesh.ProblemKind = "path-mtu" // it carries less than the tunnel's MTU needs
)

const (
	// pathPatience is how long a path may be like that. Wherever there is a path it is found
	// sooner, and a node that has died is noticed sooner.
	pathPatience = 15 * time.Second
	// maxTold bounds the addresses in one problem.
	maxTold = 6
	// leastMTU is the lowest that wireguard.mtu may be.
	leastMTU = 576
)

// pathTrouble is since when something is wrong with the path to a peer that lives; zero for not.
type pathTrouble struct {
	silent   time.Time // nothing comes from it
	detoured time.Time
}

// PathProblems returns what is wrong with the paths to single peers, and how soon to ask again, 0 for no
// wish. While none answers over UDP that is the cause of all, see UDPProblems.
func (m *Memory) PathProblems(in Input, peers []PathPeer) (problems []mesh.Problem, recheckAfter time.Duration) {
	troubles := make(map[mesh.ID]pathTrouble)
	lasts := func(since time.Time) bool {
		wait := pathPatience - in.Now.Sub(since)
		if since.IsZero() || wait <= 0 {
			return !since.IsZero()
		}
		recheckAfter = soonest(recheckAfter, wait)
		return false
	}
	records := in.recordsByID()
	var known []PathPeer // those of which it is known what their paths carry
	for _, p := range peers {
		use, isPeer := in.Paths.InUse[p.ID]
		if !isPeer || !in.View.Alive[p.ID] || !m.udp.silent.IsZero() {
			continue
		}
		_, proved := in.Paths.Proved[p.ID]
		t := m.troubles[p.ID]
		t.silent = begun(!proved, t.silent, in.Now)
		if received := in.Paths.Received[p.ID]; !proved && received.After(t.silent) {
			t.silent = received
		}
		t.detoured = begun((use.Kind == path.Relayed || use.Kind == path.Stream) && in.oughtToMeet(p, records), t.detoured, in.Now)
		troubles[p.ID] = t
		if proved && in.Paths.MTU[p.ID] > 0 {
			known = append(known, p)
		}
		switch {
		case lasts(t.silent):
			problems = append(problems, in.noPathProblem(p))
		case lasts(t.detoured):
			problems = append(problems, in.detourProblem(p))
		}
	}
	m.troubles = troubles
	return append(problems, in.mtuProblems(known)...), recheckAfter
}

// begun returns since when something holds: since before, or from now on.
func begun(holds bool, before, now time.Time) time.Time {
	switch {
	case !holds:
		return time.Time{}
	case before.IsZero():
		return now
	default:
		return before
	}
}

// oughtToMeet reports whether nothing but a block between a peer and this node can be why they
// don't reach each other: most others reach both unasked. Nodes in a node's own location are
// not asked, nor are the two themselves.
func (in Input) oughtToMeet(p PathPeer, records map[mesh.ID]mesh.Record) bool {
	self := in.Self.ID()
	isReached := func(id mesh.ID) bool {
		votes, subject := 0, records[id]
		for _, r := range in.View.Reaches {
			author := records[r.Author]
			if r.Author == self || r.Author == p.ID || author.SameLocation(&subject) {
				continue
			}
			tried, reached := false, false
			for _, t := range r.Tried {
				tried = tried || t.Subject == id
				reached = reached || t.Subject == id && t.Reached
			}
			switch {
			case reached:
				votes++
			case tried:
				votes--
			}
		}
		return votes > 0
	}
	return len(p.openAt()) > 0 && isReached(p.ID) && isReached(self)
}

// openAt returns the addresses at which strangers reach a peer, as it says.
func (p PathPeer) openAt() []string {
	var all []string
	for _, c := range p.Candidates {
		if c.Path.Kind == path.Direct && c.Open {
			all = append(all, c.Path.Addr.String())
		}
	}
	return all
}

// noPathProblem words that nothing comes from a peer.
func (in Input) noPathProblem(p PathPeer) mesh.Problem {
	var tried []string
	for _, c := range p.Candidates {
		if c.Path.Straight() {
			tried = append(tried, "at "+c.Path.Addr.String())
		}
	}
	for _, id := range p.Relays {
		tried = append(tried, "through "+NameOf(in.View.Records, id))
	}
	answer := "no address of it is known"
	if len(tried) > 0 {
		answer = "no answer " + mesh.Some(tried, maxTold)
	}
	return mesh.Problem{
		Kind: ProblemNoPath, Node: NameOf(in.View.Records, p.ID),
		Text:   "gossip reaches it, WireGuard does not: " + answer,
		Advice: in.pathAdvice(p),
	}
}

// detourProblem words that packets to a peer don't go straight although they could.
func (in Input) detourProblem(p PathPeer) mesh.Problem {
	use := in.Paths.InUse[p.ID]
	how := "go"
	if use.Kind == path.Stream {
		how += " over TCP"
	}
	relay := func(r mesh.Record) bool { return path.ShortOf(r.ID()) == use.Relay }
	if i := slices.IndexFunc(in.View.Records, relay); i >= 0 {
		how += " through " + in.View.Records[i].Name
	}
	return mesh.Problem{
		Kind: ProblemDetour, Node: NameOf(in.View.Records, p.ID),
		Text:   fmt.Sprintf("others reach it and this node over UDP, but these two don't reach each other: no answer at %s; packets %s meanwhile", mesh.Some(p.openAt(), maxTold), how),
		Advice: in.pathAdvice(p) + "; it is tried again every minute",
	}
}

// mtuProblems reports paths that carry less than the tunnels need, of peers of which that is known.
// If all do, the narrow link is this host's, as far as this node can tell.
func (in Input) mtuProblems(known []PathPeer) (problems []mesh.Problem) {
	most, wanted := 0, 0
	for _, p := range known {
		carried := in.Paths.MTU[p.ID]
		most, wanted = max(most, carried), max(wanted, p.MTU)
		if carried < p.MTU {
			problems = append(problems, mesh.Problem{
				Kind: ProblemMTU, Node: NameOf(in.View.Records, p.ID),
				Text:   fmt.Sprintf("the path to it carries packets of at most %d bytes, but the tunnel's MTU is %d: %s", carried, p.MTU, mtuMeanwhile),
				Advice: in.mtuAdvice(carried, "of the node whose network carries no more: that is this one if others of its paths carry no more either"),
			})
		}
	}
	if len(problems) < 2 || len(problems) < len(known) {
		return problems
	}
	return []mesh.Problem{{
		Kind: ProblemMTU, Node: in.Config.Name,
		Text:   fmt.Sprintf("the paths to all %d other nodes carry packets of at most %d bytes, but the tunnels' MTU is %d: %s", len(known), most, wanted, mtuMeanwhile),
		Advice: in.mtuAdvice(most, "of this host"),
	}}
}

// mtuMeanwhile is what becomes of longer packets: the routes have what the path carries, see
// PathMTUs of netcfg.Settings.
const mtuMeanwhile = "TCP keeps to that, and longer packets of other protocols go in fragments"

// mtuAdvice says what to set so that the tunnels need no more than is carried.
func (in Input) mtuAdvice(carried int, where string) string {
	least := leastMTU
	if _, v6 := in.View.Cluster.Families(); v6 {
		least = mesh.MinMTU6
	}
	if carried < least {
		return fmt.Sprintf("have the links on the way carry packets of %d bytes: inside the tunnels there must be room for %d", least+mesh.Overhead, least)
	}
	return fmt.Sprintf("set wireguard.mtu: %d in the file %s, and run systemctl reload meshd there", carried, where)
}

// pathAdvice says what lets packets pass between a peer and this node.
func (in Input) pathAdvice(p PathPeer) string {
	port := in.Config.ListenPort
	if at := p.openAt(); len(at) > 0 {
		return fmt.Sprintf("let UDP pass both ways between port %d of this host and %s: in the firewalls of both hosts, and in those of their networks or providers",
			port, mesh.Some(at, maxTold))
	}
	return fmt.Sprintf("open UDP port %d of this host to the internet, or WireGuard's port of the other one; or have a third node forward between them, which needs its UDP ports of WireGuard and gossip open",
		port)
}
