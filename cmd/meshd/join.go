// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/meshd/meshd/internal/config"
)

func newToken(p *paths) *cobra.Command {
	var (
		out     output
		address []string
	)
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Print what a host needs to join this mesh, as one string",
		Long: `Print what a host needs to join this mesh, as one string: the secret, the addresses of
this node, and the settings that all nodes share. meshd join takes it.

Whoever has it can join: handle it like a password. It is valid until the secret is
changed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(p.config)
			if err != nil {
				return err
			}
			s, err := p.client().Status(cmd.Context())
			if err != nil {
				return err
			}
			if len(address) == 0 {
				address = s.Node.JoinAt
			}
			if len(address) == 0 {
				return errors.New("this node has no address at which others find it; run meshd token on another one, or name one: --address HOST")
			}
			t := config.Token{Secret: cfg.Secrets[0], Cluster: cfg.Cluster, Trusted: cfg.Trusted}
			// The settings in force may be those of another node with a higher generation.
			t.Cluster.Generation, t.Cluster.Mode, t.Cluster.Encapsulation, t.Cluster.Gateways = s.Cluster.Generation, s.Cluster.Mode, s.Cluster.Encapsulation, s.Cluster.Gateways
			if len(s.Node.Overlay) > 0 {
				t.Server = s.Node.Overlay[0]
			}
			parsed := config.Minimal()
			if err := config.Set(&parsed, "join", strings.Join(address, ",")); err != nil {
				return usageError{err}
			}
			t.Join = parsed.Join
			text, err := t.Encode()
			if err != nil {
				return err
			}
			if s.Node.NAT && !s.Node.Open {
				fmt.Fprintln(cmd.ErrOrStderr(), "warning: no other node has reached this one so far; if its ports are not open, make the token on a node that others reach")
			}
			shown := struct {
				Token string `json:"token"`
			}{text}
			return out.print(cmd.OutOrStdout(), shown, func(w io.Writer) error {
				_, err := fmt.Fprintln(w, text)
				return err
			})
		},
	}
	cmd.Flags().StringSliceVar(&address, "address", nil, "`list` of addresses or names of nodes that the new host contacts, with the port if that is not 7946 (default those of this node)")
	out.register(cmd)
	return cmd
}

func newJoin(p *paths) *cobra.Command {
	var s setup
	cmd := &cobra.Command{
		Use:   "join [TOKEN|FILE|-]",
		Short: "Make this host a node of an existing mesh",
		Long: `Make this host a node of an existing mesh, with the token that meshd token has printed
on one of its nodes: write the secret and the configuration, check the host and greet
that node, start meshd, and wait until pods may start here. Nothing is written if the
check finds an error, and nothing that exists is replaced.

Without an argument it asks for the token, and does not show it. - is standard input.
A token given as an argument shows in the process list and in the shell's history.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := s.begin(cmd, p); err != nil {
				return err
			}
			text, err := readToken(cmd, args)
			if err != nil {
				return err
			}
			t, err := config.ParseToken(text)
			if err != nil {
				return usageError{err}
			}
			shared := config.Minimal()
			shared.Join, shared.Cluster, shared.Trusted = t.Join, t.Cluster, t.Trusted
			status, err := s.run(cmd.Context(), shared, t.Secret)
			if err != nil || len(status.Node.Overlay) == 0 { // not started, or not trusted yet
				return err
			}
			server := "ADDRESS"
			if t.Server.IsValid() {
				server = netip.AddrPortFrom(t.Server, 6443).String()
			}
			_, err = fmt.Fprintf(s.out, `
k3s, with the token in /var/lib/rancher/k3s/server/node-token of the server:
  k3s agent --server https://%s --node-ip %s --token TOKEN
`, server, nodeIP(status))
			return err
		},
	}
	s.register(cmd)
	return cmd
}

// readToken reads the token from where the arguments say.
func readToken(cmd *cobra.Command, args []string) (string, error) {
	if len(args) == 0 {
		f, ok := cmd.InOrStdin().(*os.File)
		if !ok || !isTerminal(f) {
			return "", usageError{errors.New("no token: give it as an argument, or - to read it from standard input; meshd token prints it on a node")}
		}
		fmt.Fprint(cmd.ErrOrStderr(), "Token, which meshd token prints on a node: ")
		text, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(cmd.ErrOrStderr())
		return string(text), err
	}
	if args[0] == "-" {
		text, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), maxToken))
		return string(text), err
	}
	text, err := os.ReadFile(args[0])
	if errors.Is(err, fs.ErrNotExist) || err != nil && strings.HasPrefix(args[0], config.TokenPrefix) { // too long for a name
		return args[0], nil
	}
	return string(text), err
}

// maxToken is far above the length of any token, in bytes.
const maxToken = 64 << 10
