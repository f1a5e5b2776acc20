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

// turn is what one turn of the loop saw and did. Requests read it afterwards.
type turn struct {
	now          time.Time
	cfg          config.Config
	view         mesh.View          // with what was announced
	wanted       node.Configuration // what the host should have
	observed     netcfg.State       // what the host has after the turn's changes
	sessions     node.Sessions
	watch        probe.Watch
	results      map[probe.Target]probe.Result
	problems     []mesh.Problem
	recheckAfter time.Duration // take the next turn after this at the latest; 0 for no limit
	err          error
	refused      bool  // the kernel refused some step, see problems
	fatal        error // the daemon can't go on
}

// nextWake returns how long to sleep after a turn if nothing happens.
func nextWake(t turn, retry time.Duration) time.Duration {
	d := resync
	if t.err != nil || t.refused {
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
	if t.err != nil || t.refused {
		least = min(retry, time.Second)
	}
	return max(gather, least-time.Since(t.now))
}

// recheckIn limits the time to the next turn to d, if d is not 0.
func (t *turn) recheckIn(d time.Duration) {
	if d > 0 && (t.recheckAfter == 0 || d < t.recheckAfter) {
		t.recheckAfter = max(d, gather)
	}
}

// note adds what a step of the turn found. After an error the turn goes on with the steps that
// don't depend on it: a full disk stops no tunnel, and a broken CNI directory no route.
func (t *turn) note(problems []mesh.Problem, err error) {
	t.problems = append(t.problems, problems...)
	if err != nil {
		t.err = errors.Join(t.err, err)
	}
}

// options returns how to compare observed and desired state.
func (t *turn) options() netcfg.Options {
	return netcfg.Options{Now: t.now, Prune: t.wanted.Prune}
}
