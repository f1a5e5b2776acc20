// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
)

// The journal tells of a day in few lines: so many at once, and one more each time
// that this long has passed. What is left out is in meshd status as long as it lasts.
const (
	storyBurst  = 60
	storyPeriod = 10 * time.Second
)

func newStoryLimit() *rate.Limiter { return rate.NewLimiter(rate.Every(storyPeriod), storyBurst) }

// line is one of the journal's, with what slog adds to it.
type line struct {
	text string
	args []any
}

// tell logs what has changed since the last turn.
func (d *daemon) tell(before, after control.Status) {
	for _, l := range story(before, after) {
		if d.storyLimit.Allow() {
			d.log.Info(l.text, l.args...)
		}
	}
}

// story says who came and who went, which paths changed, and which problems are new
// or gone.
func story(before, after control.Status) []line {
	var lines []line
	add := func(names []string, text string, args ...any) {
		if len(names) > 0 {
			lines = append(lines, line{text, append([]any{"peers", list(names)}, args...)})
		}
	}
	known := make(map[mesh.ID]control.Peer, len(before.Peers))
	for _, p := range before.Peers {
		known[p.ID] = p
	}
	var came, went []string
	alive := 0
	moved := make(map[string][]string) // names of peers, by the new path to them
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
		if path := p.Route.String(); wasKnown && path != old.Route.String() {
			moved[path] = append(moved[path], p.Name)
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
	for _, path := range slices.Sorted(maps.Keys(moved)) {
		add(moved[path], "path changed", "path", path)
	}
	if after.Node.Role != before.Node.Role && after.Node.Role != "" {
		lines = append(lines, line{"role", []any{"role", after.Node.Role}})
	}
	for _, p := range without(after.Problems, before.Problems) {
		lines = append(lines, line{"problem", []any{"kind", p.Kind, "subject", p.Node, "text", p.Text, "advice", p.Advice}})
	}
	for _, p := range without(before.Problems, after.Problems) {
		lines = append(lines, line{"problem is gone", []any{"kind", p.Kind, "subject", p.Node, "text", p.Text}})
	}
	return lines
}

// list names some of many.
func list(names []string) string {
	const most = 5
	if more := len(names) - most; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), more)
	}
	return strings.Join(names, ", ")
}

// without returns those problems of a that are not in b.
func without(a, b []mesh.Problem) []mesh.Problem {
	held := make(map[mesh.Problem]bool, len(b))
	for _, p := range b {
		held[p] = true
	}
	return slices.DeleteFunc(slices.Clone(a), func(p mesh.Problem) bool { return held[p] })
}

// complainAgain is how often an error that stays is logged; meshd status shows it
// all the time.
const complainAgain = time.Hour

// complaint is what was logged last of turns that fail, until one succeeds.
type complaint struct {
	text string
	at   time.Time
}

// isNew says whether an error is worth a line in the log.
func (c *complaint) isNew(err error, now time.Time) bool {
	if text := err.Error(); text != c.text || now.Sub(c.at) >= complainAgain {
		c.text, c.at = text, now
		return true
	}
	return false
}
