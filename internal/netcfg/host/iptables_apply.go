// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"

	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/netcfg/filter"
)

// lockWait is how many seconds iptables waits for the lock that another iptables process
// holds.
const lockWait = "10"

// applyAccept adds a rule to a chain of iptables or removes it.
func (k *Kernel) applyAccept(ctx context.Context, c netcfg.AcceptChange) error {
	if c.Remove {
		return k.removeAccept(ctx, c)
	}
	return k.iptables(ctx, c.Program, c.Arguments())
}

// removeAccept deletes the first rule with the comment. It identifies the rule by its
// whole specification, not by its number, which may belong to another rule by now.
func (k *Kernel) removeAccept(ctx context.Context, c netcfg.AcceptChange) error {
	text, err := listRules(ctx, c.Program, "filter", c.Chain)
	if err != nil {
		return err
	}
	for line := range strings.Lines(text) {
		words := filter.Words(line)
		if len(words) > 2 && words[0] == "-A" && slices.Contains(words, c.Comment) {
			words[0] = "-D"
			return k.iptables(ctx, c.Program, words)
		}
	}
	return nil
}

// iptables runs a program that changes another program's table.
func (k *Kernel) iptables(ctx context.Context, program string, args []string) error {
	k.writes.Add(1)
	out, err := exec.CommandContext(ctx, program, append([]string{"-w", lockWait}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("run %s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// removeAccepts removes our rules from all tables of iptables.
func (k *Kernel) removeAccepts(ctx context.Context) ([]string, error) {
	tables, err := k.observeFilters(ctx)
	if err != nil {
		return nil, err
	}
	var removed []string
	var errs []error
	for _, c := range netcfg.Diff(netcfg.State{Filters: tables}, netcfg.State{}, netcfg.Options{Prune: true}).Accepts {
		if err := k.applyAccept(ctx, c); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, fmt.Sprintf("%s rule %s in %s", c.Program, c.Comment, c.Chain))
	}
	return removed, errors.Join(errs...)
}
