// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"

	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/internal/wait"
)

const (
	// resync is the longest time between two turns.
	resync = 10 * time.Second
	// gather is how long to wait for more events after the first, and spacing the least
	// time between two turns, or two updates of paths: a node that joins causes several
	// events, and pods that start on a busy host cause them without end.
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
		if t.duplicate {
			d.services.Notify("STOPPING=1")
			return errors.Join(d.giveWay(ctx), d.saveObjects(t.now, true))
		}
		retry = d.report(t, retry)
		c.answer()
		var urgent bool
		c, urgent = d.awaitTurn(ctx, &t, events, nextWake(t, retry))
		if !urgent && wait.Sleep(ctx, pause(t, retry)) != nil {
			break
		}
	}
	d.log.Info("stopping; the host stays as it is")
	d.services.Notify("STOPPING=1")
	return d.saveObjects(time.Now(), true)
}

// awaitTurn waits for what leads to the next turn: an event, a command, which it runs and
// returns, or the time to look again. It reports whether the turn is to be taken at once. Few
// changes of paths need a turn.
func (d *daemon) awaitTurn(ctx context.Context, t *turn, events <-chan struct{}, within time.Duration) (c command, urgent bool) {
	wake, wakeAt := time.NewTimer(within), time.Now().Add(within)
	defer wake.Stop()
	var pathsDue <-chan time.Time // after the first of several changes
	updated := t.now
	pathsSoon := func() {
		if pathsDue == nil {
			pathsDue = time.After(max(gather, spacing-time.Since(updated)))
		}
	}
	for {
		select {
		case <-d.gossip.PathsChanged():
			pathsSoon()
		case <-d.paths.Changed():
			pathsSoon()
		case <-d.streams.Changed():
			pathsSoon()
		case <-d.ports.Changed():
			pathsSoon()
		case <-pathsDue:
			t.recheckAfter, updated = 0, time.Now()
			if d.updatePaths(t) {
				return c, !t.failed()
			}
			pathsDue = nil
			if at := time.Now().Add(t.recheckAfter); t.recheckAfter > 0 && at.Before(wakeAt) {
				wakeAt = at
				wake.Reset(t.recheckAfter)
			}
		case <-ctx.Done():
			return c, false
		case <-wake.C:
			return c, false
		case <-events:
			return c, false
		case <-d.gossip.Changed():
			return c, d.verdictsChanged(*t)
		case <-d.prober.Changed():
			return c, true
		case <-d.links.changed:
			return c, true
		case <-d.resolver.changed:
			return c, false
		case <-d.opt.Reload:
			d.reload()
			return c, false
		case o := <-d.gossip.Orders():
			if d.followOrder(o) {
				return c, true
			}
		case c = <-d.commands:
			c.run()
			return c, true
		}
	}
}

// report publishes the result of a turn and returns the time after which a failed turn is
// repeated.
func (d *daemon) report(t turn, retry time.Duration) time.Duration {
	d.log.logResult(t.err, t.now)
	if t.failed() {
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

// nextWake returns how long to sleep after a turn if nothing happens.
func nextWake(t turn, retry time.Duration) time.Duration {
	d := resync
	if t.failed() {
		d = retry
	}
	if t.recheckAfter > 0 {
		d = min(d, t.recheckAfter)
	}
	return d
}

// pause returns how long to wait after an event before the next turn. A turn that failed may
// have caused the event itself, so it must not be repeated without a pause.
func pause(t turn, retry time.Duration) time.Duration {
	least := spacing
	if t.failed() {
		least = min(retry, time.Second)
	}
	return max(gather, least-time.Since(t.now))
}
