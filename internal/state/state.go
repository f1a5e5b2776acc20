// SPDX-License-Identifier: Apache-2.0

// Package state stores a node's persistent state in /var/lib/meshd, and in /run/meshd what
// lasts until the next boot: the key of probes, and what a relay knows of sessions.
//
//	lock           held while a daemon runs, so that no two use the directory
//	identity.json  the node's ed25519 identity and its WireGuard key
//	node.json      what the node has announced: its slot, its last sequence, and the
//	               settings in effect instead of its own file's
//	objects.cbor   what the node knows about others: their signed objects, and how long
//	               they have been absent
//
// The loss of a file has different consequences. Without its identity a node becomes
// another node, and without node.json it may claim another slot. So if one of these can't
// be read, it is an error for a person to decide on, and the file is never replaced.
// Without objects.cbor the node only asks its join list again, so the daemon renames a
// damaged one and continues. A damaged path.json is replaced: others hear of the new key. So is
// a damaged relay.cbor: nodes bind to this relay again.
//
// All files are replaced atomically (package atomicfile): after a crash or on a full disk
// the old state is still there.
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

// Only root may read the state: one file contains private keys, and the others the members
// of the mesh.
const (
	dirMode  = 0o700
	fileMode = 0o600
)

// Sentinel errors.
var (
	// ErrLocked means that another process has the directory open.
	ErrLocked = errors.New("another meshd runs with this directory")
	// ErrDamaged means that a file is incomplete or corrupt, or not meshd's.
	ErrDamaged = errors.New("damaged")
	// ErrNewer means that a later version of meshd has written a file.
	ErrNewer = errors.New("written by a newer meshd")
)

// Dir is an open state directory.
type Dir struct {
	path string
	lock *os.File
}

// Open opens the directory at path, and makes it if necessary, readable only by its owner.
// It locks the directory until Close or until the process ends in any way. The error wraps
// ErrLocked if another process holds the lock.
func Open(path string) (*Dir, error) {
	if err := os.MkdirAll(path, dirMode); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	// An existing directory may be open to other users.
	if err := os.Chmod(path, dirMode); err != nil {
		return nil, fmt.Errorf("make state directory private: %w", err)
	}
	lock, err := takeLock(path, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, fmt.Errorf("open state directory %s: %w", path, err)
	}
	d := &Dir{path: path, lock: lock}
	if err := d.removeLeftovers(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// Lock keeps daemons from using the directory at path until the returned Closer is closed.
// It makes no files, so without a directory it does nothing. The error wraps ErrLocked if a
// daemon uses the directory.
func Lock(path string) (io.Closer, error) {
	f, err := takeLock(path, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return io.NopCloser(nil), nil
	}
	if err != nil {
		return nil, fmt.Errorf("lock state directory %s: %w", path, err)
	}
	return f, nil
}

// takeLock opens the lock file of a directory and takes the lock.
func takeLock(dir string, flags int) (*os.File, error) {
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

// removeLeftovers removes temporary files of a killed process. The lock makes sure that no
// running process uses them.
func (d *Dir) removeLeftovers() error {
	for _, name := range []string{IdentityFile, NodeFile, ObjectsFile} {
		if err := removeLeftovers(d.file(name)); err != nil {
			return err
		}
	}
	return nil
}

// replaceFile writes a file whose directory need not exist yet, and removes what killed processes have
// left of it. After an error the old file is still there.
func replaceFile(file string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), dirMode); err != nil {
		return err
	}
	if err := removeLeftovers(file); err != nil {
		return err
	}
	return atomicfile.Write(file, data, fileMode)
}

func removeLeftovers(path string) error {
	files, err := atomicfile.Leftovers(path)
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			return fmt.Errorf("remove temporary file: %w", err)
		}
	}
	return nil
}

// Close unlocks the directory.
func (d *Dir) Close() error {
	if err := d.lock.Close(); err != nil {
		return fmt.Errorf("unlock state directory: %w", err)
	}
	return nil
}

// SetAside renames a damaged file, so that the next read finds none, and returns its new
// path. It replaces no file that was renamed earlier.
func (d *Dir) SetAside(name string) (string, error) {
	return d.setAside(name, "damaged")
}

// setAside appends reason to a file's name, and a number if that name exists already. It
// uses link(2), which unlike rename(2) never replaces a file.
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
