// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/wait"
	"github.com/meshd/meshd/test/lab"
)

// wholeLimit only distinguishes slow from never.
const wholeLimit = 5 * time.Minute

// town is the mesh under test.
type town struct {
	lab    *lab.Lab
	nodes  []*lab.Node // those that must be alive after each round
	ninth  *lab.Node   // comes and goes
	pods   map[*lab.Node]*lab.Pod
	talks  []talk
	join   []string
	began  time.Time
	before map[*lab.Node]trace

	mu         sync.Mutex
	secret     string
	generation uint64
	mode       mesh.Mode
	timeline   []string
	longest    time.Duration
}

// trace holds what must not change, or not grow.
type trace struct {
	addresses string
	metrics   map[string]float64
}

// newTown starts three nodes in each of two clouds and two at home, with pods.
func newTown(ctx context.Context, binary string) (*town, error) {
	binary, err := filepath.Abs(binary)
	if err != nil {
		return nil, fmt.Errorf("find meshd: %w", err)
	}
	l, err := lab.New(ctx)
	if err != nil {
		return nil, err
	}
	t := &town{lab: l, began: time.Now(), pods: make(map[*lab.Node]*lab.Pod), generation: 1, mode: mesh.ModeLocation}
	if err := t.settle(ctx, binary); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return t, nil
}

func (t *town) settle(ctx context.Context, binary string) error {
	for _, place := range []struct {
		name     string
		underlay lab.Underlay
		hosts    []string
	}{{"a", lab.NAT, []string{"a1", "a2", "a3"}}, {"b", lab.NAT, []string{"b1", "b2", "b3"}}, {"home", lab.Home, []string{"h1", "h2"}}} {
		site, err := t.lab.Site(ctx, place.name, lab.SiteOptions{Underlay: place.underlay})
		if err != nil {
			return err
		}
		for _, name := range place.hosts {
			h, err := site.Host(ctx, name)
			if err != nil {
				return err
			}
			t.nodes = append(t.nodes, lab.NewNode(h, binary))
		}
	}
	h, err := t.lab.Host(ctx, "ninth", lab.NAT)
	if err != nil {
		return err
	}
	t.ninth = lab.NewNode(h, binary)
	t.join = []string{t.nodes[0].Public().String(), t.nodes[3].Public().String()}
	if t.secret, err = t.nodes[0].NewSecret(ctx); err != nil {
		return err
	}
	for _, n := range t.nodes {
		// A disk of its own, which can be filled.
		if _, err := n.Run(ctx, "sh", "-c", "mkdir -p "+lab.StateDir+" && mount -t tmpfs -o size=1m none "+lab.StateDir); err != nil {
			return err
		}
		if err := errors.Join(t.configure(n), n.Start()); err != nil {
			return err
		}
	}
	for _, n := range t.nodes {
		if _, err := n.Await(ctx, "ready", lab.Ready); err != nil {
			return err
		}
		pod, err := n.Pod(ctx, "meshd", "pod-"+n.Name)
		if err != nil {
			return err
		}
		t.pods[n] = pod
	}
	return nil
}

// talk is a connection between pods of two nodes, over which both send.
type talk struct {
	from, to *lab.Node
	*lab.Stream
}

func (t talk) String() string { return t.from.Name + " to " + t.to.Name }

// talkPeriod is long because there are many connections.
const talkPeriod = 200 * time.Millisecond

// converse opens a connection from each node's pod to a pod at another place. So each pod
// sends over a connection that it has opened, and over one that it has accepted.
func (t *town) converse(ctx context.Context) error {
	for i, from := range t.nodes {
		to := t.nodes[(i+3)%len(t.nodes)]
		s, err := lab.StartTwoWayStream(ctx, t.pods[from].Do, lab.Party{At: t.pods[to].Do, Addr: t.pods[to].Addresses[0]}, talkPeriod)
		if err != nil {
			return err
		}
		t.talks = append(t.talks, talk{from, to, s})
	}
	return nil
}

// talking waits until new bytes have arrived both ways over each connection.
func (t *town) talking(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, wholeLimit)
	defer cancel()
	for _, s := range t.talks {
		began, there, back := time.Now(), s.Received(), s.ReceivedBack()
		for s.Received() == there || s.ReceivedBack() == back {
			if err := s.Err(); err != nil {
				return fmt.Errorf("connection from %s: %w", s, err)
			}
			if wait.Sleep(ctx, lab.Pause(time.Second, began)) != nil {
				return fmt.Errorf("connection from %s: nothing arrives one way: got %d and %d bytes, had %d and %d", s, s.Received(), s.ReceivedBack(), there, back)
			}
		}
	}
	return nil
}

// hangUp ends all connections and checks that every byte has arrived.
func (t *town) hangUp() error {
	var g errgroup.Group
	for _, s := range t.talks {
		g.Go(func() error {
			if err := s.Stop(); err != nil {
				return fmt.Errorf("connection from %s: %w", s, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// configure writes a node's current configuration files.
func (t *town) configure(n *lab.Node) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var lines []string
	if n.Location() != "" {
		lines = append(lines, "  location: "+n.Location())
	}
	lines = append(lines, "cluster:", fmt.Sprintf("  generation: %d", t.generation), "  mode: "+string(t.mode))
	return n.Configure(lab.Config(n.Name, t.join, lines...), t.secret)
}

// all returns all nodes, including the ninth.
func (t *town) all() []*lab.Node { return append(slices.Clone(t.nodes), t.ninth) }

func (t *town) names() []string {
	var out []string
	for _, n := range t.nodes {
		out = append(out, n.Name)
	}
	return out
}

// note adds a line to the timeline, and prints it.
func (t *town) note(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	line := fmt.Sprintf("%8.1fs %s", time.Since(t.began).Seconds(), fmt.Sprintf(format, args...))
	t.timeline = append(t.timeline, line)
	fmt.Fprintln(os.Stderr, line)
}

// whole waits until all nodes and pods reach each other, all nodes know the same, and no
// host differs from its desired state.
func (t *town) whole(ctx context.Context) error {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, wholeLimit)
	defer cancel()
	for _, n := range t.nodes {
		if err := t.patiently(ctx, func(ctx context.Context) error {
			_, err := n.Await(ctx, "ready, and sees all", lab.Sees(len(t.nodes)-1))
			return err
		}); err != nil {
			return err
		}
	}
	if err := t.connected(ctx); err != nil {
		return err
	}
	said := ""
	for {
		err := t.calm(ctx)
		if err == nil {
			t.longest = max(t.longest, time.Since(began))
			return nil
		}
		if ctx.Err() == nil && err.Error() != said {
			said = err.Error()
			t.note("not whole yet: %s", said)
		}
		select {
		case <-ctx.Done():
			return errors.New(said)
		case <-time.After(lab.Pause(time.Second, began)):
		}
	}
}

// connected pings all hosts and pods from all hosts and pods.
func (t *town) connected(ctx context.Context) error {
	addrs := make(map[*lab.Node][]netip.Addr)
	for _, n := range t.nodes {
		s, err := n.Status(ctx)
		if err != nil {
			return err
		}
		addrs[n] = slices.Concat(s.Node.Overlay, t.pods[n].Addresses)
	}
	var g errgroup.Group
	g.SetLimit(4)
	for _, n := range t.nodes {
		var others []netip.Addr
		for _, o := range t.nodes {
			if o != n {
				others = append(others, addrs[o]...)
			}
		}
		for _, awaitPings := range []func(context.Context, []netip.Addr) error{n.AwaitPings, t.pods[n].AwaitPings} {
			g.Go(func() error {
				return t.patiently(ctx, func(ctx context.Context) error { return awaitPings(ctx, others) })
			})
		}
	}
	return g.Wait()
}

// patiently repeats a wait of a few seconds, and adds to the timeline what it waits for.
func (t *town) patiently(ctx context.Context, wait func(context.Context) error) error {
	for {
		some, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := wait(some)
		late := some.Err() != nil
		cancel()
		if err == nil || !late || ctx.Err() != nil {
			return err
		}
		t.note("not whole yet: %v", err)
	}
}

// calm returns an error while a plan has changes, or nodes know different things.
func (t *town) calm(ctx context.Context) error {
	var first string
	for _, n := range t.nodes {
		s, err := n.Status(ctx)
		if err != nil {
			return err
		}
		if got := view(s); first == "" {
			first = got
		} else if got != first {
			return fmt.Errorf("%s knows another mesh than %s:\n%s\nand:\n%s", n.Name, t.nodes[0].Name, got, first)
		}
		if len(s.Problems) > 0 {
			return fmt.Errorf("%s has problems: %+v", n.Name, s.Problems)
		}
		out, err := n.Meshd(ctx, "plan", "-o", "json")
		if err != nil {
			return err
		}
		var p control.Plan
		if err := json.Unmarshal([]byte(out), &p); err != nil {
			return fmt.Errorf("plan of %s: %w", n.Name, err)
		}
		if len(p.Changes) > 0 {
			return fmt.Errorf("%s is not as it should be: %q", n.Name, p.Changes)
		}
	}
	return nil
}

// view returns what a node knows of the mesh, without what only that node can see.
func view(s control.Status) string {
	lines := []string{nodeLine(s.Node.Name, s.Node.ID, s.Node.Overlay, s.Node.PodCIDRs)}
	for _, p := range s.Peers {
		lines = append(lines, nodeLine(p.Name, p.ID, p.Overlay, p.PodCIDRs))
	}
	slices.Sort(lines)
	return fmt.Sprintf("%+v\n%s", s.Cluster, strings.Join(lines, "\n"))
}

func nodeLine(name string, id mesh.ID, overlay []netip.Addr, pods []netip.Prefix) string {
	return fmt.Sprint(name, " ", id, " ", overlay, " ", pods)
}

// remember records the state of the nodes before the first fault.
func (t *town) remember(ctx context.Context) error {
	t.before = make(map[*lab.Node]trace)
	for _, n := range t.nodes {
		now, err := traceOf(ctx, n)
		if err != nil {
			return err
		}
		t.before[n] = now
	}
	return nil
}

// mayGrow is how much more than in the beginning a daemon may use: streams and timers
// come and go, and memory is returned late.
var mayGrow = map[string]float64{
	"go_goroutines":                 64,
	"process_open_fds":              32,
	"process_resident_memory_bytes": 64 << 20,
}

// unchanged compares the nodes with their state before the first fault.
func (t *town) unchanged(ctx context.Context) error {
	var errs []error
	for _, n := range t.nodes {
		now, err := traceOf(ctx, n)
		if err != nil {
			return err
		}
		errs = append(errs, enough(n))
		was := t.before[n]
		if now.addresses != was.addresses {
			errs = append(errs, fmt.Errorf("addresses of %s: got %s, had %s", n.Name, now.addresses, was.addresses))
		}
		for name, more := range mayGrow {
			if got, had := now.metrics[name], was.metrics[name]; got > had+more {
				errs = append(errs, fmt.Errorf("%s of %s: got %.0f, had %.0f", name, n.Name, got, had))
			}
		}
	}
	leaked, err := t.lab.PlainText(ctx)
	if err == nil && leaked > 0 {
		seen, seenErr := t.lab.PlainTextSeen(ctx)
		err = errors.Join(fmt.Errorf("%d packets in plain text between places:\n%s", leaked, seen), seenErr)
	}
	return errors.Join(append(errs, err)...)
}

func traceOf(ctx context.Context, n *lab.Node) (trace, error) {
	s, err := n.Status(ctx)
	if err != nil {
		return trace{}, err
	}
	out := trace{
		addresses: nodeLine(s.Node.Name, s.Node.ID, s.Node.Overlay, s.Node.PodCIDRs),
		metrics:   make(map[string]float64),
	}
	answer, err := n.Get(ctx, "/metrics")
	if err != nil {
		return trace{}, err
	}
	for line := range strings.Lines(answer) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if _, ok := mayGrow[name]; !ok {
			continue
		}
		if out.metrics[name], err = strconv.ParseFloat(value, 64); err != nil {
			return trace{}, fmt.Errorf("%s of %s: %w", name, n.Name, err)
		}
	}
	if len(out.metrics) < len(mayGrow) {
		return trace{}, fmt.Errorf("metrics of %s lack something: got %v", n.Name, out.metrics)
	}
	return out, nil
}

// report returns what is needed to find out what happened.
func (t *town) report(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	var b strings.Builder
	b.WriteString("timeline:\n")
	for _, line := range t.timeline {
		fmt.Fprintln(&b, line)
	}
	for _, n := range t.all() {
		for _, args := range [][]string{{"status", "--probe"}, {"plan"}} {
			out, err := n.Meshd(ctx, args...)
			fmt.Fprintf(&b, "%s# meshd %s %v\n%s\n", n.Name, strings.Join(args, " "), err, out)
		}
		fmt.Fprintf(&b, "log of %s:\n%s\n", n.Name, n.Log())
	}
	return b.String()
}
