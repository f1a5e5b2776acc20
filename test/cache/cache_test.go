// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// TestOnceForAll has several make one entry at once.
func TestOnceForAll(t *testing.T) {
	c := Cache{t.TempDir()}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			dir, err := c.Get("entry", func(dir string) error {
				return os.WriteFile(filepath.Join(dir, "file"), []byte("whole"), 0o644)
			})
			if err != nil {
				t.Error(err)
				return
			}
			if b, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(b) != "whole" {
				t.Errorf("got %q, %v, want the whole entry", b, err)
			}
		})
	}
	wg.Wait()
	if _, err := c.Get("broken", func(string) error { return os.ErrInvalid }); !errors.Is(err, os.ErrInvalid) {
		t.Errorf("got %v, want the reason why there is no entry", err)
	}
	entries, err := os.ReadDir(c.dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("got %v, %v, want one entry and nothing half made", entries, err)
	}
}

func TestForgets(t *testing.T) {
	c := Cache{t.TempDir()}
	old := time.Now().Add(-2 * life)
	for _, name := range []string{"unused", "used"} {
		if err := os.Mkdir(filepath.Join(c.dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(filepath.Join(c.dir, name), old, old); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"used", "new"} {
		if _, err := c.Get(name, func(string) error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	var left []string
	entries, err := os.ReadDir(c.dir)
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if want := []string{"new", "used"}; err != nil || !slices.Equal(left, want) {
		t.Errorf("entries: got %q, %v, want %q", left, err, want)
	}
}
