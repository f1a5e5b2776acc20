// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/wait"
	"github.com/meshd/meshd/test/lab"
)

// A sample of failover_* or failback is how long pods of two locations could not
// talk when a gateway went, or came back: the longest time between two arrivals of
// a hundred datagrams a second, in the worse direction.

// datagramPeriod makes a hundred a second in each direction.
const datagramPeriod = 10 * time.Millisecond

// measureFailovers measures several meshes at once, which wait most of the time.
func measureFailovers(ctx context.Context, binary string, s samples) error {
	meshes := make([]samples, kills)
	g, ctx := errgroup.WithContext(ctx)
	for i := range meshes {
		meshes[i] = samples{}
		g.Go(func() error { return measureFailover(ctx, binary, meshes[i]) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, one := range meshes {
		for name, values := range one {
			s[name] = append(s[name], values...)
		}
	}
	return nil
}

// measureFailover makes one mesh of two locations and a lone node. The preferred
// gateway of one of them fails in each of three ways, and recovers each time. Each run
// needs a mesh of its own: a gateway that fails repeatedly must wait longer and longer
// before it is up again.
func measureFailover(ctx context.Context, binary string, s samples) (err error) {
	l, err := lab.New(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	f, err := startFailover(ctx, l, binary)
	if err != nil {
		return err
	}
	defer f.talk.Stop()
	for _, way := range f.ways() {
		if err := f.measure(ctx, way, s); err != nil {
			return fmt.Errorf("%s: %w", way.name, err)
		}
	}
	return f.stop()
}

// failover is a mesh with what goes on in it.
type failover struct {
	binary    string
	nodes     []*lab.Node
	preferred *lab.Node // of location a; the first one
	observer  *lab.Node // the lone one
	location  []netip.Addr
	parties   []lab.Party // who talk
	talk      *lab.Exchange
	streams   []*lab.Stream
}

// way is how a gateway fails and recovers.
type way struct {
	name     string
	do, undo func(ctx context.Context) error
}

func startFailover(ctx context.Context, l *lab.Lab, binary string) (*failover, error) {
	settings := []string{"cluster:", "  mode: location"}
	six, err := l.Six(ctx, binary, settings...)
	if err != nil {
		return nil, err
	}
	f := &failover{binary: binary, nodes: six.Nodes, preferred: six.Nodes[0], observer: six.Nodes[5]}
	// The pods that exchange packets must not be on a gateway that fails: a3 and b2 are
	// never gateways.
	for n, wish := range map[*lab.Node]string{six.Nodes[0]: "prefer", six.Nodes[2]: "never", six.Nodes[4]: "never"} {
		if err := n.Configure(six.Config(n, append([]string{"  gateway: " + wish}, settings...)...), six.Secret); err != nil {
			return nil, err
		}
	}
	for _, n := range six.Nodes {
		if err := n.Start(); err != nil {
			return nil, err
		}
	}
	if err := settle(ctx, six.Nodes); err != nil {
		return nil, err
	}
	if f.location, err = overlays(ctx, six.Nodes[:3]); err != nil {
		return nil, err
	}
	return f, f.begin(ctx, six.Nodes[2], six.Nodes[4])
}

// begin has a pod on each of two nodes talk to the other one: by datagrams, and
// over a connection each way.
func (f *failover) begin(ctx context.Context, a, b *lab.Node) error {
	var pods []*lab.Pod
	for _, n := range []*lab.Node{a, b} {
		p, err := n.Pod(ctx, lab.Network, "pod-"+n.Name)
		if err != nil {
			return err
		}
		pods, f.parties = append(pods, p), append(f.parties, lab.Party{At: p.Do, Addr: p.Addresses[0]})
	}
	reach, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for i, p := range pods {
		if err := p.AwaitPings(reach, []netip.Addr{f.parties[1-i].Addr}); err != nil {
			return err
		}
	}
	for i, p := range f.parties {
		s, err := lab.StartStream(ctx, p.At, f.parties[1-i])
		if err != nil {
			return err
		}
		f.streams = append(f.streams, s)
	}
	var err error
	f.talk, err = lab.StartExchange(f.parties[0], f.parties[1], datagramPeriod)
	return err
}

func (f *failover) ways() []way {
	run := func(args ...string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := f.preferred.Run(ctx, args[0], args[1:]...)
			return err
		}
	}
	return []way{
		{"failover_kill", f.preferred.Cut, f.preferred.Restore},
		{"failover_blackhole", f.preferred.StopForwarding, f.preferred.ResumeForwarding},
		{"failover_drain", run(f.binary, "drain"), run(f.binary, "drain", "--undo")},
	}
}

// measure makes the preferred gateway fail and recover.
func (f *failover) measure(ctx context.Context, w way, s samples) error {
	f.talk.CountGaps()
	if err := errors.Join(w.do(ctx), f.awaitGateway(ctx, false), f.flows(ctx)); err != nil {
		return err
	}
	f.add(s, w.name)

	f.talk.CountGaps()
	if err := errors.Join(w.undo(ctx), f.awaitGateway(ctx, true), f.flows(ctx)); err != nil {
		return err
	}
	f.add(s, "failback")
	return settle(ctx, f.nodes)
}

// add takes the longest gap for both of a figure's forms.
func (f *failover) add(s samples, name string) {
	gap := milliseconds(f.talk.LongestGap())
	s.add(name+"_ms", gap)
	s[name+"_median_ms"] = append(s[name+"_median_ms"], gap)
}

// awaitGateway waits until the preferred gateway is the gateway, or until another one is.
func (f *failover) awaitGateway(ctx context.Context, preferred bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		got, err := lab.Gateway(ctx, f.observer, f.nodes, f.location)
		if err == nil && (got == f.preferred) == preferred {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("wait for the gateway to change: %w", errors.Join(ctx.Err(), err))
		}
		time.Sleep(pollPeriod)
	}
}

// flowing is how many datagrams show that both directions work again, and that no
// second gap follows the first.
const flowing = 100

// flows waits until both directions of the talk and both streams go on.
func (f *failover) flows(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	before := []uint64{f.streams[0].Received(), f.streams[1].Received()}
	if err := awaitDatagrams(ctx, f.talk); err != nil {
		return err
	}
	for f.streams[0].Received() == before[0] || f.streams[1].Received() == before[1] {
		if err := wait.Sleep(ctx, pollPeriod); err != nil {
			return fmt.Errorf("wait for bytes to arrive: %w", err)
		}
	}
	return nil
}

// awaitDatagrams waits until both directions of a talk work.
func awaitDatagrams(ctx context.Context, talk *lab.Exchange) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	firstBefore, secondBefore := talk.Received()
	for {
		first, second := talk.Received()
		if first >= firstBefore+flowing && second >= secondBefore+flowing {
			return nil
		}
		if err := wait.Sleep(ctx, pollPeriod); err != nil {
			return fmt.Errorf("wait for packets to arrive: %w", err)
		}
	}
}

// stop ends the connections and checks that every byte has arrived.
func (f *failover) stop() error {
	var err error
	for _, s := range f.streams {
		err = errors.Join(err, s.Stop())
	}
	return err
}

// measureGatewayKill kills the daemon of a gateway, whose kernel goes on.
func measureGatewayKill(ctx context.Context, binary string, s samples) (err error) {
	l, err := lab.New(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	f, err := startFailover(ctx, l, binary)
	if err != nil {
		return err
	}
	status, err := f.preferred.Status(ctx)
	if err != nil {
		return err
	}
	if status.Device.Implementation != netcfg.Kernel {
		return errors.New("measure gateway without daemon: WireGuard is not in the kernel")
	}
	for range failures {
		err := f.killDaemon(ctx)
		_, lost := f.talk.Stop()
		if err == nil {
			f.talk, err = lab.StartExchange(f.parties[0], f.parties[1], datagramPeriod)
		}
		if err != nil {
			return err
		}
		s.add("gateway_daemon_killed_lost_packets", float64(lost))
	}
	f.talk.Stop()
	return f.stop()
}

// killDaemon kills the daemon of the preferred gateway, and starts it again when
// all have noticed.
func (f *failover) killDaemon(ctx context.Context) error {
	if err := f.preferred.Kill(); err != nil {
		return err
	}
	for _, n := range f.nodes[1:] {
		if err := poll(ctx, n, lab.Sees(len(f.nodes)-2)); err != nil {
			return err
		}
	}
	return errors.Join(f.awaitGateway(ctx, true), f.flows(ctx), f.preferred.Start(), settle(ctx, f.nodes))
}
