// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshd/meshd/internal/bugreport"
	"github.com/meshd/meshd/internal/config"
)

func newBugreport(p *paths) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "bugreport",
		Short: "Collect status, log and network state for a bug report, without secrets",
		Long: `Collect what others need to find a fault in one archive: the daemon's status, its log,
and the state of the host's network. The mesh's secret, private keys and passwords are
left out; names and addresses of hosts are included, so read it before you pass it on.

It works whether or not the daemon runs, and changes nothing.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			now := time.Now()
			name := "meshd-bugreport-" + now.UTC().Format("20060102T150405Z")
			if file == "" {
				file = name + ".tar.gz"
			}
			cfg, _, _ := config.Inspect(p.config) // what is wrong with it is in the report's check
			o := bugreport.Options{
				Name: name, Config: p.config, StateDir: p.stateDir, RunDir: p.runDir, SecretFile: cfg.SecretFile, Now: now,
				Entries: reportEntries(p),
			}
			f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return fmt.Errorf("write report: %w", err)
			}
			if err := errors.Join(bugreport.Write(cmd.Context(), f, o), f.Close()); err != nil {
				return errors.Join(err, os.Remove(file))
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "The report is in %s. It has names and addresses of hosts: read it before you pass it on.\n", file)
			return err
		},
	}
	cmd.Flags().StringVar(&file, "out", "", "write to this new `file` (default meshd-bugreport-TIME.tar.gz)")
	return cmd
}

// reportEntries are what meshd's own commands print.
func reportEntries(p *paths) (entries []bugreport.Entry) {
	for _, line := range []string{"version", "status -o wide", "status -o json", "plan", "check", "netcheck", "graph -o dot"} {
		name := "meshd/" + strings.ReplaceAll(line, " -o ", "-") + ".txt"
		entries = append(entries, bugreport.Entry{Name: name, Get: func(ctx context.Context) ([]byte, error) {
			var out bytes.Buffer
			cmd := newRoot()
			cmd.SetOut(&out)
			cmd.SetErr(&out)
			cmd.SetArgs(append(strings.Fields(line), "--config", p.config, "--state-dir", p.stateDir, "--run-dir", p.runDir))
			err := cmd.ExecuteContext(ctx)
			return out.Bytes(), err
		}})
	}
	return entries
}
