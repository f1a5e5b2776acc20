// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
)

func TestChanges(t *testing.T) {
	peer := func(n byte, alive bool, via ...string) control.Peer {
		return control.Peer{ID: mesh.ID{n}, Name: fmt.Sprint("n", n), Alive: alive, Route: control.Route{Kind: "direct", Via: via}}
	}
	peers := func(ps ...control.Peer) control.Status { return control.Status{Peers: ps} }
	many := func(alive bool) (out control.Status) {
		for n := range byte(9) {
			out.Peers = append(out.Peers, peer(n, alive))
		}
		return out
	}
	sick := control.Status{Problems: []mesh.Problem{{Kind: "k", Node: "n1", Text: "bad", Advice: "mend it"}}}
	for name, test := range map[string]struct {
		before, after control.Status
		want          []string
	}{
		"nothing":       {before: many(true), after: many(true)},
		"newcomer":      {before: peers(), after: peers(peer(1, true)), want: []string{"alive [peers n1 others 1 alive 1]"}},
		"of old":        {before: peers(), after: peers(peer(1, false))},
		"comes back":    {before: peers(peer(1, false)), after: peers(peer(1, true)), want: []string{"alive [peers n1 others 1 alive 1]"}},
		"goes":          {before: peers(peer(1, true), peer(2, true)), after: peers(peer(1, false), peer(2, true)), want: []string{"absent [peers n1 others 2 alive 1]"}},
		"is forgotten":  {before: peers(peer(1, false)), after: peers(), want: []string{"forgotten [peers n1 others 0 alive 0]"}},
		"many at once":  {before: many(false), after: many(true), want: []string{"alive [peers n0, n1, n2, n3, n4 and 4 more others 9 alive 9]"}},
		"routes":        {before: peers(peer(1, true, "a"), peer(2, true, "a"), peer(3, true, "c")), after: peers(peer(1, true, "b"), peer(2, true, "b"), peer(3, true)), want: []string{"route changed [peers n3 route direct]", "route changed [peers n1, n2 route direct via b]"}},
		"a problem":     {before: control.Status{}, after: sick, want: []string{"problem [kind k subject n1 text bad advice mend it]"}},
		"it stays":      {before: sick, after: sick},
		"and goes":      {before: sick, after: control.Status{}, want: []string{"problem is gone [kind k subject n1 text bad]"}},
		"is a gateway":  {before: control.Status{}, after: control.Status{Node: control.Node{Role: control.RoleGateway}}, want: []string{"role [role gateway]"}},
		"is none again": {before: control.Status{Node: control.Node{Role: control.RoleGateway}}, after: control.Status{}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, l := range changes(test.before, test.after) {
				got = append(got, fmt.Sprint(l.text, " ", l.args))
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("lines (-want +got):\n%s", diff)
			}
		})
	}
}

// A problem that comes and goes is told once.
func TestFlappingProblemIsLoggedOnce(t *testing.T) {
	var log strings.Builder
	d := newDaemon(Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}, config.Config{})
	well, ill := control.Status{}, control.Status{Problems: []mesh.Problem{{Kind: mesh.ProblemGateway, Node: "a", Text: "no way"}}}
	for range 5 {
		d.logChanges(well, ill)
		d.logChanges(ill, well)
	}
	if got := strings.Count(log.String(), "\n"); got != 2 {
		t.Errorf("got %d lines, want that it came and that it went:\n%s", got, &log)
	}
}

// A problem that came and went before is logged again when it stays, and so is its end.
func TestRepeatedProblemThatLasts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		d := newDaemon(Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}, config.Config{})
		well, ill := control.Status{}, control.Status{Problems: []mesh.Problem{{Kind: mesh.ProblemGateway, Node: "a", Text: "no way"}}}
		before := well
		for _, step := range []struct {
			status control.Status
			last   time.Duration
			want   string // the new lines
		}{
			{ill, resync, "problem"},
			{well, resync, "gone"},
			{ill, lasts / 2, ""},
			{well, 2 * lasts, ""},
			{ill, 2 * lasts, "problem"},
			{well, lasts / 2, ""},
			{ill, 2 * lasts, ""},
			{well, 2 * lasts, "gone"},
			{well, 2 * time.Hour, ""},
		} {
			log.Reset()
			for end := time.Now().Add(step.last); time.Now().Before(end); time.Sleep(resync) {
				d.logChanges(before, step.status)
				before = step.status
			}
			var got []string
			for line := range strings.Lines(log.String()) {
				if strings.Contains(line, "is gone") {
					got = append(got, "gone")
				} else {
					got = append(got, "problem")
				}
			}
			if got := strings.Join(got, " "); got != step.want {
				t.Errorf("%d problems for %v: logged %q, want %q", len(step.status.Problems), step.last, got, step.want)
			}
		}
	})
}

// Problems that were too many for the log are logged when it has room again, if they last.
func TestTooManyProblemsAreLoggedLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		d := newDaemon(Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}, config.Config{})
		var ill control.Status
		for i := range changesBurst + 5 {
			ill.Problems = append(ill.Problems, mesh.Problem{Kind: mesh.ProblemGateway, Text: fmt.Sprint("way ", i)})
		}
		d.logChanges(control.Status{}, ill)
		for range 20 {
			time.Sleep(changesPeriod)
			d.logChanges(ill, ill)
		}
		if got := strings.Count(log.String(), "\n"); got != len(ill.Problems) {
			t.Errorf("got %d lines, want %d:\n%s", got, len(ill.Problems), &log)
		}
	})
}

// An error that comes and goes is logged once, and again when it stays.
func TestRepeatedErrorThatLasts(t *testing.T) {
	var log strings.Builder
	j := newJournal(slog.New(slog.NewTextHandler(&log, nil)))
	start, space := time.Unix(1000, 0), errors.New("no space")
	for _, step := range []struct {
		after time.Duration
		err   error
		want  string
	}{
		{0, space, "no space"},
		{time.Second, nil, "works again"},
		{2 * time.Second, space, ""},
		{3 * time.Second, nil, ""},
		{4 * time.Second, space, ""},
		{4*time.Second + lasts, space, "no space"},
		{5*time.Second + lasts, space, ""},
		{6*time.Second + lasts, nil, "works again"},
	} {
		log.Reset()
		j.logResult(step.err, start.Add(step.after))
		if got := log.String(); !strings.Contains(got, step.want) || step.want == "" && got != "" {
			t.Errorf("%v after %v: logged %q, want %q in it", step.err, step.after, got, step.want)
		}
	}
}

// Of a problem that comes and goes while the loop runs, the log has one warning and its end, and
// status has it no longer than there is such a problem.
func TestProblemInTheLoopIsLoggedOnce(t *testing.T) {
	for name, test := range map[string]struct {
		kind       mesh.ProblemKind
		begin, end func(*world)
	}{
		"of gossip": {
			mesh.ProblemDuplicate,
			func(w *world) {
				w.hear(func(v *mesh.View) {
					v.Problems = []mesh.Problem{{Kind: mesh.ProblemDuplicate, Node: w.disk.identity.ID().String(), Text: "bad", Advice: "mend it"}}
				})
			},
			func(w *world) { w.hear(func(v *mesh.View) { v.Problems = nil }) },
		},
		"of a reload": {
			ProblemConfiguration,
			func(w *world) { w.configure("nod: {}"); w.signal() },
			func(w *world) { w.configure(standsAlone); w.signal() },
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log strings.Builder
				w := newWorld(t, standsAlone)
				w.log = slog.NewTextHandler(&log, nil)
				settled(w)
				isShown := func() bool {
					return slices.ContainsFunc(w.d.Status().Problems, func(p mesh.Problem) bool { return p.Kind == test.kind && p.Node == "a1" })
				}
				log.Reset()
				test.begin(w)
				w.pass(3 * resync)
				if !isShown() {
					t.Errorf("status has %v, want a problem of a1, %s", w.d.Status().Problems, test.kind)
				}
				test.end(w)
				if isShown() {
					t.Errorf("status still has the problem")
				}
				w.pass(3 * resync)
				w.end()
				var warnings, ends, kinds int
				for l := range strings.Lines(log.String()) {
					if strings.Contains(l, "level=WARN") || strings.Contains(l, "level=ERROR") {
						warnings++
					}
					if strings.Contains(l, `level=INFO msg="problem is gone"`) && strings.Contains(l, "lasted=30s") {
						ends++
					}
					if strings.Contains(l, "kind="+string(test.kind)) {
						kinds++
					}
				}
				if warnings != 1 || ends != 1 || kinds != 2 {
					t.Errorf("got %d warnings, %d ends after 30s and %d lines of the kind, want 1, 1 and 2:\n%s", warnings, ends, kinds, &log)
				}
			})
		})
	}
}

// A problem that says something else than before is still the same one.
func TestProblemWithAnotherTextHasNotGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		d := newDaemon(Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}, config.Config{})
		ill := func(text string) control.Status {
			return control.Status{Problems: []mesh.Problem{{Kind: mesh.ProblemGateway, Node: "a", Text: text}}}
		}
		before := control.Status{}
		for _, after := range []control.Status{ill("refused"), ill("timeout"), ill("refused"), ill("timeout"), {}} {
			d.logChanges(before, after)
			before = after
			time.Sleep(resync)
		}
		var got []string
		for l := range strings.Lines(log.String()) {
			_, text, _ := strings.Cut(strings.TrimSpace(l), "level=")
			got = append(got, text)
		}
		want := []string{
			`WARN msg=problem kind=no-gateway subject=a text=refused advice=""`,
			`WARN msg=problem kind=no-gateway subject=a text=timeout advice=""`,
			`INFO msg="problem is gone" kind=no-gateway subject=a text=timeout lasted=40s`,
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	})
}
