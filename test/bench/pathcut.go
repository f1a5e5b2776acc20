// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/wait"
	"github.com/meshd/meshd/test/lab"
)

const (
	// rekeyTime is the age of a session at which WireGuard replaces it as soon as there is data
	// (Rekey-After-Time in section 6.1 of its paper), and a second more.
	rekeyTime = 121 * time.Second
	// steadyTime is how long packets flow before something happens to their path.
	steadyTime = time.Second
	// spokes is how many paths are cut at once. Probes that miss an answer follow each other fast, which
	// an emulated processor has the time for only if there are few daemons.
	spokes = 2
)

// measureCuts cuts the direct paths from one node to others, one after the other, and lets them heal
// together: so they share the time that it takes until sessions are replaced.
func measureCuts(ctx context.Context, binary string, s samples) error {
	return inLab(ctx, func(l *lab.Lab) error {
		names := []string{"relay-1", "relay-2", "hub"}
		for i := range spokes {
			names = append(names, fmt.Sprintf("spoke-%d", i+1))
		}
		nodes, err := l.Nodes(ctx, binary, lab.Routed, names...)
		if err != nil {
			return err
		}
		parties, err := meet(ctx, nodes)
		if err != nil {
			return err
		}
		const hub = 2
		for cycle := range 2 * failures / spokes {
			for _, spoke := range nodes[hub+1:] {
				if err := awaitPath(ctx, nodes[hub], spoke, control.PathDirect); err != nil {
					return err
				}
			}
			direct := time.Now()
			if err := wait.Sleep(ctx, rekeyTime); err != nil {
				return err
			}
			for i := hub + 1; i < len(nodes); i++ {
				first, second := hub, i
				if cycle%4 >= 2 {
					first, second = i, hub
				}
				c := cut{l, direct, [2]*lab.Node{nodes[first], nodes[second]}, [2]lab.Party{parties[first], parties[second]}}
				if err := c.measure(ctx, cycle%2 == 0, s); err != nil {
					return err
				}
			}
			if err := l.Heal(ctx); err != nil {
				return err
			}
		}
		return nil
	})
}

// cut is about a pair whose direct path is cut, from the first to the second one at least.
type cut struct {
	lab     *lab.Lab
	direct  time.Time // since when the path is direct, at the latest
	nodes   [2]*lab.Node
	parties [2]lab.Party
}

// measure takes the longest gap in what the two nodes send each other when their path is cut. Before,
// their session is one that no relay has seen.
func (c cut) measure(ctx context.Context, bothWays bool, s samples) (err error) {
	a, b := c.nodes[0], c.nodes[1]
	talk, err := lab.StartExchange(c.parties[0], c.parties[1], packetPeriod)
	if err != nil {
		return err
	}
	defer talk.Stop()
	if err := errors.Join(
		awaitBoth(ctx, a, b, "in a session begun on the direct path", func(p control.Peer) bool { return p.LastHandshake.After(c.direct) }),
		wait.Sleep(ctx, steadyTime),
		awaitPath(ctx, a, b, control.PathDirect),
	); err != nil {
		return err
	}
	talk.CountGaps()
	name, from, to := "path_cut_oneway_gap_ms", hostsOf(a), hostsOf(b)
	if bothWays {
		name, from, to = "path_cut_gap_ms", hostsOf(a, b), hostsOf(a, b)
	}
	if err := c.lab.Block(ctx, from, to, lab.Packets{}); err != nil {
		return err
	}
	if err := errors.Join(awaitPath(ctx, a, b, control.PathRelayed), awaitDatagrams(ctx, talk)); err != nil {
		return err
	}
	s.add(name, milliseconds(talk.LongestGap()))
	return nil
}

// hostsOf returns the hosts of nodes.
func hostsOf(nodes ...*lab.Node) []*lab.Host {
	var all []*lab.Host
	for _, n := range nodes {
		all = append(all, n.Host)
	}
	return all
}
