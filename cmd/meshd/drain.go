// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

// errNotReplaced is returned if no other node has taken over.
var errNotReplaced = errors.New("this node still carries the traffic of other nodes")

func newDrain(p *paths) *cobra.Command {
	var (
		out  output
		undo bool
	)
	cmd := &cobra.Command{
		Use:   "drain",
		Short: "Have another node take over this one's traffic, before maintenance",
		Long: `Have another node replace this one as the gateway of its location, and wait for that,
ten seconds at most. Connections continue. The node stays in the mesh and does not
become a gateway again until the daemon is restarted or meshd drain --undo is run. On a
node that is not a gateway, it only keeps the node from becoming one. Another node also
takes over each network behind this node that it serves as well, in every cluster.mode.

The last gateway of a location, or the last node that serves a network, can't be drained:
the command says why each other node can't take over, and the exit code is 4. It is 1 if
no node takes over in time.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := p.client().Drain(cmd.Context(), undo)
			if err != nil {
				return err
			}
			err = out.print(cmd.OutOrStdout(), d, func(w io.Writer) error {
				_, err := fmt.Fprintln(w, d.Text)
				return err
			})
			if err == nil && !undo && (d.Gateway || len(d.Networks) > 0) {
				err = errNotReplaced
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&undo, "undo", false, "let this node carry traffic of others again")
	out.register(cmd)
	return cmd
}
