// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/meshd/meshd/internal/check"
	"github.com/meshd/meshd/internal/config"
	"github.com/spf13/cobra"
)

func newCheck(p *paths) *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Look for what would keep meshd from working on this host, and change nothing",
		Long: `Look for what would keep meshd from working on this host: configuration, secret
and state, kernel, ports, firewall, MTU, address ranges, CNI plugins, what the unit
may write to, clock, and the names and addresses in the configuration. For each
problem it says what to do. It changes nothing, with or without a running daemon.
It needs root; without, it looks at what it may.

It ends with exit code 1 if it found an error, and with 2 if the configuration
can't be read at all.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, wrongs, err := loadConfig(p.config)
			if err != nil {
				return err
			}
			o := check.Options{StateDir: p.stateDir, Config: wrongs}
			ctx, cancel := context.WithTimeout(cmd.Context(), askTimeout)
			defer cancel()
			if s, err := p.client().Status(ctx); err == nil {
				o.Running, o.Nodes, o.Overlay = true, len(s.Peers)+1, s.Node.Overlay
				for _, i := range s.Node.InternalIPs {
					o.InternalIPs = append(o.InternalIPs, i.Address)
				}
			}
			r := report{check.Evaluate(cfg, check.ReadFacts(ctx, cfg, o))}
			if err := out.print(cmd.OutOrStdout(), r, r.print); err != nil {
				return err
			}
			return r.err()
		},
	}
	out.register(cmd)
	return cmd
}

// loadConfig returns the configuration also where only what it refers to is
// wrong, the secret or the host name, with what is wrong there.
func loadConfig(path string) (config.Config, []error, error) {
	cfg, err := config.Load(path)
	if err == nil {
		return cfg, nil, nil
	}
	data, readErr := os.ReadFile(path)
	if readErr != nil {
		return cfg, nil, err
	}
	cfg, parseErr := config.Parse(path, data)
	if parseErr != nil {
		return cfg, nil, err
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return cfg, joined.Unwrap(), nil
	}
	return cfg, []error{err}, nil
}

// report is what check found.
type report struct {
	Findings []check.Finding `json:"findings"`
}

// print writes a line for each finding, and one for what to do about it.
func (r report) print(w io.Writer) error {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, f := range r.Findings {
		fmt.Fprintf(t, "%s\t%s\t%s\n", f.Level, f.What, strings.ReplaceAll(f.Text, "\n", "; "))
		if f.Advice != "" {
			fmt.Fprintf(t, "\t\t→ %s\n", strings.ReplaceAll(f.Advice, "\n", "\n\t\t  "))
		}
	}
	t.Flush() // to a strings.Builder, which takes everything
	_, err := io.WriteString(w, b.String())
	return err
}

// err is an error if one was found, for the exit code.
func (r report) err() error {
	errs := 0
	for _, f := range r.Findings {
		if f.Level == check.Error {
			errs++
		}
	}
	switch errs {
	case 0:
		return nil
	case 1:
		return errors.New("one error was found")
	}
	return fmt.Errorf("%d errors were found", errs)
}
