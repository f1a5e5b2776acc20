// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/config"
)

// An error that stays is not logged at each turn.
func TestErrorLimiter(t *testing.T) {
	start := time.Unix(1000, 0)
	var l errorLimiter
	for _, step := range []struct {
		after time.Duration
		text  string
		want  bool
	}{
		{0, "no space", true},
		{time.Second, "no space", false},
		{2 * time.Second, "no route", true},
		{3 * time.Second, "no space", true},
		{time.Hour, "no space", false},
		{time.Hour + 3*time.Second, "no space", true},
		{time.Hour + 4*time.Second, "no space", false},
	} {
		if got := l.isNew(errors.New(step.text), start.Add(step.after)); got != step.want {
			t.Errorf("%q after %v: got %t, want %t", step.text, step.after, got, step.want)
		}
	}
}

// A turn that found out nothing wants nothing, which is not a plan to remove all.
func TestPlanOfNothing(t *testing.T) {
	_, err := newDaemon(Options{}, config.Config{}).plan(t.Context(), turn{err: errors.New("list links: no memory")})
	if err == nil || !strings.Contains(err.Error(), "list links: no memory") {
		t.Errorf("got %v, want the turn's error", err)
	}
}
