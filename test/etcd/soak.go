// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"time"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/wait"
)

// writableLimit is when the controller manager and the scheduler of Kubernetes give up their leases
// (RenewDeadline), and k3s restarts.
const writableLimit = 10 * time.Second

// longestPause is the longest time without an event. The next event comes at random in the periods of
// etcd, WireGuard and TCP.
const longestPause = 10 * time.Second

// soak has random events happen for half of the duration with each set of timings, and prints what they
// did to etcd. It returns an error if that is not what is asked of the timings wan.
func soak(ctx context.Context, o options, duration time.Duration, seed uint64) error {
	var errs []error
	for _, timings := range []mesh.EtcdTimings{mesh.EtcdWAN, mesh.EtcdLAN} {
		samples, err := series(ctx, o, timings, duration/2, rand.New(rand.NewPCG(seed, 0)))
		if err != nil {
			return fmt.Errorf("timings %s: %w", timings, err)
		}
		for _, line := range summary(samples) {
			fmt.Printf("etcd %s: %s\n", timings, line)
		}
		if timings == mesh.EtcdWAN {
			errs = append(errs, missed(samples)...)
		}
	}
	return errors.Join(errs...)
}

// series begins random events at random sites until the duration is over.
func series(ctx context.Context, o options, timings mesh.EtcdTimings, duration time.Duration, random *rand.Rand) (samples []sample, err error) {
	c, err := newCluster(ctx, o, timings)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	for began := time.Now(); time.Since(began) < duration; {
		if err := wait.Sleep(ctx, time.Duration(random.Int64N(int64(longestPause)))); err != nil {
			return nil, err
		}
		k, atLeader := kinds[random.IntN(len(kinds))], random.IntN(2) == 0
		s, err := c.suffer(ctx, k, atLeader)
		if err != nil {
			return nil, fmt.Errorf("%s: %w\n%s", k.name, err, c.report())
		}
		fmt.Fprintf(os.Stderr, "%8.1fs %s\n", time.Since(began).Seconds(), s)
		samples = append(samples, s)
	}
	return samples, nil
}

// summary returns a line for each kind of event at the leader's site, and at other ones.
func summary(samples []sample) []string {
	var lines []string
	for _, k := range kinds {
		for _, atLeader := range []bool{true, false} {
			var (
				elections uint64
				writable  []time.Duration
				where     string
			)
			for _, s := range samples {
				if s.kind.name == k.name && s.atLeader == atLeader {
					elections += s.elections
					writable = append(writable, s.writable)
					where = s.where()
				}
			}
			if len(writable) == 0 {
				continue
			}
			slices.Sort(writable)
			lines = append(lines, fmt.Sprintf("%s, %s: %d times, %d elections, writable after %v, at most %v", k.name, where, len(writable), elections,
				writable[len(writable)/2].Round(time.Millisecond), writable[len(writable)-1].Round(time.Millisecond)))
		}
	}
	return lines
}

// missed returns an error for each sample that is not as it is asked of the timings wan.
func missed(samples []sample) []error {
	var errs []error
	for _, s := range samples {
		if s.kind.loss && s.writable > writableLimit {
			errs = append(errs, fmt.Errorf("%s: want at most %v", s, writableLimit))
		}
		if !s.kind.loss && s.elections > 0 {
			errs = append(errs, fmt.Errorf("%s: want no election", s))
		}
	}
	return errs
}
