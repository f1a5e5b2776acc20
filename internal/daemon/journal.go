// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/loglimit"
	"github.com/meshd/meshd/internal/mesh"
)

// The loop logs at most changesBurst changes at once, and one more every changesPeriod, so
// that a restless mesh does not fill the log. meshd status shows the rest while it lasts.
const (
	changesBurst  = 60
	changesPeriod = 10 * time.Second
)

// lasts is after how long a problem or an error is logged that was logged before and has come
// again: it no longer only comes and goes.
const lasts = time.Minute

// journal is the daemon's log. It limits what the loop logs.
type journal struct {
	*slog.Logger
	changes *rate.Limiter // lines on changes from turn to turn
	said    *loglimit.Limiter
	unsaid  []unsaidLine // about problems that are now otherwise than the log says
	failing bool         // an error was logged, and no turn has succeeded since
	failed  time.Time    // the first of the turns that fail now; zero if the last one did not
}

// unsaidLine is a line that was not logged, because it was a repetition or there were too many.
type unsaidLine struct {
	line
	since time.Time
}

func newJournal(log *slog.Logger) journal {
	return journal{Logger: log, changes: rate.NewLimiter(rate.Every(changesPeriod), changesBurst), said: new(loglimit.Limiter)}
}

// line is a line of the log.
type line struct {
	text    string
	args    []any
	problem mesh.Problem // that came or went; zero for other lines
}

// logChanges logs what has changed since the last turn.
func (d *daemon) logChanges(before, after control.Status) {
	now := time.Now()
	for _, l := range changes(before, after) {
		switch {
		case l.problem == (mesh.Problem{}):
			if d.log.changes.Allow() {
				d.log.Info(l.text, l.args...)
			}
		case d.log.takeBack(l.problem):
		case !d.log.said.IsNew(now, l.parts()...) || !d.log.tell(l):
			d.log.unsaid = append(d.log.unsaid, unsaidLine{l, now})
		}
	}
	d.log.unsaid = slices.DeleteFunc(d.log.unsaid, func(u unsaidLine) bool {
		return now.Sub(u.since) >= lasts && d.log.tell(u.line)
	})
}

// takeBack reports whether a line about a problem was not logged, which is now as the log says.
func (j *journal) takeBack(p mesh.Problem) bool {
	n := len(j.unsaid)
	j.unsaid = slices.DeleteFunc(j.unsaid, func(u unsaidLine) bool { return u.problem == p })
	return len(j.unsaid) < n
}

// tell logs a line about a problem, and reports whether there were not too many.
func (j *journal) tell(l line) bool {
	if !j.changes.Allow() {
		j.said.Forget(l.parts()...)
		return false
	}
	j.Info(l.text, l.args...)
	return true
}

// parts are what makes a line another one.
func (l line) parts() []any { return append([]any{l.text}, l.args...) }

// changes lists which nodes came and went, which routes changed, and which problems are new
// or gone.
func changes(before, after control.Status) []line {
	var lines []line
	add := func(names []string, text string, args ...any) {
		if len(names) > 0 {
			lines = append(lines, line{text: text, args: append([]any{"peers", mesh.Some(names, namesShown)}, args...)})
		}
	}
	known := make(map[mesh.ID]control.Peer, len(before.Peers))
	for _, p := range before.Peers {
		known[p.ID] = p
	}
	var came, went []string
	alive := 0
	moved := make(map[string][]string) // names of peers, by the new route to them
	for _, p := range after.Peers {
		old, wasKnown := known[p.ID]
		switch {
		case p.Alive && !old.Alive:
			came = append(came, p.Name)
		case !p.Alive && old.Alive:
			went = append(went, p.Name)
		}
		if p.Alive {
			alive++
		}
		if route := p.Route.String(); wasKnown && route != old.Route.String() {
			moved[route] = append(moved[route], p.Name)
		}
		delete(known, p.ID)
	}
	var gone []string
	for _, p := range before.Peers {
		if _, ok := known[p.ID]; ok {
			gone = append(gone, p.Name)
		}
	}
	add(came, "alive", "others", len(after.Peers), "alive", alive)
	add(went, "absent", "others", len(after.Peers), "alive", alive)
	add(gone, "forgotten", "others", len(after.Peers), "alive", alive)
	for _, route := range slices.Sorted(maps.Keys(moved)) {
		add(moved[route], "route changed", "route", route)
	}
	if after.Node.Role != before.Node.Role && after.Node.Role != "" {
		lines = append(lines, line{text: "role", args: []any{"role", after.Node.Role}})
	}
	lines = append(lines, changedProblems("problem", before.Problems, after.Problems)...)
	return append(lines, changedProblems("note", before.Notes, after.Notes)...)
}

// changedProblems returns a line for each problem or note that has come or gone.
func changedProblems(what string, before, after []mesh.Problem) (lines []line) {
	for _, p := range without(after, before) {
		lines = append(lines, line{text: what, args: []any{"kind", p.Kind, "subject", p.Node, "text", p.Text, "advice", p.Advice}, problem: p})
	}
	for _, p := range without(before, after) {
		lines = append(lines, line{text: what + " is gone", args: []any{"kind", p.Kind, "subject", p.Node, "text", p.Text}, problem: p})
	}
	return lines
}

// namesShown is how many peers a line names.
const namesShown = 5

// without returns the problems of a that are not in b.
func without(a, b []mesh.Problem) []mesh.Problem {
	held := make(map[mesh.Problem]bool, len(b))
	for _, p := range b {
		held[p] = true
	}
	return slices.DeleteFunc(slices.Clone(a), func(p mesh.Problem) bool { return held[p] })
}

// logResult logs the error of a turn, or that turns succeed again.
func (j *journal) logResult(err error, now time.Time) {
	if err == nil {
		if j.failing {
			j.Info("reconcile works again")
		}
		j.failing, j.failed = false, time.Time{}
		return
	}
	if j.failed.IsZero() {
		j.failed = now
	}
	lines := j.newLines(err, now)
	if lines == "" && !j.failing && now.Sub(j.failed) >= lasts {
		lines = shownError(err)
	}
	if lines != "" {
		j.failing = true
		j.Error("reconcile", "err", lines)
	}
}

// newLines returns those lines of an error that were not logged lately. A turn's error has
// a line for each step that failed.
func (j *journal) newLines(err error, now time.Time) string {
	lines := slices.Collect(strings.Lines(shownError(err)))
	return strings.TrimSpace(strings.Join(slices.DeleteFunc(lines, func(l string) bool { return !j.said.IsNew(now, strings.TrimSpace(l)) }), ""))
}
