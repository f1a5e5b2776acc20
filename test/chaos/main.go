// SPDX-License-Identifier: Apache-2.0

// Command chaos injects faults into a mesh and checks after each round that it has
// recovered. Eight nodes are in three locations, one of which is a home behind NAT, and
// their pods send each other data all the time, both ways over each connection. Each
// round has some faults at once, each of which ends, and then no faults. The same seed
// gives the same faults in the same order. If the mesh does not recover, it exits with
// code 1 and prints the seed, a timeline, and the status of the nodes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/meshd/meshd/test/lab"
)

func main() {
	lab.Main()
	os.Exit(run())
}

func run() int {
	binary := flag.String("meshd", "bin/meshd", "the meshd to run")
	duration := flag.Duration("duration", 10*time.Minute, "how long to begin new rounds")
	seed := flag.Uint64("seed", 1, "which series of faults")
	clock := flag.Bool("clock", lab.OwnsClock(), "also move the machine's clock, where it is the lab's alone")
	netem := flag.Bool("netem", true, "also lose and delay packets, for which the kernel needs netem")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer cancel()
	o := options{seed: *seed, clock: *clock, netem: *netem}
	if err := chaos(ctx, *binary, *duration, o); err != nil {
		fmt.Fprintf(os.Stderr, "chaos: seed %d: %v\n", *seed, err)
		return 1
	}
	return 0
}

func chaos(ctx context.Context, binary string, duration time.Duration, o options) (err error) {
	t, err := newTown(ctx, binary)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.lab.Close()) }()
	began := time.Now()
	if err := t.whole(ctx); err != nil {
		return fmt.Errorf("before anything was done: %w\n%s", err, t.report(ctx))
	}
	if err := errors.Join(t.remember(ctx), t.converse(ctx)); err != nil {
		return err
	}
	series := newSeries(o, t.names())
	rounds := 0
	for ; time.Since(began) < duration; rounds++ {
		events := series.next()
		for _, e := range events {
			t.note("round %d will have: %s", rounds+1, e)
		}
		err := t.suffer(ctx, events)
		calm := time.Now()
		if err == nil {
			err = t.whole(ctx)
		}
		if err == nil {
			err = t.talking(ctx)
		}
		if err == nil {
			err = t.unchanged(ctx)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return fmt.Errorf("round %d: %w\n%s", rounds+1, err, t.report(ctx))
		}
		t.note("round %d is over, whole after %v", rounds+1, time.Since(calm).Round(time.Millisecond))
	}
	if err := t.hangUp(); err != nil {
		return fmt.Errorf("%w\n%s", err, t.report(ctx))
	}
	fmt.Printf("chaos: ok, seed %d, %d rounds in %v, longest until whole %v\n", o.seed, rounds, time.Since(began).Round(time.Second), t.longest.Round(time.Millisecond))
	return nil
}
