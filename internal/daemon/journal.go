// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
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
	began   map[mesh.Problem]time.Time // since when there are the problems and notes of now
	changes *rate.Limiter              // lines on changes from turn to turn
	said    *loglimit.Limiter
	unsaid  []unsaidLine // about problems that are now otherwise than the log says
	failing bool         // an error was logged, and no turn has succeeded since
	failed  time.Time    // the first of the turns that fail now; zero if the last one did not
}

// unsaidLine is a line that was not logged, because it was a repetition or there were too many.
type unsaidLine struct {
	line
	since   time.Time
	instead bool // the log has a former text of the problem
}

func newJournal(log *slog.Logger) journal {
	return journal{Logger: log, began: make(map[mesh.Problem]time.Time), changes: rate.NewLimiter(rate.Every(changesPeriod), changesBurst), said: new(loglimit.Limiter)}
}

// line is a line of the log.
type line struct {
	level   slog.Level
	text    string
	args    []any
	problem mesh.Problem // that came or went; zero for other lines
	former  mesh.Problem // in whose place it came; zero for none
	gone    bool
	lasted  time.Duration // if it is gone
}

// logChanges logs what has changed since the last turn.
func (d *daemon) logChanges(before, after control.Status) {
	now := time.Now()
	for _, l := range changes(before, after) {
		if l.problem != (mesh.Problem{}) {
			d.log.logProblem(l, now)
		} else if d.log.changes.Allow() {
			d.log.Info(l.text, l.args...)
		}
	}
	d.log.unsaid = slices.DeleteFunc(d.log.unsaid, func(u unsaidLine) bool {
		return now.Sub(u.since) >= lasts && d.log.tell(u.line)
	})
}

// logProblem logs that a problem has come, has another text, or has gone; later if it was logged
// lately.
func (j *journal) logProblem(l line, now time.Time) {
	waits, instead := j.takeBack(l.problem)
	if l.former != (mesh.Problem{}) {
		formerWaits, formerInstead := j.takeBack(l.former)
		waits, instead = false, !formerWaits || formerInstead
	}
	switch {
	case l.gone:
		l.lasted = now.Sub(j.began[l.problem])
		delete(j.began, l.problem)
	case l.former != (mesh.Problem{}):
		j.began[l.problem] = j.began[l.former]
		delete(j.began, l.former)
	default:
		j.began[l.problem] = now
	}
	if waits && !instead {
		return // all is as the log says
	}
	if !j.said.IsNew(now, l.parts()...) || !j.tell(l) {
		j.unsaid = append(j.unsaid, unsaidLine{l, now, instead})
	}
}

// takeBack removes a line about a problem that was not logged. It reports whether there was one,
// and whether the log has a former text of the problem.
func (j *journal) takeBack(p mesh.Problem) (waits, instead bool) {
	j.unsaid = slices.DeleteFunc(j.unsaid, func(u unsaidLine) bool {
		if u.problem == p {
			waits, instead = true, u.instead
		}
		return u.problem == p
	})
	return waits, instead
}

// tell logs a line about a problem, and reports whether there were not too many.
func (j *journal) tell(l line) bool {
	if !j.changes.Allow() {
		j.said.Forget(l.parts()...)
		return false
	}
	args := l.args
	if l.gone {
		args = append(slices.Clone(args), "lasted", l.lasted.Round(time.Second))
	}
	j.Log(context.Background(), l.level, l.text, args...)
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
	lines = append(lines, changedProblems(slog.LevelWarn, "problem", before.Problems, after.Problems)...)
	return append(lines, changedProblems(slog.LevelInfo, "note", before.Notes, after.Notes)...)
}

// changedProblems returns a line for each problem or note that has come or gone. One that says
// something else than before has not gone: there may be a number in it, or the last error.
func changedProblems(level slog.Level, what string, before, after []mesh.Problem) (lines []line) {
	gone := without(before, after)
	for _, p := range without(after, before) {
		l := line{level: level, text: what, args: []any{"kind", p.Kind, "subject", p.Node, "text", p.Text, "advice", p.Advice}, problem: p}
		if i := slices.IndexFunc(gone, func(g mesh.Problem) bool { return sameSubject(g, p) }); i >= 0 {
			l.former = gone[i]
			gone = slices.Delete(gone, i, i+1)
		}
		lines = append(lines, l)
	}
	for _, p := range gone {
		lines = append(lines, line{text: what + " is gone", args: []any{"kind", p.Kind, "subject", p.Node, "text", p.Text}, problem: p, gone: true})
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
