// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/probe"
	"github.com/meshd/meshd/internal/wait"
)

const (
	// askFor is how long Ping waits for the other node's answer: a question or an answer may be lost once.
	askFor = 5 * time.Second
	// pingPause is between the echo requests of Ping, so that one short loss does not hit all.
	pingPause = 200 * time.Millisecond
	// answerPause is how long a question counts as the same: a question comes over several nodes.
	answerPause = time.Second
)

// Ping implements control.Daemon.
func (d *daemon) Ping(ctx context.Context, name string, count int) (control.Ping, error) {
	last := d.published.Load()
	found, err := findNode(last.turn.view.Records, name)
	if err != nil {
		return control.Ping{}, err
	}
	peer, ok := last.peer(found.ID())
	if !ok {
		return control.Ping{}, fmt.Errorf("%w: %s is this node; name another one", control.ErrRefused, name)
	}
	out := control.Ping{Node: peer.Name, Sent: count}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		ctx, cancel := context.WithTimeout(ctx, askFor)
		defer cancel()
		switch view, err := d.gossip.Ask(ctx, peer.ID); {
		case err == nil:
			out.Back = &view
		case errors.Is(err, gossip.ErrNoAnswer):
			out.NoBack = gossip.ErrNoAnswer.Error()
		default:
			return err
		}
		return nil
	})
	group.Go(func() (err error) {
		out.Hops, err = d.pingHops(ctx, last, append(slices.Clone(peer.Route.Via), peer.Name), count)
		return err
	})
	return out, group.Wait()
}

// pingHops sends echo requests to nodes.
func (d *daemon) pingHops(ctx context.Context, last *snapshot, names []string, count int) ([]control.Hop, error) {
	hops := make([]control.Hop, len(names))
	overlays := make([][]netip.Addr, len(names))
	var targets []probe.Target
	for i, name := range names {
		hops[i].Name = name
		for _, p := range last.status.Peers {
			if p.Name == name {
				overlays[i] = p.Overlay
			}
		}
		targets = append(targets, targetsOf(overlays[i], last.turn.wanted.Topology.Addresses)...)
	}
	for n := range count {
		if n > 0 && wait.Sleep(ctx, pingPause) != nil {
			break
		}
		round, cancel := context.WithTimeout(ctx, probeFor)
		rtt, err := d.prober.PingOnce(round, targets)
		cancel()
		if err != nil {
			return nil, err
		}
		for i := range hops {
			if health, slowest := routeHealth(overlays[i], rtt); health == control.RouteOK {
				hops[i].Answered++
				if rtt := control.Milliseconds(slowest); hops[i].RTT == 0 || rtt < hops[i].RTT {
					hops[i].RTT = rtt
				}
			}
		}
	}
	return hops, nil
}

// answerQuestions answers other nodes that ask how this one sees them, until ctx ends.
func (d *daemon) answerQuestions(ctx context.Context, ready func()) error {
	ready()
	var answered gossip.Question
	var at time.Time
	for {
		select {
		case q := <-d.gossip.Questions():
			if q == answered && time.Since(at) < answerPause {
				continue
			}
			if err := d.gossip.Answer(q, d.viewOf(ctx, q.From)); err != nil {
				d.log.Debug("question is not answered", "err", err)
			}
			answered, at = q, time.Now()
		case <-ctx.Done():
			return nil
		}
	}
}

// viewOf returns how this node sees another one.
func (d *daemon) viewOf(ctx context.Context, id mesh.ID) mesh.PeerView {
	last := d.published.Load()
	v := mesh.PeerView{Version: d.opt.Version}
	p, ok := last.peer(id)
	if !ok {
		return v
	}
	v.Alive, v.Route = p.Alive, p.Route.String()
	v.Path, v.Addr, v.Relay, v.Proved, v.Loss = string(p.Path.Kind), p.Path.Addr, p.Path.Relay, p.Path.Proved, p.Path.Loss
	for _, problem := range last.status.Problems {
		if problem.Node == p.Name {
			v.Problems = append(v.Problems, problem)
		}
	}
	hops, err := d.pingHops(ctx, last, []string{p.Name}, 1)
	if err == nil {
		v.Answered = hops[0].Answered > 0
		v.RTT = float64(hops[0].RTT) / float64(time.Millisecond)
	}
	return v
}
