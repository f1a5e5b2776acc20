// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/meshd/meshd/internal/config"
)

// maxTypos is by how many letters a word may differ from one that is suggested instead.
const maxTypos = 2

// unknownCommand explains an argument that a group of commands does not have as a command.
func unknownCommand(cmd *cobra.Command, arg string) error {
	var names []string
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			names = append(names, append(sub.Aliases, sub.Name())...)
		}
	}
	return fmt.Errorf("unknown command %q%s; see %s --help", arg, didYouMean(arg, names, cmd.CommandPath()+" "), cmd.CommandPath())
}

// flagError explains a mistake in a flag.
func flagError(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) || len(unknown.GetSpecifiedName()) < 2 {
		return usageError{fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, f.Name)
		}
	})
	return usageError{fmt.Errorf("%w%s; see %s --help", err, didYouMean(unknown.GetSpecifiedName(), names, "--"), cmd.CommandPath())}
}

// didYouMean suggests the known words that are nearest to one that is not, each after a prefix.
func didYouMean(word string, known []string, prefix string) string {
	var near []string
	best := maxTypos
	for _, k := range known {
		n := config.Distance(word, k)
		if strings.HasPrefix(k, word) {
			n = 0
		}
		switch {
		case n < best:
			best, near = n, []string{prefix + k}
		case n == best && n < len(k):
			near = append(near, prefix+k)
		}
	}
	if len(near) == 0 {
		return ""
	}
	slices.Sort(near)
	return "; did you mean " + strings.Join(near, " or ") + "?"
}
