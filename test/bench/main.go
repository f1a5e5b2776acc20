// SPDX-License-Identifier: Apache-2.0

// Command bench measures meshd on the hosts of a lab and prints one line
// "bench NAME VALUE UNIT" for each figure. A value is the median of five runs;
// that of a figure about failures or losses is the worst of ten or more, with the
// median beside it for failover_* and failback, and gossip_100_* that have a limit
// are the worst of all samples. Every run has a lab and daemons of its own, with
// nothing remembered. What it does meanwhile goes to standard error. It fails if a
// figure is out of its bounds, when all are printed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
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
	icount := flag.Bool("icount", false, "measure what bin/kernel -icount runs, and nothing else")
	pattern := flag.String("run", "", "regular expression: which measurements to take")
	flag.Parse()
	only, err := regexp.Compile(*pattern)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer cancel()
	b := bench{binary: *binary, measurements: measurements, figures: figures}
	switch {
	case *kernel:
		b.measurements, b.figures = kernelMeasurements(), kernelFigures
	case *icount:
		b.measurements, b.figures = countedMeasurements, countedFigures
	}
	measure := func() error { return b.run(ctx, only) }
	if swarm.Isolated() {
		measure = func() error { return runSwarm(ctx) }
	}
	if err := measure(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

const (
	runs     = 5
	failures = 10               // of each kind
	kills    = failures / runs  // a run
	limit    = 80 * time.Minute // for all of it
)

// measurement takes samples of some figures.
type measurement struct {
	name    string
	times   int
	measure func(ctx context.Context, binary string, run int, s samples) error
}

// measurements are taken in turns: a machine that is slow for a while is slow for all.
var measurements = []measurement{
	{"derive", 1, always(measureDerive)},
	{"mesh", runs, measureMesh},
	{"failover", runs, always(measureFailovers)},
	{"gossip", runs, always(measureGossip)},
	{"pathidle", 1, always(measureProbeBytes)},
}

// always is a measurement for which it makes no difference which run it is.
func always(measure func(context.Context, string, samples) error) func(context.Context, string, int, samples) error {
	return func(ctx context.Context, binary string, _ int, s samples) error { return measure(ctx, binary, s) }
}

// figure is something that is measured several times.
type figure struct {
	name, unit string
	reduce     func(samples []float64) float64
	bound      bound
}

// bound is what a figure may be; the zero value allows anything.
type bound struct {
	least, most *float64
}

func atMost(v float64) bound { return bound{most: &v} }

func atLeast(v float64) bound { return bound{least: &v} }

// check returns an error if a figure is out of its bounds.
func (f figure) check(value float64) error {
	switch b := f.bound; {
	case b.most != nil && value > *b.most:
		return fmt.Errorf("%s is %s, more than %g", f.name, f.format(value), *b.most)
	case b.least != nil && value < *b.least:
		return fmt.Errorf("%s is %s, less than %g", f.name, f.format(value), *b.least)
	}
	return nil
}

// format writes a value with its unit.
func (f figure) format(value float64) string {
	if f.unit == ratio {
		return fmt.Sprintf("%.3f %s", value, f.unit)
	}
	return fmt.Sprintf("%.1f %s", value, f.unit)
}

// ratio is the unit of what is divided by something of the same run.
const ratio = "ratio"

// worst is for failures and losses.
func worst(samples []float64) float64 { return slices.Max(samples) }

// figures are printed in this order.
var figures = []figure{
	{name: "start_all_pairs_ms_8", unit: "ms", reduce: median, bound: atMost(1500)},
	{name: "join_all_pairs_ms", unit: "ms", reduce: median, bound: atMost(1000)},
	{name: "kill_noticed_ms", unit: "ms", reduce: worst, bound: atMost(10000)},
	{name: "failover_kill_ms", unit: "ms", reduce: worst, bound: atMost(2000)},
	{name: "failover_kill_median_ms", unit: "ms", reduce: median},
	{name: "failover_blackhole_ms", unit: "ms", reduce: worst, bound: atMost(3000)},
	{name: "failover_blackhole_median_ms", unit: "ms", reduce: median},
	{name: "failover_drain_ms", unit: "ms", reduce: worst, bound: atMost(300)},
	{name: "failover_drain_median_ms", unit: "ms", reduce: median},
	{name: "failback_ms", unit: "ms", reduce: worst, bound: atMost(300)},
	{name: "failback_median_ms", unit: "ms", reduce: median},
	{name: "client_add_everywhere_ms", unit: "ms", reduce: median, bound: atMost(3000)},
	{name: "client_remove_everywhere_ms", unit: "ms", reduce: median, bound: atMost(3000)},
	{name: "connect_service_failover_ms", unit: "ms", reduce: worst, bound: atMost(5000)},
	{name: "derive_full_1000_us", unit: "us", reduce: median, bound: atMost(5000)},
	{name: "derive_location_10000_ms", unit: "ms", reduce: median, bound: atMost(50)},
	{name: "derive_location_10000_mb", unit: "MB", reduce: median},
	{name: "derive_location_10000_member_ms", unit: "ms", reduce: median},
	{name: "hostile_join_ms", unit: "ms", reduce: median, bound: atMost(10000)},
	{name: "hostile_rss_growth_mb", unit: "MB", reduce: worst, bound: atMost(32)},
	{name: "rss_mb", unit: "MB", reduce: median, bound: atMost(40)},
	{name: "idle_cpu_percent", unit: "%", reduce: median, bound: atMost(1)},
	{name: "idle_bytes_per_s", unit: "B/s", reduce: median},
	{name: "idle_received_bytes_per_s", unit: "B/s", reduce: median},
	{name: "idle_sent_bytes_per_s", unit: "B/s", reduce: median},
	{name: "gossip_100_mass_start_ms", unit: "ms", reduce: worst, bound: atMost(10000)},
	{name: "gossip_100_join_ms", unit: "ms", reduce: median},
	{name: "gossip_100_update_ms", unit: "ms", reduce: worst, bound: atMost(2500)},
	{name: "gossip_100_kill_10_noticed_ms", unit: "ms", reduce: worst},
	{name: "gossip_100_false_deaths", unit: "nodes", reduce: worst, bound: atMost(0)},
	{name: "gossip_100_node_cpu_percent", unit: "%", reduce: median},
	{name: "gossip_100_node_rss_mb", unit: "MB", reduce: median},
	{name: "probe_received_bytes_per_s", unit: "B/s", reduce: worst, bound: atMost(400)},
	{name: "probe_sent_bytes_per_s", unit: "B/s", reduce: worst, bound: atMost(400)},
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

// bench is what is measured, and what comes of it.
type bench struct {
	binary       string
	measurements []measurement
	figures      []figure
}

// run takes the measurements whose names match and prints their figures. A measurement that fails keeps no other
// one from being taken.
func (b bench) run(ctx context.Context, only *regexp.Regexp) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var errs []error
	s := samples{}
	for run := range runs {
		for _, m := range b.measurements {
			if ctx.Err() != nil || run >= m.times || !only.MatchString(m.name) {
				continue
			}
			fmt.Fprintf(os.Stderr, "%s, run %d of %d\n", m.name, run+1, m.times)
			if err := m.measure(ctx, b.binary, run, s); err != nil {
				errs = append(errs, fmt.Errorf("%s, run %d: %w", m.name, run+1, err))
				fmt.Fprintln(os.Stderr, "bench:", errs[len(errs)-1])
			}
		}
	}
	return errors.Join(append(errs, printAll(os.Stdout, s, b.figures))...)
}

// printAll writes the figures of which there are samples, and returns an error that
// names those that are out of their bounds.
func printAll(w io.Writer, s samples, wanted []figure) error {
	var errs []error
	for _, f := range wanted {
		if len(s[f.name]) == 0 {
			continue // was not asked for
		}
		value := f.reduce(s[f.name])
		if _, err := fmt.Fprintf(w, "bench %s %s\n", f.name, f.format(value)); err != nil {
			return err
		}
		errs = append(errs, f.check(value))
	}
	return errors.Join(errs...)
}
