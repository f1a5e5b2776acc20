// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"os/exec"
	"slices"
	"strings"

	"github.com/meshd/meshd/internal/check"
	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/test/lab"
)

// shows returns a condition for await: the status has a problem of this kind, with
// each of the words in its text or advice.
func shows(kind mesh.ProblemKind, words ...string) func(control.Status) bool {
	return func(s control.Status) bool {
		return slices.ContainsFunc(s.Problems, func(p mesh.Problem) bool {
			return p.Kind == kind && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(p.Text+p.Advice, w) })
		})
	}
}

// all returns a condition for await: all of the conditions hold.
func all(conditions ...func(control.Status) bool) func(control.Status) bool {
	return func(s control.Status) bool {
		return !slices.ContainsFunc(conditions, func(ok func(control.Status) bool) bool { return !ok(s) })
	}
}

// not negates a condition.
func not(ok func(control.Status) bool) func(control.Status) bool {
	return func(s control.Status) bool { return !ok(s) }
}

func (m *testbed) status(n *lab.Node) control.Status {
	m.t.Helper()
	s, err := n.Status(m.ctx)
	m.must(err)
	return s
}

// check runs meshd check on a node and returns the errors that it found, with
// their advice. Warnings depend on the machine: its clock, its kernel.
func (m *testbed) check(n *lab.Node, env ...string) []check.Finding {
	m.t.Helper()
	cmd := n.Command(m.ctx, binary, "check", "-o", "json")
	cmd.Env(env...)
	out, err := cmd.Output()
	var exit *exec.ExitError
	code := 0
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		m.must(err)
	}
	var report struct{ Findings []check.Finding }
	m.must(json.Unmarshal([]byte(out), &report))
	var found []check.Finding
	for _, f := range report.Findings {
		if f.Level == check.Error {
			found = append(found, f)
		}
	}
	if want := min(len(found), 1); code != want {
		m.t.Errorf("exit code with %d errors: got %d, want %d", len(found), code, want)
	}
	return found
}

// dualStack are settings that the tests of IPv6 add.
var dualStack = []string{"cluster:", "  overlay: [10.4.0.0/16, fd00:4::/112]", "  pods: [10.42.0.0/16, fd00:42::/48]", "  services: [10.43.0.0/16, fd00:43::/112]"}

// follow runs the commands of an advice, as a person would.
func (m *testbed) follow(n *lab.Node, advice string) {
	m.t.Helper()
	commands, _, _ := strings.Cut(strings.TrimPrefix(advice, "run: "), " (and ")
	for command := range strings.SplitSeq(commands, "; ") {
		words := strings.Fields(command)
		m.run(n, words[0], words[1:]...)
	}
}
