// SPDX-License-Identifier: Apache-2.0

// Package swarm runs hundreds of gossip nodes in one process. They exchange sealed packets
// over UDP and streams over TCP as between hosts, with three differences: the nodes use
// the loopback of a network namespace, each with an address of its own; the streams that
// they open come from one address, 127.0.0.1; and there are no tunnels.
//
// A [Node] does what a daemon does for gossip: it publishes a record and sets the
// addresses from the records of others, at the daemon's pace.
//
// The kernel makes a socket in the namespace of the calling thread, and the nodes'
// goroutines run on any thread. So the whole process must be in the namespace: see
// [Command].
package swarm

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/mesh"
)

// Swarm is a list of nodes, numbered from 0. Node 0 is the seed of all others.
type Swarm struct {
	Nodes []*Node

	cluster mesh.Cluster
	deaths  atomic.Int64
}

// secrets are what the nodes seal with.
var secrets = [][32]byte{{1}}

// New makes a swarm in which no node runs yet.
func New(count int) *Swarm {
	s := &Swarm{cluster: mesh.Cluster{
		Name: "swarm", Generation: 1, Trust: "open", Mode: mesh.ModeLocation, Encapsulation: "always", Gateways: 1,
		Overlay:   []netip.Prefix{netip.MustParsePrefix("10.4.0.0/16")},
		Pods:      []netip.Prefix{netip.MustParsePrefix("10.64.0.0/10")},
		PodPrefix: []int{24},
		Services:  []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
	}}
	for n := range count {
		seed := sha256.Sum256(fmt.Append(nil, "node ", n))
		key := ed25519.NewKeyFromSeed(seed[:])
		s.Nodes = append(s.Nodes, &Node{
			swarm: s, number: n, identity: key, id: mesh.IDOf(key.Public().(ed25519.PublicKey)),
			sequences: make([]uint64, count), alive: make([]bool, count),
		})
	}
	return s
}

// Start starts nodes one after the other, without waiting.
func (s *Swarm) Start(nodes ...*Node) error {
	for _, n := range nodes {
		if err := n.start(); err != nil {
			return fmt.Errorf("start node %d: %w", n.number, err)
		}
	}
	return nil
}

// Stop ends all nodes.
func (s *Swarm) Stop() error {
	var g errgroup.Group
	for _, n := range s.Nodes {
		g.Go(n.Stop)
	}
	return g.Wait()
}

// FalseDeaths returns how often a node has taken a running node for dead.
func (s *Swarm) FalseDeaths() int { return int(s.deaths.Load()) }

// Running are the nodes that run.
func (s *Swarm) Running() []*Node {
	return slices.DeleteFunc(slices.Clone(s.Nodes), func(n *Node) bool { return !n.running.Load() })
}

// pollPeriod is short compared with everything that is measured with a hundred nodes.
const pollPeriod = 10 * time.Millisecond

// Await waits until a condition holds on all running nodes. It spends at most a tenth of
// the time on checking.
func (s *Swarm) Await(ctx context.Context, what string, holds func(*Node) bool) error {
	for {
		began := time.Now()
		lacking := slices.DeleteFunc(s.Running(), holds)
		if len(lacking) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: %d nodes lack it, as %s: %w", what, len(lacking), lacking[0], ctx.Err())
		case <-time.After(max(pollPeriod, 9*time.Since(began))):
		}
	}
}

// AwaitCalm waits until half of the machine's processors are idle: changes are still
// passed on for a while after all nodes know them.
func AwaitCalm(ctx context.Context) error {
	for {
		began, before := time.Now(), used()
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until the swarm is calm: %w", ctx.Err())
		case <-time.After(calmFor):
		}
		if 2*(used()-before) < time.Since(began)*time.Duration(runtime.NumCPU()) {
			return nil
		}
	}
}

// calmFor is how long it has to be.
const calmFor = 500 * time.Millisecond

// used is the processor time of this program.
func used() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0 // it knows no other error than a wrong argument
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// AwaitAll waits until every running node has the record of every other and
// sees it alive, and no others.
func (s *Swarm) AwaitAll(ctx context.Context) error {
	running := s.Running()
	return s.Await(ctx, fmt.Sprintf("all see %d", len(running)), func(n *Node) bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.living == len(running) && !slices.ContainsFunc(running, func(o *Node) bool {
			return n.sequences[o.number] == 0 || !n.alive[o.number]
		})
	})
}

// AwaitGone waits until no running node sees any of the given ones alive.
func (s *Swarm) AwaitGone(ctx context.Context, gone ...*Node) error {
	return s.Await(ctx, fmt.Sprintf("%d are gone", len(gone)), func(n *Node) bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return !slices.ContainsFunc(gone, func(o *Node) bool { return n.alive[o.number] })
	})
}

// Node is a gossip node with the part of a daemon that it needs.
type Node struct {
	swarm    *Swarm
	number   int
	identity ed25519.PrivateKey
	id       mesh.ID

	gossip   *gossip.Gossip
	running  atomic.Bool
	sequence uint64
	done     chan struct{}
	follower sync.WaitGroup

	mu        sync.Mutex
	sequences []uint64 // of the records that it has, by number
	alive     []bool   // by number
	living    int
}

// String describes what the node sees.
func (n *Node) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	records := len(slices.DeleteFunc(slices.Clone(n.sequences), func(s uint64) bool { return s == 0 }))
	return fmt.Sprintf("node %d, which has %d records and sees %d alive", n.number, records, n.living)
}

// port is the gossip port of all nodes.
const port = 7946

// addresses are those of all nodes. No record may name one of 127.0.0.0/8.
const addresses = "10.1.0.0/16"

// addr is the node's own address on the loopback.
func (n *Node) addr() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(n.number / 250), byte(n.number%250 + 1)}), port)
}

func (n *Node) start() error {
	o := gossip.Options{
		Identity: n.identity, Cluster: n.swarm.cluster, Secrets: secrets,
		Boot: 1, Instance: uint64(n.number + 1), Bind: n.addr().String(),
	}
	if n.number > 0 {
		o.Join = []string{n.swarm.Nodes[0].addr().String()}
	}
	g, err := gossip.Start(context.Background(), o)
	if err != nil {
		return err
	}
	n.gossip, n.done = g, make(chan struct{})
	n.running.Store(true)
	n.follower.Go(n.follow)
	_, err = n.Publish()
	return err
}

// Stop ends the node as a kill would: without telling other nodes.
func (n *Node) Stop() error {
	if !n.running.Swap(false) {
		return nil
	}
	close(n.done)
	n.follower.Wait()
	return n.gossip.Stop()
}

// Publish publishes a new record of the node and returns its sequence.
func (n *Node) Publish() (uint64, error) {
	n.sequence++
	return n.sequence, n.gossip.Publish(mesh.Record{
		Identity: n.identity.Public().(ed25519.PublicKey), Sequence: n.sequence, Instance: uint64(n.number + 1),
		Name: fmt.Sprintf("node-%d", n.number), Key: wgtypes.Key{byte(n.number), byte(n.number >> 8), 1},
		Claim: mesh.Claim{Slot: n.number, Time: 1}, Settings: n.swarm.cluster.Hash(),
		Gateway: mesh.GatewayAuto, MTU: 1420, ListenPort: 51820, GossipPort: port,
		Endpoints:   []mesh.Endpoint{{Host: n.addr().Addr().String(), Port: 51820, Source: mesh.EndpointConfigured}},
		InternalIPs: []netip.Prefix{netip.PrefixFrom(n.addr().Addr(), 16)},
	})
}

// Has reports whether the node has another node's record with this sequence.
func (n *Node) Has(other *Node, sequence uint64) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sequences[other.number] >= sequence
}

// The daemon's pace: how soon it looks again after it has looked, and how late.
const (
	spacing = 50 * time.Millisecond
	resync  = 10 * time.Second
	// The cost of a turn grows with the number of records, and here all nodes share one
	// machine: with more nodes than this, turns are rarer in proportion.
	crowd = 70
)

// pace returns how soon a node that knows this many nodes takes the next turn.
func pace(known int) time.Duration {
	crowds := max(1, known/crowd)
	return time.Duration(crowds*crowds) * spacing
}

// follow takes a turn after each change.
func (n *Node) follow() {
	for {
		pace := pace(n.turn())
		rest := time.After(pace)
		select {
		case <-n.gossip.Changed():
		case <-time.After(resync):
		case <-n.done:
			return
		}
		select {
		case <-rest:
		case <-n.done:
			return
		}
		// All nodes learn of a change at the same moment, but here they share the
		// processors.
		select {
		case <-time.After(rand.N(1 + pace - spacing)):
		case <-n.done:
			return
		}
	}
}

// turn does the part of the daemon's turn that concerns gossip. It returns how many nodes
// are known.
func (n *Node) turn() int {
	v := n.gossip.View()
	paths := make(map[mesh.ID][]netip.AddrPort, len(v.Records))
	for _, r := range v.Records {
		if r.Claim.Slot == n.number {
			continue
		}
		for _, e := range r.Endpoints {
			id := n.swarm.Nodes[r.Claim.Slot].id
			paths[id] = append(paths[id], netip.AddrPortFrom(netip.MustParseAddr(e.Host), r.GossipPort))
		}
	}
	n.gossip.SetAddresses(paths, nil)
	n.note(v)
	return len(v.Records)
}

// note records what the swarm needs of a view.
func (n *Node) note(v mesh.View) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range v.Records {
		n.sequences[r.Claim.Slot] = r.Sequence
	}
	n.living = len(v.Alive)
	for i, other := range n.swarm.Nodes {
		alive := v.Alive[other.id]
		if n.alive[i] && !alive && other.running.Load() {
			n.swarm.deaths.Add(1)
		}
		n.alive[i] = alive
	}
}
