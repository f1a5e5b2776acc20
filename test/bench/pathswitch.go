// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/test/lab"
)

// relayDelay makes a relay worse than another one, see sameKindGain in package path.
const relayDelay = "delay 50ms"

// pair is two nodes whose path changes while both the old path and the new one work.
type pair struct {
	lab       *lab.Lab
	relays    []*lab.Node
	near, far *lab.Node
	parties   []lab.Party
}

// measureSwitches changes the path of a pair from one relay to another, which is nearer, and from a relay
// to a direct path, again and again.
func measureSwitches(ctx context.Context, binary string, s samples) error {
	return inLab(ctx, func(l *lab.Lab) error {
		nodes, err := l.Nodes(ctx, binary, lab.Routed, "relay-1", "relay-2", "near", "far")
		if err != nil {
			return err
		}
		p := pair{lab: l, relays: nodes[:2], near: nodes[2], far: nodes[3]}
		if err := p.cut(ctx); err != nil {
			return err
		}
		parties, err := meet(ctx, nodes)
		if err != nil {
			return err
		}
		p.parties = parties[2:]
		for range failures / 2 {
			if err := awaitPath(ctx, p.near, p.far, control.PathRelayed); err != nil {
				return err
			}
			for _, step := range []func(context.Context, samples) error{p.otherRelay, p.heal} {
				if err := step(ctx, s); err != nil {
					return err
				}
			}
			if err := p.cut(ctx); err != nil {
				return err
			}
		}
		return nil
	})
}

func (p pair) cut(ctx context.Context) error {
	return p.lab.Partition(ctx, hostsOf(p.near), hostsOf(p.far))
}

// otherRelay has the pair change to the relay that it does not use.
func (p pair) otherRelay(ctx context.Context, s samples) error {
	status, err := p.near.Status(ctx)
	if err != nil {
		return err
	}
	used := lab.PeerOf(status, p.far.Name).Path.Relay
	relay := p.relays[0]
	if used == p.relays[1].Name {
		relay = p.relays[1]
	}
	if err := p.change(ctx, s, "through another relay than "+used,
		func() error { return relay.Impair(ctx, relayDelay) },
		func(p control.Peer) bool { return p.Path.Works() == control.PathRelayed && p.Path.Relay != used },
	); err != nil {
		return err
	}
	return relay.Impair(ctx, "delay 0ms")
}

// heal has the pair change to a direct path.
func (p pair) heal(ctx context.Context, s samples) error {
	return p.change(ctx, s, "direct",
		func() error { return p.lab.Heal(ctx) },
		func(p control.Peer) bool { return p.Path.Works() == control.PathDirect })
}

// change counts what is lost from when do makes another path better until both ends are on it.
func (p pair) change(ctx context.Context, s samples, what string, do func() error, ok func(control.Peer) bool) error {
	talk, err := lab.StartExchange(p.parties[0], p.parties[1], packetPeriod)
	if err != nil {
		return err
	}
	err = errors.Join(awaitDatagrams(ctx, talk), do(), awaitBoth(ctx, p.near, p.far, what, ok), awaitDatagrams(ctx, talk))
	_, lost := talk.Stop()
	if err != nil {
		return err
	}
	s.add("path_switch_lost_packets", float64(lost))
	return nil
}
