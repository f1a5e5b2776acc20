// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/loglimit"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/internal/path"
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
	s := &relayServer{ctx: ctx, o: o, dir: d.opt.RunDir, log: d.log.Logger}
	d.relay = s
	d.forwards.Store(s)
	ready()
	for wait.Sleep(ctx, keepRelayEvery) == nil {
		s.keep()
	}
	return s.close()
}

// relayServer implements relay.
type relayServer struct {
	ctx context.Context
	o   relayudp.Options // with those of the relay that runs
	dir string           // where it keeps what it knows
	log *slog.Logger

	mu     sync.Mutex
	relay  *relayudp.Relay // nil while nothing is forwarded
	ended  chan error      // receives what its Serve returns
	kept   bool            // the file has nodes
	logged loglimit.Limiter
}

// Serve opens the relay's socket, closes it, or opens it anew if its options have changed or
// it has failed: it goes on with what it knew, also if it was another process.
func (s *relayServer) Serve(w node.RelayService, secret [32]byte, maxRate int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := secret != s.o.Secret || uint64(maxRate) != s.o.MaxRate
	var failed error
	if s.relay != nil && (!w.Serves || changed || len(s.ended) > 0) {
		failed = s.closeRelay()
	}
	if !w.Serves {
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
	s.o.Kept, s.kept = kept, len(kept) > 0 || err != nil
	r, err := relayudp.Open(s.ctx, s.o)
	if err != nil {
		return err
	}
	s.relay, s.ended = r, make(chan error, 1)
	go func(ended chan<- error) { ended <- r.Serve() }(s.ended)
	return nil
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

// closeRelay closes the relay's socket and waits for what serves it.
func (s *relayServer) closeRelay() error {
	s.keepRelay()
	err := s.relay.Close()
	err = errors.Join(err, <-s.ended)
	s.relay, s.ended = nil, nil
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
func (d *daemon) forward(datagram []byte, from netip.AddrPort) {
	s := d.forwards.Load()
	if s == nil {
		return
	}
	s.mu.Lock()
	r := s.relay
	s.mu.Unlock()
	if r != nil {
		r.Receive(datagram, from)
	}
}

// Status returns what the relay has done since its socket was opened.
func (s *relayServer) Status() (relayudp.Status, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.relay == nil {
		return relayudp.Status{}, false
	}
	return s.relay.Status(), true
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
	s, ok := d.relay.Status()
	if !ok {
		return nil
	}
	return &control.Relay{Nodes: s.Bound, Datagrams: s.Datagrams, Bytes: s.Bytes, Dropped: s.Dropped}
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
