// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshd/meshd/internal/check"
	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/connect"
	"github.com/meshd/meshd/internal/control"
)

// checkTimeout bounds the time for reading the host's state.
const checkTimeout = 30 * time.Second

func newCheck(p *paths) *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check this host for problems, without changing anything",
		Long: `Check this host for everything that could keep meshd from working: configuration,
secret and state, kernel, ports, firewall, MTU, address ranges, CNI plugins,
directories that the unit may write to, clock, and the names and addresses in the
configuration. For each problem it prints what to do. It changes nothing, whether or
not the daemon runs. Run it as root; without root it checks only what it may read.

The exit code is 1 if it found an error, and 2 if the configuration can't be read.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, broken, err := config.Inspect(p.config)
			if err != nil {
				return err
			}
			_, brokenLinks := connect.ReadLinks(p.config, cfg)
			o := check.Options{StateDir: p.stateDir, Config: append(broken, brokenLinks...)}
			ctx, cancel := context.WithTimeout(cmd.Context(), checkTimeout)
			defer cancel()
			if s, err := p.client().Status(ctx); err == nil {
				addStatus(&o, s)
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

// addStatus adds what the daemon knows.
func addStatus(o *check.Options, s control.Status) {
	o.Running, o.Nodes, o.Overlay = true, len(s.Peers)+1, s.Node.Overlay
	for _, i := range s.Node.InternalIPs {
		o.InternalIPs = append(o.InternalIPs, i.Address)
	}
	for _, peer := range s.Peers {
		o.Endpoints = append(o.Endpoints, peer.Candidates...)
		if peer.Endpoint.IsValid() {
			o.Endpoints = append(o.Endpoints, peer.Endpoint)
		}
		if peer.LANAddress.IsValid() {
			o.Neighbors = append(o.Neighbors, peer.LANAddress)
		}
		if peer.Etcd != "" {
			// Etcd goes along the route. Where that is not measured, the path and gossip are about as long.
			o.Members = append(o.Members, check.Member{Node: peer.Name, Timings: peer.Etcd, RTT: cmp.Or(peer.Route.RTT, peer.Path.RTT, peer.RTT).Duration()})
		}
	}
}

// report is the result of a check.
type report struct {
	Findings []check.Finding `json:"findings"`
}

// print writes a line for each finding, and below it one with the advice.
func (r report) print(w io.Writer) error {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, f := range r.Findings {
		fmt.Fprintf(t, "%s\t%s\t%s\n", f.Level, f.What, strings.ReplaceAll(f.Text, "\n", "; "))
		if f.Advice != "" {
			fmt.Fprintf(t, "\t\t→ %s\n", strings.ReplaceAll(f.Advice, "\n", "\n\t\t  "))
		}
	}
	t.Flush() // writing to a strings.Builder never fails
	_, err := io.WriteString(w, b.String())
	return err
}

// err returns an error if there is a finding of that level.
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
