// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/meshd/meshd/internal/path"
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

// probeRules count what begins with the magic of probes, with IP and UDP headers, on the host's link.
func probeRules() string {
	magic := path.Magic()
	match := fmt.Sprintf("meta l4proto udp @th,64,32 %#x", binary.BigEndian.Uint32(magic[:]))
	return fmt.Sprintf(`table inet bench {
		counter received { }
		counter sent { }
		chain in { type filter hook prerouting priority raw; iifname %[1]s %[2]s counter name received; }
		chain out { type filter hook postrouting priority 300; oifname %[1]s %[2]s counter name sent; }
	}`, lab.HostLink, match)
}

func countProbes(ctx context.Context, nodes []*lab.Node, s samples) error {
	began := time.Now()
	for _, n := range nodes {
		if _, err := n.Run(ctx, "nft", probeRules()); err != nil {
			return err
		}
	}
	if err := wait.Sleep(ctx, searchTime); err != nil {
		return err
	}
	most := map[string]float64{}
	for _, n := range nodes {
		seconds := time.Since(began).Seconds()
		for _, way := range []string{"received", "sent"} {
			bytes, err := readCounter(ctx, n, way)
			if err != nil {
				return err
			}
			most[way] = max(most[way], bytes/seconds)
		}
	}
	s.add("probe_received_bytes_per_s", most["received"])
	s.add("probe_sent_bytes_per_s", most["sent"])
	return nil
}

// readCounter returns the bytes of one of the counters.
func readCounter(ctx context.Context, n *lab.Node, name string) (float64, error) {
	out, err := n.Run(ctx, "nft", "list", "counter", "inet", "bench", name)
	if err != nil {
		return 0, err
	}
	words := strings.Fields(out)
	i := slices.Index(words, "bytes")
	if i < 0 || i+1 == len(words) {
		return 0, fmt.Errorf("counter of %s: got %q", n.Name, out)
	}
	return strconv.ParseFloat(words[i+1], 64)
}
