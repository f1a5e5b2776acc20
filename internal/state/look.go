// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/mesh"
)

// Seen is what Look found in a state directory.
type Seen struct {
	Locked bool    // another process has the directory open
	Origin Origin  // what Identity would say
	ID     mesh.ID // of the identity that is there; zero if Origin is Made
}

// Look reads what Open, Identity, Node and Objects would read, and changes
// nothing: it makes, moves and repairs no file. A directory that does not exist is
// one before the first start. Errors wrap ErrDamaged or ErrNewer if they are due to
// a file's content. Damaged objects are no error: a daemon does without them.
func Look(path, machineID string) (Seen, error) {
	d := &Dir{path: path}
	seen := Seen{Origin: Made}
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
	if boundTo != machineHash(strings.TrimSpace(machineID)) {
		seen.Origin = Cloned
	}
	return seen, nil
}

// locked says whether a process holds the lock. It asks for a shared lock and
// gives it back at once, because flock(2) has no other way to ask.
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
