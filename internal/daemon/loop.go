// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/internal/probe"
	"github.com/meshd/meshd/internal/wait"
)

const (
	// resync is the longest time between two turns.
	resync = 10 * time.Second
	// gather is how long to wait for more events after the first, and spacing the least time
	// between two turns: a node that joins causes several events, and pods that start on a busy
	// host cause them without end.
	gather  = 5 * time.Millisecond
	spacing = 50 * time.Millisecond
	// retryMin and retryMax bound the time until a failed turn is repeated.
	retryMin = 250 * time.Millisecond
	retryMax = resync
)

// loop takes turns until ctx ends.
func (d *daemon) loop(ctx context.Context) error {
	events, err := d.kernel.Watch(ctx)
	if err != nil {
		return fmt.Errorf("watch host: %w", err)
	}
	d.memory.Handshakes = node.NewHandshakes(d.gossip.View().Records)
	d.services.Notify(sd.SdNotifyReady) // the control socket answers
	var retry time.Duration
	var c command // that led to the turn, if one did
	defer func() { c.answer() }()
	for {
		t := d.turn(ctx)
		if ctx.Err() != nil {
			break
		}
		if t.fatal != nil {
			d.services.Notify("STOPPING=1")
			return errors.Join(t.fatal, d.takeDown(), d.saveObjects(t.now, true))
		}
		retry = d.report(t, retry)
		c.answer()
		c = command{}
		wake := time.NewTimer(nextWake(t, retry))
		urgent := false
		select {
		case <-ctx.Done():
		case <-wake.C:
		case <-events:
		case <-d.gossip.Changed():
			urgent = d.verdictsChanged(t)
		case <-d.prober.Changed():
			urgent = true
		case <-d.resolver.changed:
		case <-d.opt.Reload:
			d.reload()
		case c = <-d.commands:
			c.run()
			urgent = true
		}
		wake.Stop()
		if !urgent && wait.Sleep(ctx, pause(t, retry)) != nil {
			break
		}
	}
	d.log.Info("stopping; the host stays as it is")
	d.services.Notify("STOPPING=1")
	return d.saveObjects(time.Now(), true)
}

// turn reads everything anew and does what follows from it.
func (d *daemon) turn(ctx context.Context) turn {
	in := d.input(d.gossip.View(), time.Now())
	in.LastHeard = d.gossip.LastHeard()
	t := turn{now: in.Now, cfg: d.cfg, view: in.View}
	if d.memory.SawDuplicate(in) {
		t.fatal = ErrDuplicate
		return t
	}
	t.note(nil, d.servers.control.EnsureListening())
	t.note(nil, d.adopt(in.View.Cluster))
	facts, err := d.kernel.Facts(ctx)
	if err != nil {
		t.note(nil, err)
		return t
	}
	in.Facts = facts
	d.announce(ctx, &t, &in)
	t.note(d.serveMetrics(), nil)
	if wait := in.DuplicateWait(); wait > 0 {
		t.note([]mesh.Problem{node.DuplicateProblem(d.cfg.Node.Name)}, nil)
		t.recheckIn(wait)
		return t
	}
	t.note(nil, d.saveDuplicate(false))
	known := d.configure(ctx, &t, &in)
	d.conclude(ctx, &t, in, known)
	t.note(nil, d.saveObjects(t.now, false))
	t.sessions = d.memory.Sessions
	return t
}

// announce publishes this node's record and verdicts.
func (d *daemon) announce(ctx context.Context, t *turn, in *node.Input) {
	in.Results = d.prober.Results()
	if d.memory.WouldMove(*in) {
		users, err := d.users(ctx, in.View.Cluster)
		t.note(nil, err)
		in.InUse = users
	}
	a, former := d.memory.Announce(*in), d.disk.node.Claim.Slot
	t.note(a.Problems, d.publishRecord(a, t.now))
	if d.disk.node.Claim.Slot != former && former != mesh.None && d.cfg.CNI.Enabled {
		// It has an address of the former slot, whose pods are on another node now.
		t.note(nil, d.kernel.RemoveBridge(ctx))
	}
	t.note(nil, d.publishVerdicts(a, in.View))
	t.recheckIn(a.RecheckAfter)
	in.View, in.Promise = d.gossip.View(), d.promise()
	t.view = in.View
	if !reflect.DeepEqual(in.View.Cluster, d.settings) { // changed by another node meanwhile
		t.note(nil, d.adopt(in.View.Cluster))
	}
}

// configure brings the host to its desired state, and reports whether it is known what the host
// has afterwards.
func (d *daemon) configure(ctx context.Context, t *turn, in *node.Input) (known bool) {
	in.Resolved = d.resolver.resolve(hostNames(in.View.Records), t.now)
	t.wanted = d.memory.Configure(*in)
	t.note(t.wanted.Problems, nil)
	t.note(d.resolver.problems(in.View.Records), nil)
	t.note(d.reloadProblems, nil)
	observed, err := d.observe(ctx, t.wanted.Desired)
	if err != nil {
		t.note(nil, err)
		return false
	}
	t.observed = observed
	t.note(nil, d.change(ctx, t, t.options()))
	return true
}

// conclude does what follows from the state of the host. The order matters: without routes,
// packets to the mesh would leave by the default route; and once a pod has started, its address
// can't change.
func (d *daemon) conclude(ctx context.Context, t *turn, in node.Input, known bool) {
	observed := &t.observed
	if !known {
		observed = nil
	}
	in.Results = d.prober.Results()
	c := d.memory.Conclude(in, t.wanted, observed)
	t.note(c.Problems, nil)
	t.recheckIn(c.RecheckAfter)
	if err := d.startHandshakes(ctx, t, c.Handshakes); err != nil {
		t.note(nil, err)
		c.HasAddresses, c.Watch = false, probe.Watch{} // it is no longer known what the host has
	}
	t.watch, t.results = c.Watch, in.Results
	t.note(d.answerClients(*t), nil)
	d.gossip.SetAddresses(d.gossipAddresses(*t, c.HasAddresses))
	t.note(d.setProbeTargets(c.Watch), nil)
	podsMayStart := d.applyCNI(t, c.ClaimWait)
	k3sMayStart := d.applyK3s(t, c.ClaimWait)
	if podsMayStart && k3sMayStart && c.HasAddresses && c.ParametersSet {
		d.goOnline(t, c.ReadyWait)
	}
	t.note(nil, d.forgetAbsent(c.Forget))
}

// report publishes the result of a turn and returns the time after which a failed turn is
// repeated.
func (d *daemon) report(t turn, retry time.Duration) time.Duration {
	if t.err == nil && d.log.failing {
		d.log.failing = false
		d.log.Info("reconcile works again")
	}
	if t.err != nil {
		if lines := d.log.newLines(t.err, t.now); lines != "" {
			d.log.failing = true
			d.log.Error("reconcile", "err", lines)
		}
	}
	if t.err != nil || t.refused {
		retry = min(max(2*retry, retryMin), retryMax)
	} else {
		retry = 0
	}
	status := d.status(t)
	d.logChanges(d.published.Load().status, status)
	d.publish(status, t)
	d.metrics.Turn(status, time.Since(t.now))
	d.services.Notify("STATUS=" + sentence(status))
	d.feedWatchdog()
	return retry
}
