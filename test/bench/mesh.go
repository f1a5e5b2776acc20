// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/test/lab"
)

// members is the size of the mesh that is measured; one more joins it.
const members = 8

// measureMesh makes one mesh and takes all figures that need one.
func measureMesh(ctx context.Context, binary string, run int, s samples) (err error) {
	l, err := lab.New(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	var names []string
	for i := range members + 1 {
		names = append(names, fmt.Sprintf("node-%d", i+1))
	}
	nodes, err := l.Nodes(ctx, binary, lab.NAT, names...)
	if err != nil {
		return err
	}
	mesh, ninth := nodes[:members], nodes[members]

	if err := measureStart(ctx, s, "start_all_pairs_ms_8", mesh, mesh); err != nil {
		return err
	}
	if err := settle(ctx, mesh); err != nil {
		return err
	}
	if err := measureIdle(ctx, mesh, s); err != nil {
		return err
	}
	laptop, err := l.Host(ctx, "laptop", lab.NAT)
	if err != nil {
		return err
	}
	if err := measureClients(ctx, binary, mesh, laptop, s); err != nil {
		return err
	}
	for i := range kills {
		if err := measureKill(ctx, mesh, mesh[(run*kills+i)%members], s); err != nil {
			return err
		}
	}
	return measureStart(ctx, s, "join_all_pairs_ms", []*lab.Node{ninth}, nodes)
}

// measureStart starts some nodes at once. The clock runs from the last start
// until each node of all has had an answer from every other's overlay address.
func measureStart(ctx context.Context, s samples, name string, start, all []*lab.Node) error {
	var g errgroup.Group
	for _, n := range start {
		g.Go(n.Start)
	}
	if err := g.Wait(); err != nil {
		return err
	}
	started := time.Now()
	if err := awaitPairs(ctx, all); err != nil {
		return err
	}
	s.add(name, milliseconds(time.Since(started)))
	return nil
}

// roundTime is after what time without success awaitPairs asks again which
// addresses the nodes have: one that lost its claim has moved.
const roundTime = 500 * time.Millisecond

func awaitPairs(ctx context.Context, nodes []*lab.Node) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := pingRound(ctx, nodes)
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
}

func pingRound(ctx context.Context, nodes []*lab.Node) error {
	addrs, err := overlays(ctx, nodes)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, roundTime)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	for i, n := range nodes {
		var others []netip.Addr
		for j, a := range addrs {
			if i != j {
				others = append(others, a)
			}
		}
		g.Go(func() error { return n.AwaitPings(ctx, others) })
	}
	return g.Wait()
}

// overlays waits until every node has an overlay address.
func overlays(ctx context.Context, nodes []*lab.Node) ([]netip.Addr, error) {
	addrs := make([]netip.Addr, len(nodes))
	g, ctx := errgroup.WithContext(ctx)
	for i, n := range nodes {
		g.Go(func() error {
			return poll(ctx, n, func(s control.Status) bool {
				if len(s.Node.Overlay) == 0 {
					return false
				}
				addrs[i] = s.Node.Overlay[0]
				return true
			})
		})
	}
	return addrs, g.Wait()
}

// settle waits until all nodes see all others alive. Nobody takes the time, so it asks seldom.
func settle(ctx context.Context, nodes []*lab.Node) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	for _, n := range nodes {
		g.Go(func() error {
			_, err := n.Await(ctx, "settled", lab.Sees(len(nodes)-1))
			return err
		})
	}
	return g.Wait()
}

// measureKill takes the time from a kill -9 until no other node holds the
// victim for alive, and brings it back.
func measureKill(ctx context.Context, nodes []*lab.Node, victim *lab.Node, s samples) error {
	if err := victim.Kill(); err != nil {
		return err
	}
	killed := time.Now()
	g, noticing := errgroup.WithContext(ctx)
	for _, n := range nodes {
		if n != victim {
			g.Go(func() error { return poll(noticing, n, lab.Sees(len(nodes)-2)) })
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	s.add("kill_noticed_ms", milliseconds(time.Since(killed)))
	if err := victim.Start(); err != nil {
		return err
	}
	return settle(ctx, nodes)
}

// pollPeriod is short beside what is measured and long beside what an answer of
// the daemon costs.
const pollPeriod = 20 * time.Millisecond

// patience is how long anything may take before the measurement is given up.
const patience = 2 * time.Minute

// poll reads a node's status until ok returns true.
func poll(ctx context.Context, n *lab.Node, ok func(control.Status) bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(pollPeriod)
	defer tick.Stop()
	for {
		s, err := n.Status(ctx)
		if err == nil && ok(s) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", n.Name, ctx.Err())
		case <-n.Exited():
			return fmt.Errorf("wait for %s: the daemon has ended:\n%s", n.Name, n.Log())
		case <-tick.C:
		}
	}
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
