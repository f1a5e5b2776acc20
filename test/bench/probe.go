// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"

	"golang.org/x/sync/errgroup"

	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/path/rawudp"
	"github.com/meshd/meshd/test/lab"
)

// probeRounds is how often throughput with and without sockets for probes is compared.
const probeRounds = 5

// measureProbeSockets compares the throughput of WireGuard in the kernel with that beside
// the raw sockets by which probes come in. They see each of WireGuard's packets, and their
// filter drops it.
func measureProbeSockets(ctx context.Context, _ string, s samples) (err error) {
	l, err := lab.New(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	hosts, err := twoHosts(ctx, l, lab.NAT, "first", "second")
	if err != nil {
		return err
	}
	w, err := plainPath(ctx, hosts)
	if err != nil {
		return err
	}
	// One connection for all rounds: two connections differ more than what is measured.
	t, err := startTransfer(ctx, w, slowStart)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.stop()) }()
	if _, err := t.rate(ctx); err != nil { // the first time an emulated machine takes longer
		return err
	}
	for range probeRounds {
		without, err := t.rate(ctx)
		if err != nil {
			return err
		}
		with, err := rateBesideProbes(ctx, t, hosts)
		if err != nil {
			return err
		}
		s.add("probe_throughput_ratio", with/without)
	}
	return nil
}

// rateBesideProbes is the rate while both hosts have sockets for probes open.
func rateBesideProbes(ctx context.Context, t *transfer, hosts [2]*lab.Host) (rate float64, err error) {
	var g errgroup.Group
	defer func() { err = errors.Join(err, g.Wait()) }()
	for _, h := range hosts {
		var c *rawudp.Conn
		if err := h.Do(func() (err error) {
			c, err = rawudp.Open(rawudp.Options{Port: plainPort, Magic: path.Beginnings()})
			return err
		}); err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, c.Close()) }()
		g.Go(func() error { return c.Serve(func(rawudp.Datagram) {}) })
	}
	return t.rate(ctx)
}
