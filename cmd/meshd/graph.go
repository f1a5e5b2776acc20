// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"
)

func newGraph(p *paths) *cobra.Command {
	out := output{formats: []string{"dot", "svg", "json"}}
	cmd := &cobra.Command{
		Use:   "graph",
		Short: "Draw the mesh: locations, gateways, tunnels and LANs",
		Long: `Draw the mesh: locations, gateways, tunnels and LANs. The output is a graph in the
language of graphviz, whose programs dot and circo turn it into a picture:

  meshd graph | circo -Tpng > mesh.png

The tunnels of this node are labelled with their paths: lan, direct, relayed, tcp or none.
Run it on other nodes to see theirs. If there are too many tunnels to draw, they are left
out. Another cluster that is joined to this one is drawn once, in place of its clients.

With -o svg the output is a picture, for which dot must be installed, and with -o json
the data for it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if out.is("json") {
				g, err := p.client().Graph(cmd.Context())
				if err != nil {
					return err
				}
				return printJSON(cmd.OutOrStdout(), g)
			}
			dot, err := p.client().DOT(cmd.Context())
			if err != nil {
				return err
			}
			if out.is("svg") {
				return drawSVG(cmd.Context(), cmd.OutOrStdout(), dot)
			}
			_, err = io.WriteString(cmd.OutOrStdout(), dot)
			return err
		},
	}
	out.register(cmd)
	return cmd
}

// drawSVG writes the picture that graphviz makes of a graph.
func drawSVG(ctx context.Context, w io.Writer, dot string) error {
	cmd := exec.CommandContext(ctx, "dot", "-Tsvg")
	cmd.Stdin = strings.NewReader(dot)
	svg, err := cmd.Output()
	var exit *exec.ExitError
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return errors.New("draw svg: the program dot is not installed; run: apt install graphviz; or use -o dot, and draw it on another host")
	case errors.As(err, &exit):
		return fmt.Errorf("draw svg: dot: %w: %s", err, strings.TrimSpace(string(exit.Stderr)))
	case err != nil:
		return fmt.Errorf("draw svg: %w", err)
	}
	_, err = w.Write(svg)
	return err
}
