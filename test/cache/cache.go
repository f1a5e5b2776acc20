// SPDX-License-Identifier: Apache-2.0

// Package cache keeps what tests make of Debian's packages, for the runs after.
package cache

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Cache is a directory of entries, each made once and never changed. An entry's name is
// derived from its inputs, so other inputs give another name.
type Cache struct{ dir string }

// life is after what time without use an entry is removed.
const life = 14 * 24 * time.Hour

// Open opens the cache of this user, and makes it if need be.
func Open() (Cache, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return Cache{}, fmt.Errorf("find cache: %w", err)
	}
	c := Cache{filepath.Join(dir, "meshd-lab")}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return Cache{}, fmt.Errorf("make cache: %w", err)
	}
	return c, nil
}

// Get returns the entry of that name, which fill makes if there is none. It is
// made under another name first, so no process sees an incomplete one. When two make it
// at once, one of the results is discarded.
func (c Cache) Get(name string, fill func(dir string) error) (string, error) {
	path := filepath.Join(c.dir, name)
	now := time.Now()
	if os.Chtimes(path, now, now) == nil {
		return path, nil
	}
	c.prune(now)
	part, err := os.MkdirTemp(c.dir, "part-")
	if err != nil {
		return "", fmt.Errorf("make cache entry: %w", err)
	}
	defer os.RemoveAll(part)
	if err := fill(part); err != nil {
		return "", fmt.Errorf("make cache entry %s: %w", name, err)
	}
	if err := os.Rename(part, path); err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("make cache entry: %w", err)
	}
	return path, nil
}

// prune removes entries that have not been used for long, including incomplete ones. What
// it can't remove now is removed later.
func (c Cache) prune(now time.Time) {
	entries, _ := os.ReadDir(c.dir)
	for _, e := range entries {
		if info, err := e.Info(); err == nil && now.Sub(info.ModTime()) > life {
			_ = os.RemoveAll(filepath.Join(c.dir, e.Name()))
		}
	}
}
