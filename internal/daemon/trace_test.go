// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/mesh"
)

var update = flag.Bool("update", false, "write the golden files anew")

// trace is what the loop did, in order, in sections. Each effect is one line: the method
// that was called, and with what. A turn without an effect is left out.
type trace struct {
	names map[mesh.ID]string

	mu       sync.Mutex
	began    time.Time
	sections []*section
	status   string
}

// section is a turn, or something that a test does.
type section struct {
	title   string
	at      time.Duration // since the trace began
	effects []effect
}

type effect struct {
	call, text string
	err        error
	look       bool // it reads, and changes nothing
}

func (e effect) String() string {
	s := fmt.Sprintf("%-22s %s", e.call, e.text)
	if e.err != nil {
		s += " (error: " + e.err.Error() + ")"
	}
	return strings.TrimSpace(s)
}

// Titles of sections. Others say what a test does.
const (
	inTurn  = "turn"
	between = "between two turns" // the last thing that a turn does is to feed the watchdog
)

// mark begins a section.
func (tr *trace) mark(title string) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if tr.began.IsZero() {
		tr.began = time.Now()
	}
	tr.sections = append(tr.sections, &section{title: title, at: time.Since(tr.began)})
}

// reset forgets everything so far.
func (tr *trace) reset() {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.began, tr.sections = time.Time{}, []*section{{title: between}}
}

// add records an effect, and look that something was read.
func (tr *trace) add(call, text string, err error) {
	tr.record(effect{call: call, text: text, err: err})
}

func (tr *trace) look(call string, err error) {
	tr.record(effect{call: call, err: err, look: err == nil})
}

func (tr *trace) record(e effect) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	s := tr.sections[len(tr.sections)-1]
	s.effects = append(s.effects, e)
}

// notify records what systemd is told. A status that has not changed and the watchdog are
// no effects.
func (tr *trace) notify(state string) {
	status, isStatus := strings.CutPrefix(state, "STATUS=")
	e := effect{call: "services.Notify", text: strings.SplitN(state, "\n", 2)[0], look: state == "WATCHDOG=1"}
	if isStatus {
		e.look, tr.status = status == tr.status, status
	}
	tr.record(e)
	if state == "WATCHDOG=1" {
		tr.mark(between)
	}
}

// all returns the sections as they are now.
func (tr *trace) all() (all []*section) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	for _, s := range tr.sections {
		all = append(all, &section{s.title, s.at, slices.Clone(s.effects)})
	}
	return all
}

// String prints all sections but the turns without an effect.
func (tr *trace) String() string {
	var b strings.Builder
	for _, s := range tr.all() {
		if (s.title == inTurn || s.title == between) && !s.writes() {
			continue
		}
		fmt.Fprintf(&b, "%s at %v\n", s.title, s.at)
		for _, e := range s.effects {
			fmt.Fprintf(&b, "  %s\n", e)
		}
	}
	return b.String()
}

// writes reports whether a section has an effect.
func (s *section) writes() bool {
	for _, e := range s.effects {
		if !e.look {
			return true
		}
	}
	return false
}

// play runs a scenario and returns its trace.
func play(t *testing.T, s scenario) (tr *trace) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, s.config)
		tr = w.trace
		s.run(w)
	})
	return tr
}

// TestTrace compares the trace of each scenario with a file below testdata/trace. After an
// intended change: go test -run TestTrace -update.
func TestTrace(t *testing.T) {
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			got := "# " + s.about + "\n\n" + play(t, s).String()
			path := filepath.Join("testdata", "trace", s.name+".txt")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}
