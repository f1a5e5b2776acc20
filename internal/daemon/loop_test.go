// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/config"
)

// An error that stays is not logged at each turn, nor when another one comes and goes
// beside it.
func TestNewLines(t *testing.T) {
	start := time.Unix(1000, 0)
	j := newJournal(slog.New(slog.DiscardHandler))
	space, route := errors.New("no space"), errors.New("no route")
	for _, step := range []struct {
		after time.Duration
		err   error
		want  string
	}{
		{0, space, "no space"},
		{time.Second, space, ""},
		{2 * time.Second, errors.Join(space, route), "no route"},
		{3 * time.Second, space, ""},
		{4 * time.Second, errors.Join(route, space), ""},
		{time.Hour, space, "no space"},
	} {
		if got := j.newLines(step.err, start.Add(step.after)); got != step.want {
			t.Errorf("%q after %v: got %q, want %q", step.err, step.after, got, step.want)
		}
	}
}

// A turn that found out nothing wants nothing, which is not a plan to remove all.
func TestPlanOfNothing(t *testing.T) {
	_, err := newDaemon(Options{Logger: slog.New(slog.DiscardHandler)}, config.Config{}).plan(t.Context(), turn{err: errors.New("list links: no memory")})
	if err == nil || !strings.Contains(err.Error(), "list links: no memory") {
		t.Errorf("got %v, want the turn's error", err)
	}
}
