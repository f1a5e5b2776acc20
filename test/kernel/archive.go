// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// archive writes a cpio archive in the "newc" format, which is what the kernel
// unpacks as its first root (Documentation/driver-api/early-userspace/
// buffer-format.rst in its source). Archives may follow one another, and later
// ones overwrite.
type archive struct {
	w     *bufio.Writer
	inode int
	dirs  map[string]bool
}

func newArchive(w io.Writer) *archive {
	return &archive{w: bufio.NewWriterSize(w, 1<<20), dirs: map[string]bool{"/": true}}
}

// Modes of entries, as in stat(2).
const (
	modeDir     = 0o040755
	modeFile    = 0o100000
	modeSymlink = 0o120777
)

// header writes an entry's header and name; size bytes and padding must follow.
func (a *archive) header(path string, mode, size int64) error {
	a.inode++
	name := strings.TrimPrefix(path, "/") + "\x00"
	links := 1
	if mode == modeDir {
		links = 2
	}
	// magic, inode, mode, user, group, links, time, size, device, device of
	// special files, length of the name, checksum
	_, err := fmt.Fprintf(a.w, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s",
		a.inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, len(name), 0, name)
	return errors.Join(err, a.pad(110+int64(len(name))))
}

// pad fills up to a multiple of four.
func (a *archive) pad(length int64) error {
	_, err := a.w.Write(make([]byte, (4-length%4)%4))
	return err
}

// dir adds a directory and its parents, once.
func (a *archive) dir(path string) error {
	if a.dirs[path] {
		return nil
	}
	a.dirs[path] = true
	return errors.Join(a.dir(filepath.Dir(path)), a.header(path, modeDir, 0))
}

// bytes adds a file with the given content.
func (a *archive) bytes(path string, perm fs.FileMode, content []byte) error {
	return a.file(path, perm, int64(len(content)), strings.NewReader(string(content)))
}

func (a *archive) file(path string, perm fs.FileMode, size int64, content io.Reader) error {
	if err := errors.Join(a.dir(filepath.Dir(path)), a.header(path, modeFile|int64(perm), size)); err != nil {
		return err
	}
	n, err := io.Copy(a.w, content)
	if err == nil && n != size {
		err = fmt.Errorf("add %s: got %d bytes, want %d", path, n, size)
	}
	return errors.Join(err, a.pad(size))
}

// symlink adds a symbolic link.
func (a *archive) symlink(path, target string) error {
	if err := errors.Join(a.dir(filepath.Dir(path)), a.header(path, modeSymlink, int64(len(target)))); err != nil {
		return err
	}
	_, err := a.w.WriteString(target)
	return errors.Join(err, a.pad(int64(len(target))))
}

// copy adds a file or a directory of this machine, with everything below it, at
// the given path. Links in it are followed.
func (a *archive) copy(path, source string) error {
	info, err := os.Stat(source)
	if err != nil {
		return fmt.Errorf("add to image: %w", err)
	}
	if info.IsDir() {
		entries, err := os.ReadDir(source)
		if err != nil {
			return fmt.Errorf("add to image: %w", err)
		}
		if err := a.dir(path); err != nil {
			return err
		}
		for _, e := range entries {
			if err := a.copy(filepath.Join(path, e.Name()), filepath.Join(source, e.Name())); err != nil {
				return err
			}
		}
		return nil
	}
	f, err := os.Open(source)
	if err != nil {
		return fmt.Errorf("add to image: %w", err)
	}
	defer f.Close()
	return a.file(path, info.Mode().Perm(), info.Size(), f)
}

// Close ends the archive. The underlying writer stays open.
func (a *archive) Close() error {
	return errors.Join(a.header("TRAILER!!!", 0, 0), a.w.Flush())
}
