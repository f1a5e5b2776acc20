// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshd/meshd/internal/control"
)

// completeTimeout bounds how long the shell waits for names.
const completeTimeout = time.Second

// completeNames completes a command's only argument with names from the daemon's status. Without one, there are
// none.
func completeNames(p *paths, names func(control.Status) []string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return askNames(cmd, p, names), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeFlag completes a flag in the same way.
func completeFlag(cmd *cobra.Command, p *paths, flag string, names func(control.Status) []string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return askNames(cmd, p, names), cobra.ShellCompDirectiveNoFileComp
	}) // fails only for an unknown flag
}

func askNames(cmd *cobra.Command, p *paths, names func(control.Status) []string) []string {
	ctx, cancel := context.WithTimeout(cmd.Context(), completeTimeout)
	defer cancel()
	s, err := p.client().Status(ctx)
	if err != nil {
		return nil
	}
	return names(s)
}

// nodeNames are the names of the other nodes.
func nodeNames(s control.Status) (names []string) {
	for _, p := range s.Peers {
		names = append(names, p.Name)
	}
	return names
}

// allNodeNames are the names of all nodes.
func allNodeNames(s control.Status) []string { return append(nodeNames(s), s.Node.Name) }

// placeNames are the names of the other nodes and of the locations.
func placeNames(s control.Status) (names []string) {
	seen := make(map[string]bool)
	for _, p := range s.Peers {
		for _, name := range []string{p.Name, p.Location} {
			if name != "" && !seen[name] {
				names = append(names, name)
			}
			seen[name] = true
		}
	}
	return names
}

func clientNames(s control.Status) (names []string) {
	for _, c := range s.Clients {
		names = append(names, c.Name)
	}
	return names
}

// hostNames are the names of all nodes and clients.
func hostNames(s control.Status) []string { return append(allNodeNames(s), clientNames(s)...) }
