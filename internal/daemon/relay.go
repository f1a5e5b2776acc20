// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/loglimit"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/path/forward"
	"github.com/meshd/meshd/internal/path/relaynft"
	"github.com/meshd/meshd/internal/path/relayudp"
	"github.com/meshd/meshd/internal/state"
	"github.com/meshd/meshd/internal/wait"
)

// ProblemNoRelay means that this node should be a relay and can't.
const ProblemNoRelay mesh.ProblemKind = "no-relay"

// keepRelayEvery is how often a relay writes down what it knows. Sessions that have begun since
// are told to it again by the nodes when it says that it does not know them.
const keepRelayEvery = 5 * time.Second

// runRelay forwards between other nodes whenever the loop has it do so.
func (d *daemon) runRelay(ctx context.Context, ready func()) error {
	o := d.relayOptions
	o.Cluster, o.Self = d.cfg.Cluster.Name, d.self.ID()
	s := &relayServer{ctx: ctx, o: o, dir: d.opt.RunDir, log: d.log.Logger, kernel: nftKernel{}, started: time.Now()}
	d.relay = s
	d.forwards.Store(s)
	ready()
	for wait.Sleep(ctx, keepRelayEvery) == nil {
		s.keep()
	}
	return s.close()
}

// leftoverFor is how long sessions in the kernel last that another process has left: as long as what a
// relay knows of sessions, see package path.
const leftoverFor = 200 * time.Second

// relayKernel has the kernel forward for a relay: nftKernel.
type relayKernel interface {
	Adopt([]path.Kept) ([]path.Kept, error)
	Open(relaynft.Options) (kernelForwarder, error)
	Remove() (bool, error)
}

// kernelForwarder is a relaynft.Forwarder.
type kernelForwarder interface {
	Serve(context.Context)
	Counts() forward.Counts
	Close() error
}

// nftKernel is the real one: package relaynft.
type nftKernel struct{}

func (nftKernel) Adopt(all []path.Kept) ([]path.Kept, error) { return relaynft.Adopt(all) }

func (nftKernel) Open(o relaynft.Options) (kernelForwarder, error) {
	f, err := relaynft.Open(o)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (nftKernel) Remove() (bool, error) { return relaynft.Remove() }

// relayServer implements relay.
type relayServer struct {
	ctx     context.Context
	o       relayudp.Options // with those of the relay that runs
	dir     string           // where it keeps what it knows
	log     *slog.Logger
	kernel  relayKernel
	started time.Time

	mu        sync.Mutex
	relay     *relayudp.Relay // nil while nothing is forwarded
	ended     chan error      // receives what its Serve returns
	forwarder kernelForwarder // nil while the kernel forwards nothing
	stop      func() error    // ends the forwarder
	cleared   bool            // the kernel has nothing of this relay, nor of one before
	kept      bool            // the file has nodes
	logged    loglimit.Limiter
}

// Serve opens the relay's socket, closes it, or opens it anew if its options have changed or
// it has failed: it goes on with what it knew, also if it was another process. The kernel forwards no
// longer than the relay.
func (s *relayServer) Serve(w node.RelayService, secret [32]byte, maxRate int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := secret != s.o.Secret || uint64(maxRate) != s.o.MaxRate
	var failed error
	served := s.relay != nil
	if s.relay != nil && (!w.Serves || changed || len(s.ended) > 0) {
		failed = s.closeRelay()
	}
	if !w.Serves {
		s.clearKernel(served || w.Never)
		return failed
	}
	if s.relay == nil {
		s.o.Secret, s.o.MaxRate = secret, uint64(maxRate)
		if err := s.open(); err != nil {
			return errors.Join(failed, err)
		}
	}
	nodes := make([]relayudp.Node, 0, len(w.Nodes))
	for _, n := range w.Nodes {
		nodes = append(nodes, relayudp.Node{ID: n.ID, Key: n.Key, PathKey: publicKey(n.PathKey)})
	}
	proved := make(map[path.Short]netip.AddrPort, len(w.Proved))
	for id, at := range w.Proved {
		proved[path.ShortOf(id)] = at
	}
	s.relay.SetProved(proved)
	if err := errors.Join(failed, s.relay.SetNodes(nodes)); err != nil {
		s.warn("relay", err) // it serves the others, or serves again
	}
	return nil
}

func (s *relayServer) open() error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	kept, err := state.LoadRelay(s.dir)
	if err != nil {
		s.warn("nodes bind to this relay again", err)
	}
	s.kept = len(kept) > 0 || err != nil
	if s.o.Kept, err = s.kernel.Adopt(kept); err != nil {
		s.warn("what the kernel forwards for other nodes is not known", err)
	}
	r, err := relayudp.Open(s.ctx, s.o)
	if err != nil {
		return err
	}
	s.relay, s.ended = r, make(chan error, 1)
	go func(ended chan<- error) { ended <- r.Serve() }(s.ended)
	s.forwardInKernel()
	return nil
}

// forwardInKernel has the kernel forward what it can. Without it, the relay forwards all.
func (s *relayServer) forwardInKernel() {
	s.cleared = false
	at := s.o.Beside.LocalAddr().(*net.UDPAddr)
	f, err := s.kernel.Open(relaynft.Options{Port: uint16(at.Port), MaxRate: s.o.MaxRate, Relay: s.relay, Logger: s.log})
	if err != nil {
		s.warn("the kernel does not forward for other nodes, this process does", err)
		return
	}
	ctx, cancel := context.WithCancel(s.ctx)
	var serving sync.WaitGroup
	serving.Go(func() { f.Serve(ctx) })
	s.forwarder = f
	s.stop = func() error {
		cancel()
		serving.Wait()
		return f.Close()
	}
}

// clearKernel has the kernel forward nothing any more. A relay of before may have stopped a moment ago,
// and this one may be about to serve again: unless that is known to be over, what is left in the kernel
// goes on for as long as it lasts.
func (s *relayServer) clearKernel(over bool) {
	if s.cleared || !over && time.Since(s.started) < leftoverFor {
		return
	}
	if _, err := s.kernel.Remove(); err != nil {
		s.warn("the kernel may still forward for other nodes", err)
		return
	}
	s.cleared = true
}

// keep writes down what the relay knows, if it knows or has known something.
func (s *relayServer) keep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.relay != nil {
		s.keepRelay()
	}
}

func (s *relayServer) keepRelay() {
	all := s.relay.Kept()
	if len(all) == 0 && !s.kept {
		return
	}
	if err := state.SaveRelay(s.dir, all); err != nil {
		s.warn("after a restart nodes would have to bind to this relay again", err)
		return
	}
	s.kept = len(all) > 0
}

// warn logs what is wrong, but not again and again.
func (s *relayServer) warn(message string, err error) {
	if s.logged.IsNew(time.Now(), message, err) {
		s.log.Warn(message, "err", err)
	}
}

// closeRelay closes the relay's socket and waits for what serves it. Then nothing is learned any more: the
// kernel goes on with all that is known, and so does the next relay.
func (s *relayServer) closeRelay() error {
	err := errors.Join(s.relay.Close(), <-s.ended)
	if s.forwarder != nil {
		err = errors.Join(err, s.stop())
	}
	s.keepRelay()
	s.relay, s.ended, s.forwarder, s.stop = nil, nil, nil, nil
	return err
}

func (s *relayServer) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.relay == nil {
		return nil
	}
	return s.closeRelay()
}

// forward takes what a node has sent by stream for others. It is dropped if this node is not a
// relay.
func (d *daemon) forward(datagrams [][]byte, from netip.AddrPort) {
	s := d.forwards.Load()
	if s == nil {
		return
	}
	s.mu.Lock()
	r := s.relay
	s.mu.Unlock()
	if r != nil {
		r.Receive(datagrams, from)
	}
}

// Status returns what the relay has done since its socket was opened, and what of that the kernel has
// done.
func (s *relayServer) Status() (all relayudp.Status, inKernel forward.Counts, serves bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.relay == nil {
		return relayudp.Status{}, forward.Counts{}, false
	}
	all = s.relay.Status()
	if s.forwarder != nil {
		inKernel = s.forwarder.Counts()
		all.Datagrams += inKernel.Packets
		all.Bytes += inKernel.Bytes
		all.Dropped[relayudp.RateLimit] += inKernel.Limited
	}
	return all, inKernel, true
}

// serveAsRelay has this node forward between others if it is to, and returns what to tell them.
func (d *daemon) serveAsRelay(t *turn) (mesh.RelayPreference, []mesh.Problem) {
	w := d.memory.RelayService(t.in)
	if err := d.relay.Serve(w, d.cfg.Secrets[0], d.cfg.Relay.MaxRate); err != nil {
		return "", []mesh.Problem{{
			Kind: ProblemNoRelay, Node: d.cfg.Node.Name, Text: fmt.Sprintf("this node can't forward packets between others: %v", err),
			Advice: "other nodes use other relays meanwhile; if this node need not be one, set node.relay to never, and run: systemctl reload meshd",
		}}
	}
	if !w.Serves {
		return "", nil
	}
	return d.cfg.Node.Relay, nil
}

// relayStatus returns what this node forwards, nil if it is not a relay.
func (d *daemon) relayStatus() *control.Relay {
	s, inKernel, ok := d.relay.Status()
	if !ok {
		return nil
	}
	return &control.Relay{Nodes: s.Bound, Datagrams: s.Datagrams, Bytes: s.Bytes, InKernel: inKernel.Packets, Dropped: s.Dropped}
}

// relaysInUse returns the names of the relays at which others reach this node.
func (d *daemon) relaysInUse(t turn) []string {
	var names []string
	for _, id := range t.in.OwnRelays() {
		names = append(names, node.NameOf(t.in.View.Records, id))
	}
	slices.Sort(names)
	return names
}
