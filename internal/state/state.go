// SPDX-License-Identifier: Apache-2.0

// Package state keeps what a node must not forget: /var/lib/meshd.
//
//	lock           held while a daemon runs, so that no two share the directory
//	identity.json  who the node is: its ed25519 identity and its WireGuard key
//	node.json      what it has promised: its slot, its last sequence, and the
//	               settings that it follows instead of its file's
//	objects.cbor   what it knows of others: their signed objects, and how long
//	               they have been away
//
// They differ in what their loss means. Without its identity a node is another
// node, without node.json it may take another slot; so a file that can't be
// read is an error for a person to decide on, and is never replaced. Without
// objects.cbor it only asks its join list again, so the daemon sets a damaged
// one aside and runs on.
//
// All files are written whole (package atomicfile): after a crash or on a full
// disk the old state stays.
package state

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/atomicfile"
)

// Names of the files in a state directory, for SetAside.
const (
	IdentityFile = "identity.json"
	NodeFile     = "node.json"
	ObjectsFile  = "objects.cbor"

	lockFile = "lock"
)

// Everything here is for root's eyes: one file holds private keys, and the
// others say who is in the mesh.
const (
	dirMode  = 0o700
	fileMode = 0o600
)

// Sentinel errors.
var (
	// ErrLocked says that another process has the directory open.
	ErrLocked = errors.New("another meshd runs with this directory")
	// ErrDamaged says that a file is torn, or not meshd's.
	ErrDamaged = errors.New("damaged")
	// ErrNewer says that a later meshd wrote a file.
	ErrNewer = errors.New("written by a newer meshd")
)

// Dir is an open state directory.
type Dir struct {
	path string
	lock *os.File
}

// Open opens the directory at path and makes it if need be, readable by its
// owner only. It locks the directory until Close, or until the process ends
// however it ends. The error wraps ErrLocked if another process was first.
func Open(path string) (*Dir, error) {
	if err := os.MkdirAll(path, dirMode); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	// The directory may be older than this process and open to all.
	if err := os.Chmod(path, dirMode); err != nil {
		return nil, fmt.Errorf("close state directory to others: %w", err)
	}
	lock, err := lockFileOf(path, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, fmt.Errorf("open state directory %s: %w", path, err)
	}
	d := &Dir{path: path, lock: lock}
	if err := d.sweep(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// Lock keeps daemons from using the directory at path until the returned Closer
// is closed, and makes nothing there: without a directory there is nothing to
// lock. The error wraps ErrLocked if a daemon uses it.
func Lock(path string) (io.Closer, error) {
	f, err := lockFileOf(path, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return io.NopCloser(nil), nil
	}
	if err != nil {
		return nil, fmt.Errorf("lock state directory %s: %w", path, err)
	}
	return f, nil
}

// lockFileOf opens the lock file of a directory and takes the lock.
func lockFileOf(dir string, flags int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), flags, fileMode)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrLocked
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// sweep removes what a killed writer left behind. It holds the lock, so there
// is no living one.
func (d *Dir) sweep() error {
	for _, name := range []string{IdentityFile, NodeFile, ObjectsFile} {
		files, err := atomicfile.Leftovers(d.file(name))
		if err != nil {
			return err
		}
		for _, f := range files {
			if err := os.Remove(f); err != nil {
				return fmt.Errorf("remove temporary file: %w", err)
			}
		}
	}
	return nil
}

// Close gives the directory free for other processes.
func (d *Dir) Close() error {
	if err := d.lock.Close(); err != nil {
		return fmt.Errorf("unlock state directory: %w", err)
	}
	return nil
}

// SetAside renames the file of that name, so that the next read finds none, and
// returns the file's new path. A file that was set aside earlier is kept too.
func (d *Dir) SetAside(name string) (string, error) {
	return d.setAside(name, "damaged")
}

// setAside appends reason to a file's name, and a number if that name is taken.
// link(2), unlike rename(2), never replaces a file.
func (d *Dir) setAside(name, reason string) (string, error) {
	from := d.file(name)
	for n := 1; ; n++ {
		to := from + "." + reason
		if n > 1 {
			to = fmt.Sprintf("%s-%d", to, n)
		}
		err := os.Link(from, to)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("set aside: %w", err)
		}
		if err := os.Remove(from); err != nil {
			return "", fmt.Errorf("set aside: %w", err)
		}
		return to, nil
	}
}

func (d *Dir) file(name string) string { return filepath.Join(d.path, name) }
