// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meshd/meshd/test/lab"
)

// parallelPings is how many ping processes run at once.
const parallelPings = 32

// runner is a host or a pod.
type runner interface {
	Run(ctx context.Context, name string, args ...string) (string, error)
}

// pair is one direction between two hosts, with what went wrong on it.
type pair struct {
	from, to station
	node     error // to the overlay address or the internal IP
	pod      error // from pod to pod
}

// pingAll pings all directed pairs, prints which did not answer and why, and ends with
// the count and further results.
func pingAll(ctx context.Context, stations []station, more string) error {
	var pairs []*pair
	for i, from := range stations {
		for j, to := range stations {
			if i != j {
				pairs = append(pairs, &pair{from: from, to: to})
			}
		}
	}
	var g errgroup.Group
	g.SetLimit(parallelPings)
	for _, p := range pairs {
		g.Go(func() error {
			p.node = errors.Join(
				ping(ctx, p.from, "overlay address", p.to.overlay),
				ping(ctx, p.from, "internal IP", p.to.internal))
			return nil
		})
		g.Go(func() error {
			p.pod = ping(ctx, p.from.pod, "pod", p.to.pod.Addresses[0])
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return report(os.Stdout, pairs, more)
}

// ping waits for one answer; what ping(8) printed last is in the error. It ends with
// the first error that comes back from the network, as while another gateway takes
// over, and is then started again.
func ping(ctx context.Context, from runner, what string, to netip.Addr) error {
	for end := time.Now().Add(pingLimit); ; {
		seconds := strconv.Itoa(1 + int(time.Until(end).Seconds()))
		out, err := from.Run(ctx, "ping", "-n", "-q", "-c", "1", "-i", "0.2", "-w", seconds, to.String())
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || time.Until(end) < 0 {
			return fmt.Errorf("%s %s: %w\n%s", what, to, err, strings.TrimSpace(out))
		}
		time.Sleep(200 * time.Millisecond) // what ping waits
	}
}

// report writes the last line of a demo, or returns an error that names every
// pair that failed.
func report(w io.Writer, pairs []*pair, more string) error {
	var nodesOK, podsOK int
	var failures []error
	blamed := map[string]*lab.Node{}
	for _, p := range pairs {
		if p.node == nil {
			nodesOK++
		}
		if p.pod == nil {
			podsOK++
		}
		if err := errors.Join(p.node, p.pod); err != nil {
			failures = append(failures, fmt.Errorf("%s to %s: %w", p.from.Name, p.to.Name, err))
			blamed[p.from.Name], blamed[p.to.Name] = p.from.Node, p.to.Node
		}
	}
	verdict := fmt.Sprintf("%d of %d node pairs, %d of %[2]d pod pairs", nodesOK, len(pairs), podsOK)
	if more != "" {
		verdict += ", " + more
	}
	if len(failures) == 0 {
		_, err := fmt.Fprintln(w, "demo: ok,", verdict)
		return err
	}
	err := fmt.Errorf("failed, %s\n%w", verdict, errors.Join(failures...))
	var nodes []*lab.Node
	for _, p := range pairs {
		if n := blamed[p.from.Name]; n != nil {
			nodes = append(nodes, n)
			delete(blamed, p.from.Name)
		}
	}
	return withLogs(err, nodes...)
}
