// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshd/meshd/internal/check"
	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/control"
)

// readyTimeout is how long init and join wait until pods may start.
const readyTimeout = 2 * time.Minute

// setup makes a host a node: it writes the secret and the configuration, and starts the daemon.
type setup struct {
	paths      *paths
	out        io.Writer // what was done, and what comes next
	log        io.Writer // what is going on
	secretFile string

	// Flags.
	name, location, endpoint string
	set                      []string // KEY=VALUE
	noStart                  bool
}

func (s *setup) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&s.name, "name", "", "the node's `name` (default the host name)")
	flags.StringVar(&s.location, "location", "", "`name` of the location, whose nodes share a private network")
	flags.StringVar(&s.endpoint, "endpoint", "", "`host[:port]` at which others reach it (default discovered)")
	flags.StringArrayVar(&s.set, "set", nil, "any other setting of the configuration, as `key=value`, such as cluster.mode=location")
	flags.BoolVar(&s.noStart, "no-start", false, "only write the files; don't start meshd")
}

// begin prepares the setup for a command that runs.
func (s *setup) begin(cmd *cobra.Command, p *paths) error {
	s.paths, s.out, s.log = p, cmd.OutOrStdout(), cmd.ErrOrStderr()
	s.secretFile = filepath.Join(filepath.Dir(p.config), "meshd", "secret")
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: it writes to %s", fs.ErrPermission, filepath.Dir(p.config))
	}
	for _, file := range []string{p.config, s.secretFile} {
		if _, err := os.Lstat(file); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: %s exists, so this host is set up already, and nothing was changed; to begin anew, move it away", control.ErrRefused, file)
		}
	}
	return nil
}

// configure returns the configuration of this host, and its text. What is wrong with it is an error.
func (s *setup) configure(c config.Config, secret [32]byte) (config.Config, []byte, error) {
	settings := s.set
	for key, value := range map[string]string{"node.name": s.name, "node.location": s.location, "node.endpoint": s.endpoint, "secret-file": s.secretFile} {
		if value != "" {
			settings = append([]string{key + "=" + value}, settings...)
		}
	}
	for _, setting := range settings {
		key, value, ok := strings.Cut(setting, "=")
		if !ok {
			return c, nil, usageError{fmt.Errorf("--set %s: want key=value, such as cluster.mode=location", setting)}
		}
		if err := config.Set(&c, key, value); err != nil {
			return c, nil, err
		}
	}
	text, err := config.Write(c)
	if err != nil {
		return c, nil, err
	}
	if c, err = config.Complete(s.paths.config, text); err != nil {
		return c, nil, err
	}
	c.Secrets = config.Secrets{secret}
	return c, text, nil
}

// check inspects the host as meshd check does, and prints what is not in order. Errors end the setup.
func (s *setup) check(ctx context.Context, c config.Config) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	facts := check.ReadFacts(ctx, c, check.Options{StateDir: s.paths.stateDir})
	var r report
	for _, f := range check.Evaluate(c, facts) {
		if f.Level != check.OK {
			r.Findings = append(r.Findings, f)
		}
	}
	if err := r.print(s.log); err != nil {
		return err
	}
	if err := r.err(); err != nil {
		return fmt.Errorf("%w, and nothing was written", err)
	}
	if len(c.Join) > 0 && !facts.HasMet() {
		return errors.New("no node of the mesh has answered, and nothing was written: see that meshd runs there, and that TCP port 7946 is open to it")
	}
	return nil
}

// write writes the secret and the configuration: both, or none.
func (s *setup) write(text []byte, secret [32]byte) error {
	if err := os.MkdirAll(filepath.Dir(s.secretFile), 0o700); err != nil {
		return fmt.Errorf("make the directory of the secret: %w", err)
	}
	if err := writeSecret(s.secretFile, base64.StdEncoding.EncodeToString(secret[:])+"\n"); err != nil {
		return err
	}
	text = append([]byte("# Settings that are not here have their defaults: see man meshd.yaml.\n"), text...)
	if err := writeNew(s.paths.config, text, 0o644); err != nil {
		return errors.Join(fmt.Errorf("write the configuration: %w", err), os.Remove(s.secretFile))
	}
	return nil
}

// run makes this host a node. The configuration is what the mesh's nodes share.
func (s *setup) run(ctx context.Context, shared config.Config, secret [32]byte) (status control.Status, err error) {
	c, text, err := s.configure(shared, secret)
	if err != nil {
		return status, err
	}
	if err := s.check(ctx, c); err != nil {
		return status, err
	}
	if err := s.write(text, secret); err != nil {
		return status, err
	}
	fmt.Fprintf(s.out, "%s and %s are written.\n", s.paths.config, s.secretFile)
	if s.noStart {
		fmt.Fprintln(s.out, "Start meshd: systemctl enable --now meshd")
		return status, nil
	}
	if err := startService(ctx); err != nil {
		return status, err
	}
	if c.TrustsList() && len(c.Join) > 0 {
		return status, s.askForTrust(ctx)
	}
	fmt.Fprintln(s.log, "meshd has started; waiting until pods may start here …")
	if status, err = awaitReady(ctx, s.paths.client(), readyTimeout); err != nil {
		return status, fmt.Errorf("%w: it runs, and goes on trying", err)
	}
	fmt.Fprintln(s.out)
	return status, view{colors: hasColors(s.out)}.print(s.out, status, time.Now())
}

// askForTrust says what lets this host in where cluster.trust is list.
func (s *setup) askForTrust(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for {
		status, err := s.paths.client().Status(ctx)
		if err == nil {
			_, err = fmt.Fprintf(s.out, "cluster.trust is list: write the fingerprint of this node, %v, into\ncluster.trusted on the other nodes, and run systemctl reload meshd there.\nThen, here: meshd status --wait\n", status.Node.ID)
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w; the files are written: see journalctl -u meshd", err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// startService has systemd start the daemon, now and whenever the host boots.
func startService(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "systemctl", "enable", "--now", "meshd").CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return errors.New("start meshd: this host has no systemd; the files are written: run meshd run")
	}
	if err != nil {
		return fmt.Errorf("start meshd: systemctl enable --now meshd: %w: %s; the files are written: see journalctl -u meshd", err, strings.TrimSpace(string(out)))
	}
	return nil
}

func newInit(p *paths) *cobra.Command {
	var s setup
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make this host the first node of a new mesh",
		Long: `Make this host the first node of a new mesh: make a secret, write the configuration,
check the host, start meshd, and wait until pods may start here. Nothing is written
if the check finds an error, and nothing that exists is replaced.

Set here what must be the same on all nodes, since tokens carry it to the others:

  meshd init --set cluster.mode=location --location aws
  meshd init --set cluster.pods=10.52.0.0/16,fd52::/48 --set cluster.overlay=10.5.0.0/16,fd05::/112`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := s.begin(cmd, p); err != nil {
				return err
			}
			var secret [32]byte
			if _, err := rand.Read(secret[:]); err != nil {
				return fmt.Errorf("generate secret: %w", err)
			}
			status, err := s.run(cmd.Context(), config.Minimal(), secret)
			if err != nil || s.noStart {
				return err
			}
			ip := nodeIP(status)
			_, err = fmt.Fprintf(s.out, `
k3s, if its first server is to run here:
  k3s server --flannel-backend none --node-ip %s --advertise-address %s

To add a host: run meshd token here, install meshd there, and give it the token:
  meshd join
`, ip, status.Node.Overlay[0])
			return err
		},
	}
	s.register(cmd)
	return cmd
}

// nodeIP is the value of k3s's node-ip.
func nodeIP(s control.Status) string { return strings.ReplaceAll(join(s.Node.Overlay), " ", "") }
