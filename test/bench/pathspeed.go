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
	// speedRounds is how often throughputs over paths of each kind are compared.
	speedRounds = 5
	// slowerStart is until a connection is up to speed where daemons forward its packets: TCP takes their
	// delay for the beginning of congestion, and then goes slowly (HyStart in net/ipv4/tcp_cubic.c).
	slowerStart = 5 * time.Second
)

// measurePathSpeed compares the throughput of one node to others over paths of each kind: direct; through a
// relay, since all packets of WireGuard between the two are dropped; and through the same relay over TCP, since
// all UDP of the other one is. The relay forwards in user space.
func measurePathSpeed(ctx context.Context, binary string, s samples) error {
	return inLab(ctx, func(l *lab.Lab) error {
		nodes, err := l.Nodes(ctx, binary, lab.Routed, "relay", "near", "direct", "relayed", "tcp")
		if err != nil {
			return err
		}
		relay, near, far := nodes[0], nodes[1], nodes[2:]
		if err := errors.Join(neverRelay(ctx, nodes[1:]...), relay.PassOnMerged()); err != nil {
			return err
		}
		all, wireguard := lab.Packets{Protocol: "udp"}, lab.Packets{Protocol: "udp", Port: plainPort}
		if err := errors.Join(
			l.Block(ctx, hostsOf(near), hostsOf(far[1]), wireguard),
			l.Block(ctx, hostsOf(far[1]), hostsOf(near), wireguard),
			l.Block(ctx, nil, hostsOf(far[2]), all),
			l.Block(ctx, hostsOf(far[2]), hostsOf(nodes[:4]...), all),
		); err != nil {
			return err
		}
		parties, err := meet(ctx, nodes)
		if err != nil {
			return err
		}
		var ways []dataPath
		for i, kind := range []control.PathKind{control.PathDirect, control.PathRelayed, control.PathTCP} {
			if err := awaitPath(ctx, near, far[i], kind); err != nil {
				return err
			}
			ways = append(ways, dataPath{string(kind), parties[1], parties[2+i]})
		}
		if err := wait.Sleep(ctx, calmTime); err != nil {
			return err
		}
		forwarded, err := inUserSpace(ctx, relay)
		if err != nil {
			return err
		}
		if err := compareSpeed(ctx, ways, s); err != nil {
			return err
		}
		return forwarded()
	})
}

// inUserSpace begins to count what a relay forwards. What it returns says whether its daemon has forwarded all of
// it since: what the kernel forwards would be another figure.
func inUserSpace(ctx context.Context, relay *lab.Node) (check func() error, err error) {
	before, err := forwardedBy(ctx, relay)
	if err != nil {
		return nil, err
	}
	return func() error {
		after, err := forwardedBy(ctx, relay)
		if err != nil {
			return err
		}
		if after.InKernel != before.InKernel || after.Datagrams == before.Datagrams {
			return fmt.Errorf("%s has forwarded %d datagrams, %d of them in the kernel: want all in user space",
				relay.Name, after.Datagrams-before.Datagrams, after.InKernel-before.InKernel)
		}
		return nil
	}, nil
}

func compareSpeed(ctx context.Context, ways []dataPath, s samples) error {
	for round := range speedRounds + 1 {
		rates := map[string]float64{}
		for _, w := range ways {
			var err error
			if rates[w.name], err = throughput(ctx, w, slowerStart); err != nil {
				return err
			}
		}
		if round == 0 {
			continue // the first time an emulated machine takes longer
		}
		s.add("path_direct_mbit_per_s", rates[ways[0].name])
		s.add("relay_user_throughput_ratio", rates[ways[1].name]/rates[ways[0].name])
		s.add("tcp_throughput_ratio", rates[ways[2].name]/rates[ways[0].name])
	}
	return nil
}
