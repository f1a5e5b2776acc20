// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/state"
	"github.com/meshd/meshd/internal/wait"
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
		{"resolver", "loop", "a turn resolves names"},
		{"prober", "loop", "a turn says whom to probe"},
		{"control server", "loop", "a turn opens the control socket again if it was deleted, which must not be after the server's end"},
		{"metrics server", "loop", "a turn has the server listen, which must not be after its end"},
		{"client server", "loop", "a turn has the server listen, which must not be after its end"},
		{"gossip", "relay", "a relay shares gossip's port"},
		{"paths", "relay", "a relay seals with the path key"},
		{"relay", "loop", "a turn has the relay forward, which must not be after its end"},
		{"port mapper", "loop", "a turn says which ports are to be mapped"},
		{"gossip", "streams", "gossip opens streams, and what they carry goes to it until the last is closed"},
		{"streams", "relay", "a relay sends by streams to nodes that have come by them"},
		{"streams", "loop", "a turn says to whom streams are kept"},
		{"gossip", "control server", "meshd forget has gossip forget a node"},
		{"prober", "control server", "meshd status --probe has it probe all nodes"},
	} {
		used, by := slices.Index(names, tt.used), slices.Index(names, tt.by)
		if used < 0 || used > by {
			t.Errorf("%q is not before %q in %q: %s", tt.used, tt.by, names, tt.why)
		}
	}
}

// TestDaemonStops runs a whole daemon on a fake kernel. Its end leaves the host as it is,
// and what it knows on disk. (TestMain looks for goroutines that it leaves behind.)
func TestDaemonStops(t *testing.T) {
	w := &world{t: t, trace: &trace{names: make(map[mesh.ID]string)}, dir: t.TempDir()}
	w.mark("start")
	w.write("secret", base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{1}, 32)), 0o600)
	w.configure("node: {name: a1, endpoint: 203.0.113.1}\ncni: {enabled: false}\n")
	cfg, err := config.Load(filepath.Join(w.dir, "meshd.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	free := netip.MustParseAddrPort("127.0.0.1:0")
	cfg.Gossip.Bind, cfg.Metrics.Listen = free, free
	dir, err := state.Open(filepath.Join(w.dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	d := newDaemon(Options{RunDir: filepath.Join(w.dir, "run"), Logger: slog.New(slog.DiscardHandler)}, cfg)
	kernel := &fakeKernel{trace: w.trace, facts: hostFacts("203.0.113.1")}
	d.disk.dir, d.kernel, d.underlay, d.services = dir, kernel, fakeUnderlay{make(chan struct{})}, &fakeServices{w.trace, w.dir}
	remembered, err := d.loadState("machine")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- runTasks(ctx, d.tasks(remembered)) }()
	c := control.NewClient(d.opt.RunDir)
	for s, err := c.Status(ctx); err != nil || s.Reconcile.LastSuccess.IsZero(); s, err = c.Status(ctx) {
		if wait.Sleep(ctx, 10*time.Millisecond) != nil {
			t.Fatalf("got %+v and %v, want a turn that succeeds", s, err)
		}
	}
	writes := kernel.Writes()
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := c.Status(t.Context()); !errors.Is(err, control.ErrNotRunning) {
		t.Errorf("after the end: got %v, want %v", err, control.ErrNotRunning)
	}
	if objects, err := dir.Objects(); err != nil || len(objects.Objects) != 1 {
		t.Errorf("on disk: got %d objects, %v, want this node's record", len(objects.Objects), err)
	}
	if got := kernel.Writes(); got != writes {
		t.Errorf("the host was written to %d times, want %d as before the end", got, writes)
	}
}
