// SPDX-License-Identifier: Apache-2.0

// Package atomicfile writes files whole. A reader, or this program after a
// power cut, finds either the old content or the new one, never a part of it:
// the data goes to a temporary file beside the target, is forced to the disk,
// and takes the target's place by rename(2).
//
// The temporary file lies in the target's own directory on purpose. A rename
// across file systems isn't atomic, and containerd overlooks a CNI
// configuration that is moved in from elsewhere. Its name begins with a dot and
// ends in ".tmp", so that nothing takes it for a configuration.
package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Write makes data the content of the file at path, with exactly the given
// mode: the umask does not apply. After an error the old file is still in place,
// and no temporary file remains. The one exception is an error of the very last
// step, forcing the directory to the disk: then the new content is in place,
// but may be lost in a power cut.
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

// withoutPath leaves out which file it was: the temporary one's name is another
// each time, and tells nobody anything.
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
	// Without it, some file systems write the rename before the data, and a
	// power cut leaves an empty file under the target's name.
	return f.Sync()
}

// syncDir forces a rename to the disk, see fsync(2).
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Leftovers returns the temporary files that writers of path left behind when
// they were killed, sorted. While another process writes path, they include
// that one's. A missing directory has none.
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

// affixes returns what the names of path's temporary files begin and end with.
func affixes(path string) (prefix, suffix string) {
	return "." + filepath.Base(path) + ".", ".tmp"
}
