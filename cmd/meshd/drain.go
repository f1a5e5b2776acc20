// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

// errNotRelieved is the failure of a drain after which others still rely on
// this node.
var errNotRelieved = errors.New("this node still carries the traffic of others")

func newDrain(p *paths) *cobra.Command {
	var (
		out  output
		undo bool
	)
	cmd := &cobra.Command{
		Use:   "drain",
		Short: "Have another gateway take over before this host goes down for a while",
		Long: `Ask to be relieved as the gateway of this location, and wait until another
node has taken over, ten seconds at most. Connections go on. The node stays a
member and does not become a gateway again until the daemon is restarted or
meshd drain --undo is run. On a node that is no gateway nothing happens, or
no more than that it does not become one.

It ends with exit code 1 if nobody takes over.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), askTimeout)
			defer cancel()
			d, err := p.client().Drain(ctx, undo)
			if err != nil {
				return err
			}
			err = out.print(cmd.OutOrStdout(), d, func(w io.Writer) error {
				_, err := fmt.Fprintln(w, d.Text)
				return err
			})
			if err == nil && !undo && d.Gateway {
				err = errNotRelieved
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&undo, "undo", false, "let this node be a gateway again")
	out.register(cmd)
	return cmd
}
