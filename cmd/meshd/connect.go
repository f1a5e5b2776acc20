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

	sd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/meshd/meshd/internal/connect"
	"github.com/meshd/meshd/internal/control"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// maxDeviceName is how long a network device's name may be (IFNAMSIZ without the terminating zero).
const maxDeviceName = unix.IFNAMSIZ - 1

// tellSystemd tells systemd that the tunnels are set up, and how they are. Without systemd it does nothing.
func tellSystemd(status string) {
	// An error means that systemd's socket is gone, and then nobody listens.
	_, _ = sd.SdNotify(false, sd.SdNotifyReady+"\nSTATUS="+status)
}

func newConnect(p *paths) *cobra.Command {
	var (
		device  string
		verbose bool
	)
	cmd := &cobra.Command{
		Use:   "connect FILE",
		Short: "Connect this client, and keep its tunnels up to date",
		Long: `Connect this client with the configuration that meshd client add has printed, instead
of wg-quick, and keep the tunnels up to date: it asks the nodes for changes through
the tunnels. When the node that carries Services dies, they move to another node within
seconds. It runs until SIGINT or SIGTERM, and then removes everything that it has set
up. It can't run on a host that is a node, which has node.links instead.

It accepts only answers that are signed by a node whose fingerprint is in the file or
in an earlier answer. It never routes a network into the tunnels that the file does
not name, or that this host is attached to.

With --access internet nothing but the tunnels' own packets leaves this host for the
internet beside them. That stays so if meshd connect dies: then run it again, and end it.

With the package, systemd runs it: meshd-connect@home.service takes the file
/etc/meshd/connect/home.conf, and the device is mesh-home. systemctl status shows how
many nodes answer, and through which one Services are reached.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			// A node's daemon would remove these tunnels, as those of a link that is no longer wanted.
			if _, err := os.Stat(filepath.Join(p.stateDir, "identity.json")); !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("%w: this host is or was a node: %s contains its identity; a node gets to another cluster by node.links", control.ErrRefused, p.stateDir)
			}
			if len(device) > maxDeviceName {
				return usageError{fmt.Errorf("%s has %d characters, and a network device's name may have %d; choose a shorter --interface, or with meshd-connect@.service a shorter name of the file", device, len(device), maxDeviceName)}
			}
			text, err := os.ReadFile(args[0])
			if err != nil {
				return usageError{fmt.Errorf("read configuration: %w", err)}
			}
			file, err := connect.ParseFile(string(text))
			if err != nil {
				return usageError{fmt.Errorf("%s: %w; use a file that meshd client add has written", args[0], err)}
			}
			return connect.Run(cmd.Context(), connect.Options{
				Interface: device, File: file, Logger: newLogger(cmd.ErrOrStderr(), verbose), Now: time.Now, Resolver: net.DefaultResolver,
				Status: tellSystemd,
			})
		},
	}
	cmd.Flags().StringVar(&device, "interface", "mesh0", "`name` of the WireGuard device")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "log in detail")
	return cmd
}
