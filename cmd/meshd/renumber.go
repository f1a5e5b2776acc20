// SPDX-License-Identifier: Apache-2.0

package main

import (
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
		Short: "Give this node other addresses, to resolve a conflict",
		Long: `Give up this node's slot, and with it its overlay addresses and pod CIDRs, and claim
another one. Use it when meshd status reports that the slot belongs to another node;
without such a conflict it needs --force.

Pods that run on this node keep their old addresses and can't be reached any more.
Delete them, so that they are created again. Restart k3s if its configuration contains
the overlay address.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := p.client().Renumber(cmd.Context(), force)
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), r, func(w io.Writer) error { return printRenumbered(w, r) })
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "renumber even without a conflict")
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
Pods that ran here still have their old addresses and can't be reached. Once meshd
status shows the new ones, delete these pods, so that they are created again:
  kubectl delete pods --all-namespaces --field-selector spec.nodeName=NODE
If k3s has the former overlay address as node-ip, change it there and restart k3s.
On a server of k3s, run meshd check before: k3s keeps a certificate for the former one.
`)
	return err
}
