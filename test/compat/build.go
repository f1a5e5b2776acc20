// SPDX-License-Identifier: Apache-2.0

// Package compat tests that neighbouring releases share a mesh: this meshd and the one of the
// commit that the file previous names, which is built from the history of this clone.
package compat

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/meshd/meshd/test/cache"
)

// previous has the full hash of the commit.
//
//go:embed previous
var previous string

// version is what the meshd of a commit says of itself here.
func version(commit string) string { return "commit-" + commit[:12] }

// build returns the meshd of a commit of the clone at root. It is built once and kept in the
// cache of tests.
func build(root, commit string) (string, error) {
	if err := reachable(root, commit); err != nil {
		return "", err
	}
	c, err := cache.Open()
	if err != nil {
		return "", err
	}
	dir, err := c.Get("compat-"+commit+"-"+runtime.Version()+"-"+runtime.GOARCH, func(dir string) error { return compile(root, commit, filepath.Join(dir, "meshd")) })
	return filepath.Join(dir, "meshd"), err
}

// reachable returns an error that says what to fetch, if the clone lacks the commit.
func reachable(root, commit string) error {
	if _, err := git(root, "rev-parse", "--quiet", "--verify", commit+"^{commit}"); err == nil {
		return nil
	}
	shallow, err := git(root, "rev-parse", "--is-shallow-repository")
	if err != nil {
		return fmt.Errorf("test/compat needs a clone of the repository, to build the commit that test/compat/previous names: %w", err)
	}
	if strings.TrimSpace(string(shallow)) == "true" {
		return fmt.Errorf("this clone is shallow and lacks commit %s, which test/compat/previous names: run git fetch --unshallow, or git fetch --depth 1 origin %s", commit, commit)
	}
	return fmt.Errorf("this clone lacks commit %s, which test/compat/previous names: run git fetch origin %s, or name a commit of this history there", commit, commit)
}

// compile builds the meshd of a commit from a copy of its files.
func compile(root, commit, binary string) error {
	source, err := os.MkdirTemp("", "meshd-compat-")
	if err != nil {
		return fmt.Errorf("make directory for the source: %w", err)
	}
	defer os.RemoveAll(source)
	files, err := git(root, "archive", commit)
	if err != nil {
		return err
	}
	tar := exec.Command("tar", "-x", "-C", source)
	tar.Stdin = bytes.NewReader(files)
	if out, err := tar.CombinedOutput(); err != nil {
		return fmt.Errorf("unpack source of commit %s: %w: %s", commit, err, out)
	}
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-X main.version="+version(commit), "-o", binary, "./cmd/meshd")
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build meshd of commit %s: %w: %s", commit, err, out)
	}
	return nil
}

func git(root string, args ...string) ([]byte, error) {
	out, err := exec.Command("git", append([]string{"-C", root}, args...)...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return nil, fmt.Errorf("git %s: %w", args[0], err)
	}
	return out, nil
}
