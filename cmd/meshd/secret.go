// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
)

func newSecret() *cobra.Command {
	return newGroup("secret", "Generate the secret that the nodes of a mesh share",
		newSecretNew())
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
