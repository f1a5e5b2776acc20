// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/meshd/meshd/internal/atomicfile"
)

// dirMode and fileMode let all users read: a conflist has no secrets, and other tools read
// it.
const (
	dirMode  = 0o755
	fileMode = 0o644
)

// Observe reads the state of the host.
func Observe(c Config) (Status, error) {
	var s Status
	var err error
	path := filepath.Join(c.ConfDir, FileName)
	if s.Conflist, err = os.ReadFile(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Status{}, fmt.Errorf("observe conflist: %w", err)
	}
	if s.Others, err = others(c.ConfDir); err != nil {
		return Status{}, fmt.Errorf("observe other networks: %w", err)
	}
	if s.Leftovers, err = atomicfile.Leftovers(path); err != nil {
		return Status{}, fmt.Errorf("observe conflist: %w", err)
	}
	for _, name := range PluginNames() {
		p, err := observePlugin(c, name)
		if err != nil {
			return Status{}, fmt.Errorf("observe plugin %s: %w", name, err)
		}
		s.Plugins = append(s.Plugins, p)
	}
	return s, nil
}

// others returns the names of all files that containerd reads except ours: those with the
// extensions that it passes to libcni's ConfFiles.
func others(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() || e.Name() == FileName {
			continue
		}
		switch filepath.Ext(e.Name()) {
		case ".conf", ".conflist", ".json":
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func observePlugin(c Config, name string) (Plugin, error) {
	p := Plugin{Name: name}
	path := filepath.Join(c.BinDir, name)
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return Plugin{}, err
	default:
		p.Exists = true
	}
	if p.Exists && info.Mode()&fs.ModeSymlink != 0 {
		if p.Link, err = os.Readlink(path); err != nil {
			return Plugin{}, err
		}
	}
	p.Works = isFile(path)
	p.InSource = isFile(filepath.Join(c.PluginSource, name))
	return p, nil
}

// isFile reports whether libcni would run a plugin at that path.
func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// Apply makes the changes in order. It stops at the first one that fails, because later
// ones may depend on it, and names it in the error. Earlier changes are kept; another
// Observe and Plan return the remaining ones.
func Apply(changes []Change) error {
	for _, c := range changes {
		if err := c.apply(); err != nil {
			return fmt.Errorf("%s: %w", c, err)
		}
	}
	return nil
}

func (c Change) apply() error {
	switch c.Kind {
	case Link:
		if err := os.MkdirAll(filepath.Dir(c.Path), dirMode); err != nil {
			return err
		}
		return os.Symlink(c.Target, c.Path)
	case Write:
		if err := os.MkdirAll(filepath.Dir(c.Path), dirMode); err != nil {
			return err
		}
		return atomicfile.Write(c.Path, c.Content, fileMode)
	case Delete:
		// It is no error if the file was deleted in the meantime.
		if err := os.Remove(c.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
