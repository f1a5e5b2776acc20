// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/https"
	"github.com/meshd/meshd/internal/probe"
	"github.com/meshd/meshd/internal/probe/ping"
)

// task is a part of the daemon that runs until its context ends.
type task struct {
	name string
	// run calls ready once the tasks after it may start.
	run func(ctx context.Context, ready func()) error
}

// tasks returns the parts of the daemon. The loop comes last because it uses all others
// until it returns: it has the servers listen, and what it does last is to save what
// gossip knows. The control server comes after gossip and the prober because commands
// use them, and the streams and paths after gossip, which opens streams and carries calls. The
// relay comes after all three: it shares gossip's port and the paths' key, and serves nodes
// that come by stream.
func (d *daemon) tasks(remembered gossip.Remembered) []task {
	return []task{
		{"gossip", func(ctx context.Context, ready func()) error { return d.runGossip(ctx, ready, remembered) }},
		{"resolver", d.runResolver},
		{"prober", d.runProber},
		{"streams", d.runStreams},
		{"paths", d.runPaths},
		{"port mapper", d.runPortMapper},
		{"relay", d.runRelay},
		{"control server", d.runControlServer},
		{"metrics server", d.runMetricsServer},
		{"client server", d.runClientServer},
		{"answers to other nodes", d.answerQuestions},
		{"links", d.runLinks},
		{"loop", func(ctx context.Context, ready func()) error { ready(); return d.loop(ctx) }},
	}
}

// runTasks starts tasks in the order of the list, each when the one before it is ready. If
// ctx ends or a task fails, it stops them in the reverse order, each when the one after it
// has returned. So a task can use those before it as long as it runs. The errors of all
// are returned.
func runTasks(ctx context.Context, tasks []task) error {
	if len(tasks) == 0 {
		<-ctx.Done()
		return nil
	}
	first, rest := tasks[0], tasks[1:]
	group, ctx := errgroup.WithContext(ctx) // ends if first fails
	firstCtx, stopFirst := context.WithCancel(context.WithoutCancel(ctx))
	ready := make(chan struct{})
	var firstErr, restErr error
	group.Go(func() error {
		firstErr = first.run(firstCtx, func() { close(ready) })
		return firstErr
	})
	group.Go(func() error {
		defer stopFirst()
		select {
		case <-ready:
			restErr = runTasks(ctx, rest)
		case <-ctx.Done():
		}
		return restErr
	})
	_ = group.Wait() // it returns only the first error
	return errors.Join(restErr, firstErr)
}

// runGossip opens the gossip port, looks for the other nodes and talks to them.
func (d *daemon) runGossip(ctx context.Context, ready func(), remembered gossip.Remembered) error {
	o := gossip.Options{
		Identity:   d.self.Key,
		Cluster:    d.cfg.Cluster,
		Adopted:    withSettings(d.cfg.Cluster, d.disk.node.Adopted),
		Trusted:    d.cfg.Trusted,
		Secrets:    d.cfg.Secrets,
		Boot:       d.disk.node.Boot,
		Instance:   d.self.instance,
		Bind:       bindAddress(d.cfg.Gossip.Bind),
		Listen:     streamAddresses(d.cfg),
		Join:       joinList(d.cfg),
		Remembered: remembered,
		Logger:     d.log.Logger,
	}
	if p := https.ProxyFromEnvironment(); p != nil {
		d.log.Info("streams of TLS go through a proxy, unless NO_PROXY says otherwise", "proxy", p.String())
		o.Proxy = p
	}
	g, err := gossip.Start(ctx, o)
	if err != nil {
		return fmt.Errorf("start gossip: %w", err)
	}
	d.gossip, d.settings, d.relayOptions.Beside = g, g.View().Cluster, g.Socket()
	ready()
	<-ctx.Done()
	return g.Stop()
}

func (d *daemon) runResolver(ctx context.Context, ready func()) error {
	d.resolver = newResolver(ctx)
	ready()
	<-ctx.Done()
	d.resolver.wait()
	return nil
}

func (d *daemon) runProber(ctx context.Context, ready func()) error {
	p := ping.Start(ctx, ping.Options{Pace: probe.Pace(d.cfg.Probe), Logger: d.log.Logger})
	d.prober = p
	ready()
	<-ctx.Done()
	p.Stop()
	return nil
}
