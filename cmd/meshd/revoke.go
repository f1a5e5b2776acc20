// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/meshd/meshd/internal/control"
	"github.com/spf13/cobra"
)

func newRevoke(p *paths) *cobra.Command {
	var (
		out output
		yes bool
	)
	cmd := &cobra.Command{
		Use:               "revoke NODE",
		ValidArgsFunction: completeNames(p, nodeNames),
		Short:             "Exclude a node's identity for ever",
		Long: `Exclude a node's identity for ever, on all nodes, and free its slot. NODE is a name or
a fingerprint, which need not be known here. The node may be alive: its tunnels are
removed, and so are the clients that it has added; nodes that it has forgotten or
revoked may return. Revoking can't be undone: if the host itself is to return, it needs
a new identity, and so another state directory.

Whoever controls that host still has the secret and can make a new identity with it.
Change the secret as well, or set cluster.trust to list.

It asks first, unless --yes is given.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !yes {
				if err := confirm(cmd, fmt.Sprintf("Exclude %s from the mesh for ever? This can't be undone.", args[0])); err != nil {
					return err
				}
			}
			r, err := p.client().Revoke(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), r, func(w io.Writer) error { return printRevoked(w, r) })
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "don't ask")
	out.register(cmd)
	return cmd
}

// confirm asks a person. It returns an error unless the answer is yes, and if there is nobody to ask.
func confirm(cmd *cobra.Command, question string) error {
	if f, ok := cmd.InOrStdin().(*os.File); ok && !isTerminal(f) {
		return usageError{errors.New("it asks before it does this, and standard input is not a terminal; run it with --yes")}
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s [y/N] ", question)
	answer, _ := bufio.NewReader(cmd.InOrStdin()).ReadString('\n') // at the end of the input it is no
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return errors.New("nothing was done")
}

func printRevoked(w io.Writer, r control.Revoked) error {
	of := ""
	if r.Name != "" {
		of = ", of " + r.Name + ","
	}
	_, err := fmt.Fprintf(w, "Identity %v%s is revoked. Its host still has the secret: change that as well.\n", r.ID, of)
	return err
}
