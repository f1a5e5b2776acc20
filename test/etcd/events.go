// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/wait"
	"github.com/meshd/meshd/test/lab"
)

// kind is a kind of event at a site. Each is undone when it has taken effect.
type kind struct {
	name string
	// loss means that the site is cut off. In all other cases etcd must hold no election.
	loss   bool
	begin  func(ctx context.Context, c *cluster, at *site) error
	effect func(ctx context.Context, c *cluster, at *site) error // waits for it
	undo   func(ctx context.Context, c *cluster, at *site) error
}

var kinds = []kind{
	{name: "a gateway loses its link", begin: cutLink, effect: replaced, undo: restoreLink},
	{name: "the path between two sites is cut", begin: cutPath, effect: relayed, undo: heal},
	{name: "a site is lost", loss: true, begin: loseSite, effect: stayLost, undo: heal},
	{name: "a gateway does not forward", begin: forwardNothing, effect: replaced, undo: forward},
	{name: "the path between two sites is cut one way", begin: cutPathOneWay, effect: relayed, undo: heal},
}

// essential are those of a short run.
var essential = kinds[:3]

func cutLink(ctx context.Context, _ *cluster, at *site) error { return at.gateway.Cut(ctx) }

func restoreLink(ctx context.Context, _ *cluster, at *site) error { return at.gateway.Restore(ctx) }

func forwardNothing(ctx context.Context, _ *cluster, at *site) error {
	return at.gateway.StopForwarding(ctx)
}

func forward(ctx context.Context, _ *cluster, at *site) error {
	return at.gateway.ResumeForwarding(ctx)
}

// replaced waits until the site's server is the gateway.
func replaced(ctx context.Context, c *cluster, at *site) error {
	return c.awaitGateway(ctx, at.server.Node)
}

func cutPath(ctx context.Context, c *cluster, at *site) error {
	return c.lab.Partition(ctx, at.hosts(), c.another(at).hosts())
}

func cutPathOneWay(ctx context.Context, c *cluster, at *site) error {
	return c.lab.Block(ctx, at.hosts(), c.another(at).hosts(), lab.Packets{})
}

// relayed waits until the gateways at both ends of the path reach each other through another node.
func relayed(ctx context.Context, c *cluster, at *site) error {
	to := c.another(at)
	for _, ends := range [][2]*lab.Node{{at.gateway, to.gateway}, {to.gateway, at.gateway}} {
		if _, err := ends[0].Await(ctx, "on a relayed path to "+ends[1].Name, lab.OnPath(ends[1], control.PathRelayed)); err != nil {
			return err
		}
	}
	return nil
}

func loseSite(ctx context.Context, c *cluster, at *site) error {
	var others []*lab.Host
	for _, s := range c.without(at) {
		others = append(others, s.hosts()...)
	}
	return c.lab.Partition(ctx, at.hosts(), others)
}

// lostTime is how long a site stays lost after the others can write again.
const lostTime = 10 * time.Second

func stayLost(ctx context.Context, _ *cluster, _ *site) error { return wait.Sleep(ctx, lostTime) }

func heal(ctx context.Context, c *cluster, _ *site) error { return c.lab.Heal(ctx) }

// sample is what an event has done to etcd.
type sample struct {
	kind      kind
	atLeader  bool // it was at the leader's site
	elections uint64
	writable  time.Duration // until all members that are left could write again
}

func (s sample) where() string {
	if s.atLeader {
		return "the leader's site"
	}
	return "another site"
}

func (s sample) String() string {
	return fmt.Sprintf("%s, %s: %d elections, writable after %v", s.kind.name, s.where(), s.elections, s.writable.Round(time.Millisecond))
}

// suffer makes an event at the leader's site or at another one, and returns what it did when nothing is
// left of it.
func (c *cluster) suffer(ctx context.Context, k kind, atLeader bool) (s sample, err error) {
	at, before, err := c.leader(ctx)
	if err != nil {
		return s, err
	}
	if !atLeader {
		at = c.another(at)
	}
	left := c.members()
	if k.loss {
		left = slices.DeleteFunc(left, func(m *member) bool { return m == at.server })
	}
	began := time.Now()
	if err := k.begin(ctx, c, at); err != nil {
		return s, err
	}
	c.countWrites()
	wrote, err := c.awaitWrites(ctx, left)
	if err != nil {
		return s, err
	}
	s = sample{kind: k, atLeader: atLeader, writable: wrote.Sub(began)}
	noticing, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := errors.Join(k.effect(noticing, c, at), k.undo(ctx, c, at), c.awaitWhole(ctx)); err != nil {
		return s, err
	}
	_, after, err := c.leader(ctx)
	s.elections = after - before
	return s, err
}
