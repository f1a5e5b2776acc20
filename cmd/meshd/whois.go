// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/meshd/meshd/internal/control"
)

func newIP(p *paths) *cobra.Command {
	var (
		out       output
		four, six bool
	)
	cmd := &cobra.Command{
		Use:   "ip [NODE]",
		Short: "Print the overlay addresses of this node, another one, or a client",
		Long: `Print the overlay addresses of this node, or of another node or a client, one on a line:

  ssh root@$(meshd ip -4 gcp-1)`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: completeNames(p, hostNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := p.client().Status(cmd.Context())
			if err != nil {
				return err
			}
			addrs, err := addressesOf(s, args)
			if err != nil {
				return err
			}
			shown := []netip.Addr{}
			for _, a := range addrs {
				if four == six || a.Is4() == four {
					shown = append(shown, a)
				}
			}
			return out.print(cmd.OutOrStdout(), shown, func(w io.Writer) error {
				for _, a := range shown {
					fmt.Fprintln(w, a)
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVarP(&four, "ipv4", "4", false, "only IPv4")
	cmd.Flags().BoolVarP(&six, "ipv6", "6", false, "only IPv6")
	cmd.MarkFlagsMutuallyExclusive("ipv4", "ipv6")
	out.register(cmd)
	return cmd
}

// addressesOf returns the overlay addresses of the node or client that is named, or of this node.
func addressesOf(s control.Status, args []string) ([]netip.Addr, error) {
	if len(args) == 0 || args[0] == s.Node.Name {
		if len(s.Node.Overlay) == 0 {
			return nil, fmt.Errorf("%w: this node has no overlay address yet: meshd status says why", control.ErrRefused)
		}
		return s.Node.Overlay, nil
	}
	if p, ok := peerNamed(s, args[0]); ok {
		if len(p.Overlay) == 0 {
			return nil, fmt.Errorf("%w: there is no route to %s now: meshd why %s says why", control.ErrRefused, p.Name, p.Name)
		}
		return p.Overlay, nil
	}
	for _, c := range s.Clients {
		if c.Name == args[0] {
			return c.Overlay, nil
		}
	}
	return nil, unknownName(args[0], "node or client", hostNames(s))
}

// unknownName is the error for a name that nobody has.
func unknownName(name, what string, known []string) error {
	return fmt.Errorf("%w: no %s is named %s%s", control.ErrRefused, what, name, didYouMean(name, known, ""))
}

func newWhoIs(p *paths) *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:   "whois ADDRESS",
		Short: "Show what an address belongs to",
		Long: `Show what an address belongs to: a node, the pods of a node, a client, the Services, or a
network behind a node or a client. The exit code is 1 if it belongs to nothing in the
mesh.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := netip.ParseAddr(args[0])
			if err != nil {
				return usageError{fmt.Errorf("%q is not an address; give one such as 10.42.3.7", args[0])}
			}
			s, err := p.client().Status(cmd.Context())
			if err != nil {
				return err
			}
			owner := s.WhoIs(a)
			if err := out.print(cmd.OutOrStdout(), owner, func(w io.Writer) error {
				_, err := fmt.Fprintln(w, owner.Text)
				return err
			}); err != nil || owner.Kind != control.OwnerOutside {
				return err
			}
			return errSaid
		},
	}
	out.register(cmd)
	return cmd
}
