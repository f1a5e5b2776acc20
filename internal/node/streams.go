// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/path"
)

// ProblemUDP is that this node's UDP is blocked.
const ProblemUDP mesh.ProblemKind = "no-udp"

const (
	// udpPatience is how long no node may answer over UDP before it counts as blocked. A path
	// is found sooner wherever there is one.
	udpPatience = 15 * time.Second
	// udpPatienceAgain is the same after a restart, if streams were in use before.
	udpPatienceAgain = 2 * time.Second
	// maxStreams bounds the streams that this node opens, and maxRelayStreams those of them that
	// go to relays because it is reached there.
	maxStreams      = 16
	maxRelayStreams = mesh.MaxPathRelays
)

// Stream is a stream that carries datagrams to another node and back, see package path/stream.
type Stream struct {
	Node    mesh.ID
	Dialled bool           // by this node
	Own     netip.AddrPort // WireGuard's endpoint for the node
	Relay   netip.AddrPort // WireGuard's endpoint for nodes behind the node's relay; only if dialled
	Since   time.Time      // when it was opened; zero while it is not
	Proxy   string         // the HTTP proxy through which it goes; "" for none
}

// udp is what is known of whether UDP passes between this node and others. A private network
// tells nothing of that: only the way beyond may be blocked.
type udp struct {
	silent  time.Time // since when some live and none answers; zero while one does
	blocked time.Time // since when UDP counts as blocked; zero if it does not
}

// look updates u. It returns the nodes that live and don't answer over UDP, in order, and how
// long it takes until UDP counts as blocked, 0 if that is not to be expected.
func (u *udp) look(in Input) (silent []mesh.ID, wait time.Duration) {
	if len(in.Paths.InUse) == 0 { // there is nobody to answer
		*u = udp{}
	}
	again := false
	for id, p := range in.Paths.InUse {
		_, proved := in.Paths.Proved[id]
		switch {
		case proved && p.Kind == path.LAN:
		case proved && p.Kind != path.Stream:
			*u = udp{}
			return nil, 0
		case in.View.Alive[id]:
			silent = append(silent, id)
			again = again || p.Kind == path.Stream
		}
	}
	slices.SortFunc(silent, mesh.ID.Compare)
	switch {
	case !u.blocked.IsZero():
		return silent, 0
	case len(silent) == 0:
		u.silent = time.Time{}
		return nil, 0
	case u.silent.IsZero():
		u.silent = in.Now
	}
	patience := udpPatience
	if again {
		patience = udpPatienceAgain
	}
	if wait = patience - in.Now.Sub(u.silent); wait <= 0 {
		u.blocked = in.Now
	}
	return silent, max(wait, 0)
}

// WantedStreams returns to which nodes this one keeps streams, in order, and how soon to ask again,
// 0 for no wish. As long as UDP passes, only those that are still in use are kept: paths leave
// them within a minute. While it is blocked, there are streams to two relays, and to those
// through which other nodes are reached. A node that is not reached through any relay gets one
// of its own. Relays are those there are, the best first.
func (m *Memory) WantedStreams(in Input, relays []Relay) (wanted []mesh.ID, recheckAfter time.Duration) {
	silent, recheckAfter := m.udp.look(in)
	wanted = m.chooseStreams(in, relays, silent)
	slices.SortFunc(wanted, mesh.ID.Compare)
	return wanted, recheckAfter
}

// chooseStreams is WantedStreams, the most important node first, with the nodes that live and
// don't answer over UDP.
func (m *Memory) chooseStreams(in Input, relays []Relay, silent []mesh.ID) (wanted []mesh.ID) {
	add := func(id mesh.ID) {
		if id != in.Self.ID() && in.View.Alive[id] && len(wanted) < maxStreams && !slices.Contains(wanted, id) {
			wanted = append(wanted, id)
		}
	}
	dialled := func(want func(Stream) bool) {
		for _, s := range in.Paths.Streams {
			if s.Dialled && want(s) {
				add(s.Node)
			}
		}
	}
	dialled(in.isInUse)
	if m.udp.blocked.IsZero() {
		return wanted
	}
	if len(silent) == 0 { // nobody lives, as far as is known: perhaps because a stream has just broken
		for _, s := range in.Paths.Streams {
			if s.Dialled && !slices.Contains(wanted, s.Node) {
				wanted = append(wanted, s.Node)
			}
		}
		return wanted
	}
	for _, r := range relays[:min(len(relays), maxRelayStreams)] {
		add(r.ID)
	}
	said := in.pathsByAuthor()
	// Those that strangers reach come first: a stream to them can be opened.
	closed := func(id mesh.ID) int {
		if said[id].IsOpen() {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(silent, func(a, b mesh.ID) int { return cmp.Compare(closed(a), closed(b)) })
	for _, id := range silent {
		if _, proved := in.Paths.Proved[id]; proved {
			continue
		}
		for _, relay := range said[id].Relays {
			add(relay)
		}
		if len(relays) == 0 || in.Now.Sub(m.udp.blocked) >= udpPatience {
			add(id)
		}
	}
	return wanted
}

// isInUse reports whether a peer answers over a stream.
func (in Input) isInUse(s Stream) bool {
	for id, p := range in.Paths.InUse {
		_, proved := in.Paths.Proved[id]
		if proved && p.Kind == path.Stream && (p.Addr == s.Own || p.Addr == s.Relay) {
			return true
		}
	}
	return false
}

// relayStream returns the address at which a relay is reached over a stream while UDP is blocked,
// the zero value if there is none.
func (m *Memory) relayStream(in Input, relay mesh.ID) netip.AddrPort {
	i := slices.IndexFunc(in.Paths.Streams, func(s Stream) bool { return s.Dialled && s.Node == relay })
	if i < 0 || m.udp.blocked.IsZero() {
		return netip.AddrPort{}
	}
	return in.Paths.Streams[i].Relay
}

// UDPProblems reports that UDP is blocked, even while streams take its place: they are slower.
func (m *Memory) UDPProblems(in Input) []mesh.Problem {
	if m.udp.blocked.IsZero() {
		return nil
	}
	var open []string
	proxy := ""
	for _, s := range in.Paths.Streams {
		if name := NameOf(in.View.Records, s.Node); !s.Since.IsZero() && !slices.Contains(open, name) {
			open = append(open, name)
		}
		if s.Proxy != "" {
			proxy = " through the proxy " + s.Proxy
		}
	}
	slices.Sort(open)
	meanwhile := "and a TCP stream that could take its place can't be opened to any of them either"
	if len(open) > 0 {
		meanwhile = "packets go over TCP to " + strings.Join(open, ", ") + proxy + " meanwhile, which is slower"
	}
	who := "no other node answers over UDP"
	if len(in.Paths.InUse) == 1 {
		for id := range in.Paths.InUse {
			who += fmt.Sprintf(" (there is only %s)", NameOf(in.View.Records, id))
		}
	}
	port := in.Config.ListenPort
	return []mesh.Problem{{
		Kind: ProblemUDP, Node: in.Config.Name,
		Text: who + ": " + meanwhile,
		Advice: fmt.Sprintf("let UDP from port %d of this host out to any address and port, and the answers in: in the host's own firewall, and in the network's or the provider's; it is tried again every minute",
			port),
	}}
}
