// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"time"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/internal/probe"
)

// turn is what one turn of the loop saw and did. Commands read it afterwards.
type turn struct {
	now      time.Time
	cfg      config.Config
	view     mesh.View          // with what was announced
	wanted   node.Configuration // what the host should have
	observed netcfg.State       // what the host has after the turn's changes
	sessions node.Sessions
	watch    probe.Watch
	results  map[probe.Target]probe.Result
	problems []mesh.Problem
	again    time.Duration // how soon to look again at the latest; 0 for no wish
	err      error
	refused  bool  // the kernel refused some step, see problems
	fatal    error // the daemon can't go on
}

// nextWake says how long to sleep after a turn.
func nextWake(t turn, retry time.Duration) time.Duration {
	d := resync
	if t.err != nil || t.refused {
		d = retry
	}
	if t.again > 0 {
		d = min(d, t.again)
	}
	return d
}

// pause says how long to wait after an event. A turn that has failed may be the
// cause of the events that follow it, and must not chase itself.
func pause(t turn, retry time.Duration) time.Duration {
	least := spacing
	if t.err != nil || t.refused {
		least = min(retry, time.Second)
	}
	return max(gather, least-time.Since(t.now))
}

// wakeIn asks for another turn in d at the latest, if d is not 0.
func (t *turn) wakeIn(d time.Duration) {
	if d > 0 && (t.again == 0 || d < t.again) {
		t.again = max(d, gather)
	}
}

// note takes in what a step of the turn has found. The steps do not depend on each other's
// success where they need not: a full disk stops no tunnel, and a broken CNI directory no
// route.
func (t *turn) note(problems []mesh.Problem, err error) {
	t.problems = append(t.problems, problems...)
	if err != nil {
		t.err = errors.Join(t.err, err)
	}
}

// options says how to compare what is observed with what is wanted.
func (t *turn) options() netcfg.Options {
	return netcfg.Options{Now: t.now, Prune: t.wanted.Prune}
}
