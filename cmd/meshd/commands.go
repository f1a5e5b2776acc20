// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/daemon"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// The build sets these: -ldflags "-X main.version=… -X main.commit=… -X main.date=…".
var (
	version = "unreleased"
	commit  = "unknown"
	date    = "unknown" // of the commit, YYYY-MM-DD
)

// paths are the values of the flags that every command has.
type paths struct{ config, stateDir, runDir string }

func (p paths) client() *control.Client { return control.NewClient(p.runDir) }

// newGroup makes a command that only has others below it.
func newGroup(use, short string, below ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  noCommand,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(below...)
	return cmd
}

// noCommand checks the arguments of a command that only has others below it.
func noCommand(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return unknownCommand(cmd, args[0])
	}
	return nil
}

func newRoot() *cobra.Command {
	var p paths
	root := &cobra.Command{
		Use:   "meshd",
		Short: "A WireGuard mesh for k3s hosts, without a coordinator",
		Long: `meshd joins hosts that share nothing but the internet into one network that
k3s can run on. A host needs only the shared secret and one other host's address;
the rest is discovered automatically. meshd finds the other hosts by gossip, sets up
WireGuard, routes and firewall rules, and installs the CNI configuration.

Exit codes: 0 success, 1 failure, 2 wrong command line or configuration,
3 the daemon is not running, 4 the daemon refuses the request, 5 a duplicate of this
node runs on another host.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version,
		Args:          noCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(flagError)
	root.SetVersionTemplate("meshd {{.Version}}\n")
	flags := root.PersistentFlags()
	flags.StringVar(&p.config, "config", "/etc/meshd.yaml", "configuration `file`")
	flags.StringVar(&p.stateDir, "state-dir", "/var/lib/meshd", "`directory` of the node's persistent state")
	flags.StringVar(&p.runDir, "run-dir", "/run/meshd", "`directory` of the control socket and of what lasts until the next boot")
	root.AddCommand(newInit(&p), newToken(&p), newJoin(&p), newRun(&p), newStatus(&p), newGraph(&p), newPlan(&p), newCheck(&p), newNetcheck(&p), newIP(&p), newWhoIs(&p), newPing(&p), newWhy(&p), newBugreport(&p), newClient(&p), newConnect(&p), newDrain(&p), newForget(&p), newRevoke(&p), newRenumber(&p), newDown(&p), newImport(), newSecret(&p), newMan(), newVersion())
	checkArgs(root)
	return root
}

// checkArgs turns errors about the arguments of any command into usage errors, and refuses flags with
// an empty value: that of a shell's variable that is not set.
func checkArgs(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := errors.Join(check(cmd, args), checkFlags(cmd.Flags())); err != nil {
				if !cmd.HasSubCommands() { // else unknownCommand has said that
					err = fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())
				}
				return usageError{err}
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		checkArgs(sub)
	}
}

func checkFlags(flags *pflag.FlagSet) (err error) {
	flags.Visit(func(f *pflag.Flag) {
		if value := f.Value.String(); value == "" || value == "[]" {
			err = errors.Join(err, fmt.Errorf("--%s is empty: give it a value, or leave it out", f.Name))
		}
	})
	return err
}

// gcPercent is by how much the heap may grow before it is collected (GOGC). The daemon
// allocates little once it runs, so collecting earlier than at the default of 100 costs
// next to nothing, and memory that an attack made it allocate is soon freed.
const gcPercent = 50

func newRun(p *paths) *cobra.Command {
	var verbose bool
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the daemon in the foreground",
		Long: `Run the daemon in the foreground until SIGINT or SIGTERM. Stopping it changes
nothing on the host: tunnels, routes and rules stay; meshd down removes them. SIGHUP
reloads the configuration. If a changed setting needs a restart, the daemon names it
and keeps the configuration that it has.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			reload := make(chan os.Signal, 1)
			signal.Notify(reload, syscall.SIGHUP)
			defer signal.Stop(reload)
			if os.Getenv("GOGC") == "" {
				debug.SetGCPercent(gcPercent)
			}
			return daemon.Run(cmd.Context(), daemon.Options{
				Config: p.config, StateDir: p.stateDir, RunDir: p.runDir,
				Version: version, Logger: newLogger(cmd.ErrOrStderr(), verbose), Reload: reload,
			})
		},
	}
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "log in detail")
	return cmd
}

func newPlan(p *paths) *cobra.Command {
	var (
		out     output
		without string
	)
	cmd := &cobra.Command{
		Use:   "plan",
		Short: "Preview pending changes (dry run)",
		Long: `Preview pending changes: what the daemon would change on this host now.

With --without, preview what the loss of a node, or of all nodes of a location, would
change on this host and on the routes from it. If etcd would lose its quorum with the
k3s servers among them, that comes first.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ask := p.client().Plan
			if without != "" {
				ask = func(ctx context.Context) (control.Plan, error) { return p.client().PlanWithout(ctx, without) }
			}
			plan, err := ask(cmd.Context())
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), plan, func(w io.Writer) error { return printPlan(w, plan) })
		},
	}
	cmd.Flags().StringVar(&without, "without", "", "preview the loss of the node or location `name`")
	completeFlag(cmd, p, "without", placeNames)
	out.register(cmd)
	return cmd
}

// printPlan writes a plan for a person, one line each.
func printPlan(w io.Writer, p control.Plan) error {
	lines := slices.Concat(p.Routes, p.Changes)
	if len(lines) == 0 {
		lines = []string{"Nothing to change."}
	}
	if p.Quorum != "" {
		lines = append([]string{p.Quorum}, lines...)
	}
	_, err := fmt.Fprintln(w, strings.Join(lines, "\n"))
	return err
}

func newForget(p *paths) *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:               "forget NODE",
		ValidArgsFunction: completeNames(p, nodeNames),
		Short:             "Remove a node that is gone for good, and free its addresses",
		Long: `Remove the records of a node that is gone for good, on all nodes, and free its slot.
NODE is a name or a fingerprint. A node that is alive can't be forgotten. A forgotten
node that starts again is back in the mesh.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := p.client().Forget(cmd.Context(), args[0]); err != nil {
				return err
			}
			done := struct {
				Node string `json:"node"` // as given
			}{args[0]}
			return out.print(cmd.OutOrStdout(), done, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "Node %s is forgotten on all nodes, and its addresses are free.\n", args[0])
				return err
			})
		},
	}
	out.register(cmd)
	return cmd
}

func newDown(p *paths) *cobra.Command {
	var (
		out   output
		force bool
	)
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Remove everything that meshd has set up on this host",
		Long: `Remove everything that meshd has set up on this host: device, routes, nft table, CNI
configuration and plugin links, and its port mappings on the router. The state directory
and kernel parameters are left as they are.

The daemon must be stopped, and so must k3s with its pods (k3s-killall.sh). While pods
are on the CNI bridge, the exit code is 4, and nothing is removed; with --force,
everything but the bridge is. These pods are then cut off from other nodes, send their
packets to the default route in plain text, and can't be stopped without the CNI plugins.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			removed, err := daemon.Down(cmd.Context(), daemon.Options{
				Config: p.config, StateDir: p.stateDir, RunDir: p.runDir, Logger: newLogger(cmd.ErrOrStderr(), false), Force: force,
			})
			done := struct {
				Removed []string `json:"removed"` // also what was removed before an error
			}{append([]string{}, removed...)}
			return errors.Join(err, out.print(cmd.OutOrStdout(), done, func(w io.Writer) error {
				for _, line := range removed {
					fmt.Fprintln(w, line)
				}
				return nil
			}))
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "remove it even while pods run")
	out.register(cmd)
	return cmd
}

func newVersion() *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show the version of meshd, with its commit and date",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := struct {
				Version string `json:"version"`
				Commit  string `json:"commit"`
				Date    string `json:"date"`
				Go      string `json:"go"`
			}{Version: version, Commit: commit, Date: date}
			if info, ok := debug.ReadBuildInfo(); ok {
				v.Go = info.GoVersion
			}
			return out.print(cmd.OutOrStdout(), v, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "meshd %s, commit %s of %s (%s)\n", v.Version, v.Commit, v.Date, v.Go)
				return err
			})
		},
	}
	out.register(cmd)
	return cmd
}

// output is the value of the -o flag.
type output struct {
	formats []string // the first one is the default; text and json if empty
	format  string
}

func (o *output) register(cmd *cobra.Command) {
	if len(o.formats) == 0 {
		o.formats = []string{"text", "json"}
	}
	o.format = o.formats[0]
	cmd.Flags().VarP(o, "output", "o", "output as `format`: "+o.choice())
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(o.formats, cobra.ShellCompDirectiveNoFileComp)) // fails only for an unknown flag
}

// choice lists the formats.
func (o *output) choice() string {
	last := len(o.formats) - 1
	return strings.Join(o.formats[:last], ", ") + " or " + o.formats[last]
}

func (o *output) is(format string) bool { return o.format == format }

func (o *output) String() string { return o.format }

// Type implements pflag.Value.
func (*output) Type() string { return "format" }

// Set implements pflag.Value.
func (o *output) Set(s string) error {
	if !slices.Contains(o.formats, s) {
		return fmt.Errorf("want %s, got %q", o.choice(), s)
	}
	o.format = s
	return nil
}

// print writes v as JSON, or calls text, as the flag says.
func (o *output) print(w io.Writer, v any, text func(io.Writer) error) error {
	if o.is("json") {
		return printJSON(w, v)
	}
	return text(w)
}

// printJSON writes v as indented JSON.
func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
