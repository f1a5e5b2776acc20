// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/meshd/meshd/internal/kilo"
)

func newImport() *cobra.Command {
	return newGroup("import", "Write the configuration of a mesh that another program runs today",
		newImportKilo())
}

// importedSetup is where a setup was written.
type importedSetup struct {
	Directory string   `json:"directory"`
	Files     []string `json:"files"` // names in it
	Notes     []string `json:"notes"` // what a person should look at
}

func newImportKilo() *cobra.Command {
	var (
		out       output
		directory string
		pods      []string
	)
	cmd := &cobra.Command{
		Use:   "kilo FILE...",
		Short: "Convert Kilo's settings into each node's configuration, and its peers into clients",
		Long: `Read Kubernetes' objects as kubectl prints them, and write into a new directory a
configuration for each node, NODE.yaml, and a script that adds Kilo's peers as
clients, clients.sh. FILE is - for standard input. Nothing is changed in the cluster.

  kubectl get nodes,peers.kilo.squat.ai -o json >cluster.json
  kubectl -n kube-system get daemonset kilo -o json >agent.json
  meshd import kilo --out kilo cluster.json agent.json

The DaemonSet says which flags Kilo's agent has; without it Kilo's defaults count. What
can't be carried over is printed.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var s kilo.Setup
			for _, name := range args {
				data, err := readArgument(cmd.InOrStdin(), name)
				if err != nil {
					return err
				}
				if err := s.Add(data); err != nil {
					return fmt.Errorf("read %s: %w", name, err)
				}
			}
			result, err := s.Convert(pods)
			if err != nil {
				return fmt.Errorf("from %s: %w", strings.Join(args, ", "), err)
			}
			made := importedSetup{Directory: directory, Notes: result.Notes}
			if made.Files, err = writeSetup(directory, result); err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), made, made.print)
		},
	}
	out.register(cmd)
	cmd.Flags().StringVar(&directory, "out", "", "the new `directory`")
	cmd.Flags().StringSliceVar(&pods, "pods", nil, "`list` of the ranges of all pods, k3s's cluster-cidr (default meshd's, 10.42.0.0/16)")
	_ = cmd.MarkFlagRequired("out")
	return cmd
}

// readArgument reads a file, or standard input if its name is "-".
func readArgument(stdin io.Reader, name string) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(stdin)
	}
	return os.ReadFile(name)
}

// writeSetup makes the directory, with all of its files or not at all, and returns their names.
func writeSetup(directory string, r kilo.Result) (names []string, err error) {
	if err := os.Mkdir(directory, 0o755); err != nil {
		return nil, fmt.Errorf("make the directory: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(directory))
		}
	}()
	write := func(name string, content []byte, mode os.FileMode) error {
		names = append(names, name)
		return os.WriteFile(filepath.Join(directory, name), content, mode)
	}
	for _, f := range r.Files {
		if err := write(f.Node+".yaml", f.Content, 0o644); err != nil {
			return nil, err
		}
	}
	if r.Clients != "" {
		if err := write("clients.sh", []byte(r.Clients), 0o755); err != nil {
			return nil, err
		}
	}
	return names, nil
}

func (s importedSetup) print(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Written to %s: %s.\n", s.Directory, strings.Join(s.Files, ", "))
	for _, n := range s.Notes {
		b.WriteString("- " + n + "\n")
	}
	b.WriteString("Copy each file to its host as /etc/meshd.yaml, and one secret to all: meshd secret new. Then see meshd check there.\n")
	_, err := io.WriteString(w, b.String())
	return err
}
