// SPDX-License-Identifier: Apache-2.0

// Package gossip tells all nodes what each of them says, and who is alive.
//
// Membership and failure detection are hashicorp/memberlist's. What nodes have
// to say travels beside it, as signed objects in a store that every node has a
// copy of: see [Gossip.Publish], [Gossip.Judge], [Gossip.AddClient] and [Gossip.Forget]; and see
// settings for what is agreed upon without a person. Below both is a transport
// of our own, which seals every packet and stream with keys of the cluster's
// secret and finds the way to a node by its fingerprint.
//
// So there are three layers of trust. Without the secret nobody is heard at
// all. With it, one takes part in gossip, and may lie about who is alive; a node
// that is called dead comes back, see lent. What a node says of itself only the
// node can say, because it is signed with the node's identity and numbered; with
// a list of those who are trusted, others say nothing that counts.
//
// Nobody acts on an event here. [Gossip.Changed] says that something is
// different, and [Gossip.View] is all there is to know, as one value.
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

// ErrStale is returned by Publish for a sequence that others have seen
// already, or that is forgotten; View.OwnSequence says what to go beyond.
var ErrStale = errors.New("the sequence is not new")

// Options say who we are and where to begin. Identity, Cluster, Secrets, Boot,
// Instance and Bind are needed.
type Options struct {
	Identity ed25519.PrivateKey
	Cluster  mesh.Cluster
	Secrets  [][32]byte // the first one seals, all of them open

	// Boot rises with each start of the daemon, and is on disk before Start is
	// called: others take packets of a lower one for replays.
	Boot     uint64
	Instance uint64 // random, drawn at each start

	Bind       string   // host:port; without a host, all addresses of both families
	Join       []string // host:port, names or addresses
	Remembered Remembered

	Trusted []mesh.ID    // whose word counts if Cluster.Trust is TrustList; we ourselves always do
	Adopted mesh.Cluster // View.Cluster before a restart; zero for none

	Resolver Resolver         // default: net.DefaultResolver
	Logger   *slog.Logger     // default: no logging
	Now      func() time.Time // default: time.Now
	Rand     io.Reader        // default: crypto/rand; for nonces and stream keys

	filter func(network string, to netip.AddrPort) bool // see transport
}

// Remembered is what survives a restart: on disk it makes every node a seed,
// and replays useless.
type Remembered struct {
	Objects [][]byte  // signed envelopes, as they came
	Highest []Highest // sorted by key
}

// Highest is the highest sequence that was seen of an object.
type Highest struct {
	Key      string // names the object; any bytes
	Sequence uint64
}

// Gossip is a running node of the gossip network.
type Gossip struct {
	identity ed25519.PrivateKey
	self     mesh.ID
	name     string // of the cluster
	ranges   uint64 // hash of its address settings
	instance uint64
	resolver Resolver
	now      func() time.Time

	log       *limitedLog
	notices   *notices
	counters  *counters
	changed   chan struct{}
	members   *members
	transport *transport
	queue     *memberlist.TransmitLimitedQueue

	cancel context.CancelFunc
	tasks  sync.WaitGroup

	rejoin chan struct{} // the join list has changed
	greet  chan struct{} // we have another address

	mu        sync.Mutex // never held while memberlist is called
	cluster   mesh.Cluster
	adopted   settings         // from others; they count if they are later than cluster's
	trusted   map[mesh.ID]bool // nil for everybody
	joinList  []string
	list      *memberlist.Memberlist
	member    lent // what it has of ours
	store     *store
	published uint64 // sequence of the record that we published last
	foreign   foreign
	full      time.Time // when it was last looked who fills the store
	merged    bool
	joinEmpty bool
	// joinFailure is why nobody of the join list answered when it was asked last;
	// "" if somebody did.
	joinFailure string
}

// foreign is what we have met of records of ours that another instance made.
type foreign struct {
	at       time.Time // first
	sequence uint64    // last
	times    int       // that one went beyond a record which we had published
}

// Start binds the sockets and begins to gossip. It does not wait for anybody
// to answer. Stop ends it; so does the end of ctx, except that sockets stay
// open until Stop.
func Start(ctx context.Context, o Options) (*Gossip, error) {
	g, err := newGossip(o)
	if err != nil {
		return nil, fmt.Errorf("set up gossip: %w", err)
	}
	if err := g.transport.listen(ctx, o.Bind); err != nil {
		return nil, err // it begins with the setting that is to blame
	}
	if err := g.enter(0); err != nil {
		return nil, errors.Join(err, g.transport.Shutdown())
	}
	ctx, g.cancel = context.WithCancel(ctx)
	for _, task := range []func(context.Context){
		g.handleLoop, g.joinLoop, g.rejoinLoop, g.followUpLoop, g.greetLoop, g.compareLoop, g.epochLoop,
	} {
		g.tasks.Go(func() { task(ctx) })
	}
	return g, nil
}

// newGossip sets up everything that needs no network.
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
		identity: o.Identity, self: self, name: o.Cluster.Name, ranges: o.Cluster.Hash(), instance: o.Instance,
		cluster: o.Cluster, joinList: slices.Clone(o.Join), resolver: o.Resolver, now: o.Now,
		rejoin:    make(chan struct{}, 1),
		greet:     make(chan struct{}, 1),
		log:       newLimitedLog(o.Logger),
		notices:   &notices{now: o.Now, met: make(map[notice]time.Time)},
		counters:  &counters{counts: make(map[string]uint64)},
		changed:   make(chan struct{}, 1),
		store:     newStore(),
		joinEmpty: len(o.Join) == 0,
	}
	g.members = newMembers(self, g.signal)
	g.queue = &memberlist.TransmitLimitedQueue{NumNodes: g.members.count, RetransmitMult: retransmitMult}
	g.transport = &transport{
		ring: ring, random: o.Rand, now: o.Now, log: g.log, notices: g.notices, counters: g.counters,
		self:  hello{id: self, instance: o.Instance, boot: o.Boot, cluster: o.Cluster},
		label: labelOf(o.Cluster), filter: o.filter,
		paths: newPaths(o.Cluster.Overlay), changed: g.signal, voices: newVoices(), identity: o.Identity,
		trusts: func(id mesh.ID) bool {
			g.mu.Lock()
			defer g.mu.Unlock()
			return g.trusts(id)
		},
	}
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
	g.trust(o.Cluster, o.Trusted)
	g.restore(o.Remembered)
	g.store.met = g.transport.hasMet
	for _, r := range g.store.records() {
		if r.ID() == self {
			g.transport.voices.remember(r, g.now())
		}
	}
	return g, nil
}

// retransmitMult makes each node repeat what it gossips so many times for each digit
// of the number of nodes: fifteen times among some hundred, which misses one node in a
// million at a loss of one packet in ten.
const retransmitMult = 5

// memberlistConfig holds the timings with which a dead node is noticed within
// ten seconds, and no living one suspected at a round trip of 300 ms and a loss
// of one packet in ten.
func (g *Gossip) memberlistConfig(member lent, l listener) *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name, c.Transport = member.name, member
	c.Delegate = delegate{g}
	c.Events, c.Alive, c.Ping = l, l, l
	c.Logger = log.New(memberlistLog{g.log}, "", 0)

	c.ProbeInterval = time.Second
	c.ProbeTimeout = 350 * time.Millisecond
	c.SuspicionMult = 3
	// A suspicion ends after 3 s, whether others confirm it or not: who is
	// alive has refuted it by then, and who waits for others waits three times
	// as long for the dead.
	c.SuspicionMaxTimeoutMult = 1
	c.IndirectChecks = 4
	c.GossipNodes = 4
	c.GossipInterval = 200 * time.Millisecond
	c.PushPullInterval = 25 * time.Second
	c.DeadNodeReclaimTime = time.Second
	c.RetransmitMult = retransmitMult
	c.TCPTimeout = dialTimeout

	// With compression on, 500 nodes are busy with nothing else.
	c.EnableCompression = false
	// memberlist prepends a checksum of five bytes without counting it.
	c.UDPBufferSize = maxPayload - 5
	// The transport seals; a name or label of memberlist's own is not needed.
	c.SecretKey, c.Label = nil, ""
	// A node that UDP does not reach for a moment is asked over a stream before
	// it is suspected: the transport tries all of its paths at once.
	c.DisableTcpPings = false
	return c
}

// restore fills the store with what was remembered. What does not count any
// more, after an update for example, is left out.
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
	g.store.settle()
}

// handleLoop takes in what the transport receives.
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

// signal makes Changed fire; it never waits.
func (g *Gossip) signal() {
	select {
	case g.changed <- struct{}{}:
	default:
	}
}

// Stop ends everything and waits for it. It tells nobody: a restart must not
// look like a departure.
func (g *Gossip) Stop() error {
	g.cancel()
	list, _ := g.membership()
	err := errors.Join(list.Shutdown(), g.transport.Shutdown())
	g.tasks.Wait()
	list, _ = g.membership() // of a new epoch that was just beginning
	err = errors.Join(err, list.Shutdown())
	if err != nil {
		return fmt.Errorf("stop gossip: %w", err)
	}
	return nil
}

// Changed fires when a View has become different, at least once after the last
// change.
func (g *Gossip) Changed() <-chan struct{} { return g.changed }

// Addr is the address to which the sockets are bound.
func (g *Gossip) Addr() netip.AddrPort { return g.transport.bound() }

// SetPaths says where nodes may be reached, the best address first. It
// replaces what was said before.
func (g *Gossip) SetPaths(candidates map[mesh.ID][]netip.AddrPort) {
	g.transport.mu.Lock()
	defer g.transport.mu.Unlock()
	g.transport.paths.set(candidates)
}

// Publish signs a record of ours and makes it known. Its sequence must be
// above everything published before, else the error is ErrStale.
func (g *Gossip) Publish(r mesh.Record) error {
	if r.ID() != g.self {
		return fmt.Errorf("publish record: it is of %v", r.ID())
	}
	payload, err := encodeRecord(r)
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
	result := g.store.put(o)
	if result == fresh {
		g.published = r.Sequence
	}
	g.mu.Unlock()
	if result != fresh {
		return errors.New("publish record: the store is full")
	}
	g.signal()
	g.spread([]object{o})
	g.agree()
	return nil
}

// ErrOverruled is returned by Forget for a revocation that does not count, because
// this node is revoked itself.
var ErrOverruled = errors.New("this node is revoked itself, and the lower fingerprint of the two counts")

// Forget buries a node's records up to a sequence; up to Forever, its identity
// is revoked, and what it has made goes with it. It can't be taken back, unless
// this node is revoked. It has no effect if we have buried as much before.
func (g *Gossip) Forget(target mesh.ID, upTo uint64) error {
	payload, err := encodeTombstone(tombstone{g.identity.Public().(ed25519.PublicKey), target, upTo})
	if err != nil {
		return fmt.Errorf("forget %v: %w", target, err)
	}
	o, err := g.sign(kindTombstone, payload)
	if err != nil {
		return fmt.Errorf("forget %v: %w", target, err)
	}
	result, err := g.put(o)
	if err != nil {
		return fmt.Errorf("forget %v: %w", target, err)
	}
	if result == fresh {
		g.signal()
		g.spread([]object{o})
		g.agree()
	}
	g.mu.Lock()
	counts := g.store.buried[target] >= upTo
	g.mu.Unlock()
	if !counts {
		return fmt.Errorf("forget %v: %w", target, ErrOverruled)
	}
	return nil
}

// sign makes an object of ours, by the checks that everybody else makes.
func (g *Gossip) sign(kind objectKind, payload []byte) (object, error) {
	raw, err := signObject(g.identity, g.name, kind, payload)
	if err != nil {
		return object{}, err
	}
	return decodeObject(g.name, raw)
}

// put takes an object of ours into the store. If there is no room, the error says who
// has taken it.
func (g *Gossip) put(o object) (outcome, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	result := g.store.put(o)
	if result == full {
		p := g.fullProblem(o)
		return full, fmt.Errorf("%s; %s", p.Text, p.Advice)
	}
	return result, nil
}

// ownSequence is what a new record of ours must go beyond.
func (g *Gossip) ownSequence() uint64 {
	return max(g.store.highest[recordKey(g.self)], g.store.buried[g.self])
}

// Remember returns what to keep on disk.
func (g *Gossip) Remember() Remembered {
	g.mu.Lock()
	defer g.mu.Unlock()
	var r Remembered
	for _, raw := range g.store.raws() {
		r.Objects = append(r.Objects, slices.Clone(raw))
	}
	for key, sequence := range g.store.highest {
		r.Highest = append(r.Highest, Highest{string(key.bytes()), sequence})
	}
	slices.SortFunc(r.Highest, func(a, b Highest) int {
		return strings.Compare(a.Key, b.Key)
	})
	return r
}
