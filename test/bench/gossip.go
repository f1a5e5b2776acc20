// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/wait"
	"github.com/meshd/meshd/test/swarm"
)

const (
	swarmSize  = 100
	swarmKills = 10
	updates    = 50 / runs // a run
	lossRate   = 5         // percent
	followUps  = 16 * time.Second
	swarmIdle  = 15 * time.Second
	swarmLimit = 4 * time.Minute // of one run
)

// measureGossip measures gossip alone, with as many nodes as one machine can't
// give hosts to: see package swarm.
func measureGossip(ctx context.Context, _ string, s samples) error {
	ctx, cancel := context.WithTimeout(ctx, swarmLimit)
	defer cancel()
	out, err := swarm.Command(ctx).Output()
	if err != nil {
		return fmt.Errorf("run swarm: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		name, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		value, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return fmt.Errorf("read figure %s of swarm: %w", name, err)
		}
		s[name] = append(s[name], value)
	}
	return nil
}

// runSwarm is the other side of measureGossip. It prints each sample.
func runSwarm(ctx context.Context) error {
	if err := swarm.SetUp(ctx); err != nil {
		return err
	}
	s := samples{}
	if err := measureSwarm(ctx, s); err != nil {
		return err
	}
	for name, values := range s {
		for _, v := range values {
			fmt.Println(name, v)
		}
	}
	return nil
}

func measureSwarm(ctx context.Context, s samples) error {
	w := swarm.New(swarmSize + 1)
	began := time.Now()
	if err := w.Start(w.Nodes[:swarmSize]...); err != nil {
		return err
	}
	if err := w.AwaitAll(ctx); err != nil {
		return err
	}
	s.add("gossip_100_mass_start_ms", milliseconds(time.Since(began)))

	falseDeaths := w.FalseDeaths()

	// The last join of a random member is over by then.
	if err := wait.Sleep(ctx, followUps); err != nil {
		return err
	}
	if err := measureSwarmIdle(ctx, s); err != nil {
		return err
	}
	began = time.Now()
	if err := w.Start(w.Nodes[swarmSize]); err != nil {
		return err
	}
	if err := w.AwaitAll(ctx); err != nil {
		return err
	}
	s.add("gossip_100_join_ms", milliseconds(time.Since(began)))
	if err := swarm.Lose(ctx, lossRate); err != nil {
		return err
	}
	for range updates {
		if err := measureUpdate(ctx, w, s); err != nil {
			return err
		}
	}
	if err := measureSwarmKill(ctx, w, s); err != nil {
		return err
	}
	s.add("gossip_100_false_deaths", float64(w.FalseDeaths()-falseDeaths))
	return w.Stop()
}

// measureUpdate takes the time from a new record of any node until all have it.
func measureUpdate(ctx context.Context, w *swarm.Swarm, s samples) error {
	author := w.Nodes[rand.IntN(len(w.Nodes))]
	began := time.Now()
	sequence, err := author.Publish()
	if err != nil {
		return err
	}
	err = w.Await(ctx, "a new record is everywhere", func(n *swarm.Node) bool { return n.Has(author, sequence) })
	if err != nil {
		return err
	}
	s.add("gossip_100_update_ms", milliseconds(time.Since(began)))
	return nil
}

// measureSwarmKill kills some nodes at one moment and takes the time until all
// others have noticed all of them.
func measureSwarmKill(ctx context.Context, w *swarm.Swarm, s samples) error {
	killed := w.Nodes[1 : 1+swarmKills]
	for _, n := range killed {
		if err := n.Stop(); err != nil {
			return err
		}
	}
	began := time.Now()
	if err := w.AwaitGone(ctx, killed...); err != nil {
		return err
	}
	s.add("gossip_100_kill_10_noticed_ms", milliseconds(time.Since(began)))
	return nil
}

// measureSwarmIdle measures idle nodes. They share a process and its Go runtime.
func measureSwarmIdle(ctx context.Context, s samples) error {
	before, began := cpuTime(), time.Now()
	if err := wait.Sleep(ctx, swarmIdle); err != nil {
		return err
	}
	used := (cpuTime() - before).Seconds() / time.Since(began).Seconds()
	status, err := lineOf(fmt.Sprintf("/proc/%d/status", os.Getpid()), "VmRSS:")
	if err != nil {
		return err
	}
	kilobytes, err := strconv.ParseFloat(status[0], 64)
	if err != nil {
		return fmt.Errorf("read resident memory: %w", err)
	}
	s.add("gossip_100_node_cpu_percent", 100*used/swarmSize)
	s.add("gossip_100_node_rss_mb", kilobytes*1024/1e6/swarmSize)
	return nil
}

// cpuTime returns the CPU time that this process has used.
func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err) // it has no other cause than a bad argument
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
