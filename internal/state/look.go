// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/mesh"
)

// Inspection is the state of a state directory.
type Inspection struct {
	Locked bool    // another process has the directory open
	Origin Origin  // what Identity would return
	ID     mesh.ID // of the identity in the file; zero if Origin is Made
}

// Inspect reads the files that Open, Identity, Node and Objects would read, and changes
// nothing. A directory that does not exist is like one before the first start. Errors wrap
// ErrDamaged or ErrNewer if a file's content is the cause. Damaged objects are not an
// error, because a daemon runs without them.
func Inspect(path, machineID string) (Inspection, error) {
	d := &Dir{path: path}
	seen := Inspection{Origin: Made}
	var err error
	if seen.Locked, err = locked(filepath.Join(path, lockFile)); err != nil {
		return seen, fmt.Errorf("look at state directory: %w", err)
	}
	if _, err := d.Node(); err != nil {
		return seen, err
	}
	if _, err := d.Objects(); err != nil && !errors.Is(err, ErrDamaged) {
		return seen, err
	}
	data, err := os.ReadFile(d.file(IdentityFile))
	if errors.Is(err, fs.ErrNotExist) {
		return seen, nil
	}
	if err != nil {
		return seen, fmt.Errorf("read identity: %w", err)
	}
	id, boundTo, err := d.parseIdentity(data)
	if err != nil {
		return seen, err
	}
	seen.Origin, seen.ID = Loaded, id.ID()
	if boundTo != machineHash(machineID) {
		seen.Origin = Cloned
	}
	return seen, nil
}

// locked reports whether a process holds the lock. It tries to take a shared lock and
// releases it at once, because flock(2) has no other way to find out.
func locked(path string) (bool, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}
