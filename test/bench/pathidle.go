// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/meshd/meshd/internal/wait"
	"github.com/meshd/meshd/test/lab"
)

const (
	// idleEach is how many nodes there are of each of three kinds.
	idleEach = 10
	// meetingTime is how long nodes that can meet take at most: five attempts, see punch.go in
	// package path.
	meetingTime = 2 * time.Minute
	// searchTime has one search for better paths in it, which follows five minutes after the first.
	searchTime = 5*time.Minute + 30*time.Second
)

// measureProbeBytes counts the probes of an idle mesh in which everything occurs that costs probes: public
// nodes, homes that meet directly, and homes that need relays. The figures are those of the node with
// the most.
func measureProbeBytes(ctx context.Context, binary string, s samples) error {
	return inLab(ctx, func(l *lab.Lab) error {
		var hosts []*lab.Host
		for i := range idleEach {
			h, err := l.Host(ctx, fmt.Sprintf("public-%d", i+1), lab.Routed)
			if err != nil {
				return err
			}
			hosts = append(hosts, h)
		}
		for _, router := range []lab.Router{{}, {Mapping: lab.PortDependent}} {
			for range idleEach {
				name := fmt.Sprintf("home-%d", len(hosts)+1)
				h, err := l.HomeHost(ctx, name, router)
				if err != nil {
					return err
				}
				hosts = append(hosts, h)
			}
		}
		nodes, err := lab.NodesOn(ctx, binary, hosts...)
		if err != nil {
			return err
		}
		if _, err := meet(ctx, nodes); err != nil {
			return err
		}
		if err := wait.Sleep(ctx, meetingTime); err != nil {
			return err
		}
		return countProbes(ctx, nodes, s)
	})
}

func countProbes(ctx context.Context, nodes []*lab.Node, s samples) error {
	began := time.Now()
	for _, n := range nodes {
		if err := lab.CountProbes(ctx, n.Host); err != nil {
			return err
		}
	}
	if err := wait.Sleep(ctx, searchTime); err != nil {
		return err
	}
	var mostSent, mostReceived float64
	for _, n := range nodes {
		sent, received, err := lab.Probes(ctx, n.Host)
		if err != nil {
			return err
		}
		seconds := time.Since(began).Seconds()
		mostSent, mostReceived = max(mostSent, float64(sent)/seconds), max(mostReceived, float64(received)/seconds)
	}
	s.add("probe_received_bytes_per_s", mostReceived)
	s.add("probe_sent_bytes_per_s", mostSent)
	return nil
}
