// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshd/meshd/internal/gossip"
)

// taskLog makes tasks that record when they start and stop.
type taskLog struct {
	mu     sync.Mutex
	events []string
}

func (l *taskLog) add(event string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, event)
}

func (l *taskLog) task(name string, ready time.Duration, result error) task {
	return task{name, func(ctx context.Context, isReady func()) error {
		l.add("start " + name)
		time.Sleep(ready)
		isReady()
		<-ctx.Done()
		time.Sleep(time.Second)
		l.add("stop " + name)
		return result
	}}
}

func (l *taskLog) failing(name string, after time.Duration, err error) task {
	return task{name, func(_ context.Context, ready func()) error {
		l.add("start " + name)
		if after > 0 {
			ready()
		}
		time.Sleep(after)
		l.add("fail " + name)
		return err
	}}
}

// TestRunTasks: each task starts when the one before it is ready, and stops when the one
// after it has returned.
func TestRunTasks(t *testing.T) {
	broken, untidy := errors.New("broken"), errors.New("untidy")
	for _, tt := range []struct {
		name   string
		tasks  func(*taskLog) []task
		cancel time.Duration
		events string
		errs   []error
	}{
		{
			"stopped", func(l *taskLog) []task {
				return []task{l.task("a", time.Second, nil), l.task("b", 0, nil), l.task("c", 0, nil)}
			},
			time.Minute, "start a, start b, start c, stop c, stop b, stop a", nil,
		},
		{
			"stopped before all have started", func(l *taskLog) []task {
				return []task{l.task("a", 0, nil), l.task("b", time.Hour, nil), l.task("c", 0, nil)}
			},
			time.Minute, "start a, start b, stop b, stop a", nil,
		},
		{
			"does not start", func(l *taskLog) []task {
				return []task{l.task("a", 0, nil), l.failing("b", 0, broken), l.task("c", 0, nil)}
			},
			time.Hour, "start a, start b, fail b, stop a",
			[]error{broken},
		},
		{
			"fails in the middle", func(l *taskLog) []task {
				return []task{l.task("a", 0, nil), l.failing("b", time.Minute, broken), l.task("c", 0, nil)}
			},
			time.Hour, "start a, start b, start c, fail b, stop c, stop a",
			[]error{broken},
		},
		{
			"the last fails, and another can't stop", func(l *taskLog) []task {
				return []task{l.task("a", 0, untidy), l.task("b", 0, nil), l.failing("c", time.Minute, broken)}
			},
			time.Hour, "start a, start b, start c, fail c, stop b, stop a",
			[]error{broken, untidy},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := new(taskLog)
				ctx, cancel := context.WithTimeout(t.Context(), tt.cancel)
				defer cancel()
				err := runTasks(ctx, tt.tasks(l))
				if got := strings.Join(l.events, ", "); got != tt.events {
					t.Errorf("got %s, want %s", got, tt.events)
				}
				for _, want := range tt.errs {
					if !errors.Is(err, want) {
						t.Errorf("got error %v, want %v", err, want)
					}
				}
				if len(tt.errs) == 0 && err != nil {
					t.Errorf("got error %v, want none", err)
				}
			})
		})
	}
}

// TestOrderOfTasks: what a task uses until it returns starts before it and stops after it.
func TestOrderOfTasks(t *testing.T) {
	var names []string
	for _, task := range new(daemon).tasks(gossip.Remembered{}) {
		names = append(names, task.name)
	}
	for _, tt := range []struct{ used, by, why string }{
		{"gossip", "loop", "the loop's last act is to save what gossip knows"},
		{"names", "loop", "a turn resolves names"},
		{"prober", "loop", "a turn says whom to probe"},
		{"control server", "loop", "a turn opens the control socket again if it was deleted, which must not be after the server's end"},
		{"metrics server", "loop", "a turn has the server listen, which must not be after its end"},
		{"client server", "loop", "a turn has the server listen, which must not be after its end"},
		{"gossip", "control server", "meshd forget has gossip forget a node"},
		{"prober", "control server", "meshd status --probe has it probe all nodes"},
	} {
		used, by := slices.Index(names, tt.used), slices.Index(names, tt.by)
		if used < 0 || used > by {
			t.Errorf("%q is not before %q in %q: %s", tt.used, tt.by, names, tt.why)
		}
	}
}
