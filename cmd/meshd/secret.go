// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/meshd/meshd/internal/control"
	"github.com/spf13/cobra"
)

func newSecret(p *paths) *cobra.Command {
	return newGroup("secret", "Generate or exchange the secret that the nodes of a mesh share",
		newSecretNew(), newSecretRotate(p))
}

func newSecretRotate(p *paths) *cobra.Command {
	var (
		out output
		yes bool
	)
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Exchange the secret on all nodes while the mesh runs",
		Long: `Exchange the secret on all nodes while the mesh runs. This node makes a new one and sends
it to each other node, sealed to that node's own key. All nodes accept the new secret
first, then use it, then drop the old one, and write each of these to their secret files.

It stops before a round in which a node is missing, which would be locked out, and names
it. Run it again when that node is back, or forgotten: it goes on where it was. meshd
status -o wide shows which node accepts which secrets, by short hashes.

It asks first, unless --yes is given.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !yes {
				if err := confirm(cmd, "Exchange the secret on all nodes? Tokens and copies of the old one will be worth nothing."); err != nil {
					return err
				}
			}
			w := cmd.OutOrStdout()
			var rounds []control.Rotated
			for {
				r, err := p.client().RotateSecret(cmd.Context())
				if err != nil {
					return err
				}
				rounds = append(rounds, r)
				if !out.is("json") {
					if err := printRotated(w, r); err != nil {
						return err
					}
				}
				if r.Finished {
					return out.print(w, rounds, func(w io.Writer) error { return printAfterRotation(w, r) })
				}
			}
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "don't ask")
	out.register(cmd)
	return cmd
}

// printRotated writes what all nodes have done in a round.
func printRotated(w io.Writer, r control.Rotated) error {
	did := "accept the new secret " + r.New.String()
	switch {
	case r.Finished:
		did = "have dropped the old secret " + r.Old.String()
	case r.Round == "use":
		did = "use it"
	}
	_, err := fmt.Fprintf(w, "%s: all nodes (%d) %s\n", r.Round, r.Nodes, did)
	return err
}

// printAfterRotation writes what is left to do after the last round.
func printAfterRotation(w io.Writer, r control.Rotated) error {
	text := "Tokens and copies of the old secret are worth nothing now; make new tokens with meshd token.\n"
	if r.Trust == "open" {
		text += "With cluster.trust: open, whoever held the old secret may have joined as a node before.\n" +
			"Look through meshd status for nodes that you don't know, and run meshd revoke for them.\n"
	}
	_, err := io.WriteString(w, text)
	return err
}

func newSecretNew() *cobra.Command {
	var (
		out  output
		file string
	)
	cmd := &cobra.Command{
		Use:   "new",
		Short: "Generate a new secret: 32 random bytes in base64",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var secret [32]byte
			if _, err := rand.Read(secret[:]); err != nil {
				return fmt.Errorf("generate secret: %w", err)
			}
			made := struct {
				Secret string `json:"secret,omitempty"` // unless it is in the file
				File   string `json:"file,omitempty"`
			}{File: file}
			line := base64.StdEncoding.EncodeToString(secret[:])
			if file == "" {
				made.Secret = line
			} else if err := writeSecret(file, line+"\n"); err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), made, func(w io.Writer) error {
				if file != "" {
					return nil
				}
				_, err := fmt.Fprintln(w, line)
				return err
			})
		},
	}
	out.register(cmd)
	cmd.Flags().StringVar(&file, "out", "", "write to this new `file`, mode 0600, instead of standard output")
	return cmd
}

// writeSecret creates a file. It never replaces one: without its secret a mesh can't get
// new nodes.
func writeSecret(path, line string) error {
	err := writeNew(path, []byte(line), 0o600)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("write secret: %s exists, and other nodes may use it; move it away first", path)
	}
	if err != nil {
		return fmt.Errorf("write secret: %w", err)
	}
	return nil
}

// writeNew creates a file, and never replaces one.
func writeNew(path string, content []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}
