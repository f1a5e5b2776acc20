// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"

	"github.com/meshd/meshd/internal/control"
	"github.com/spf13/cobra"
)

func newRevoke(p *paths) *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:   "revoke NODE",
		Short: "Shut a node's identity out for ever",
		Long: `Shut a node's identity out for ever, on all nodes, and free its slot. NODE is a
name or a fingerprint, which need not be known here. The node may be alive: its
tunnels are taken down, and the clients that it has added, and what it has
forgotten or revoked, go with it. It can't be taken back: if the host is to return, it
needs a new identity, and so another state directory.

Whoever runs that host still has the secret, and with it can make another
identity. Change the secret too, or trust a list, see cluster.trust.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), askTimeout)
			defer cancel()
			r, err := p.client().Revoke(ctx, args[0])
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
	_, err := fmt.Fprintf(w, "Identity %v%s is revoked. Its host still has the secret: change that, too.\n", r.ID, of)
	return err
}
