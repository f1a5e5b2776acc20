// SPDX-License-Identifier: Apache-2.0

// Package atomicfile replaces files atomically. A reader, also after a power failure, finds
// either the old content or the new one, never a part of it: the data is written to a
// temporary file, synced to disk, and renamed to the target (rename(2)).
//
// The temporary file must be in the target's directory. A rename across file systems isn't
// atomic, and containerd does not notice a CNI configuration that is moved in from another
// directory. Its name begins with a dot and ends in ".tmp", so that no program reads it as
// a configuration.
package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Write replaces the content of the file at path. The file gets exactly the given mode; the
// umask does not apply. After an error the old file is still there, and no temporary file
// remains. The only exception is an error of the last step, the sync of the directory: then
// the new content is there, but may be lost in a power failure.
func Write(path string, data []byte, mode os.FileMode) error {
	dir := filepath.Dir(path)
	if err := replace(dir, path, data, mode); err != nil {
		return fmt.Errorf("write %s: %w", path, withoutPath(err))
	}
	if err := syncDir(dir); err != nil {
		return fmt.Errorf("write %s: sync its directory: %w", path, err)
	}
	return nil
}

// withoutPath removes the temporary file's name from an error, because it is random and of
// no use to a reader.
func withoutPath(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return fmt.Errorf("%s: %w", p.Op, p.Err)
	}
	return err
}

func replace(dir, path string, data []byte, mode os.FileMode) error {
	prefix, suffix := affixes(path)
	f, err := os.CreateTemp(dir, prefix+"*"+suffix)
	if err != nil {
		return err
	}
	if err := errors.Join(fill(f, data, mode), f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

func fill(f *os.File, data []byte, mode os.FileMode) error {
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	// Without Sync, some file systems write the rename before the data, and a power failure
	// leaves an empty file at the target's path.
	return f.Sync()
}

// syncDir syncs a rename to disk, see fsync(2).
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Leftovers returns the temporary files of path that killed processes have left, sorted.
// While another process writes path, its temporary file is among them. A missing directory
// is not an error.
func Leftovers(path string) ([]string, error) {
	dir := filepath.Dir(path)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("look for leftovers of %s: %w", path, err)
	}
	prefix, suffix := affixes(path)
	var found []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) && strings.HasSuffix(e.Name(), suffix) {
			found = append(found, filepath.Join(dir, e.Name()))
		}
	}
	return found, nil
}

// affixes returns the prefix and the suffix of the names of path's temporary files.
func affixes(path string) (prefix, suffix string) {
	return "." + filepath.Base(path) + ".", ".tmp"
}
