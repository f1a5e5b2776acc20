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
	relayRounds = 5
	// relayUpToSpeed is until a connection is up to speed.
	relayUpToSpeed = 2 * time.Second
	// relayStops is how often a relay's daemon is stopped, killed, and away for relayAway.
	relayStops = 5
	relayAway  = 10 * time.Second
	// leastInKernel is the part of what a relay forwards that its kernel has to forward for the figures to
	// be about that.
	leastInKernel = 0.9
)

// relayBed is a node that reaches one other directly and one through a relay, since packets of WireGuard
// between the two are dropped on the way.
type relayBed struct {
	relay, near, direct, far *lab.Node
	overlay                  map[*lab.Node]lab.Party
}

// newRelayBed returns nodes that have met. Only one of them is a relay.
func newRelayBed(ctx context.Context, l *lab.Lab, binary string) (*relayBed, error) {
	nodes, err := l.Nodes(ctx, binary, lab.Routed, "relay", "near", "direct", "far")
	if err != nil {
		return nil, err
	}
	b := &relayBed{relay: nodes[0], near: nodes[1], direct: nodes[2], far: nodes[3], overlay: map[*lab.Node]lab.Party{}}
	if err := neverRelay(ctx, nodes[1:]...); err != nil {
		return nil, err
	}
	wireguard := lab.Packets{Protocol: "udp", Port: plainPort}
	for _, ends := range [][2]*lab.Node{{b.near, b.far}, {b.far, b.near}} {
		if err := l.Block(ctx, []*lab.Host{ends[0].Host}, []*lab.Host{ends[1].Host}, wireguard); err != nil {
			return nil, err
		}
	}
	parties, err := meet(ctx, nodes)
	if err != nil {
		return nil, err
	}
	for i, n := range nodes {
		b.overlay[n] = parties[i]
	}
	if err := awaitPairs(ctx, nodes); err != nil {
		return nil, err
	}
	return b, b.awaitPaths(ctx)
}

// awaitPaths waits until both nodes say that the relay is between them.
func (b *relayBed) awaitPaths(ctx context.Context) error {
	return awaitBoth(ctx, b.near, b.far, "on a path through "+b.relay.Name, func(p control.Peer) bool {
		return p.Path.Works() == control.PathRelayed && p.Path.Relay == b.relay.Name
	})
}

// forwardedBy returns what a relay has forwarded so far.
func forwardedBy(ctx context.Context, relay *lab.Node) (control.Relay, error) {
	s, err := relay.Status(ctx)
	if err != nil {
		return control.Relay{}, err
	}
	if s.Relay == nil {
		return control.Relay{}, fmt.Errorf("%s is not a relay", relay.Name)
	}
	return *s.Relay, nil
}

// measureKernelRelay compares the throughput over a relay, whose kernel forwards, with that of a direct
// path.
func measureKernelRelay(ctx context.Context, binary string, s samples) (err error) {
	l, err := lab.New(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	b, err := newRelayBed(ctx, l, binary)
	if err != nil {
		return err
	}
	if err := wait.Sleep(ctx, calmTime); err != nil {
		return err
	}
	ways := []dataPath{
		{"direct", b.overlay[b.near], b.overlay[b.direct]},
		{"relayed", b.overlay[b.near], b.overlay[b.far]},
	}
	before, err := forwardedBy(ctx, b.relay)
	if err != nil {
		return err
	}
	for round := range relayRounds + 1 {
		var rates [2]float64
		for i, w := range ways {
			if rates[i], err = steadyThroughput(ctx, w); err != nil {
				return err
			}
		}
		if round > 0 { // the first time an emulated machine takes longer
			s.add("relay_throughput_ratio", rates[1]/rates[0])
		}
	}
	after, err := forwardedBy(ctx, b.relay)
	if err != nil {
		return err
	}
	if part := float64(after.InKernel-before.InKernel) / float64(after.Datagrams-before.Datagrams); part < leastInKernel {
		return fmt.Errorf("the relay's kernel has forwarded only %.2f of the packets", part)
	}
	return nil
}

// steadyThroughput returns the megabits a second of one TCP connection that is up to speed.
func steadyThroughput(ctx context.Context, w dataPath) (rate float64, err error) {
	t, err := startTransfer(ctx, w, relayUpToSpeed)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, t.stop()) }()
	return t.rate(ctx)
}

// measureRelayRestarts stops and kills a relay's daemon while two nodes exchange packets through it, and
// leaves it stopped for a while.
func measureRelayRestarts(ctx context.Context, binary string, s samples) (err error) {
	l, err := lab.New(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	b, err := newRelayBed(ctx, l, binary)
	if err != nil {
		return err
	}
	tests := []struct {
		figure string
		end    func() error
		away   time.Duration
	}{
		{"relay_restart_lost_packets", b.relay.Stop, 0},
		{"relay_restart_lost_packets", b.relay.Kill, 0},
		{"relay_away_lost_packets", b.relay.Stop, relayAway},
	}
	for range relayStops {
		for _, tt := range tests {
			if err := b.awaitKernel(ctx); err != nil {
				return err
			}
			e, err := lab.StartExchange(b.overlay[b.near], b.overlay[b.far], packetPeriod)
			if err != nil {
				return err
			}
			err = errors.Join(tt.end(), wait.Sleep(ctx, tt.away), b.relay.Start(), poll(ctx, b.relay, served), b.awaitPaths(ctx))
			_, lost := e.Stop()
			if err != nil {
				return err
			}
			s.add(tt.figure, float64(lost))
		}
	}
	return nil
}

// served is for poll: the relay is one again, for both nodes.
func served(s control.Status) bool { return lab.Sees(3)(s) && s.Relay != nil && s.Relay.Nodes >= 2 }

// awaitKernel waits until the relay's kernel forwards what the two nodes exchange.
func (b *relayBed) awaitKernel(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		before, err := forwardedBy(ctx, b.relay)
		if err != nil {
			return err
		}
		e, err := lab.StartExchange(b.overlay[b.near], b.overlay[b.far], packetPeriod)
		if err != nil {
			return err
		}
		err = wait.Sleep(ctx, 2*time.Second)
		sent, _ := e.Stop()
		after, readErr := forwardedBy(ctx, b.relay)
		if err := errors.Join(err, readErr); err != nil {
			return err
		}
		if float64(after.InKernel-before.InKernel) > leastInKernel*float64(sent) {
			return nil
		}
	}
}
