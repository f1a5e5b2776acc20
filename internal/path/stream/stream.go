// SPDX-License-Identifier: Apache-2.0

// Package stream carries datagrams over TCP, for hosts whose UDP is blocked.
//
// A node that UDP does not reach is given to WireGuard as an endpoint on the loopback: a
// socket of this package, which passes on what WireGuard sends there in frames over a TCP
// stream, and gives WireGuard what comes back. WireGuard and the probes of a path behave as
// on any other path, only that it is slower.
//
//	WireGuard ◄─UDP─► socket ◄─frames over TCP─► socket ◄─UDP─► WireGuard of the other node
//	                                         └─► relay of the other node ─► third nodes
//
// The stream is opened, encrypted and authenticated by gossip. It also carries gossip's own
// packets.
//
// A stream must not make WireGuard wait: frames that the network does not take are dropped,
// the oldest first.
package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/path"
)

// Options configure a Carrier. Relay and Logger may be nil.
type Options struct {
	WireGuard uint16 // WireGuard's port on this host

	// Dial opens a stream to a node that has proved its identity.
	Dial func(ctx context.Context, to mesh.ID) (net.Conn, error)
	// Gossip takes a packet of gossip, whose bytes it must not keep.
	Gossip func(from mesh.ID, packet []byte)
	// Relay takes datagrams for other nodes from a node whose address in the relay's table
	// is path.StreamAddr. It must not block, and must not keep them.
	Relay func(datagrams [][]byte, from netip.AddrPort)

	Logger *slog.Logger
}

// Carrier keeps the streams of this node: at most one that it opens to each other node, and
// one that each other node opens to it.
type Carrier struct {
	o      Options
	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	// changed fires when a node has opened the first stream to this one, or the last is gone.
	changed chan struct{}

	mu       sync.RWMutex
	dialled  map[mesh.ID]*link
	accepted map[mesh.ID]*link
}

// New returns a carrier without streams. Close ends it.
func New(o Options) *Carrier {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Carrier{o: o, changed: make(chan struct{}, 1), dialled: map[mesh.ID]*link{}, accepted: map[mesh.ID]*link{}}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// Close closes all streams, and waits for everything that the carrier has started.
func (c *Carrier) Close() {
	c.mu.Lock()
	c.cancel()
	c.mu.Unlock()
	c.tasks.Wait()
}

// Keep opens streams to these nodes, opens them again whenever they break, and closes the
// streams that were opened to others. The error names nodes for which there is no local
// socket; the next Keep tries again.
func (c *Carrier) Keep(nodes []mesh.ID) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil {
		return net.ErrClosed
	}
	for node, l := range c.dialled {
		if !slices.Contains(nodes, node) {
			l.cancel()
			delete(c.dialled, node)
		}
	}
	var errs []error
	for _, node := range nodes {
		if c.dialled[node] != nil {
			continue
		}
		l, err := c.newLink(node, true)
		if err != nil {
			errs = append(errs, fmt.Errorf("carry datagrams to %v: %w", node, err))
			continue
		}
		c.dialled[node] = l
		c.tasks.Go(func() {
			defer l.close()
			c.redial(l)
		})
	}
	return errors.Join(errs...)
}

// Endpoints returns the addresses on the loopback that lead over the stream to a node:
// to the node's own WireGuard, and to its relay. They are invalid if no stream is kept to
// the node, and valid until then, also while the stream is broken.
func (c *Carrier) Endpoints(node mesh.ID) (own, relay netip.AddrPort) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if l := c.dialled[node]; l != nil {
		return l.own.addr, l.relay.addr
	}
	return netip.AddrPort{}, netip.AddrPort{}
}

// Changed returns a channel that receives after an endpoint has come or gone because of what
// other nodes do, see Status.
func (c *Carrier) Changed() <-chan struct{} { return c.changed }

func (c *Carrier) notify() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// Accept takes over a stream that a node has opened to this one. It takes the place of an
// older one of that node: the node would not open another if the old one still worked.
func (c *Carrier) Accept(node mesh.ID, conn net.Conn) {
	if err := c.accept(node, conn); err != nil {
		_ = conn.Close()
		c.o.Logger.Warn("stream for datagrams refused", "peer", node, "err", err)
	}
}

func (c *Carrier) accept(node mesh.ID, conn net.Conn) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil {
		return net.ErrClosed
	}
	if l := c.accepted[node]; l != nil {
		l.replace(conn)
		return nil
	}
	if len(c.accepted) >= maxAccepted && !c.dropUnused() {
		return errors.New("too many nodes have streams to this one")
	}
	l, err := c.newLink(node, false)
	if err != nil {
		return err
	}
	l.replace(conn)
	c.accepted[node] = l
	c.notify()
	c.tasks.Go(func() {
		defer l.close()
		c.serve(l)
	})
	return nil
}

// dropUnused makes room for an accepted stream at the cost of a link whose stream is gone.
func (c *Carrier) dropUnused() bool {
	for node, l := range c.accepted {
		if l.isUnused() {
			l.cancel()
			delete(c.accepted, node)
			return true
		}
	}
	return false
}

// Carry sends a packet of gossip to a node. It returns false if there is no stream to it.
func (c *Carrier) Carry(to mesh.ID, packet []byte) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, links := range []map[mesh.ID]*link{c.dialled, c.accepted} {
		if l := links[to]; l != nil && l.isOpen() {
			return l.out.put(frameGossip, packet) > 0
		}
	}
	return false
}

// SendRelayed sends datagrams that a relay on this host forwards to a node that has come by
// stream, named by its path.StreamAddr. It returns how many it has taken: none if there is no such
// stream.
func (c *Carrier) SendRelayed(to netip.AddrPort, datagrams [][]byte) (taken int) {
	node, ok := path.StreamNode(to)
	if !ok {
		return 0
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	if l := c.accepted[node]; l != nil && l.isOpen() {
		return l.out.put(frameRelayed, datagrams...)
	}
	return 0
}

// Status is the state of one stream.
type Status struct {
	Node    mesh.ID
	Dialled bool           // by this node
	Own     netip.AddrPort // WireGuard's endpoint for the node
	Relay   netip.AddrPort // WireGuard's endpoint for nodes behind the node's relay; only if dialled
	Since   time.Time      // when the stream was opened; zero while there is none
	Proxy   string         // the HTTP proxy through which it goes; "" for none
	Dropped uint64         // frames for which there was no room, or that had waited for too long
	Err     error          // why the last stream ended, or could not be opened
}

// Status returns the state of all streams, by node, those that this node dials first.
func (c *Carrier) Status() []Status {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var all []Status
	for _, links := range []map[mesh.ID]*link{c.dialled, c.accepted} {
		for _, node := range slices.SortedFunc(maps.Keys(links), mesh.ID.Compare) {
			all = append(all, links[node].status())
		}
	}
	return all
}
