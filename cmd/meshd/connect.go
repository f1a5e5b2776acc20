// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/meshd/meshd/internal/connect"
	"github.com/meshd/meshd/internal/control"
	"github.com/spf13/cobra"
)

func newConnect(p *paths) *cobra.Command {
	var (
		device  string
		verbose bool
	)
	cmd := &cobra.Command{
		Use:   "connect FILE",
		Short: "Connect this client, and keep its tunnels current",
		Long: `Connect this client with the configuration that meshd client add has written, in
the place of wg-quick, and keep the tunnels current: the nodes are asked, through the
tunnels, for what has changed. When the node that Services go through dies, they go
through another one within seconds. It runs until SIGINT or SIGTERM, and undoes
everything then. It is not for a host that is a node.

An answer counts if a node has signed it whose fingerprint is in the file, or was in
an answer before. It leads to no network beyond those that the file names, and to
none that this host is in.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			// A node's routes and rules carry the same marks.
			if _, err := os.Stat(filepath.Join(p.stateDir, "identity.json")); !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("%w: this host is a node, or was one: %s has its identity", control.ErrRefused, p.stateDir)
			}
			text, err := os.ReadFile(args[0])
			if err != nil {
				return fmt.Errorf("read configuration: %w", err)
			}
			file, err := connect.ParseFile(string(text))
			if err != nil {
				return usageError{fmt.Errorf("%s: %w; it must be as meshd client add writes it", args[0], err)}
			}
			return connect.Run(cmd.Context(), connect.Options{
				Interface: device, File: file, Logger: newLogger(cmd.ErrOrStderr(), verbose), Now: time.Now, Resolver: net.DefaultResolver,
			})
		},
	}
	cmd.Flags().StringVar(&device, "interface", "mesh0", "`name` of the WireGuard device")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "log what happens in detail")
	return cmd
}
