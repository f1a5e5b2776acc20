// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/loglimit"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/path/agent"
	"github.com/meshd/meshd/internal/path/rawudp"
	"github.com/meshd/meshd/internal/state"
	"github.com/meshd/meshd/internal/wait"
)

// runPaths finds and keeps the paths to this node's WireGuard peers. Without a file for its
// path key the node has a new one after each start.
func (d *daemon) runPaths(ctx context.Context, ready func()) error {
	key, err := state.OpenPathKey(d.opt.RunDir, rand.Reader)
	if key == nil {
		return err
	}
	if err != nil {
		d.log.Warn("peers are probed only after they have heard of a new path key", "err", err)
	}
	var said loglimit.Limiter
	w := &wireGuard{underlay: d.underlay, retry: func(err error) bool {
		if said.IsNew(time.Now(), err) {
			d.log.Warn("peers can't be probed", "err", err)
		}
		return wait.Sleep(ctx, retryMax) == nil
	}}
	iface := d.cfg.WireGuard.Interface
	p := &pathAgent{
		wireGuard: w, inside: []string{iface, netcfg.VXLANName(iface), d.cfg.CNI.Bridge},
		key: [32]byte(key.Private.PublicKey().Bytes()), names: map[int]string{},
	}
	a := agent.Start(ctx, agent.Options{
		Cluster: d.cfg.Cluster.Name, Self: d.self.ID(), Key: d.self.WireGuard.PublicKey(),
		PathKey: key.Private, Counter: key.Counter,
		Port: w, Device: w, Call: d.call, Own: d.gossip.Tunnelled, Inside: p.isInside, OnLAN: p.onLAN, Dial: p.dial, Logger: d.log.Logger,
	})
	d.relayOptions.PathKey, d.relayOptions.Counter = key.Private, key.Counter
	var calls sync.WaitGroup
	calls.Go(func() { d.passCalls(ctx, a) })
	p.Agent = a
	d.paths = p
	ready()
	<-ctx.Done()
	calls.Wait()
	return errors.Join(d.underlay.Close(), a.Wait())
}

// call sends what the agent has sealed to another node, by gossip.
func (d *daemon) call(to mesh.ID, sealed []byte) {
	if err := d.gossip.SendCall(to, sealed); err != nil {
		d.log.Debug("call is not sent", "err", err)
	}
}

// passCalls passes calls of other nodes to the agent until ctx ends.
func (d *daemon) passCalls(ctx context.Context, a *agent.Agent) {
	for {
		select {
		case c := <-d.gossip.Calls():
			a.Called(c.From, c.Sealed)
		case <-ctx.Done():
			return
		}
	}
}

// wireGuard is the outer side of the WireGuard device, as the agent uses it.
type wireGuard struct {
	underlay
	retry func(error) bool // waits after an error, and reports whether to go on

	mu       sync.Mutex
	followed map[wgtypes.Key]bool // peers that are to send the first handshake
}

// Serve goes on after errors.
func (w *wireGuard) Serve(got func(rawudp.Datagram)) error {
	for {
		err := w.underlay.Serve(got)
		if err == nil || !w.retry(err) {
			return nil
		}
	}
}

// SetEndpoint gives no endpoint to a peer that is to send the first handshake: a packet to it
// would have WireGuard begin one, too, and both would fail.
func (w *wireGuard) SetEndpoint(peer wgtypes.Key, to netip.AddrPort) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.followed[peer] {
		return nil
	}
	return w.underlay.SetEndpoint(peer, to)
}

// pathAgent implements paths.
type pathAgent struct {
	*agent.Agent
	wireGuard *wireGuard
	inside    []string // devices of the mesh
	key       [32]byte
	peers     []node.PathPeer // as set last
	relays    relayConfig

	mu      sync.Mutex
	lan     []string       // links of the private network
	names   map[int]string // of links, as far as they were looked up since SetLAN
	strange []netip.Addr   // see node.StrangeAddresses
}

// relayConfig is what SetRelays was given.
type relayConfig struct {
	all     []node.Relay
	keep    int
	secrets [][32]byte
}

// SetLAN sets the links by which the nodes of this node's location are reached.
func (p *pathAgent) SetLAN(links []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lan = links
	clear(p.names) // a link may have another name now
}

// onLAN reports whether a link is one of those.
func (p *pathAgent) onLAN(link int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	name := p.nameOf(link)
	return name != "" && slices.Contains(p.lan, name)
}

// isInside reports whether a link is a device of the mesh.
func (p *pathAgent) isInside(link int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	name := p.nameOf(link)
	return name != "" && slices.Contains(p.inside, name)
}

// nameOf returns the name of a link, "" if it has just gone. To look it up takes longer the more
// links there are, and probes come all the time.
func (p *pathAgent) nameOf(link int) string {
	name, known := p.names[link]
	if !known {
		if l, err := net.InterfaceByIndex(link); err == nil {
			name = l.Name
		}
		p.names[link] = name
	}
	return name
}

// SetStrange sets the addresses from which nodes are tried that are to be reached by strangers.
func (p *pathAgent) SetStrange(addrs []netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.strange = addrs
}

// dial opens a socket from which nothing was sent to anybody.
func (p *pathAgent) dial(to netip.AddrPort) (net.Conn, error) {
	p.mu.Lock()
	i := slices.IndexFunc(p.strange, func(a netip.Addr) bool { return a.Is4() == to.Addr().Is4() })
	var from *net.UDPAddr
	if i >= 0 {
		from = net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.strange[i], 0))
	}
	p.mu.Unlock()
	c, err := net.DialUDP("udp", from, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Key returns the public path key of this node.
func (p *pathAgent) Key() [32]byte { return p.key }

// SetPeers sets to whom paths are to be found.
func (p *pathAgent) SetPeers(peers []node.PathPeer) {
	if reflect.DeepEqual(peers, p.peers) {
		return
	}
	p.peers = peers
	followed := make(map[wgtypes.Key]bool)
	list := make([]agent.Peer, 0, len(peers))
	for _, peer := range peers {
		if peer.Follows {
			followed[peer.Key] = true
		}
		list = append(list, agent.Peer{
			ID: peer.ID, Key: peer.Key, PathKey: publicKey(peer.PathKey), Candidates: peer.Candidates, Relays: peer.Relays,
			MTU: peer.MTU, NoTunnel: peer.NoTunnel, Private: peer.Private, Try: peer.Try,
		})
	}
	p.wireGuard.mu.Lock()
	p.wireGuard.followed = followed
	p.wireGuard.mu.Unlock()
	p.Agent.SetPeers(list)
}

// SetRelays sets through which nodes others can be reached, see agent.SetRelays.
func (p *pathAgent) SetRelays(all []node.Relay, keep int, secrets [][32]byte) {
	c := relayConfig{all, keep, secrets}
	if reflect.DeepEqual(c, p.relays) {
		return
	}
	p.relays = c
	list := make([]agent.Relay, 0, len(all))
	for _, r := range all {
		list = append(list, agent.Relay{ID: r.ID, PathKey: publicKey(r.PathKey), Addrs: r.Addrs, Preferred: r.Preferred})
	}
	p.Agent.SetRelays(list, keep, secrets)
}

// publicKey returns a path key, nil for none.
func publicKey(key [32]byte) *ecdh.PublicKey {
	if key == [32]byte{} {
		return nil
	}
	k, err := ecdh.X25519().NewPublicKey(key[:])
	if err != nil {
		return nil // it has the right length, which is all that is checked
	}
	return k
}

// readPaths returns what is known of the paths, and what this node decides by.
func (d *daemon) readPaths(records []mesh.Record) ([]agent.PeerStatus, node.Paths) {
	all := d.paths.Status()
	proofs := d.paths.Proofs()
	p := node.Paths{
		Met: proofs.Met, Tried: proofs.Tried, Mapped: d.readMappings(),
		Seen: make(map[mesh.ID][]netip.AddrPort), Proved: make(map[mesh.ID]netip.AddrPort), InUse: make(map[mesh.ID]path.Path),
		MTU: make(map[mesh.ID]int), Received: make(map[mesh.ID]time.Time), Renew: make(map[mesh.ID]time.Time),
	}
	for _, s := range all {
		if len(s.Seen) > 0 {
			p.Seen[s.ID] = s.Seen
		}
		if s.Proved {
			p.Proved[s.ID] = s.Path.Addr
		}
		if s.State == agent.Probed {
			p.InUse[s.ID], p.Received[s.ID], p.MTU[s.ID] = s.Path, s.Received, s.MTU
		}
		if !s.Renew.IsZero() {
			p.Renew[s.ID] = s.Renew
		}
	}
	ids := make(map[path.Short]mesh.ID, len(records))
	for _, r := range records {
		ids[path.ShortOf(r.ID())] = r.ID()
	}
	for _, b := range d.paths.Bound() {
		id, known := ids[b.Relay]
		if !known {
			continue
		}
		p.Bound = append(p.Bound, node.BoundRelay{ID: id, Kept: b.Kept})
		if seen := p.Seen[id]; b.Seen.IsValid() && !slices.Contains(seen, b.Seen) {
			p.Seen[id] = append(slices.Clone(seen), b.Seen)
		}
	}
	return all, p
}

// keepPaths tells the others where this node may be reached, and the agent what to try.
func (d *daemon) keepPaths(t *turn) ([]mesh.Problem, error) {
	err := d.keepStreams(t)
	d.wantMappings(t.in)
	t.recheckIn(d.memory.NoteUnreached(t.in))
	relays, keep := d.memory.Relays(t.in, t.wanted)
	d.paths.SetRelays(relays, keep, d.cfg.Secrets)
	d.paths.SetLAN(lanLinks(t.in.Facts, d.memory.Own.InternalIPs))
	d.paths.SetStrange(t.in.StrangeAddresses())
	peers := d.memory.PathPeers(t.in, t.wanted, relays)
	d.paths.SetPeers(peers)
	serves, problems := d.serveAsRelay(t)
	pathProblems, recheckAfter := d.memory.PathProblems(t.in, peers)
	t.recheckIn(recheckAfter)
	problems = slices.Concat(problems, d.memory.UDPProblems(t.in), pathProblems)
	return problems, errors.Join(err, d.publishPath(t.in, serves), d.gossip.PublishMembership(d.memory.Membership(t.in)), d.gossip.PublishReach(t.in.Reach()))
}

// publishFirstPath tells others what they need for a path to this node, if they don't know its path key,
// so that they need not wait until this host has its device.
func (d *daemon) publishFirstPath(in node.Input) error {
	for _, p := range in.View.Paths {
		if p.Author == d.self.ID() && p.Key == d.paths.Key() {
			return nil
		}
	}
	return d.publishPath(in, "")
}

// publishPath tells the others where this node may be reached, and whether it serves as relay.
func (d *daemon) publishPath(in node.Input, serves mesh.RelayPreference) error {
	err := d.gossip.PublishPath(mesh.PathRecord{
		Key: d.paths.Key(), Candidates: d.memory.OwnCandidates(in), Relays: in.OwnRelays(), Relay: serves,
	})
	if err != nil {
		return fmt.Errorf("publish paths: %w", err)
	}
	return nil
}

// lanLinks returns the links by which packets of the private network arrive: a host may have
// several cards in it.
func lanLinks(f netcfg.Facts, internalIPs []netip.Prefix) []string {
	links := slices.Clone(f.Cards)
	for _, l := range f.LANs(internalIPs) {
		links = append(links, l.Link)
	}
	return links
}

// updatePaths does what follows from paths that have changed, here or on other nodes. Which
// peers there are does not depend on it. It reports whether something else does, or a problem
// or an error has come or a problem has gone, so that a turn has to be taken.
func (d *daemon) updatePaths(t *turn) (turnDue bool) {
	if t.wanted.Desired.Device == nil {
		return false
	}
	t.in.Now = time.Now()
	t.paths, t.in.Paths = d.readPaths(t.in.View.Records)
	view := d.gossip.View()
	t.in.View.Paths, t.in.View.MetAt = view.Paths, view.MetAt
	problems, err := d.keepPaths(t)
	status := d.published.Load().status
	status.Peers = slices.Clone(status.Peers)
	shown := pathStatus(t.paths, t.in.View.Records, t.in.Paths.Streams)
	for i := range status.Peers {
		status.Peers[i].Path = shown[status.Peers[i].ID]
	}
	status.Node.Relays, status.Relay, status.Node.PortMappings = d.relaysInUse(*t), d.relayStatus(), d.mappingStatus()
	d.publish(status, *t)
	d.metrics.Paths(status.Peers)
	return err != nil || d.memory.NeedsTurn(t.in) || !slices.EqualFunc(problems, t.pathProblems, sameSubject)
}

// sameSubject reports whether two problems are one, whatever they say.
func sameSubject(a, b mesh.Problem) bool { return a.Kind == b.Kind && a.Node == b.Node }

// pathStatus returns what a person sees of the paths.
func pathStatus(all []agent.PeerStatus, records []mesh.Record, streams []node.Stream) map[mesh.ID]control.Path {
	names := make(map[path.Short]string, len(records))
	for _, r := range records {
		names[path.ShortOf(r.ID())] = r.Name
	}
	out := make(map[mesh.ID]control.Path, len(all))
	for _, s := range all {
		p := control.Path{Kind: pathKind(s.Kind()), Addr: s.Path.Addr, Proved: s.Proved, RTT: control.Milliseconds(s.RTT), Loss: s.Loss, MTU: s.MTU, NotProbed: notProbed(s.State), Relay: names[s.Path.Relay]}
		if i := slices.IndexFunc(streams, func(st node.Stream) bool { return s.Path.Addr == st.Own || s.Path.Addr == st.Relay }); i >= 0 && s.Path.Kind == path.Stream {
			p.Proxy = streams[i].Proxy
		}
		if s.Path.Kind != path.None {
			p.Since = s.Since.UTC().Round(time.Second)
		}
		for _, c := range s.Tried {
			p.Tried = append(p.Tried, control.TriedPath{Kind: pathKind(c.Path.Kind), Addr: c.Path.Addr, Relay: names[c.Path.Relay], RTT: control.Milliseconds(c.RTT), Loss: c.Loss})
		}
		out[s.ID] = p
	}
	return out
}

func pathKind(k path.Kind) control.PathKind {
	switch k {
	case path.LAN:
		return control.PathLAN
	case path.Direct:
		return control.PathDirect
	case path.Relayed:
		return control.PathRelayed
	case path.Stream:
		return control.PathTCP
	default:
		return control.PathNone
	}
}

// notProbed words why no path to a peer is looked for.
func notProbed(s agent.State) string {
	switch s {
	case agent.NoKey:
		return "the node's path key is not known yet"
	case agent.Ambiguous:
		return "the fingerprint of another node begins with the same 8 bytes"
	case agent.NotInWireGuard:
		return "WireGuard does not have the peer yet"
	default:
		return ""
	}
}
