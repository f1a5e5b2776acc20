// SPDX-License-Identifier: Apache-2.0

// Command bench measures meshd on the hosts of a lab and prints one line
// "bench NAME VALUE UNIT" for each figure. A value is the median of five runs;
// that of a figure about failure is the worst of ten, or, with failover_* and
// failback, the worst of all with the median beside it, and gossip_100_* that have
// a limit are the worst of all samples. Every run has a lab and daemons of its
// own, with nothing remembered. What it does meanwhile goes to standard error.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/meshd/meshd/test/lab"
	"github.com/meshd/meshd/test/swarm"
)

func main() {
	lab.Main()
	os.Exit(run())
}

func run() int {
	binary := flag.String("meshd", "bin/meshd", "the meshd to measure")
	kernel := flag.Bool("kernel", false, "measure what needs WireGuard in the kernel, and nothing else")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer cancel()
	measure := func() error { return report(ctx, *binary, bench, figures) }
	switch {
	case swarm.Isolated():
		measure = func() error { return runSwarm(ctx) }
	case *kernel:
		measure = func() error { return report(ctx, *binary, benchKernel, kernelFigures) }
	}
	if err := measure(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

const (
	runs  = 5
	kills = 2 // a run; ten in all
	limit = 20 * time.Minute
)

// figure is something that is measured several times.
type figure struct {
	name, unit string
	reduce     func(samples []float64) float64
}

// figures are printed in this order.
var figures = []figure{
	{"start_all_pairs_ms_8", "ms", median},
	{"join_all_pairs_ms", "ms", median},
	{"kill_noticed_ms", "ms", slices.Max[[]float64]},
	{"failover_kill_ms", "ms", slices.Max[[]float64]},
	{"failover_kill_median_ms", "ms", median},
	{"failover_blackhole_ms", "ms", slices.Max[[]float64]},
	{"failover_blackhole_median_ms", "ms", median},
	{"failover_drain_ms", "ms", slices.Max[[]float64]},
	{"failover_drain_median_ms", "ms", median},
	{"failback_ms", "ms", slices.Max[[]float64]},
	{"failback_median_ms", "ms", median},
	{"derive_full_1000_us", "us", median},
	{"derive_location_10000_ms", "ms", median},
	{"derive_location_10000_mb", "MB", median},
	{"derive_location_10000_member_ms", "ms", median},
	{"rss_mb", "MB", median},
	{"idle_cpu_percent", "%", median},
	{"idle_bytes_per_s", "B/s", median},
	{"idle_received_bytes_per_s", "B/s", median},
	{"idle_sent_bytes_per_s", "B/s", median},
	{"gossip_100_mass_start_ms", "ms", slices.Max[[]float64]},
	{"gossip_100_join_ms", "ms", median},
	{"gossip_100_update_ms", "ms", slices.Max[[]float64]},
	{"gossip_100_kill_10_noticed_ms", "ms", slices.Max[[]float64]},
	{"gossip_100_false_deaths", "nodes", slices.Max[[]float64]},
	{"gossip_100_node_cpu_percent", "%", median},
	{"gossip_100_node_rss_mb", "MB", median},
}

func median(samples []float64) float64 {
	s := slices.Sorted(slices.Values(samples))
	return s[len(s)/2]
}

// samples are what was measured, by the figure's name.
type samples map[string][]float64

func (s samples) add(name string, value float64) {
	fmt.Fprintf(os.Stderr, "  %s %.2f\n", name, value)
	s[name] = append(s[name], value)
}

// report measures and prints the figures.
func report(ctx context.Context, binary string, measure func(context.Context, string, samples) error, wanted []figure) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	s := samples{}
	if err := measure(ctx, binary, s); err != nil {
		return err
	}
	for _, f := range wanted {
		fmt.Printf("bench %s %.1f %s\n", f.name, f.reduce(s[f.name]), f.unit)
	}
	return nil
}

func bench(ctx context.Context, binary string, s samples) error {
	if err := measureDerive(ctx, s); err != nil {
		return err
	}
	for i := range runs {
		note(i)
		if err := measureMesh(ctx, binary, i, s); err != nil {
			return err
		}
		if err := measureFailover(ctx, binary, s); err != nil {
			return err
		}
		if err := measureGossip(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

func note(run int) { fmt.Fprintf(os.Stderr, "run %d of %d\n", run+1, runs) }
