// SPDX-License-Identifier: Apache-2.0

// Package gossip distributes what each node says to all others, and detects which nodes
// are alive.
//
// Membership and failure detection are hashicorp/memberlist's. What nodes say travels
// beside it, as signed objects in a store that is replicated to every node: see
// [Gossip.Publish], [Gossip.PublishPath], [Gossip.PublishVerdict], [Gossip.AddClient] and
// [Gossip.Forget]; and see the
// type settings for what nodes agree on without a person. Below both is a transport of
// our own, which encrypts every packet and stream with keys derived from the cluster's
// secret, and finds the address of a node by its fingerprint.
//
// So there are three layers of trust. A host without the secret is ignored. A host with
// the secret takes part in gossip and may lie about which nodes are alive; a node that is
// falsely called dead comes back, see memberTransport. What a node says about itself only
// that node can say, because it is signed with its identity and numbered. With a list of
// trusted nodes, everything that others say is ignored.
//
// Events carry no data. [Gossip.Changed] only signals that something is different, and
// [Gossip.View] returns all that is known, as one value.
package gossip

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/meshd/meshd/internal/mesh"
)

// ErrStale is returned by Publish for a sequence that others have already seen, or that
// is forgotten; a sequence above View.OwnSequence is accepted.
var ErrStale = errors.New("the sequence is not new")

// Options configure a Gossip. Identity, Cluster, Secrets, Boot, Instance and Bind are
// required.
type Options struct {
	Identity ed25519.PrivateKey
	Cluster  mesh.Cluster
	Secrets  [][32]byte // the first one encrypts, all of them decrypt

	// Boot increases with each start of the daemon, and is on disk before Start is
	// called: other nodes treat packets with a lower one as replays.
	Boot     uint64
	Instance uint64 // random, new at each start

	Bind       string   // host:port; without a host, all addresses of both families
	Listen     []string // the same: where streams of TLS are accepted besides
	Join       []string // host:port, names or addresses
	Remembered Remembered

	Trusted []mesh.ID    // the nodes that are trusted if Cluster.Trust is mesh.TrustList; this node always is
	Adopted mesh.Cluster // View.Cluster before a restart; zero for none

	Proxy    Proxy            // for streams of TLS; default: none
	Resolver Resolver         // default: net.DefaultResolver
	Logger   *slog.Logger     // default: no logging
	Now      func() time.Time // default: time.Now
	Rand     io.Reader        // default: crypto/rand; for nonces and stream keys

	filter func(network string, to netip.AddrPort) bool // see transport
}

// Remembered is what is kept over a restart: with it every known node is a seed, and
// replays are detected.
type Remembered struct {
	Objects [][]byte  // signed envelopes, as received
	Highest []Highest // sorted by key
}

// Highest is the highest sequence of an object that was seen.
type Highest struct {
	Key      string // identifies the object; any bytes
	Sequence uint64
}

// Gossip is a running node of the gossip network.
type Gossip struct {
	identity ed25519.PrivateKey
	self     mesh.ID
	name     string // of the cluster
	ranges   uint64 // hash of its address settings
	resolver Resolver
	now      func() time.Time

	log      *limitedLog
	notices  *notices
	counters *counters
	changed  chan struct{}
	// pathsChanged is changed for path records.
	pathsChanged chan struct{}
	calls        chan Call
	orders       chan Call
	questions    chan Question
	members      *members
	transport    *transport
	queue        *memberlist.TransmitLimitedQueue

	cancel context.CancelFunc
	tasks  sync.WaitGroup

	callPace callPace // of handleLoop

	rejoin  chan struct{} // signals that the join list has changed
	claimed chan struct{} // signals that this node has made a claim

	mu       sync.Mutex // never held while memberlist is called
	cluster  mesh.Cluster
	adopted  settings         // from others; used if their generation is higher than cluster's
	trusted  map[mesh.ID]bool // nil if all nodes are trusted
	joinList []string
	list     *memberlist.Memberlist
	member   memberTransport // the transport that list uses
	store    *store
	full     time.Time // when we last determined who fills the store
	refused  holder    // of whom an object was refused last
	merged   bool
	joined   mesh.ID // the node to which a stream was opened last; zero for none
	own      []*own  // what we say besides our record and verdicts
	asked    map[[questionLen]byte]asked
	// joinEntries has those of joinList that were asked.
	joinEntries map[string]joinEntry
}

// Start binds the sockets and begins to gossip, without waiting for an answer. Stop ends
// it; so does the end of ctx, except that the sockets stay open until Stop.
func Start(ctx context.Context, o Options) (*Gossip, error) {
	g, err := newGossip(o)
	if err != nil {
		return nil, fmt.Errorf("set up gossip: %w", err)
	}
	if err := g.transport.listen(ctx, o.Bind, o.Listen); err != nil {
		return nil, err // it begins with the setting that is wrong
	}
	if err := g.startMemberlist(0); err != nil {
		return nil, errors.Join(err, g.transport.Shutdown())
	}
	ctx, g.cancel = context.WithCancel(ctx)
	for _, task := range []func(context.Context){
		g.handleLoop, g.joinLoop, g.rejoinLoop, g.followUpLoop, g.claimLoop, g.compareLoop, g.epochLoop,
	} {
		g.tasks.Go(func() { task(ctx) })
	}
	return g, nil
}

// newGossip sets up everything that does not need the network.
func newGossip(o Options) (*Gossip, error) {
	if len(o.Identity) != ed25519.PrivateKeySize {
		return nil, errors.New("no identity given")
	}
	ring, err := newKeyring(o.Secrets)
	if err != nil {
		return nil, err
	}
	if o.Resolver == nil {
		o.Resolver = net.DefaultResolver
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	self := mesh.IDOf(o.Identity.Public().(ed25519.PublicKey))
	g := &Gossip{
		identity: o.Identity, self: self, name: o.Cluster.Name, ranges: o.Cluster.Hash(),
		cluster: o.Cluster, joinList: slices.Clone(o.Join), resolver: o.Resolver, now: o.Now,
		rejoin:       make(chan struct{}, 1),
		claimed:      make(chan struct{}, 1),
		log:          newLimitedLog(o.Logger),
		notices:      &notices{now: o.Now, lastSeen: make(map[notice]time.Time)},
		counters:     &counters{counts: make(map[string]uint64)},
		changed:      make(chan struct{}, 1),
		pathsChanged: make(chan struct{}, 1),
		own:          newOwn(),
		calls:        make(chan Call, maxCalls),
		orders:       make(chan Call, maxOrders),
		questions:    make(chan Question, maxQuestions),
		asked:        make(map[[questionLen]byte]asked),
		store:        newStore(),
		joinEntries:  make(map[string]joinEntry),
	}
	g.members = newMembers(self, g.signal)
	g.queue = &memberlist.TransmitLimitedQueue{NumNodes: g.members.count, RetransmitMult: retransmitMult}
	g.transport = &transport{
		ring: ring, random: o.Rand, now: o.Now, log: g.log, notices: g.notices, counters: g.counters,
		self:  hello{id: self, instance: o.Instance, boot: o.Boot, cluster: o.Cluster, aes: hasAES()},
		label: labelOf(o.Cluster), filter: o.filter, proxy: o.Proxy,
		addresses: newAddressTable(o.Cluster.Overlay), identity: o.Identity,
		trusts: func(id mesh.ID) bool {
			g.mu.Lock()
			defer g.mu.Unlock()
			return g.trusts(id)
		},
	}
	g.transport.state = func() []byte { return delegate{g}.LocalState(true) }
	if _, err := g.transport.self.marshal(); err != nil {
		return nil, err
	}
	if err := settingsOf(o.Cluster).check(); err != nil {
		return nil, err
	}
	if o.Adopted.Name == g.name && o.Adopted.Hash() == g.ranges && settingsOf(o.Adopted).check() == nil {
		g.adopted = settingsOf(o.Adopted)
	}
	g.store.self = self
	g.setTrust(o.Cluster, o.Trusted)
	g.restore(o.Remembered)
	g.store.hasMet = g.transport.hasMet
	return g, nil
}

// retransmitMult is how often each node repeats what it gossips, for each digit of the
// number of nodes: fifteen times in a cluster of some hundred, which misses one node in a
// million if one packet in ten is lost.
const retransmitMult = 5

// memberlistConfig returns timings with which a dead node is detected within ten seconds,
// and no live one is suspected at a round trip of 300 ms and a loss of one packet in ten.
func (g *Gossip) memberlistConfig(member memberTransport, l listener) *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name, c.Transport = member.name, member
	c.Delegate = delegate{g}
	c.Events, c.Alive, c.Ping = l, l, l
	c.Logger = log.New(memberlistLog{g.log}, "", 0)

	c.ProbeInterval = time.Second
	c.ProbeTimeout = 350 * time.Millisecond
	c.SuspicionMult = 3
	// A suspicion ends after 3 s, whether other nodes confirm it or not: a live node has
	// refuted it by then, and waiting for confirmations would triple the time to detect a
	// dead node.
	c.SuspicionMaxTimeoutMult = 1
	c.IndirectChecks = 4
	c.GossipNodes = 4
	c.GossipInterval = 200 * time.Millisecond
	c.PushPullInterval = 25 * time.Second
	c.DeadNodeReclaimTime = time.Second
	c.RetransmitMult = retransmitMult
	c.TCPTimeout = dialTimeout

	// With compression, 500 nodes use all their CPU time for it.
	c.EnableCompression = false
	// memberlist prepends a checksum of five bytes without counting it.
	c.UDPBufferSize = maxPayload - 5
	// The transport encrypts; memberlist's own key and label are not needed.
	c.SecretKey, c.Label = nil, ""
	// If UDP does not reach a node for a moment, memberlist asks it over a stream before
	// suspecting it: the transport tries all of its addresses at once.
	c.DisableTcpPings = false
	return c
}

// restore fills the store with what was remembered. Objects that are no longer valid, for
// example after an update, are left out.
func (g *Gossip) restore(r Remembered) {
	for _, h := range r.Highest {
		key, err := parseObjectKey(h.Key)
		if err != nil {
			g.counters.add("remembered-content")
			continue
		}
		g.store.raise(key, h.Sequence)
	}
	for _, raw := range r.Objects {
		author, err := claimedAuthor(raw)
		if err == nil && !g.trusts(author) {
			continue
		}
		o, err := decodeObject(g.name, slices.Clone(raw))
		if err != nil {
			g.counters.add("remembered-content")
			g.log.at(slog.LevelWarn, "remembered object refused", "err", err)
			continue
		}
		g.store.put(o)
	}
	g.store.pruneHighest()
}

// handleLoop processes what the transport receives.
func (g *Gossip) handleLoop(ctx context.Context) {
	for {
		select {
		case m := <-g.transport.inbound:
			g.handle(m)
		case <-ctx.Done():
			return
		}
	}
}

// signal makes Changed fire, without blocking.
func (g *Gossip) signal() { notify(g.changed) }

// notify sends on a channel of size one, without blocking.
func notify(c chan<- struct{}) { trySend(c, struct{}{}) }

// trySend sends on a channel, and reports false if there is no room.
func trySend[T any](c chan<- T, v T) bool {
	select {
	case c <- v:
		return true
	default:
		return false
	}
}

// Stop ends everything and waits for it. It sends no leave message, because other nodes
// must not take a restart for a departure.
func (g *Gossip) Stop() error {
	g.cancel()
	list, _ := g.membership()
	err := errors.Join(list.Shutdown(), g.transport.Shutdown())
	g.tasks.Wait()
	list, _ = g.membership() // of a new epoch that began meanwhile
	err = errors.Join(err, list.Shutdown())
	if err != nil {
		return fmt.Errorf("stop gossip: %w", err)
	}
	return nil
}

// Changed fires when View has changed, but for View.Paths, at least once after the last
// change.
func (g *Gossip) Changed() <-chan struct{} { return g.changed }

// Addr returns the address to which the sockets are bound.
func (g *Gossip) Addr() netip.AddrPort { return g.transport.bound() }

// Socket returns the UDP socket, for another one that shares its port. What is gossip's must
// still arrive here, and the caller neither reads from it nor closes it.
func (g *Gossip) Socket() *net.UDPConn { return g.transport.udp.UDPConn }

// SetAddresses sets the addresses at which nodes may be reached, the best first, and where
// they accept streams over TLS besides: addresses, and names that a proxy may look up. It
// replaces the earlier ones.
func (g *Gossip) SetAddresses(candidates map[mesh.ID][]netip.AddrPort, streams map[mesh.ID][]mesh.Endpoint) {
	targets := make(map[mesh.ID][]target, len(streams))
	for id, endpoints := range streams {
		for _, e := range endpoints {
			targets[id] = append(targets[id], tlsTarget(e))
		}
	}
	g.transport.mu.Lock()
	defer g.transport.mu.Unlock()
	g.transport.addresses.set(candidates)
	g.transport.addresses.setStreams(targets)
}

// Publish signs a record of this node and distributes it. Its sequence must be higher
// than that of everything published before, else the error is ErrStale.
func (g *Gossip) Publish(r mesh.Record) error {
	if r.ID() != g.self {
		return fmt.Errorf("publish record: it is of %v", r.ID())
	}
	payload, err := encodeRecord(r)
	for err == nil && len(payload) > maxObject-objectHeader && len(r.Withheld) > 0 {
		// What it withholds follows from the records of others, who must not make it too long.
		r.Withheld, r.WithheldMore = r.Withheld[:len(r.Withheld)-1], r.WithheldMore+1
		payload, err = encodeRecord(r)
	}
	if err != nil {
		return fmt.Errorf("publish record: %w", err)
	}
	o, err := g.sign(kindRecord, payload)
	if err != nil {
		return fmt.Errorf("publish record: %w", err)
	}
	g.mu.Lock()
	if own := g.ownSequence(); r.Sequence <= own {
		g.mu.Unlock()
		return fmt.Errorf("publish record: sequence %d, %d was seen: %w", r.Sequence, own, ErrStale)
	}
	before, known := g.store.objects[recordKey(g.self)].body.(recordBody)
	result := g.store.put(o)
	g.mu.Unlock()
	if result != fresh {
		return errors.New("publish record: the store is full")
	}
	g.signal()
	if r.Claim.Slot != mesh.None && (!known || before.Claim.Slot != r.Claim.Slot) {
		notify(g.claimed)
	}
	g.spread([]object{o})
	g.updateSettings()
	g.updateOwn()
	return nil
}

// ErrOverruled is returned by Forget for a revocation that does not count, because this
// node itself is revoked.
var ErrOverruled = errors.New("this node is revoked itself, and the lower fingerprint of the two counts")

// Forget removes a node's records up to a sequence. With mesh.Forever it revokes the node's
// identity and also removes everything that the node has made. It can't be undone, except
// by revoking this node. It has no effect if this node has already forgotten as much.
func (g *Gossip) Forget(target mesh.ID, upTo uint64) error {
	payload, err := encodeTombstone(tombstone{g.identity.Public().(ed25519.PublicKey), target, upTo})
	if err != nil {
		return fmt.Errorf("forget %v: %w", target, err)
	}
	o, err := g.sign(kindTombstone, payload)
	if err != nil {
		return fmt.Errorf("forget %v: %w", target, err)
	}
	result, err := g.storeOwn(o)
	if err != nil {
		return fmt.Errorf("forget %v: %w", target, err)
	}
	if result == fresh {
		g.signal()
		g.spread([]object{o})
		g.updateSettings()
	}
	g.mu.Lock()
	counts := g.store.forgottenUpTo[target] >= upTo
	g.mu.Unlock()
	if !counts {
		return fmt.Errorf("forget %v: %w", target, ErrOverruled)
	}
	return nil
}

// sign creates an object of this node, with the same checks that other nodes make.
func (g *Gossip) sign(kind objectKind, payload []byte) (object, error) {
	raw, err := signObject(g.identity, g.name, kind, payload)
	if err != nil {
		return object{}, err
	}
	return decodeObject(g.name, raw)
}

// storeOwn adds an object of this node to the store. If there is no room, the error says
// which node uses it.
func (g *Gossip) storeOwn(o object) (outcome, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	result := g.store.put(o)
	if result == full {
		p := g.fullProblem(o)
		return full, fmt.Errorf("%s; %s", p.Text, p.Advice)
	}
	return result, nil
}

// ownSequence returns the sequence that a new record of this node must exceed.
func (g *Gossip) ownSequence() uint64 {
	return max(g.store.highest[recordKey(g.self)], g.store.forgottenUpTo[g.self])
}

// Remember returns what to keep on disk: all but path records, which change too often.
func (g *Gossip) Remember() Remembered {
	g.mu.Lock()
	defer g.mu.Unlock()
	var r Remembered
	for _, o := range g.store.sorted() {
		if o.key.kind != kindPath {
			r.Objects = append(r.Objects, slices.Clone(o.raw))
		}
	}
	for key, sequence := range g.store.highest {
		if key.kind != kindPath {
			r.Highest = append(r.Highest, Highest{string(key.bytes()), sequence})
		}
	}
	slices.SortFunc(r.Highest, func(a, b Highest) int {
		return strings.Compare(a.Key, b.Key)
	})
	return r
}
