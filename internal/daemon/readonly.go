// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/cni"
	"github.com/meshd/meshd/internal/config"
)

// explainReadOnly adds to an error about a read-only file system how to let the daemon
// write to these directories. systemd makes every directory read-only that the unit does
// not name, or that did not exist when the daemon started.
func explainReadOnly(err error, dirs ...string) error {
	if !errors.Is(err, unix.EROFS) || len(dirs) == 0 {
		return err
	}
	dropIn := strings.ReplaceAll(config.DropIn(dirs...), "\n", " and ")
	return fmt.Errorf("%w; the unit meshd.service may keep it read-only: run mkdir -p %s, write %s into what systemctl edit meshd opens, a line each, and run systemctl restart meshd", err, strings.Join(dirs, " "), dropIn)
}

// directories returns the directories of the changed files.
func directories(changes []cni.Change) []string {
	var out []string
	for _, c := range changes {
		out = append(out, filepath.Dir(c.Path))
	}
	slices.Sort(out)
	return slices.Compact(out)
}
