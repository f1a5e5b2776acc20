// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/meshd/meshd/internal/netcfg/filter"
)

// lockWait is how many seconds iptables waits for another one that runs.
const lockWait = "10"

// arguments are those of the command that adds the rule.
func (c AcceptChange) arguments() []string {
	args := []string{"-A", c.Chain}
	if c.Before != 0 {
		args = []string{"-I", c.Chain, strconv.Itoa(c.Before)}
	}
	args = append(args, strings.Fields(c.Match)...)
	return append(args, "-m", "comment", "--comment", c.Comment, "-j", "ACCEPT")
}

// String returns the change as one line, an added rule as its command.
func (c AcceptChange) String() string {
	if c.Remove {
		return fmt.Sprintf("- %s rule %s in %s", c.Program, c.Comment, c.Chain)
	}
	return fmt.Sprintf("+ %s %s", c.Program, strings.Join(c.arguments(), " "))
}

// applyAccept adds a rule to a chain of iptables or takes it out.
func (h *Host) applyAccept(ctx context.Context, c AcceptChange) error {
	if c.Remove {
		return h.removeAccept(ctx, c)
	}
	return h.iptables(ctx, c.Program, c.arguments())
}

// removeAccept deletes the first rule with the comment. It is deleted by all that
// it says, not by its number: that may be another's by now.
func (h *Host) removeAccept(ctx context.Context, c AcceptChange) error {
	text, err := listRules(ctx, c.Program, "filter", c.Chain)
	if err != nil {
		return err
	}
	for line := range strings.Lines(text) {
		words := filter.Words(line)
		if len(words) > 2 && words[0] == "-A" && slices.Contains(words, c.Comment) {
			words[0] = "-D"
			return h.iptables(ctx, c.Program, words)
		}
	}
	return nil
}

// iptables runs a program that writes a table of others.
func (h *Host) iptables(ctx context.Context, program string, args []string) error {
	h.writes.Add(1)
	out, err := exec.CommandContext(ctx, program, append([]string{"-w", lockWait}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("run %s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// removeAccepts takes our rules out of all tables of iptables.
func (h *Host) removeAccepts(ctx context.Context) ([]string, error) {
	tables, err := h.observeFilters(ctx)
	if err != nil {
		return nil, err
	}
	var removed []string
	var errs []error
	for _, c := range diffAccepts(tables, nil, true) {
		if err := h.applyAccept(ctx, c); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, fmt.Sprintf("%s rule %s in %s", c.Program, c.Comment, c.Chain))
	}
	return removed, errors.Join(errs...)
}
