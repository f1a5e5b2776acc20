// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"

	"github.com/meshd/meshd/internal/control"
	"github.com/spf13/cobra"
)

func newRevoke(p *paths) *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:   "revoke NODE",
		Short: "Exclude a node's identity for ever",
		Long: `Exclude a node's identity for ever, on all nodes, and free its slot. NODE is a name or
a fingerprint, which need not be known here. The node may be alive: its tunnels are
removed, and so are the clients that it has added; nodes that it has forgotten or
revoked may return. Revoking can't be undone: if the host itself is to return, it needs
a new identity, and so another state directory.

Whoever controls that host still has the secret and can make a new identity with it.
Change the secret as well, or set cluster.trust to list.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := p.client().Revoke(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), r, func(w io.Writer) error { return printRevoked(w, r) })
		},
	}
	out.register(cmd)
	return cmd
}

func printRevoked(w io.Writer, r control.Revoked) error {
	of := ""
	if r.Name != "" {
		of = ", of " + r.Name + ","
	}
	_, err := fmt.Fprintf(w, "Identity %v%s is revoked. Its host still has the secret: change that as well.\n", r.ID, of)
	return err
}
