// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/meshd/meshd/internal/control"
	"github.com/spf13/cobra"
)

func newRenumber(p *paths) *cobra.Command {
	var (
		out   output
		force bool
	)
	cmd := &cobra.Command{
		Use:   "renumber",
		Short: "Give this node other addresses, after its slot turned out to be another node's",
		Long: `Give up this node's slot, and with it its overlay addresses and pod CIDRs, and
claim another one. It is for a node whose slot belongs to another node, which
meshd status says; without such a conflict it needs --force.

Pods that run on this node keep the addresses that they have, which lead
nowhere then. Delete them, so that new ones take their place; k3s must be
restarted if it was told the overlay address.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), askTimeout)
			defer cancel()
			r, err := p.client().Renumber(ctx, force)
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), r, func(w io.Writer) error { return printRenumbered(w, r) })
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "also where nothing is wrong with the slot")
	out.register(cmd)
	return cmd
}

func printRenumbered(w io.Writer, r control.Renumbered) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "\tSLOT\tOVERLAY\tPODS\n")
	for _, row := range []struct {
		name string
		slot control.Slot
	}{{"former", r.Former}, {"now", r.Now}} {
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\n", row.name, row.slot.Slot, join(row.slot.Overlay), join(row.slot.PodCIDRs))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprint(w, `
Pods that ran here have their old addresses still, and can't be reached. Once
meshd status shows the new ones, delete these pods; their successors are well:
  kubectl delete pods --all-namespaces --field-selector spec.nodeName=NODE
If k3s was told the former overlay address (node-ip), change it there and restart k3s.
`)
	return err
}
